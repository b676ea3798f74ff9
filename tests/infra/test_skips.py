"""Poison: an event that a projection can't apply, and an operator who lets it go without."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from commands.send_message import SendMessage
from domain.ids import ChatId, UserId
from infra import clock, rebuild, replay, skips, tables, verify
from infra.errors import Unavailable
from infra.projector import RECORD_FAILURE, Poisoned
from infra.skips import MAX_SKIPS, NotSkipped, Skip
from projections import BY_NAME, NAMES
from tests import model
from tests.infra import machines
from tests.infra.daemons import (
    checkpoints,
    connected,
    copied,
    failures,
    keyring,
    named_too_long,
    opened_log,
    projected,
    projecting,
    relaying,
    until,
)
from tests.infra.machines import Machine
from tests.infra.test_replay import command, replayed, spawned

USERS = BY_NAME["users"]
MESSAGES = BY_NAME["messages"]
RACES = 4
KILLS = 4

BREAK = "ALTER TABLE messages ADD CONSTRAINT fault CHECK (content <> 'poison')"
MEND = "ALTER TABLE messages DROP CONSTRAINT IF EXISTS fault"

POISON = """
    SELECT position
    FROM event_log
    WHERE type = 'message_sent'
    ORDER BY position
    OFFSET 2
    LIMIT 1
"""


class Standing(NamedTuple):
    """A log with an event that stops one projection, and others behind it."""

    machine: Machine
    url: str
    position: int
    chat_id: ChatId
    people: list[UserId]

    async def talk(self, *contents: str) -> None:
        for content in contents:
            send = SendMessage(chat_id=self.chat_id, content=content)
            await self.machine.run(send, self.people[0])

    async def skip(self, name: str, position: int | None = None, why: str = "a test") -> Any:
        async with connected(self.url) as connection:
            return await skips.record(connection, name, position or self.position, why=why)

    async def has_failed(self, name: str) -> bool:
        async with connected(self.url) as connection:
            return name in await failures(connection)


@pytest.fixture
async def machine(database_url: str) -> AsyncIterator[Machine]:
    async with machines.running(database_url) as machine:
        yield machine


@pytest.fixture
async def poisoned(database_url: str, machine: Machine) -> Standing:
    """`users` can't take a name; all else can."""
    people = await machine.people(3)
    chat_id = await machine.group(*people)
    async with keyring(database_url) as keys:
        position = (await machine.appender.append(await named_too_long(keys))).position
    standing = Standing(machine, database_url, position, chat_id, people)
    await standing.talk("one", "two")
    return standing


@pytest.fixture
async def faulty(database_url: str, machine: Machine) -> Standing:
    """The live table of messages takes no `poison`; a rebuilt one does."""
    people = await machine.people(2)
    standing = Standing(machine, database_url, 0, await machine.group(*people), people)
    await standing.talk("one", "two", "poison", "four")
    async with connected(database_url) as connection:
        await connection.execute(BREAK)
        row: Any = await (await connection.execute(POISON)).fetchone()
    return standing._replace(position=row[0])


async def verdict_of(url: str, name: str) -> verify.Verdict:
    async with keyring(url) as keys:
        return await verify.verify(BY_NAME[name], url=url, keyring=keys, progress=lambda *_: None)


async def check_without(url: str, name: str, *positions: int) -> None:
    """Live = rebuilt = an independent fold in which this projection's events are left out."""
    async with connected(url) as connection, keyring(url) as keys:
        events = await opened_log(connection, keys)
        expected = model.fold(events)
        left = model.fold([event for event in events if event.position not in positions])
        for table in tables.tables_of(name):
            if table.name in expected:
                expected[table.name] = left[table.name]
        model.assert_same(expected, await model.live_rows(connection))
    verdict = await verdict_of(url, name)
    assert verdict.differing == 0, verdict.shown
    assert [skip.position for skip in verdict.skipped] == list(positions)


# ------------------------------------------------------------------------------------- alone


