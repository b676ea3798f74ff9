"""Laws that hold after any history of commands, whoever sends which to whom in what order."""

from collections.abc import Iterator
from itertools import count
from typing import Any

from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from commands import HANDLERS, INTERNAL
from commands.accept_contact import AcceptContact
from commands.add_members import AddMembers
from commands.add_reaction import AddReaction
from commands.block_contact import BlockContact
from commands.change_password import ChangePassword
from commands.change_role import ChangeRole
from commands.command import Command
from commands.create_group import CreateGroup
from commands.delete_account import DeleteAccount
from commands.delete_group import DeleteGroup
from commands.delete_message import DeleteMessage
from commands.edit_message import EditMessage
from commands.leave_group import LeaveGroup
from commands.mark_delivered import MarkDelivered
from commands.mark_read import MarkRead
from commands.open_direct_chat import OpenDirectChat
from commands.record_deliveries import RecordDeliveries
from commands.register_user import RegisterUser
from commands.remove_attachment import RemoveAttachment
from commands.remove_contact import RemoveContact
from commands.remove_member import RemoveMember
from commands.remove_reaction import RemoveReaction
from commands.request_contact import RequestContact
from commands.send_message import SendMessage
from commands.set_status import SetStatus
from commands.settle_deletion import SettleDeletion
from commands.settle_presence import SettlePresence
from commands.transfer_ownership import TransferOwnership
from commands.unblock_contact import UnblockContact
from commands.update_group import UpdateGroup
from commands.update_profile import UpdateProfile
from commands.upload_attachment import StoredImage, UploadAttachment
from domain.attachment import Attachment, AttachmentRemoved, AttachmentUploaded
from domain.chat import Chat
from domain.contact import Contact, Standing
from domain.event import Event
from domain.ids import (
    ChatId,
    GatewayId,
    StreamId,
    UserId,
    attachment_stream,
    category,
    chat_stream,
    contact_stream,
    direct_chat_id,
    is_direct_chat_id,
    message_stream,
    user_stream,
)
from domain.message import Message, MessageEdited, MessageSent, ReactionAdded
from domain.receipt import DeliveryMark, Receipt
from domain.state import aggregate_of
from domain.user import AccountDeleted, User
from tests.commands.history import (
    PASSWORD,
    History,
    attachment_id,
    chat_id,
    message_id,
    user_id,
    uuid,
)

# What the shell does of itself, whoever is named as its actor here.
OF_NO_ACTOR = (SettleDeletion, RegisterUser, RecordDeliveries, RemoveAttachment)

PEOPLE = 5
MAX_COMMANDS = 60

EVERYBODY = [user_id(number) for number in range(1, PEOPLE + 1)]
ONE, TWO, THREE = EVERYBODY[:3]

users = st.sampled_from(EVERYBODY)
strangers_too = st.integers(1, PEOPLE + 1).map(user_id)
chats = st.sampled_from(
    [chat_id(1), direct_chat_id(ONE, TWO), chat_id(1), chat_id(2), direct_chat_id(ONE, THREE)]
)
messages = st.integers(1, 9).map(message_id)
words = st.sampled_from(["one", "two", "three"])
passwords = st.sampled_from([PASSWORD, "battery staple", "short"])
members = st.lists(strangers_too, min_size=1, max_size=PEOPLE)
emoji = st.sampled_from(["👍", ":tada:"])
# Of two chats, and messages of which the first three are sent already.
attachments = st.integers(1, 4).map(attachment_id)
images = st.builds(
    StoredImage,
    attachment_id=attachments,
    file_name=words,
    file_type=st.just("image/png"),
    file_size=st.just(1_000),
    width=st.just(40),
    height=st.just(30),
    store=st.just("https://objects.example.org/messenger"),
)
gateways = st.integers(1, 2).map(lambda number: GatewayId(uuid(4, number)))
positions = st.integers(1, PEOPLE + 2 * MAX_COMMANDS)


def marked(up_to: dict[UserId, int]) -> list[DeliveryMark]:
    return [DeliveryMark(user_id=user, after=0, up_to=mark) for user, mark in up_to.items()]


marks = st.dictionaries(users, positions, min_size=1, max_size=PEOPLE).map(marked)


