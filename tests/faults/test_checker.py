"""The checker of the fault suite finds what is lost, doubled, out of order or otherwise wrong."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import nats
import pytest

from tests.faults.checker import (
    Findings,
    Row,
    World,
    check_acknowledged,
    check_copy,
    check_log,
    check_sockets,
    check_table,
    read_copy,
    worlds,
)
from tests.faults.load import Acknowledged
from tests.stream.concerns import Concerns
from tests.stream.device import Device

AT_ONCE = 20
ANN, BOB, CHAT = "ann", "bob", "chat"


def rows(*events: tuple[str, str, dict[str, Any]]) -> list[Row]:
    """By stream and type."""
    versions: dict[str, int] = {}
    found = []
    for position, (stream, kind, data) in enumerate(events, 1):
        versions[stream] = versions.get(stream, 0) + 1
        found.append(Row(position, f"id {position}", stream, versions[stream], kind, data))
    return found


def sent(message_id: str, sender: str = ANN) -> tuple[str, str, dict[str, Any]]:
    data = {"chat_id": CHAT, "message_id": message_id, "sender_id": sender}
    return f"message-{message_id}", "message_sent", data


GROUP = ("chat-1", "group_created", {"chat_id": CHAT, "owner_id": ANN, "member_ids": [BOB]})
READ = ("receipt-1", "messages_read", {"chat_id": CHAT, "user_id": BOB, "read_up_to": 2})
LOG = rows(GROUP, sent("m1"), sent("m2"), READ)
COPY = [(row.position, row.event_id) for row in LOG]


def told(message_id: str, position: int) -> Acknowledged:
    body = {"chat_id": CHAT, "content": "hello"}
    answer = {"position": position, "message_id": message_id}
    return Acknowledged("send-message", ANN, f"key of {message_id}", body, answer)


TOLD = [told("m1", 2), told("m2", 3)]


def moved(log: list[Row], at: int, **fields: Any) -> list[Row]:
    return [row._replace(**fields) if row.position == at else row for row in log]


def test_what_is_right_is_found_right() -> None:
    assert check_log(LOG).are_none
    assert check_copy(LOG, COPY).are_none
    assert check_acknowledged(LOG, TOLD).are_none
    assert check_sockets([device(1, 2, 3, 4)], concerns()).are_none
    for table, world in worlds(LOG, dict.fromkeys(("unread", "messages"), len(LOG))):
        assert check_table(table, world, world.rows(table).elements()).are_none


@pytest.mark.parametrize(
    "log",
    [
        [row for row in LOG if row.position != 2],
        moved(LOG, 3, position=4),
        moved(LOG, 4, stream="chat-1", version=3),
        moved(LOG, 4, stream="chat-1", version=1),
    ],
    ids=["a row is missing", "a position is there twice", "a version is missing", "one is twice"],
)
def test_a_log_with_gaps_is_wrong(log: list[Row]) -> None:
    assert check_log(log).wrong


def test_an_event_that_is_there_twice_is_doubled() -> None:
    assert check_log(moved(LOG, 4, event_id="id 2")).doubled


def test_a_copy_that_lacks_changes_or_mixes_events_is_found() -> None:
    assert check_copy(LOG, COPY[1:]).lost
    assert check_copy(LOG, [*COPY[:2], (3, "another"), COPY[3]]).wrong
    assert check_copy(LOG, [COPY[1], COPY[0], *COPY[2:]]).disordered


def test_what_was_acknowledged_is_lost_if_it_is_not_where_it_was_told() -> None:
    assert check_acknowledged(LOG, [*TOLD, told("m3", 5)]).lost
    assert check_acknowledged(LOG, [told("m1", 3), told("m2", 2)]).lost
    assert check_acknowledged(LOG, [*TOLD, told("m2", 4)]).lost
    upload = Acknowledged("upload", ANN, "", {}, {"attachment_id": "a1"})
    assert check_acknowledged(LOG, [*TOLD, upload]).lost


def test_what_nobody_was_told_of_is_doubled() -> None:
    assert check_acknowledged(rows(GROUP, sent("m1"), sent("m2"), sent("m3")), TOLD).doubled
    assert check_acknowledged(LOG, [*TOLD, TOLD[0]]).doubled


def device(*seen: int, wrong: str = "") -> Device:
    made = Device("http://127.0.0.1:1", "token", BOB, after=0)
    made.applied = list(seen)
    made.wrong = [wrong] if wrong else []
    return made


def concerns() -> Concerns:
    made = Concerns()
    for row in LOG:
        made.head = row.position
        made._take(row.position, row.type, row.data)
    return made


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        (device(1, 2, 4), "lost"),
        (device(1, 2, 2, 3, 4), "doubled"),
        (device(1, 2, 3, 4, wrong="3 after 4"), "disordered"),
    ],
    ids=["lost", "doubled", "disordered"],
)
def test_a_socket_that_lacks_repeats_or_mixes_events_is_found(seen: Device, kind: str) -> None:
    assert getattr(check_sockets([seen], concerns()), kind)


def test_a_socket_that_sees_what_is_none_of_its_business_is_wrong() -> None:
    stranger = device(1, 2)
    stranger.user_id = "carl"
    assert check_sockets([stranger], concerns()).wrong


def world(up_to: int = len(LOG)) -> World:
    made = World()
    for row in LOG[:up_to]:
        made.take(row)
    return made


CHANGES: dict[str, tuple[str, Callable[[list[Any]], list[Any]]]] = {
    "a message is missing": ("messages", lambda have: have[1:]),
    "a message is there twice": ("messages", lambda have: have + have[:1]),
    "a message has another place": ("messages", lambda have: [(CHAT, 3, *have[0][2:]), have[1]]),
    "an unread row stays": ("unread", lambda have: [*have, (BOB, CHAT, 2)]),
    "an unread row is missing": ("unread", lambda have: []),
    "a counter is stuck": ("unread counts", lambda have: [(BOB, CHAT, 2)]),
    "a member is missing": ("participants", lambda have: have[:1]),
    "a delivery is missing": ("deliveries", lambda have: have[1:]),
}


@pytest.mark.parametrize(("table", "change"), CHANGES.values(), ids=CHANGES)
def test_a_read_table_that_is_not_what_the_log_says_is_found(
    table: str, change: Callable[[list[Any]], list[Any]]
) -> None:
    have = list(world().rows(table).elements())
    assert not check_table(table, world(), change(have)).are_none


def test_each_table_is_judged_at_its_own_checkpoint() -> None:
    reached = {"unread": 3, "messages": 2}
    found = {table: world.position for table, world in worlds_seen(reached)}
    assert (found["unread"], found["messages"], found["users"]) == (3, 2, 0)


def worlds_seen(reached: dict[str, int]) -> list[tuple[str, World]]:
    """As they are when they are given, for they go on."""
    seen = []
    for table, one in worlds(LOG, reached):
        copy = World()
        copy.position = one.position
        seen.append((table, copy))
    return seen


def test_findings_say_what_they_are() -> None:
    findings = cast(Any, Findings)([], ["twice"], [], ["odd"])
    assert findings.lines == ["doubled: twice", "wrong: odd"]


async def test_a_copy_is_read_whole_however_much_it_holds(nats_url: str) -> None:
    """More than a server keeps for who reads slowly (64 MiB)."""
    stream, messages = "LONG_COPY", 400
    client = await nats.connect(nats_url)
    try:
        jetstream = client.jetstream()
        await jetstream.add_stream(name=stream, subjects=["long_copy.>"])
        body = b'{"event_id": "id", "padding": "%s"}' % (b"x" * 500_000)
        for _ in range(0, messages, AT_ONCE):  # it forgets what it can't store as fast as it comes
            await asyncio.gather(
                *(jetstream.publish("long_copy.any", body, timeout=60) for _ in range(AT_ONCE))
            )
        assert await read_copy(nats_url, stream) == [(at, "id") for at in range(1, messages + 1)]
        await jetstream.delete_stream(stream)
    finally:
        await client.close()
