"""What a client is shown of an event, and what nobody is shown."""

from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.stream import shown
from api.stream.shown import Quoted, Surroundings
from domain import EVENTS
from domain.attachment import AttachmentEvent
from domain.contact import CONTACT_EVENTS, ContactBlocked, ContactEvent, ContactUnblocked, Standing
from domain.event import Event, Recorded
from domain.ids import UserId
from domain.message import MessageDeleted, MessageEdited, MessageSent
from domain.user import StatusChanged
from tests.commands.history import ANNA, BEN, CARL, CHAT, FIRST_TIME, NOW, message_id
from tests.golden.examples import EXAMPLES
from tests.model import Model

NAMES = {ANNA: "Anna", BEN: "Ben"}
SECRETS = ("password", "hash", "sent_position", "standing", "slug_key", "after")


def name_of(user_id: UserId) -> str:
    return NAMES.get(user_id, "[Deleted User]")


AROUND = Surroundings(name_of)
# An image is shown with its message.
NOT_SHOWN = ContactEvent | StatusChanged | AttachmentEvent
SHOWN = [one for one in EXAMPLES if not isinstance(one, NOT_SHOWN)]


def data(event: Event, around: Surroundings = AROUND) -> Any:
    return plain(shown.shown(event, NOW, around).data)


def plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def keys(value: Any) -> set[str]:
    """All that are anywhere in it."""
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in keys(inner)}
    if isinstance(value, list):
        return {key for inner in value for key in keys(inner)}
    return set()


@pytest.mark.parametrize("event", SHOWN, ids=lambda event: event.type)
def test_no_event_shows_what_is_nobody_elses(event: Event) -> None:
    found = shown.shown(event, NOW, AROUND)
    text = msgspec.json.encode(found.data).decode()
    assert found.chat_id == getattr(event, "chat_id", None)
    assert not any(secret in key for key in keys(plain(found.data)) for secret in SECRETS)
    assert "$2b$" not in text


def test_every_type_is_shown_under_its_own_name_or_another_that_clients_know() -> None:
    told = {shown.shown(event, NOW, AROUND).type for event in SHOWN}
    types = {event.type for event in EVENTS}
    contacts = {event.type for event in CONTACT_EVENTS}
    images = {"attachment_uploaded", "attachment_removed"}
    assert told == types - contacts - images - {"status_changed", "deliveries_recorded"}


SENT = MessageSent(
    message_id=message_id(1),
    chat_id=CHAT,
    sender_id=ANNA,
    content="hello",
    formatting={"bold": [(0, 5)]},
    reply_to_id=message_id(2),
)
EDITED = MessageEdited(
    message_id=message_id(1), chat_id=CHAT, sender_id=ANNA, content="other", formatting={}
)


def test_a_message_is_shown_with_all_that_a_client_draws() -> None:
    quoted = {message_id(2): Quoted(BEN, "what?")}
    assert data(SENT, Surroundings(name_of, quoted)) == {
        "message_id": message_id(1),
        "chat_id": CHAT,
        "sender_id": ANNA,
        "sender": {"id": ANNA, "display_name": "Anna"},
        "content": "hello",
        "content_type": "text",
        "metadata": {"formatting": {"bold": [[0, 5]]}},
        "reply_to_id": message_id(2),
        "reply_to": {
            "id": message_id(2),
            "sender": {"id": BEN, "display_name": "Ben"},
            "content": "what?",
        },
        "attachments": [],
        "created_at": NOW.isoformat().replace("+00:00", "Z"),
    }


@pytest.mark.parametrize("event", [SENT, EDITED], ids=["sent", "edited"])
@pytest.mark.parametrize("why", ["deleted since", "erased"])
def test_a_text_that_is_gone_is_not_said_nor_how_it_was_formatted(event: Any, why: str) -> None:
    if why == "deleted since":
        found = data(event, Surroundings(name_of, gone=frozenset({message_id(1)})))
    else:
        found = data(msgspec.structs.replace(event, content=None))
    assert (found["content"], found["metadata"]) == ("[Deleted]", {})


@pytest.mark.parametrize(
    ("quoted", "reply_to"),
    [
        ({}, (None, "[Message Deleted]")),
        ({message_id(2): Quoted(BEN, None)}, ("Ben", "[Message Deleted]")),
        ({message_id(2): Quoted(CARL, "x")}, ("[Deleted User]", "x")),
        ({message_id(2): Quoted(None, "left the group")}, (None, "left the group")),
    ],
)
def test_a_reply_shows_what_it_answers_as_it_is_now(quoted: Any, reply_to: Any) -> None:
    found = data(SENT, Surroundings(name_of, quoted))["reply_to"]
    sender = found["sender"]
    assert (sender and sender["display_name"], found["content"]) == reply_to
    assert found["id"] == message_id(2)


def test_the_end_of_a_message_says_who_ended_it() -> None:
    gone = MessageDeleted(message_id=message_id(1), chat_id=CHAT, by=BEN, sent_position=7)
    assert data(gone)["by"] == BEN
    assert data(gone)["content"] == "[Deleted]"


def test_marks_for_those_whom_they_do_not_concern_are_none() -> None:
    [recorded] = [one for one in EXAMPLES if one.type == "deliveries_recorded"]
    whole, less = shown.shown(recorded, NOW, AROUND), shown.without_marks(recorded)  # type: ignore[arg-type]
    assert whole.type == less.type == "messages_delivered"
    assert [mark["delivered_up_to"] for mark in plain(whole.data)["marks"]] == [7, 5]
    assert plain(less.data) == plain(whole.data) | {"marks": []}


times = st.sampled_from([FIRST_TIME, NOW])


@st.composite
def standings(draw: st.DrawFn) -> Standing:
    by = draw(st.none() | st.sampled_from([ANNA, BEN]))
    requested: datetime | None = None if by is None else draw(times)
    accepted: datetime | None = None if by is None else draw(st.none() | times)
    blocks = draw(st.dictionaries(st.sampled_from([ANNA, BEN]), times))
    return Standing(by, requested, accepted, blocks)


@given(standings(), st.sampled_from([ANNA, BEN]), st.sampled_from(sorted(CONTACT_EVENTS, key=str)))
def test_a_contact_is_shown_as_the_row_that_the_viewer_has(
    standing: Standing, viewer: UserId, event_type: type[ContactEvent]
) -> None:
    """The rows are those of the independent fold."""
    event = event_type(user_id=ANNA, contact_id=BEN, standing=standing)
    found = shown.contact_shown(event, viewer, name_of)
    if viewer == BEN and event_type in (ContactBlocked, ContactUnblocked):
        assert found is None, "nobody is told who blocks them"
        return
    model = Model()
    model.take(Recorded(1, FIRST_TIME, event))
    other = BEN if viewer == ANNA else ANNA
    row = model.contacts.get((viewer, other))
    assert found
    contact = found.data["contact"]
    assert (contact is None) == (row is None)
    if row is not None:
        shown_row = {name: getattr(contact, name) for name in contact.__struct_fields__[1:]}
        assert shown_row == {name: row[name] for name in shown_row}
        assert contact.user == shown.Sender(other, NAMES[other])


def test_names_and_replies_that_are_needed_are_asked_for() -> None:
    between = ContactBlocked(user_id=BEN, contact_id=CARL, standing=Standing())
    assert shown.people_in([SENT, between, EDITED]) == {ANNA, BEN, CARL}
    alone = msgspec.structs.replace(SENT, reply_to_id=None)
    assert shown.quoted_in([SENT, alone, between]) == {message_id(2)}