BY_COMMAND: dict[type[Command], st.SearchStrategy[Command]] = {
    RegisterUser: st.builds(
        RegisterUser, username=words, password=passwords, user_id=strangers_too
    ),
    UpdateProfile: st.builds(UpdateProfile, display_name=st.none() | words),
    ChangePassword: st.builds(ChangePassword, current_password=passwords, new_password=passwords),
    DeleteAccount: st.builds(
        DeleteAccount,
        password=st.sampled_from(["a wrong one", "another wrong one", PASSWORD, "battery staple"]),
        erase_messages=st.booleans(),
    ),
    SettleDeletion: st.builds(
        SettleDeletion,
        chat_ids=st.lists(chats, unique=True, max_size=4),
        contact_ids=st.lists(users, unique=True, max_size=PEOPLE),
    ),
    SetStatus: st.builds(SetStatus, status=st.sampled_from(["online", "away", "offline"])),
    RequestContact: st.builds(RequestContact, user_id=users),
    AcceptContact: st.builds(AcceptContact, user_id=users),
    RemoveContact: st.builds(RemoveContact, user_id=users),
    BlockContact: st.builds(BlockContact, user_id=users),
    UnblockContact: st.builds(UnblockContact, user_id=users),
    OpenDirectChat: st.builds(OpenDirectChat, user_id=users),
    CreateGroup: st.builds(CreateGroup, name=words, member_ids=members, slug=words, chat_id=chats),
    UpdateGroup: st.builds(UpdateGroup, chat_id=chats, name=words, slug=words),
    DeleteGroup: st.builds(DeleteGroup, chat_id=chats),
    AddMembers: st.builds(AddMembers, chat_id=chats, user_ids=members),
    RemoveMember: st.builds(RemoveMember, chat_id=chats, user_id=users),
    LeaveGroup: st.builds(LeaveGroup, chat_id=chats),
    ChangeRole: st.builds(
        ChangeRole, chat_id=chats, user_id=users, role=st.sampled_from(["admin", "member"])
    ),
    TransferOwnership: st.builds(TransferOwnership, chat_id=chats, user_id=users),
    SendMessage: st.builds(
        SendMessage,
        chat_id=chats,
        content=words,
        message_id=messages,
        reply_to_id=st.none() | st.none() | messages,
        attachment_ids=st.none() | st.lists(attachments, max_size=3),
    ),
    UploadAttachment: st.builds(
        UploadAttachment, chat_id=chats, message_id=messages, image=st.none() | images
    ),
    RemoveAttachment: st.builds(RemoveAttachment, attachment_id=attachments),
    EditMessage: st.builds(EditMessage, message_id=messages, content=words),
    DeleteMessage: st.builds(DeleteMessage, message_id=messages),
    AddReaction: st.builds(AddReaction, message_id=messages, emoji=emoji),
    RemoveReaction: st.builds(RemoveReaction, message_id=messages, emoji=emoji),
    MarkDelivered: st.builds(MarkDelivered, chat_id=chats, up_to_message_id=messages),
    MarkRead: st.builds(MarkRead, chat_id=chats, up_to_message_id=st.none() | messages),
    RecordDeliveries: st.builds(
        RecordDeliveries,
        gateway_id=gateways,
        marks=st.dictionaries(chats, marks, min_size=1, max_size=3),
    ),
    SettlePresence: st.builds(SettlePresence, is_connected=st.booleans()),
}
# What needs much to be so before it does anything comes more often.
OFTEN = (SendMessage, SendMessage, SendMessage, EditMessage, AcceptContact, UnblockContact)
commands = st.one_of([*BY_COMMAND.values(), *(BY_COMMAND[command] for command in OFTEN)])
# By length first: lists alone would mostly be of a few.
steps = st.integers(0, MAX_COMMANDS).flatmap(
    lambda length: st.lists(st.tuples(commands, users), min_size=length, max_size=length)
)
Taken = list[tuple[Command, UserId]]


class Ids:
    """New ids for a history's decisions."""

    def __init__(self) -> None:
        self._numbers = count()

    def __call__(self) -> str:
        return uuid(0xFFFFFFFF, next(self._numbers))


def upload(number: int, *, message: int) -> UploadAttachment:
    image = StoredImage(
        attachment_id=attachment_id(number),
        file_name="cat.png",
        file_type="image/png",
        file_size=1_000,
        width=40,
        height=30,
        store="https://objects.example.org/messenger",
    )
    return UploadAttachment(chat_id=chat_id(1), message_id=message_id(message), image=image)


def send_image(*, number: int, message: int) -> SendMessage:
    return SendMessage(
        chat_id=chat_id(1),
        content="",
        message_id=message_id(message),
        attachment_ids=[attachment_id(number)],
    )