async def test_a_projection_goes_on_without_a_skipped_event_and_every_rebuild_does_too(
    database_url: str, nats_url: str, poisoned: Standing
) -> None:
    async with relaying(database_url, nats_url), projecting(database_url, nats_url):
        await until(lambda: poisoned.has_failed("users"), "it stands still")
        skip, is_new = await poisoned.skip("users", why="a name of another age")
        assert is_new
        assert (skip.position, skip.type, skip.why) == (
            poisoned.position,
            "user_registered",
            "a name of another age",
        )
        assert skip.reason.startswith("value too long")
        await projected(database_url)
        await poisoned.talk("three")
        await projected(database_url)
        await check_without(database_url, "users", poisoned.position)
        swap = await replayed(database_url, USERS)
        assert swap.skipped == [skip]
        await projected(database_url)
        await copied(database_url, nats_url)
        await check_without(database_url, "users", poisoned.position)


async def test_a_read_model_as_of_a_position_is_without_what_is_skipped_up_to_there(
    database_url: str, nats_url: str, poisoned: Standing
) -> None:
    async with projecting(database_url, nats_url, [USERS]):
        await until(lambda: poisoned.has_failed("users"), "it stands still")
        await poisoned.skip("users")
        await projected(database_url, ["users"])
    async with keyring(database_url) as keys, connected(database_url) as connection:
        for position, found in ((poisoned.position - 1, 0), (poisoned.position, 1)):
            past = await replay.as_of(
                USERS,
                url=database_url,
                keyring=keys,
                until=position,
                schema="past",
                progress=lambda *_: None,
            )
            assert (past.position, len(past.skipped)) == (position, found)
            assert len(await model._rows(connection, "past", "users")) == 3


# ---------------------------------------------------------------------------------- refusals


async def test_only_the_event_at_which_a_projection_stands_still_can_be_skipped(
    database_url: str, nats_url: str, poisoned: Standing
) -> None:
    with pytest.raises(NotSkipped, match="it has all up to 0, it goes on"):
        await poisoned.skip("users")  # nobody has tried yet
    async with projecting(database_url, nats_url):
        await until(lambda: poisoned.has_failed("users"), "it stands still")
        await projected(database_url, [name for name in NAMES if name != "users"])
        for name, position in (
            ("users", poisoned.position - 1),
            ("users", poisoned.position + 1),
            ("users", 10**9),
            ("messages", poisoned.position),
        ):
            with pytest.raises(NotSkipped, match=f"{name} does not stand still at {position}"):
                await poisoned.skip(name, position)
    async with connected(database_url) as connection:
        assert await skips.of(connection, "users") == []
        assert (await checkpoints(connection))["users"] == poisoned.position - 1
        assert list(await failures(connection)) == ["users"]


async def test_what_it_got_over_by_itself_can_not_be_skipped_any_more(
    database_url: str, nats_url: str, faulty: Standing
) -> None:
    async with projecting(database_url, nats_url, [MESSAGES]):
        await until(lambda: faulty.has_failed("messages"), "it stands still")
        async with connected(database_url) as connection:
            await connection.execute(MEND)
        await projected(database_url, ["messages"])
        with pytest.raises(NotSkipped):
            await faulty.skip("messages")
    assert (await verdict_of(database_url, "messages")).differing == 0


async def test_skipped_twice_it_is_skipped_once_and_the_first_reason_stays(
    database_url: str, nats_url: str, poisoned: Standing
) -> None:
    async with projecting(database_url, nats_url, [USERS]):
        await until(lambda: poisoned.has_failed("users"), "it stands still")
        outcomes = await asyncio.gather(*(poisoned.skip("users", why=f"{n}") for n in range(5)))
        assert sorted(is_new for _, is_new in outcomes) == [False] * 4 + [True]
        assert len({skip for skip, _ in outcomes}) == 1
        await projected(database_url, ["users"])
        first = outcomes[0][0]
        assert await poisoned.skip("users", why="another") == (first, False)
        async with connected(database_url) as connection:
            assert await skips.of(connection, "users") == [first]


async def test_a_gap_in_the_log_can_not_be_skipped(database_url: str, poisoned: Standing) -> None:
    async with connected(database_url) as connection:
        await connection.execute("INSERT INTO projection_checkpoints VALUES ('users', 98, now())")
        row = ("users", 99, "missing", "the log has 0 events in (98, 99]", clock.now())
        await connection.execute(RECORD_FAILURE, row)
    with pytest.raises(NotSkipped, match="the log has no event 99"):
        await poisoned.skip("users", 99)


