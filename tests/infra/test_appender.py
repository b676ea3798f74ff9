"""The appender and append_v1: a batch gets the verdicts that single commands in order would get."""

import asyncio
import random
from collections.abc import AsyncIterator, Sized
from functools import partial
from itertools import count
from typing import Any

import psycopg
import pytest

from domain.ids import StreamId
from infra import appender as appending
from infra import clock
from infra.appender import Append, Appender, ClaimRow, EventRow, KeyRow, Outcome
from infra.errors import Unavailable
from tests.infra.daemons import until

QUEUE_LIMIT = 2_000
HASH_A, HASH_B = "aa" * 24, "bb" * 24
ONE, TWO = StreamId("test-1"), StreamId("test-2")
NOW = "2026-01-02T03:04:05+00:00"
KILLS = 12
KILL_PAUSE_SECONDS_MAX = 0.15
# Then it gets through once: more in a row, and it would rightly give a batch up.
KILLS_IN_A_ROW = 4
WRITERS = 8

LOG = """
    SELECT position, stream, stream_version
    FROM event_log
    ORDER BY position
"""

KILL_APPENDERS = """
    SELECT pid, pg_terminate_backend(pid)
    FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'messenger appender'
"""

HOLDERS = """
    SELECT value, holder
    FROM unique_values
    ORDER BY value
"""


def event(stream: StreamId, event_id: str | None = None) -> EventRow:
    return EventRow(event_id or clock.new_id(), stream, "test_event", 1, b"{}", b"{}", NOW)


def append(
    *streams: StreamId,
    guards: dict[StreamId, int] | None = None,
    claims: list[ClaimRow] | None = None,
    key: KeyRow | None = None,
) -> Append:
    return Append([event(stream) for stream in streams], guards or {}, claims or [], key)


def key(name: str, body_hash: str = HASH_A, answer: str = '{"n":1}') -> KeyRow:
    return KeyRow("user", name, body_hash, answer)


def take(value: str, holder: str) -> ClaimRow:
    return ClaimRow("slug", value, holder, False)


def release(value: str, holder: str) -> ClaimRow:
    return ClaimRow("slug", value, holder, True)


@pytest.fixture
async def appender(database_url: str) -> AsyncIterator[Appender]:
    async with Appender(database_url, queue_limit=QUEUE_LIMIT) as appender:
        yield appender


@pytest.fixture
def connection(database_url: str) -> Any:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


async def batched(appender: Appender, *appends: Append) -> list[Outcome]:
    return await asyncio.gather(*(appender.append(one) for one in appends))


async def batch(appender: Appender, *appends: Append) -> list[Outcome]:
    """All in one call: they are queued before the appender runs again."""
    before = appender.batches
    outcomes = await batched(appender, *appends)
    assert appender.batches == before + 1
    return outcomes


def verdicts(outcomes: list[Outcome]) -> list[str]:
    return [outcome.verdict for outcome in outcomes]


def log(connection: Any) -> list[tuple[int, str, int]]:
    rows: list[tuple[int, str, int]] = connection.execute(LOG).fetchall()
    return rows


async def test_positions_and_versions_count_from_1_without_gaps(
    appender: Appender, connection: Any
) -> None:
    outcomes = await batch(appender, append(ONE, TWO, ONE), append(TWO))
    assert outcomes == [Outcome("appended", 3, None, None), Outcome("appended", 4, None, None)]
    assert log(connection) == [(1, ONE, 1), (2, TWO, 1), (3, ONE, 2), (4, TWO, 2)]
    await batch(appender, append(ONE))
    assert log(connection)[-1] == (5, ONE, 3)


async def test_a_guard_that_does_not_hold_is_a_conflict(
    appender: Appender, connection: Any
) -> None:
    await batch(appender, append(ONE))
    outcomes = await batch(
        appender,
        append(TWO, guards={ONE: 0}),
        append(TWO, guards={ONE: 2}),
        append(TWO, guards={ONE: 1, TWO: 1}),
        append(TWO, guards={ONE: 1, TWO: 0}),
    )
    assert verdicts(outcomes) == ["conflict", "conflict", "conflict", "appended"]
    assert log(connection) == [(1, ONE, 1), (2, TWO, 1)]


async def test_a_guard_sees_what_the_same_batch_wrote_before(
    appender: Appender, connection: Any
) -> None:
    outcomes = await batch(
        appender,
        append(ONE, guards={ONE: 0}),
        append(ONE, guards={ONE: 0}),
        append(ONE, guards={ONE: 1}),
        append(TWO, guards={ONE: 2}),
    )
    assert verdicts(outcomes) == ["appended", "conflict", "appended", "appended"]
    assert log(connection) == [(1, ONE, 1), (2, ONE, 2), (3, TWO, 1)]