def begun(ids: Ids) -> History:
    """Everybody is in the first group; the first two are contacts and have a direct chat; in
    both something was said. Of two images one was sent."""
    history = History()
    first: Taken = [
        (CreateGroup(name="Friends", member_ids=EVERYBODY[1:], chat_id=chat_id(1)), ONE),
        (RequestContact(user_id=TWO), ONE),
        (AcceptContact(user_id=ONE), TWO),
        (OpenDirectChat(user_id=TWO), ONE),
        (SendMessage(chat_id=chat_id(1), content="one", message_id=message_id(1)), ONE),
        (SendMessage(chat_id=chat_id(1), content="two", message_id=message_id(2)), TWO),
        (SendMessage(chat_id=direct_chat_id(ONE, TWO), content="x", message_id=message_id(3)), ONE),
        *((upload(number, message=number + 3), TWO) for number in (1, 2)),
        (send_image(number=1, message=4), TWO),
    ]
    for number, user in enumerate(EVERYBODY, 1):
        register = RegisterUser(username=f"user_{number}", password=PASSWORD, user_id=user)
        assert history.carry_out(register, by=None, new_id=ids)
    for command, by in first:
        assert history.carry_out(command, by=by, new_id=ids)
    return history


def grown(history: History, taken: Taken, ids: Ids) -> Iterator[tuple[Command, UserId]]:
    """Carries out one command after the other, and yields after each."""
    for command, by in taken:
        history.carry_out(command, by=by, new_id=ids)
        yield command, by


def after(taken: Taken) -> History:
    ids = Ids()
    history = begun(ids)
    for _ in grown(history, taken, ids):
        pass
    return history


def states(history: History, kind: str) -> dict[StreamId, Any]:
    return {
        stream: known.state for stream, known in history.states.items() if category(stream) == kind
    }


@hypothesis_given(steps)
def test_no_history_breaks_a_rule(taken: Taken) -> None:
    ids = Ids()
    history = begun(ids)
    for _ in grown(history, taken, ids):
        assert all(version > 0 for version, _ in history.states.values())
        for stream, chat in states(history, "chat").items():
            (check_direct_chat if chat.is_direct else check_group)(stream, chat)
        for stream, contact in states(history, "contact").items():
            check_contact(stream, contact.standing)
        for message in states(history, "message").values():
            check_message(message)
        for receipt in states(history, "receipt").values():
            assert 0 <= receipt.read_up_to <= receipt.delivered_up_to <= len(history.log)
        check_claims(history)


def check_group(stream: StreamId, group: Chat) -> None:
    assert group.exists
    assert group.name
    assert group.slug
    assert set(group.roles) <= set(group.joined)
    assert len(set(group.joined)) == len(group.joined)
    owners = [user for user, role in group.roles.items() if role == "owner"]
    # One without participants is a deleted one; any other has one owner, a participant.
    assert owners == ([group.owner_id] if group.roles else [])
    assert group.roles or group.is_deleted


def check_direct_chat(stream: StreamId, chat: Chat) -> None:
    one, other = chat.roles
    assert stream == chat_stream(direct_chat_id(one, other)), "one chat a pair"
    assert chat.joined == (one, other) == tuple(sorted((one, other)))
    assert set(chat.roles.values()) == {"member"}
    assert chat.owner_id is None
    assert not chat.is_deleted


def check_contact(stream: StreamId, standing: Standing) -> None:
    pairs = {contact_stream(one, two): (one, two) for one in EVERYBODY for two in EVERYBODY}
    one, other = pairs[stream]
    assert one != other
    assert standing.requested_by in (None, one, other)
    assert (standing.requested_by is None) == (standing.requested_at is None)
    if standing.accepted_at is not None:
        assert standing.requested_at is not None
        assert standing.requested_at <= standing.accepted_at
    assert standing.blocked_at.keys() <= {one, other}


def check_message(message: Message) -> None:
    assert message.exists
    if message.sender_id is None or message.is_deleted:
        assert not message.reactions


def check_claims(history: History) -> None:
    """What is claimed is what there is: a deleted account's leavings are found by it."""
    claimed = set(history.claims.items())
    assert {claim for claim in claimed if claim[0][0] == "membership"} == {
        (("membership", f"{user}/{stream.removeprefix('chat-')}"), stream)
        for stream, chat in states(history, "chat").items()
        if not chat.is_direct and not chat.is_deleted
        for user in chat.roles
    }
    assert {claim for claim in claimed if claim[0][0] == "contact"} == {
        (("contact", f"{one}/{other}"), contact_stream(one, other))
        for one in EVERYBODY
        for other in EVERYBODY
        if one != other and history.state(contact_stream(one, other)) != Contact()
    }
    assert {claim for claim in claimed if claim[0][0] == "slug"} == {
        (("slug", chat.slug.lower()), stream)
        for stream, chat in states(history, "chat").items()
        if not chat.is_deleted
    }


@hypothesis_given(steps)
def test_marks_never_move_back(taken: Taken) -> None:
    ids = Ids()
    history = begun(ids)
    before = states(history, "receipt")
    for _ in grown(history, taken, ids):
        now = states(history, "receipt")
        for stream, receipt in now.items():
            earlier = before.get(stream, Receipt())
            assert receipt.delivered_up_to >= earlier.delivered_up_to
            assert receipt.read_up_to >= earlier.read_up_to
        before = now