async def test_a_projection_skips_only_so_many(database_url: str, poisoned: Standing) -> None:
    many = """
        INSERT INTO skipped_events
        SELECT 'users', 1000 + n, 'x', 'y', 'z', now()
        FROM generate_series(1, %s) AS n
    """
    async with connected(database_url) as connection:
        await connection.execute(many, (MAX_SKIPS,))
    with pytest.raises(NotSkipped, match="its code has to be mended"):
        await poisoned.skip("users")


async def test_what_was_skipped_meanwhile_is_not_recorded_as_a_failure(
    database_url: str, poisoned: Standing
) -> None:
    """By a daemon that was trying it just then."""
    async with connected(database_url) as connection:
        row = ("users", poisoned.position, "user_registered", "too long", clock.now())
        begin = "INSERT INTO projection_checkpoints VALUES ('users', %s, now())"
        await connection.execute(begin, (poisoned.position - 1,))
        await connection.execute(RECORD_FAILURE, row)
        assert list(await failures(connection)) == ["users"]
        await poisoned.skip("users")
        await connection.execute(RECORD_FAILURE, row)
        assert await failures(connection) == {}


# ------------------------------------------------------------------------- others at the time


async def test_an_event_is_skipped_or_applied_never_both_whoever_is_quicker(
    database_url: str, nats_url: str, faulty: Standing
) -> None:
    """Two daemons try again and again while the cause goes away and an operator skips."""
    chance = random.Random(11)
    position = faulty.position
    async with projecting(database_url, nats_url, [MESSAGES, MESSAGES]):
        for _ in range(RACES):
            await until(lambda: faulty.has_failed("messages"), "it stands still")
            async with connected(database_url) as connection:
                await connection.execute(MEND)
                await asyncio.sleep(chance.uniform(0, 0.3))
                with suppress(NotSkipped):
                    await faulty.skip("messages", position)
                await projected(database_url, ["messages"])
                assert (await verdict_of(database_url, "messages")).differing == 0
                await connection.execute(f"{BREAK} NOT VALID")
                done = await faulty.machine.run(
                    SendMessage(chat_id=faulty.chat_id, content="poison"), faulty.people[0]
                )
                position = done.position