async def test_a_loser_leaves_no_trace_for_those_behind_it(appender: Appender) -> None:
    outcomes = await batch(
        appender,
        append(ONE, guards={TWO: 7}, key=key("k"), claims=[take("x", "me")]),
        append(ONE, guards={ONE: 0}, key=key("k", HASH_B), claims=[take("x", "you")]),
    )
    assert verdicts(outcomes) == ["conflict", "appended"]


async def test_one_refused_command_costs_no_other(appender: Appender, connection: Any) -> None:
    await batch(appender, append(ONE, claims=[take("x", "me")], key=key("k")))
    outcomes = await batch(
        appender,
        append(TWO),
        append(ONE, guards={ONE: 0}),
        append(TWO),
        append(ONE, claims=[take("x", "you")]),
        append(TWO),
        append(ONE, key=key("k", HASH_B)),
        append(TWO),
        append(ONE, key=key("k")),
        append(TWO),
    )
    assert verdicts(outcomes[::2]) == ["appended"] * 5
    assert verdicts(outcomes[1::2]) == ["conflict", "taken", "reused", "replayed"]
    assert log(connection) == [(1, ONE, 1), *((n + 1, TWO, n) for n in range(1, 6))]


async def test_what_the_database_can_not_take_costs_no_other(
    appender: Appender, connection: Any
) -> None:
    broken = Append([event(ONE, "no uuid")], {}, [], None)
    asked = [appender.append(one) for one in (append(TWO), broken, append(TWO))]
    first, refused, last = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(refused, Unavailable)
    assert isinstance(first, Outcome)
    assert isinstance(last, Outcome)
    assert log(connection) == [(1, TWO, 1), (2, TWO, 2)]


async def test_without_events_the_head_is_answered(appender: Appender, connection: Any) -> None:
    assert (await batch(appender, append(guards={ONE: 0})))[0].position == 0
    outcomes = await batch(appender, append(ONE), append(guards={ONE: 1}), append(guards={ONE: 0}))
    assert outcomes[1] == Outcome("appended", 1, None, None)
    assert outcomes[2].verdict == "conflict"
    assert len(log(connection)) == 1


async def test_a_known_key_answers_as_at_first_for_ever(
    appender: Appender, connection: Any
) -> None:
    await batch(appender, append(TWO))
    [first] = await batch(appender, append(ONE, key=key("k")))
    await batch(appender, append(TWO))
    [again] = await batch(appender, append(ONE, guards={ONE: 0}, key=key("k", answer="{}")))
    assert again == Outcome("replayed", first.position, '{"n":1}', None)
    assert len(log(connection)) == 3


async def test_a_key_is_remembered_within_its_batch(appender: Appender, connection: Any) -> None:
    outcomes = await batch(
        appender,
        append(ONE, key=key("k")),
        append(ONE, key=key("k")),
        append(ONE, key=key("k", HASH_B)),
        append(ONE, key=key("other")),
    )
    assert verdicts(outcomes) == ["appended", "replayed", "reused", "appended"]
    assert outcomes[1].answer == '{"n":1}'
    assert len(log(connection)) == 2


async def test_keys_of_different_users_are_different(appender: Appender) -> None:
    other = key("k")._replace(scope="another user", body_hash=HASH_B)
    outcomes = await batch(appender, append(ONE, key=key("k")), append(ONE, key=other))
    assert verdicts(outcomes) == ["appended", "appended"]


async def test_a_key_without_events_is_remembered_too(appender: Appender) -> None:
    await batch(appender, append(key=key("k")))
    assert verdicts(await batch(appender, append(key=key("k")))) == ["replayed"]


async def test_a_conflict_does_not_use_up_the_key(appender: Appender) -> None:
    [lost] = await batch(appender, append(ONE, guards={ONE: 3}, key=key("k")))
    [won] = await batch(appender, append(ONE, guards={ONE: 0}, key=key("k", HASH_B)))
    assert (lost.verdict, won.verdict) == ("conflict", "appended")


async def test_a_unique_value_has_one_holder(appender: Appender, connection: Any) -> None:
    outcomes = await batch(
        appender,
        append(ONE, claims=[take("x", "me")]),
        append(TWO, claims=[take("x", "you")]),
        append(ONE, claims=[take("x", "me")]),
        append(TWO, claims=[take("y", "you"), take("x", "you")]),
    )
    assert verdicts(outcomes) == ["appended", "taken", "appended", "taken"]
    assert outcomes[1].detail == "slug"
    assert connection.execute(HOLDERS).fetchall() == [("x", "me")]


