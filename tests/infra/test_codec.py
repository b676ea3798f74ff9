"""Events as JSON: what was ever written can be read, and sealed fields open with their key only."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from domain import EVENTS
from domain.event import Event
from domain.message import MessageSent
from domain.upcasters import UPCASTERS
from domain.user import UserRegistered
from infra import codec
from infra.errors import LogError
from infra.keyring import KeyId
from tests.golden.examples import (
    ANNA,
    BEN,
    CHAT,
    DIRECTORY,
    EXAMPLES,
    MESSAGE,
    FixedKeys,
    golden_file,
)

GOLDEN = sorted(DIRECTORY.glob("*.json"))
OF_TODAY_AND_OLD = (("message_sent", MessageSent.version), ("message_sent", 1))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
BROKEN = (b"{}", b"{", b"[]", b'"\xff"', b'{"message_id": 1}')

# Every kind ever written. One may be added here, none taken away.
SYSTEM_KINDS = (
    "members_added",
    "member_removed",
    "member_left",
    "group_renamed",
    "ownership_transferred",
)


def name(thing: Any) -> str:
    return thing.stem if isinstance(thing, Path) else str(thing.type)


def type_and_version(path: Path) -> tuple[str, int]:
    type_name, version = re.fullmatch(r"([a-z_]+)\.v([0-9]+)", path.stem).groups()  # type: ignore[union-attr]
    return type_name, int(version)


def sealed_text(event: Event) -> list[str]:
    shape = codec._BY_TYPE[type(event)]
    return [getattr(event, field) for field, _ in shape.sealed]


@pytest.mark.parametrize("event", EVENTS, ids=name)
def test_every_event_has_a_golden_file(event: type[Event]) -> None:
    assert golden_file(event).exists(), "run: python -m tests.golden.examples"


@pytest.mark.parametrize("path", GOLDEN, ids=name)
def test_every_event_ever_written_decodes_and_opens(path: Path) -> None:
    event = codec.decode(*type_and_version(path), path.read_bytes())
    sealed = sealed_text(event)
    codec.open_sealed(event, FixedKeys())
    assert all(
        opened and opened != text for opened, text in zip(sealed_text(event), sealed, strict=True)
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_the_golden_file_is_the_example(example: Event) -> None:
    event = codec.decode(example.type, example.version, golden_file(example).read_bytes())
    codec.open_sealed(event, FixedKeys())
    assert event == example


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_an_event_is_still_written_as_its_golden_file_says(example: Event) -> None:
    written = golden_file(example).read_bytes()
    event = codec.decode(example.type, example.version, written)
    assert msgspec.json.encode(event) == written.rstrip()


def test_an_older_version_is_read_as_what_it_means_today() -> None:
    """A message sent before there were attachments is one without."""
    example = next(example for example in EXAMPLES if isinstance(example, MessageSent))
    written = (DIRECTORY / "message_sent.v1.json").read_bytes()
    event = codec.decode("message_sent", 1, written)
    codec.open_sealed(event, FixedKeys())
    assert event == msgspec.structs.replace(example, attachment_ids=[])


@pytest.mark.parametrize("path", GOLDEN, ids=name)
def test_what_is_opened_for_an_export_and_sealed_again_is_the_same_event(path: Path) -> None:
    """Whatever version it is of, all that is not sealed stays as it was written."""
    written = path.read_bytes().rstrip()
    event = codec.decode(*type_and_version(path), written)
    opened = codec.opened_data(event, written, FixedKeys())
    again = codec.sealed_data(codec.decode(*type_and_version(path), opened), opened, FixedKeys())
    fields, back = msgspec.json.decode(written), msgspec.json.decode(again)
    sealed = codec.sealed_fields(event)
    assert list(back) == list(fields)
    assert {name: back[name] for name in fields if name not in sealed} == {
        name: value for name, value in fields.items() if name not in sealed
    }
    reopened = codec.decode(*type_and_version(path), again)
    codec.open_sealed(event, FixedKeys())
    codec.open_sealed(reopened, FixedKeys())
    assert reopened == event
    assert codec.decode(*type_and_version(path), opened) == event


def test_every_older_version_leads_to_todays() -> None:
    today = {event.type: event.version for event in EVENTS}
    assert set(UPCASTERS) == {
        (name, version) for name, newest in today.items() for version in range(1, newest)
    }
    assert {type_and_version(path) for path in GOLDEN} == {
        (name, version) for name, newest in today.items() for version in range(1, newest + 1)
    }


def test_there_is_an_example_of_each_event_with_no_field_left_out() -> None:
    assert [type(example) for example in EXAMPLES] == list(EVENTS)
    for example in EXAMPLES:
        assert all(
            value not in (None, [], {}) for value in msgspec.structs.asdict(example).values()
        )


@pytest.mark.parametrize("kind", SYSTEM_KINDS)
def test_every_kind_of_system_message_ever_written_decodes(kind: str) -> None:
    data = {"message_id": MESSAGE, "chat_id": CHAT, "kind": kind, "actor_id": ANNA}
    codec.decode("system_message_sent", 1, msgspec.json.encode(data))


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_what_is_encoded_opens_to_the_same_event(example: Event) -> None:
    event = codec.decode(example.type, example.version, codec.encode(example, FixedKeys()))
    codec.open_sealed(event, FixedKeys())
    assert event == example


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_sealed_text_can_not_be_read_in_what_is_encoded(example: Event) -> None:
    encoded = codec.encode(example, FixedKeys())
    assert all(text.encode() not in encoded for text in sealed_text(example))


def test_the_same_text_is_sealed_differently_each_time() -> None:
    assert len({codec.encode(EXAMPLES[0], FixedKeys()) for _ in range(3)}) == 3


def test_a_destroyed_key_leaves_nothing_where_text_was() -> None:
    keys = FixedKeys()
    sent = next(example for example in EXAMPLES if isinstance(example, MessageSent))
    keys.destroyed = {KeyId(ANNA, "content")}
    event = codec.decode(sent.type, sent.version, codec.encode(sent, FixedKeys()))
    codec.open_sealed(event, keys)
    assert isinstance(event, MessageSent)
    assert event.content is None


def test_without_its_key_an_event_is_not_written() -> None:
    keys = FixedKeys()
    keys.destroyed = {KeyId(ANNA, "profile")}
    with pytest.raises(LogError):
        codec.encode(EXAMPLES[0], keys)


def test_what_was_erased_stays_null() -> None:
    erased = UserRegistered(user_id=ANNA, username=None, display_name=None, password_hash=None)
    event = codec.decode(erased.type, 1, codec.encode(erased, FixedKeys()))
    codec.open_sealed(event, FixedKeys())
    assert event == erased


@pytest.mark.parametrize(
    "changes",
    [{"message_id": "01990000-0000-7000-8000-0000000000d2"}, {"sender_id": BEN}],
    ids=["to another stream", "to another user"],
)
def test_sealed_text_can_not_be_moved(changes: dict[str, str]) -> None:
    data = msgspec.json.decode(golden_file(MessageSent).read_bytes()) | changes
    event = codec.decode("message_sent", MessageSent.version, msgspec.json.encode(data))
    with pytest.raises(InvalidTag):
        codec.open_sealed(event, FixedKeys())


def test_sealed_text_can_not_be_moved_to_another_field() -> None:
    data = msgspec.json.decode(golden_file(UserRegistered).read_bytes())
    data["display_name"] = data["password_hash"]
    event = codec.decode("user_registered", 1, msgspec.json.encode(data))
    with pytest.raises(InvalidTag):
        codec.open_sealed(event, FixedKeys())


@pytest.mark.parametrize(
    ("type_name", "version", "data"),
    [
        ("no_such_event", 1, b"{}"),
        ("message_sent", 99, b"{}"),
        *((name, version, data) for name, version in OF_TODAY_AND_OLD for data in BROKEN),
    ],
)
def test_what_is_no_event_is_an_error_of_the_log(type_name: str, version: int, data: bytes) -> None:
    with pytest.raises(LogError):
        codec.decode(type_name, version, data)


@pytest.mark.fuzz
@given(path=st.sampled_from(GOLDEN), data=st.binary(max_size=200))
def test_any_bytes_are_an_event_or_an_error_of_the_log(path: Path, data: bytes) -> None:
    with suppress(LogError, InvalidTag):
        codec.open_sealed(codec.decode(*type_and_version(path), data), FixedKeys())


@pytest.mark.fuzz
@given(path=st.sampled_from(GOLDEN), at=st.integers(0, 10_000), data=st.data())
def test_an_event_whose_bytes_were_altered_is_another_or_an_error(
    path: Path, at: int, data: st.DataObject
) -> None:
    written = path.read_bytes().rstrip()
    at %= len(written)
    until = at + data.draw(st.integers(0, 40))
    altered = written[:at] + data.draw(st.binary(max_size=10)) + written[until:]
    with suppress(LogError, InvalidTag):
        codec.open_sealed(codec.decode(*type_and_version(path), altered), FixedKeys())


@pytest.mark.fuzz
@given(path=st.sampled_from(GOLDEN), data=st.data())
def test_an_event_whose_fields_were_altered_is_another_or_an_error(
    path: Path, data: st.DataObject
) -> None:
    """Sealed text too, which is not even base64 then."""
    fields = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(fields)), VALUES, min_size=1))
    altered = msgspec.json.encode(fields | changed)
    with suppress(LogError, InvalidTag):
        codec.open_sealed(codec.decode(*type_and_version(path), altered), FixedKeys())


def test_the_keys_of_events_are_known_before_they_are_opened() -> None:
    assert set(codec.key_ids(EXAMPLES)) == {KeyId(ANNA, "profile"), KeyId(ANNA, "content")}