@hypothesis_given(steps, commands, users)
def test_a_decision_is_a_function_of_what_it_is_given(
    taken: Taken, command: Command, by: UserId
) -> None:
    history = after(taken)
    outcomes = [history.outcome(command, by=by) for _ in range(2)]
    assert repr(outcomes[0]) == repr(outcomes[1])


@hypothesis_given(steps, commands, users)
def test_deciding_changes_no_state(taken: Taken, command: Command, by: UserId) -> None:
    history = after(taken)
    before = repr(history.states)
    history.outcome(command, by=by)
    assert repr(history.states) == before


@hypothesis_given(steps)
def test_the_end_of_a_stream_suffices_where_the_table_says_so(taken: Taken) -> None:
    history = after(taken)
    for stream, known in history.states.items():
        aggregate = aggregate_of(stream)
        if aggregate.last_event_suffices:
            last = [item for item in history.log if item[0].stream == stream][-1]
            assert aggregate.evolve(aggregate.initial, *last) == known.state


@hypothesis_given(steps)
def test_only_participants_of_the_moment_ever_said_something(taken: Taken) -> None:
    """In direct chats, only contacts of the moment, neither of whom blocked the other."""
    replayed = History()
    for event, _ in after(taken).log:
        if said := who_says_what(event):
            sender, chat_id = said
            chat: Chat = replayed.state(chat_stream(chat_id))
            assert chat.is_open_to(sender)
            assert chat.is_direct == is_direct_chat_id(chat_id)
            if chat.is_direct:
                between: Contact = replayed.state(contact_stream(sender, chat.peer(sender)))
                assert between.is_accepted
                assert not between.standing.blocked_at
        replayed.record(event)


@hypothesis_given(steps)
def test_an_attachment_is_sent_once_in_its_message_or_removed(taken: Taken) -> None:
    replayed = History()
    sent_or_removed = set[StreamId]()
    for event, _ in after(taken).log:
        match event:
            case MessageSent():
                for one in map(attachment_stream, event.attachment_ids):
                    attachment: Attachment = replayed.state(one)
                    bound = (attachment.chat_id, attachment.message_id, attachment.sender_id)
                    assert bound == (event.chat_id, event.message_id, event.sender_id)
                    assert one not in sent_or_removed
                    sent_or_removed.add(one)
            case AttachmentRemoved():
                assert replayed.state(event.stream).exists
                assert event.stream not in sent_or_removed
                sent_or_removed.add(event.stream)
            case AttachmentUploaded():
                assert not replayed.state(message_stream(event.message_id)).exists
            case _:
                pass
        replayed.record(event)


def who_says_what(event: Event) -> tuple[UserId, ChatId] | None:
    match event:
        case MessageSent() | MessageEdited():
            return event.sender_id, event.chat_id
        case ReactionAdded():
            return event.user_id, event.chat_id
        case _:
            return None


@hypothesis_given(steps)
def test_of_a_deleted_account_nothing_comes_but_its_settlement(taken: Taken) -> None:
    ids = Ids()
    history = begun(ids)
    known = 0
    gone = set[UserId]()
    for command, by in grown(history, taken, ids):
        new = [event for event, _ in history.log[known:]]
        known = len(history.log)
        if by in gone and not isinstance(command, OF_NO_ACTOR):
            assert new == []
        gone |= {event.user_id for event in new if isinstance(event, AccountDeleted)}


@hypothesis_given(steps, users)
def test_what_is_claimed_by_a_deleted_account_is_all_there_is_to_settle(
    taken: Taken, user: UserId
) -> None:
    ids = Ids()
    history = begun(ids)
    for _ in grown(history, [*taken, *deletions(user)], ids):
        pass
    state: User = history.state(user_stream(user))
    if not state.is_deleted:
        return  # the password was changed to another one
    claims = [value.split("/") for _, value in history.claims if value.startswith(f"{user}/")]
    everything = SettleDeletion(
        chat_ids=[ChatId(other) for _, other in claims if UserId(other) not in EVERYBODY],
        contact_ids=[UserId(other) for _, other in claims if UserId(other) in EVERYBODY],
    )
    history.carry_out(everything, by=user, new_id=ids)
    assert not [value for _, value in history.claims if user in value.split("/")]
    for chat in states(history, "chat").values():
        assert chat.is_direct or not chat.is_open_to(user)
    for other in EVERYBODY:
        assert other == user or history.state(contact_stream(user, other)) == Contact()


def deletions(user: UserId) -> Taken:
    """With whichever password it has."""
    return [(DeleteAccount(password=word), user) for word in (PASSWORD, "battery staple")]


def test_every_command_takes_part() -> None:
    assert set(BY_COMMAND) == {handler.command for handler in (*HANDLERS, *INTERNAL)}