async def test_a_value_given_back_can_be_taken_in_the_same_batch(
    appender: Appender, connection: Any
) -> None:
    await batch(appender, append(ONE, claims=[take("x", "me")]))
    outcomes = await batch(
        appender,
        append(TWO, claims=[take("x", "you")]),
        append(ONE, claims=[release("x", "me"), take("y", "me")]),
        append(TWO, claims=[take("x", "you")]),
        append(TWO, claims=[take("y", "you")]),
    )
    assert verdicts(outcomes) == ["taken", "appended", "appended", "taken"]
    assert connection.execute(HOLDERS).fetchall() == [("x", "you"), ("y", "me")]


async def test_nobody_gives_back_what_another_holds(appender: Appender, connection: Any) -> None:
    await batch(appender, append(ONE, claims=[take("x", "me")]))
    await batch(appender, append(TWO, claims=[release("x", "you")]))
    assert connection.execute(HOLDERS).fetchall() == [("x", "me")]


async def test_equal_values_of_different_scopes_do_not_meet(appender: Appender) -> None:
    username = ClaimRow("username", "x", "you", False)
    outcomes = await batch(
        appender, append(ONE, claims=[take("x", "me")]), append(TWO, claims=[username])
    )
    assert verdicts(outcomes) == ["appended", "appended"]


async def test_text_with_quotes_and_braces_goes_in_as_it_is(
    appender: Appender, connection: Any
) -> None:
    odd = """a'b"c{d},\\e NULL"""
    data = b'{"text":"a\'b\\"c{d},\\\\e","n":1e400}'
    row = event(ONE)._replace(data=data)
    await batch(appender, Append([row], {}, [take(odd, odd)], key(odd)))
    assert connection.execute(HOLDERS).fetchall() == [(odd, odd)]
    [(kept,)] = connection.execute("SELECT data::text FROM event_log").fetchall()
    assert kept.encode() == data


async def test_more_than_a_batch_holds_goes_in_several(appender: Appender, connection: Any) -> None:
    wishes = [append(ONE) for _ in range(appending.MAX_BATCH_COMMANDS + 1)]
    outcomes = await asyncio.gather(*(appender.append(wish) for wish in wishes))
    assert [outcome.position for outcome in outcomes] == list(range(1, len(wishes) + 1))
    assert appender.batches == 2


async def test_a_batch_is_bounded_by_bytes(appender: Appender) -> None:
    big = event(ONE)._replace(data=b'"' + b"x" * (appending.MAX_BATCH_BYTES // 2) + b'"')
    wishes = [Append([big], {}, [], None) for _ in range(3)]
    await asyncio.gather(*(appender.append(wish) for wish in wishes))
    assert appender.batches == 2


async def test_a_full_queue_is_refused_at_once(database_url: str) -> None:
    async with Appender(database_url, queue_limit=3) as appender:
        outcomes = await asyncio.gather(
            *(appender.append(append(ONE)) for _ in range(5)), return_exceptions=True
        )
    assert [isinstance(outcome, Unavailable) for outcome in outcomes] == [False] * 3 + [True] * 2


async def test_every_commit_is_told_with_the_new_head(database_url: str) -> None:
    told: list[int] = []
    async with Appender(database_url, queue_limit=10, on_commit=told.append) as appender:
        await batch(appender, append(ONE), append(ONE))
        await batch(appender, append(ONE))
    assert told == [2, 3]


async def test_a_caller_who_gives_up_disturbs_nobody(appender: Appender, connection: Any) -> None:
    gone = asyncio.create_task(appender.append(append(ONE)))
    stays = asyncio.create_task(appender.append(append(TWO)))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await stays).verdict == "appended"
    assert [stream for _, stream, _ in log(connection)] == [ONE, TWO]


async def test_what_waits_when_the_appender_stops_is_told(database_url: str) -> None:
    async with Appender(database_url, queue_limit=10) as appender:
        waiting = asyncio.create_task(appender.append(append(ONE)))
        await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await appender.append(append(ONE))


async def test_without_a_database_callers_hear_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appending, "RECONNECT_SECONDS", (0.01,))
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    async with Appender(url, queue_limit=10) as appender:
        with pytest.raises(Unavailable):
            await appender.append(append(ONE))