async def test_a_rebuild_that_has_an_event_which_is_skipped_then_starts_over(
    database_url: str, nats_url: str, faulty: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was interrupted beyond the event that stops the live tables alone."""
    monkeypatch.setattr(rebuild, "MAX_BATCH_EVENTS", 1)

    class BrokenOff(Exception):
        pass

    def break_off(position: int, _: int) -> None:
        if position == faulty.position:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        await replayed(database_url, MESSAGES, break_off)
    async with projecting(database_url, nats_url, [MESSAGES]):
        await until(lambda: faulty.has_failed("messages"), "it stands still")
        await faulty.skip("messages")
        reached: list[int] = []
        swap = await replayed(database_url, MESSAGES, lambda position, _: reached.append(position))
        assert reached[0] == 1
        assert [skip.position for skip in swap.skipped] == [faulty.position]
        await projected(database_url, ["messages"])
    verdict = await verdict_of(database_url, "messages")
    assert (verdict.differing, len(verdict.skipped)) == (0, 1)


async def test_a_rebuild_goes_on_from_the_event_that_stopped_it_once_that_is_skipped(
    database_url: str, nats_url: str, poisoned: Standing
) -> None:
    with pytest.raises(Poisoned, match=f"event {poisoned.position} "):
        await replayed(database_url, USERS)
    async with projecting(database_url, nats_url, [USERS]):
        await until(lambda: poisoned.has_failed("users"), "it stands still")
        await poisoned.skip("users")
    reached: list[int] = []
    swap = await replayed(database_url, USERS, lambda position, _: reached.append(position))
    assert reached[0] >= poisoned.position
    assert [skip.position for skip in swap.skipped] == [poisoned.position]


async def test_what_is_skipped_while_a_rebuild_runs_is_not_swapped_in(
    database_url: str, nats_url: str, faulty: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rebuild has the event, the live tables go on without it."""
    approach = replay._approach

    async def skipped_meanwhile(*arguments: Any) -> None:
        await approach(*arguments)
        await faulty.skip("messages")

    async with projecting(database_url, nats_url, [MESSAGES]):
        await until(lambda: faulty.has_failed("messages"), "it stands still")
        with monkeypatch.context() as patch:
            patch.setattr(replay, "_approach", skipped_meanwhile)
            with pytest.raises(Unavailable, match="skipped meanwhile; run it again"):
                await replayed(database_url, MESSAGES)
        assert (await verdict_of(database_url, "messages")).differing == 0
        await replayed(database_url, MESSAGES)
        await projected(database_url, ["messages"])
        assert (await verdict_of(database_url, "messages")).differing == 0


# ------------------------------------------------------------------------------- the operator


async def test_an_operator_sees_what_stands_still_skips_it_and_is_told_by_every_rebuild(
    database_url: str, nats_url: str, poisoned: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESSENGER_NATS_URL", nats_url)
    position = str(poisoned.position)
    told = f"{position} (user_registered): value too long for type character varying(100)"
    without = f"without {position} (user_registered: value too long"
    async with projecting(database_url, nats_url):
        await until(lambda: poisoned.has_failed("users"), "it stands still")
        code, out, _ = await command(database_url, "status")
        assert code == 0
        assert f"failed at {told}" in out
        assert f"messenger project skip users {position}" in out
        code, _, said = await command(database_url, "verify", "users")
        assert (code, f"event {told}" in said) == (1, True)
        skip = ("project", "skip", "users", position, "--why", "a name of  another age")
        for expected in ("users: goes on without", "users: goes on already without"):
            code, out, said = await command(database_url, *skip)
            assert code == 0, said
            assert out.startswith(f"{expected} {position}")
            assert out.endswith(": a name of another age\n")
        await projected(database_url)
        for arguments in (
            ("verify", "users"),
            ("replay", "users"),
            ("replay", "users", "--until", position, "--into", "past"),
            ("status",),
        ):
            code, out, said = await command(database_url, *arguments)
            assert code == 0, said
            assert without in out
            assert "a name of another age" in out


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("skip", "users", "1", "--why", "x"), 1, "messenger: users does not stand still at 1"),
        (("skip", "users", "1"), 2, "Missing option '--why'"),
        (("skip", "users", "1", "--why", " "), 2, "--why says why"),
        (("skip", "users", "0", "--why", "x"), 2, "0 is not in the range x>=1"),
        (("skip", "nobody", "1", "--why", "x"), 2, "there is no projection 'nobody'"),
        (("nobody",), 2, "there is no projection 'nobody'"),
        ((), 2, "name projections"),
    ],
)
async def test_a_wrong_order_is_refused_in_a_line(
    database_url: str, arguments: tuple[str, ...], code: int, told: str
) -> None:
    found, _, said = await command(database_url, "project", *arguments)
    assert (found, told in said) == (code, True), said


async def test_killed_in_the_middle_a_skip_is_recorded_whole_or_not_at_all(
    database_url: str, nats_url: str, poisoned: Standing
) -> None:
    chance = random.Random(5)
    async with projecting(database_url, nats_url, [USERS]):
        await until(lambda: poisoned.has_failed("users"), "it stands still")
    for _ in range(KILLS):
        arguments = ("project", "skip", "users", str(poisoned.position), "--why", "killed")
        process = await spawned(database_url, *arguments)
        await asyncio.sleep(chance.uniform(0.25, 0.9))
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.communicate()
        async with connected(database_url) as connection:
            # All as of one moment: the server may be still at what it was told before the kill.
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            recorded = len(await skips.of(connection, "users"))
            reached = (await checkpoints(connection))["users"]
            assert (recorded, reached, len(await failures(connection))) in (
                (0, poisoned.position - 1, 1),
                (1, poisoned.position, 0),
            )
    if recorded == 0:
        await poisoned.skip("users")
    async with projecting(database_url, nats_url):
        await projected(database_url)
    await check_without(database_url, "users", poisoned.position)


def test_no_projection_has_the_name_of_an_order() -> None:
    assert not {"run", "skip"} & set(NAMES)


def test_a_skip_says_all_of_it_in_a_line() -> None:
    at = clock.now().replace(year=2026, month=2, day=3)
    said = str(Skip(7, "user_registered", "too long", "nobody misses it", at))
    assert said == (
        "without 7 (user_registered: too long), skipped on 2026-02-03: nobody misses it"
    )
