"""States folded from their events: what each event changes, and nothing else."""

from datetime import UTC, datetime
from typing import Any
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from domain import EVENTS
from domain.chat import (
    Chat,
    GroupCreated,
    GroupDeleted,
    GroupUpdated,
    MemberLeft,
    MembersAdded,
    OwnershipTransferred,
    RoleChanged,
)
from domain.contact import Contact, ContactRemoved, Standing
from domain.event import Event, Place
from domain.ids import (
    ChatId,
    GatewayId,
    UserId,
    category,
    chat_stream,
    contact_stream,
    direct_chat_id,
    gateway_stream,
    is_direct_chat_id,
    message_stream,
    receipt_stream,
    user_stream,
)
from domain.message import (
    Message,
    MessageDeleted,
    MessageEdited,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
    SystemMessageSent,
    fingerprint,
    text_fingerprint,
)
from domain.receipt import DeliveriesRecorded, MessagesDelivered, MessagesRead, Receipt
from domain.refusals import (
    Blocked,
    Conflict,
    Forbidden,
    Invalid,
    NotContacts,
    NotFound,
    Refusal,
    SlugTaken,
    UsernameTaken,
    WrongPassword,
)
from domain.state import AGGREGATES, aggregate_of
from domain.user import PasswordChanged, ProfileUpdated, StatusChanged, User, UserRegistered
from tests.commands.history import (
    ANNA,
    BEN,
    CARL,
    CHAT,
    DORA,
    contact,
    deleted,
    direct,
    group,
    message_id,
    registered,
    sent,
)

GATEWAY = GatewayId("00000004-0000-7000-8000-000000000001")
PLACE = Place(7, datetime(2026, 1, 1, tzinfo=UTC))


def fold(*events: Event) -> Any:
    aggregate = aggregate_of(events[0].stream)
    state = aggregate.initial
    for event in events:
        state = aggregate.evolve(state, event, PLACE)
    return state


def test_a_user_is_the_registration_with_what_changed_since() -> None:
    first = registered(ANNA, "anna")
    state = fold(
        first,
        ProfileUpdated(user_id=ANNA, display_name="Annie", avatar_url="http://a.example"),
        PasswordChanged(user_id=ANNA, password_hash="new"),
    )
    assert state == User(
        exists=True,
        position=7,
        registration=first,
        display_name="Annie",
        avatar_url="http://a.example",
        password_hash="new",
    )


def test_a_status_is_the_last_that_was_set() -> None:
    assert fold(registered(ANNA)).status == "offline"
    assert fold(registered(ANNA), StatusChanged(user_id=ANNA, status="away")).status == "away"


def test_a_deleted_user_exists_and_is_nobody() -> None:
    state = fold(registered(ANNA), StatusChanged(user_id=ANNA, status="away"), deleted(ANNA))
    assert state == User(exists=True, position=7, is_deleted=True)


def test_an_erased_user_still_exists() -> None:
    state = fold(UserRegistered(user_id=ANNA, username=None, display_name=None, password_hash=None))
    assert state.exists
    assert state.password_hash is None


def test_a_group_begins_with_its_owner_and_members_in_order() -> None:
    state = fold(group(CARL, BEN))
    assert state.roles == {ANNA: "owner", CARL: "member", BEN: "member"}
    assert state.joined == (ANNA, CARL, BEN)
    assert (state.owner_id, state.name, state.slug) == (ANNA, "Friends", "friends")


def test_a_group_takes_its_new_metadata() -> None:
    created = group(BEN)
    updated = GroupUpdated(
        chat_id=CHAT, by=ANNA, name="Foes", slug="foes", avatar_url="http://a.example"
    )
    state = fold(created, updated)
    assert (state.name, state.slug, state.avatar_url) == ("Foes", "foes", "http://a.example")
    assert state.creation == created