async def test_several_appenders_keep_one_order(database_url: str, connection: Any) -> None:
    """Each stream is written by all of them, under guards: the versions tell the order."""
    appenders = [Appender(database_url, queue_limit=QUEUE_LIMIT) for _ in range(3)]
    async with appenders[0], appenders[1], appenders[2]:
        outcomes = await asyncio.gather(
            *(
                one.append(append(StreamId(f"test-{n % 5}"), guards={StreamId(f"test-{n % 5}"): v}))
                for n in range(50)
                for v in range(10)
                for one in appenders
            )
        )
    won = [outcome.position for outcome in outcomes if outcome.verdict == "appended"]
    assert sorted(won) == list(range(1, len(won) + 1))
    rows = log(connection)
    assert [position for position, _, _ in rows] == list(range(1, len(won) + 1))
    assert {outcome.verdict for outcome in outcomes} == {"appended", "conflict"}


async def test_a_killed_connection_loses_and_doubles_nothing(
    database_url: str, connection: Any
) -> None:
    """What was acknowledged is there once, at the place it was told; nothing is there twice."""
    killed: list[int] = []
    acknowledged: dict[str, int] = {}
    numbers = count()

    async def write(appender: Appender) -> None:
        while len(killed) < KILLS:
            number = next(numbers)
            rows = [event(StreamId(f"test-{number}")) for _ in range(1 + number % 3)]
            outcome = await appender.append(Append(rows, {}, [], None))
            assert outcome.verdict == "appended"
            acknowledged[rows[-1].event_id] = outcome.position

    async def kill() -> None:
        for _ in range(KILLS // KILLS_IN_A_ROW):
            before, many = len(acknowledged), len(killed) + KILLS_IN_A_ROW
            while len(killed) < many:
                await asyncio.sleep(random.uniform(0, KILL_PAUSE_SECONDS_MAX))
                killed.extend(pid for pid, _ in connection.execute(KILL_APPENDERS))
            await until(partial(_are_more, acknowledged, before), "it gets through")

    async with Appender(database_url, queue_limit=QUEUE_LIMIT) as appender:
        await asyncio.gather(kill(), *(write(appender) for _ in range(WRITERS)))
    statement = "SELECT event_id::text, position FROM event_log ORDER BY position"
    rows = connection.execute(statement).fetchall()
    assert len({event_id for event_id, _ in rows}) == len(rows)
    assert [position for _, position in rows] == list(range(1, len(rows) + 1))
    assert acknowledged.items() <= dict(rows).items()
    assert len(rows) == sum(1 + number % 3 for number in range(next(numbers)))


async def _are_more(found: Sized, than: int) -> bool:
    return len(found) > than


async def test_a_call_whose_answer_was_lost_is_not_made_twice(
    database_url: str, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit went through, and the connection broke before the answer came."""
    lost: list[Any] = []
    call = Appender._call

    async def lossy(self: Appender, on: Any, pending: Any) -> None:
        if len(lost) < 2:
            lost.append(on)
            monkeypatch.setattr(self, "_resolve", lambda *_: None)
            await call(self, on, pending)
            monkeypatch.delattr(self, "_resolve")
            await on.close()
            raise psycopg.OperationalError("the answer was lost")
        await call(self, on, pending)

    monkeypatch.setattr(Appender, "_call", lossy)
    async with Appender(database_url, queue_limit=10) as appender:
        outcomes = await batched(appender, append(ONE, ONE, key=key("k")), append(TWO))
    assert outcomes == [Outcome("appended", 2, None, None), Outcome("appended", 3, None, None)]
    assert log(connection) == [(1, ONE, 1), (2, ONE, 2), (3, TWO, 1)]


async def test_a_second_break_while_looking_up_what_landed_doubles_nothing(
    database_url: str, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lookup after a lost answer is broken too, once for each item."""
    breaks = iter([True, False, True, False, False, False])
    call, had_landed = Appender._call, Appender._had_landed
    answers = iter([False])

    async def lossy(self: Appender, on: Any, pending: Any) -> None:
        if next(answers, True):
            return await call(self, on, pending)
        monkeypatch.setattr(self, "_resolve", lambda *_: None)
        await call(self, on, pending)
        monkeypatch.delattr(self, "_resolve")
        await on.close()
        raise psycopg.OperationalError("the answer was lost")

    async def broken(self: Appender, on: Any, pending: Any) -> bool:
        if next(breaks, False):
            await on.close()
        return await had_landed(self, on, pending)

    monkeypatch.setattr(Appender, "_call", lossy)
    monkeypatch.setattr(Appender, "_had_landed", broken)
    async with Appender(database_url, queue_limit=10) as appender:
        outcomes = await batched(appender, append(ONE), append(TWO))
    assert verdicts(outcomes) == ["appended", "appended"]
    assert log(connection) == [(1, ONE, 1), (2, TWO, 1)]