def test_a_chat_is_open_to_active_participants_until_it_is_deleted() -> None:
    open_chat = fold(group(BEN, CARL), MemberLeft(chat_id=CHAT, user_id=BEN))
    assert [open_chat.is_open_to(user) for user in (ANNA, BEN, CARL, DORA, None)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert not fold(group(BEN), GroupDeleted(chat_id=CHAT, by=ANNA)).is_open_to(ANNA)


def test_a_former_owner_who_stays_becomes_a_member() -> None:
    moved = OwnershipTransferred(chat_id=CHAT, from_id=ANNA, to_id=BEN)
    assert fold(group(BEN), moved).roles == {ANNA: "member", BEN: "owner"}
    left = fold(group(BEN), MemberLeft(chat_id=CHAT, user_id=ANNA), moved)
    assert left.roles == {BEN: "owner"}
    assert left.owner_id == BEN


def test_who_joins_again_keeps_the_place_in_line() -> None:
    state = fold(
        group(BEN, CARL),
        MemberLeft(chat_id=CHAT, user_id=BEN),
        MembersAdded(chat_id=CHAT, by=ANNA, user_ids=[DORA, BEN]),
    )
    assert state.joined == (ANNA, BEN, CARL, DORA)
    assert state.successor() == BEN


def test_an_empty_chat_has_no_successor() -> None:
    assert Chat().successor() is None
    assert fold(group(BEN), MemberLeft(chat_id=CHAT, user_id=BEN)).successor() is None


def test_a_direct_chat_has_two_members_and_no_owner() -> None:
    state = fold(direct(BEN, ANNA))
    assert state.is_direct
    assert state.roles == {ANNA: "member", BEN: "member"}
    assert (state.peer(ANNA), state.peer(BEN), state.owner_id) == (BEN, ANNA, None)


def test_a_role_stays_until_it_is_changed_or_the_member_leaves() -> None:
    appointed = RoleChanged(chat_id=CHAT, by=ANNA, user_id=BEN, role="admin")
    assert fold(group(BEN), appointed).roles[BEN] == "admin"
    back = MembersAdded(chat_id=CHAT, by=ANNA, user_ids=[BEN])
    left = MemberLeft(chat_id=CHAT, user_id=BEN)
    assert fold(group(BEN), appointed, left, back).roles[BEN] == "member"


def test_admins_come_before_longer_members_in_line() -> None:
    appointed = RoleChanged(chat_id=CHAT, by=ANNA, user_id=CARL, role="admin")
    assert fold(group(BEN, CARL), appointed).successor() == CARL


def test_a_contact_is_how_things_stand_after_the_last_event() -> None:
    accepted = contact(ANNA, BEN, blocked_by=[BEN])
    state = fold(accepted)
    assert (state.is_accepted, state.is_requested) == (True, False)
    assert (state.is_blocked_by(BEN), state.is_blocked_by(ANNA)) == (True, False)
    removed = ContactRemoved(user_id=ANNA, contact_id=BEN, standing=Standing())
    assert fold(accepted, removed) == Contact()


def test_a_message_is_what_it_reads_now_and_knows_what_was_sent() -> None:
    edited = MessageEdited(
        message_id=message_id(1), chat_id=CHAT, sender_id=BEN, content="hi", formatting={}
    )
    state = fold(sent(1), edited)
    assert state.fingerprint == fingerprint("hello", {}, None)
    assert state.shown == text_fingerprint("hi", {})


def test_a_deleted_message_has_no_reactions() -> None:
    what = {"message_id": message_id(1), "chat_id": CHAT, "user_id": ANNA}
    up, down = ReactionAdded(**what, emoji="👍"), ReactionAdded(**what, emoji="👎")
    assert fold(sent(1), up, down).reactions == {(ANNA, "👍"), (ANNA, "👎")}
    assert fold(sent(1), up, ReactionRemoved(**what, emoji="👍")).reactions == set()
    gone = MessageDeleted(message_id=message_id(1), chat_id=CHAT, by=BEN, sent_position=7)
    assert fold(sent(1), up, gone).reactions == set()


def test_a_message_keeps_who_where_and_when_but_no_text() -> None:
    state = fold(sent(1, content="a secret"))
    assert (state.chat_id, state.sender_id) == (CHAT, BEN)
    assert (state.position, state.created_at) == PLACE
    assert "secret" not in repr(state)


def test_a_system_message_has_no_sender() -> None:
    told = SystemMessageSent(
        message_id=message_id(1), chat_id=CHAT, kind="member_left", actor_id=ANNA
    )
    assert fold(told) == Message(True, CHAT, None, *PLACE)


def test_a_fingerprint_tells_any_difference_of_what_was_said() -> None:
    said: list[Any] = [
        ("hello", {}, None),
        ("hello!", {}, None),
        ("hello", {"bold": [(0, 1)]}, None),
        ("hello", {"italic": [(0, 1)]}, None),
        ("hello", {}, message_id(1)),
    ]
    assert len({fingerprint(*one) for one in said}) == len(said)


def test_a_fingerprint_does_not_depend_on_the_order_of_styles() -> None:
    one = fingerprint("hello", {"bold": [(0, 1)], "code": [(1, 2)]}, None)
    assert one == fingerprint("hello", {"code": [(1, 2)], "bold": [(0, 1)]}, None)


def test_a_receipt_is_its_last_event() -> None:
    first = MessagesDelivered(chat_id=CHAT, user_id=ANNA, delivered_up_to=5, read_up_to=0)
    last = MessagesRead(chat_id=CHAT, user_id=ANNA, delivered_up_to=9, read_up_to=9)
    assert fold(first, last) == fold(last) == Receipt(9, 9)


def test_what_a_gateway_recorded_decides_nothing() -> None:
    recorded = DeliveriesRecorded(gateway_id=GATEWAY, chat_id=CHAT, marks=[])
    assert fold(recorded, recorded) is None


def test_streams_are_named_by_category_and_id() -> None:
    assert user_stream(ANNA) == f"user-{ANNA}"
    assert chat_stream(CHAT) == f"chat-{CHAT}"
    assert message_stream(message_id(1)) == f"message-{message_id(1)}"
    assert receipt_stream(CHAT, ANNA) == f"receipt-{CHAT}-{ANNA}"
    assert gateway_stream(GATEWAY) == f"gateway-{GATEWAY}"
    assert category(receipt_stream(CHAT, ANNA)) == "receipt"


def test_a_pair_has_one_stream_and_one_direct_chat_whoever_is_named_first() -> None:
    assert contact_stream(ANNA, BEN) == contact_stream(BEN, ANNA) == f"contact-{ANNA}-{BEN}"
    assert direct_chat_id(ANNA, BEN) == direct_chat_id(BEN, ANNA)
    assert len({direct_chat_id(ANNA, other) for other in (BEN, CARL, DORA)}) == 3


@hypothesis_given(st.uuids(), st.uuids())
def test_the_id_of_a_direct_chat_is_a_uuid_that_no_group_may_have(one: UUID, other: UUID) -> None:
    chat_id = direct_chat_id(UserId(str(one)), UserId(str(other)))
    assert str(UUID(chat_id)) == chat_id
    assert UUID(chat_id).variant == RFC_4122
    assert is_direct_chat_id(chat_id)
    assert is_direct_chat_id(ChatId(str(one))) == (one.version == 8)


def test_each_event_is_in_the_stream_of_its_own_thing() -> None:
    read = MessagesRead(chat_id=CHAT, user_id=ANNA, delivered_up_to=9, read_up_to=9)
    examples: list[tuple[Event, str]] = [
        (registered(ANNA), user_stream(ANNA)),
        (group(BEN), chat_stream(CHAT)),
        (sent(1), message_stream(message_id(1))),
        (read, receipt_stream(CHAT, ANNA)),
        (
            DeliveriesRecorded(gateway_id=GATEWAY, chat_id=CHAT, marks=[]),
            gateway_stream(GATEWAY),
        ),
        (contact(BEN, ANNA), contact_stream(ANNA, BEN)),
        (direct(ANNA, BEN), chat_stream(direct_chat_id(ANNA, BEN))),
    ]
    assert [event.stream for event, _ in examples] == [stream for _, stream in examples]


def test_an_event_without_a_stream_is_no_event() -> None:
    with pytest.raises(NotImplementedError):
        _ = Event().stream


@pytest.mark.parametrize("name", AGGREGATES)
def test_an_event_of_another_aggregate_is_never_folded_silently(name: str) -> None:
    foreign: Event = group(BEN) if name != "chat" else registered(ANNA)
    with pytest.raises(AssertionError):
        AGGREGATES[name].evolve(AGGREGATES[name].initial, foreign, PLACE)


def test_only_events_that_begin_a_user_found_keys() -> None:
    assert [event for event in EVENTS if event.founds_keys] == [UserRegistered]


def test_events_are_facts_that_can_not_be_changed() -> None:
    event = sent(1)
    with pytest.raises(AttributeError):
        event.content = "other"  # type: ignore[misc]
    assert isinstance(event, MessageSent)
    assert GroupCreated.__struct_config__.frozen


# The codes and statuses of contract.md, section 1.
REFUSALS: list[tuple[type[Refusal], str, int]] = [
    (Invalid, "invalid", 400),
    (WrongPassword, "wrong-credentials", 403),
    (Forbidden, "forbidden", 403),
    (NotContacts, "not-contacts", 403),
    (Blocked, "blocked", 403),
    (NotFound, "not-found", 404),
    (Conflict, "conflict", 409),
    (UsernameTaken, "username-taken", 409),
    (SlugTaken, "slug-taken", 409),
]


@pytest.mark.parametrize(("refusal", "code", "status"), REFUSALS)
def test_a_refusal_bears_the_code_and_status_of_the_contract(
    refusal: type[Refusal], code: str, status: int
) -> None:
    raised = refusal("because")
    assert (raised.code, raised.status, raised.detail) == (code, status, "because")
    assert raised.__doc__
