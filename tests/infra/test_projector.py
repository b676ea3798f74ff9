"""The projector daemon: each event once and in order, whatever else is going on."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from commands.mark_read import MarkRead
from commands.send_message import SendMessage
from domain.ids import ChatId, UserId
from infra import bus as buses
from infra import event_log, projector
from infra.appender import Append
from infra.bus import Bus, stream_name
from infra.embedded.nats import Nats
from infra.embedded.process import while_running
from infra.errors import Stopped
from infra.keyring import Keyring
from infra.projector import MAX_BATCH_EVENTS, MIN_BATCH_EVENTS, Pace, Projector
from projections import BY_NAME, NAMES, PROJECTIONS
from tests import model
from tests.infra import machines
from tests.infra.daemons import (
    LOGGER,
    WAIT_SECONDS,
    check,
    check_rows,
    checkpoints,
    connected,
    copied,
    failures,
    keyring,
    named_too_long,
    projected,
    projecting,
    relaying,
    tasks,
    until,
    written,
)
from tests.infra.machines import Machine, new_user_id

STREAM = stream_name(1)
KILLS = 4
# Work goes on all the time, and what there is of it in the end is checked whole.
BETWEEN_SECONDS = 0.1
STOP_SECONDS = 60.0
ROOT = Path(__file__).parents[2]

END_PROJECTORS = """
    SELECT pg_terminate_backend(pid)
    FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'messenger projector %'
"""


@pytest.fixture
async def machine(database_url: str) -> AsyncIterator[Machine]:
    async with machines.running(database_url) as machine:
        yield machine


class Talk:
    """People in a group who send and read."""

    def __init__(self, machine: Machine, people: Sequence[UserId], chat_id: ChatId) -> None:
        self.machine = machine
        self.people = people
        self.chat_id = chat_id
        self._numbers = count()

    async def goes_on(self, messages: int) -> None:
        for number in (next(self._numbers) for _ in range(messages)):
            sender = self.people[number % len(self.people)]
            send = SendMessage(chat_id=self.chat_id, content=f"message {number}")
            await self.machine.run(send, sender)
            if number % 5 == 4:
                reader = self.people[(number + 1) % len(self.people)]
                await self.machine.run(MarkRead(chat_id=self.chat_id), reader)

    async def at_once(self, messages: int) -> None:
        await asyncio.gather(*(self.goes_on(1) for _ in range(messages)))


@pytest.fixture
async def talk(machine: Machine) -> Talk:
    people = await machine.people(4)
    return Talk(machine, people, await machine.group(*people))


@asynccontextmanager
async def bus_to(url: str) -> AsyncIterator[Bus]:
    async with Bus(url, name="test") as bus:
        yield bus


async def head_of(url: str) -> int:
    async with connected(url) as connection:
        return (await event_log.head(connection)).position


# ------------------------------------------------------------------------------ one daemon


async def test_it_catches_up_and_then_follows(database_url: str, nats_url: str, talk: Talk) -> None:
    await talk.goes_on(20)
    async with relaying(database_url, nats_url), projecting(database_url, nats_url):
        await projected(database_url)
        for _ in range(5):
            await talk.goes_on(4)
            await projected(database_url)
        await copied(database_url, nats_url)
    await check(database_url, nats_url)


async def test_it_works_without_nats(database_url: str, talk: Talk, tmp_path: Path) -> None:
    async with while_running(Nats(tmp_path)) as nats:
        url = nats.url
    async with projecting(database_url, url):
        await talk.goes_on(20)
        await projected(database_url)
        await talk.goes_on(3)
        await projected(database_url)
    await check_rows(database_url)


async def test_nats_may_come_and_go(database_url: str, talk: Talk, tmp_path: Path) -> None:
    async with (
        while_running(Nats(tmp_path)) as nats,
        relaying(database_url, nats.url),
        projecting(database_url, nats.url),
    ):
        for _ in range(2):
            await talk.goes_on(10)
            await projected(database_url)
            await nats.kill()
            await talk.goes_on(10)
            await projected(database_url)
            await nats.start()
        await talk.goes_on(10)
        await projected(database_url)
        await copied(database_url, nats.url)
        await check(database_url, nats.url)


async def test_silence_of_jetstream_is_not_taken_for_the_end(
    database_url: str, nats_url: str, talk: Talk
) -> None:
    """The copy is there, but nobody adds to it."""
    async with relaying(database_url, nats_url), projecting(database_url, nats_url):
        await projected(database_url)
        await copied(database_url, nats_url)
        async with bus_to(nats_url) as bus:
            await bus.delete_stream(STREAM)
            await bus.create_stream(STREAM, first_sequence=1)
    async with projecting(database_url, nats_url):
        await projected(database_url)
        for _ in range(3):
            await talk.goes_on(2)
            await projected(database_url)
    await check_rows(database_url)


async def test_a_gap_in_jetstream_is_read_from_postgresql(
    database_url: str, nats_url: str, talk: Talk
) -> None:
    async with relaying(database_url, nats_url):
        await talk.goes_on(10)
        await copied(database_url, nats_url)
    before = await head_of(database_url)
    async with projecting(database_url, nats_url), bus_to(nats_url) as bus:
        await projected(database_url)
        # A copy that lacks what comes next, and is alive after it; the log stays ahead of it,
        # for the other way round it would have gone back.
        await talk.goes_on(8)
        await bus.delete_stream(STREAM)
        await bus.create_stream(STREAM, first_sequence=before + 4)
        for position in range(before + 4, before + 8):
            await bus.jetstream.publish("event.user.x.not_ours", b"%d" % position)
        await talk.goes_on(20)
        await projected(database_url)
    await check_rows(database_url)


async def test_what_is_no_event_of_the_log_is_not_applied(
    database_url: str, nats_url: str, talk: Talk
) -> None:
    """Somebody publishes beside the relay: the projectors read PostgreSQL."""
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    async with bus_to(nats_url) as bus, projecting(database_url, nats_url):
        await projected(database_url)
        await bus.jetstream.publish("event.user.x.user_registered", b'{"position":7}')
        await talk.goes_on(3)
        await projected(database_url)
    async with projecting(database_url, nats_url):
        await talk.goes_on(3)
        await projected(database_url)
    await check_rows(database_url)


async def test_events_of_a_log_that_went_back_are_not_applied(
    database_url: str, nats_url: str, machine: Machine
) -> None:
    """The copy has more events than the log, real ones of a future that is no more."""
    await machine.people(3)
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    async with connected(database_url) as connection:
        # What a restore of last night's backup does to the log, and to all that is in it.
        await connection.execute("ALTER TABLE event_log DISABLE TRIGGER USER")
        await connection.execute("DELETE FROM event_log WHERE position > 1")
        await connection.execute("UPDATE log_head SET position = 1")
    async with keyring(database_url) as keys, bus_to(nats_url) as bus:
        daemon = Projector(
            BY_NAME["users"], database_url=database_url, keyring=keys, bus=bus, logger=LOGGER
        )
        with pytest.raises(Stopped, match="went back in time"):
            await asyncio.wait_for(daemon.run(), STOP_SECONDS)
    async with connected(database_url) as connection:
        assert len((await model.live_rows(connection))["users"]) == 1


async def test_a_checkpoint_beyond_the_log_stops_it(
    database_url: str, nats_url: str, machine: Machine
) -> None:
    await machine.people(1)
    async with connected(database_url) as connection:
        insert = "INSERT INTO projection_checkpoints VALUES ('users', 5, now())"
        await connection.execute(insert)
    async with keyring(database_url) as keys, bus_to(nats_url) as bus:
        daemon = Projector(
            BY_NAME["users"], database_url=database_url, keyring=keys, bus=bus, logger=LOGGER
        )
        with pytest.raises(Stopped, match="users is at 5 but the log ends at 1"):
            await asyncio.wait_for(daemon.run(), STOP_SECONDS)


async def test_ended_database_sessions_are_taken_up_again(
    database_url: str, nats_url: str, talk: Talk
) -> None:
    async with (
        relaying(database_url, nats_url),
        projecting(database_url, nats_url),
        connected(database_url) as connection,
    ):
        for _ in range(3):
            await talk.goes_on(10)
            await connection.execute(END_PROJECTORS)
        await talk.goes_on(1)
        await projected(database_url)
        await copied(database_url, nats_url)
    await check(database_url, nats_url)


# ----------------------------------------------------------------------------- two daemons


async def test_two_daemons_of_each_name_give_the_same_rows(
    database_url: str, nats_url: str, talk: Talk
) -> None:
    await talk.goes_on(30)
    async with (
        relaying(database_url, nats_url),
        projecting(database_url, nats_url, [*PROJECTIONS, *PROJECTIONS]),
    ):
        await talk.at_once(40)
        await talk.goes_on(30)
        await projected(database_url)
        await copied(database_url, nats_url)
    await check(database_url, nats_url)


async def test_a_daemon_that_was_overtaken_is_fenced_not_poisoned(
    database_url: str, nats_url: str, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other one wrote must not look like a bad event."""
    found: list[Any] = []
    monkeypatch.setattr(Projector, "_record", lambda *args: found.append(args))
    for _ in range(5):
        await talk.goes_on(10)
        async with projecting(database_url, nats_url, [*PROJECTIONS, *PROJECTIONS, *PROJECTIONS]):
            await projected(database_url)
    assert found == []
    await check_rows(database_url)


# -------------------------------------------------------------------------------- bad events


async def bad_events(keys: Keyring) -> dict[str, tuple[Append, str, str]]:
    """By name: the event, the projection that it stops, and what is told about it."""
    user, chat = new_user_id(), new_user_id()
    profile = {"user_id": user, "display_name": "bm90IHNlYWxlZCBieSB1cw==", "avatar_url": None}
    await keys.create([user])
    return {
        "too long": (
            await named_too_long(keys),
            "users",
            "value too long for type character varying(100)",
        ),
        "not what its type says": (
            written(f"user-{user}", "user_registered", b'{"user_id":7}'),
            "users",
            "a user_registered event can't be decoded",
        ),
        "of a version unknown": (
            written(f"chat-{chat}", "group_updated", b"{}", version=99),
            "chats",
            "unknown event type group_updated of schema version 99",
        ),
        "sealed by somebody else": (
            written(f"user-{user}", "profile_updated", msgspec.json.encode(profile)),
            "users",
            "",
        ),
    }


BAD = ("too long", "not what its type says", "of a version unknown", "sealed by somebody else")


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("arrives", ["while catching up", "while following"])
async def test_a_bad_event_stops_its_projection_alone_and_says_where(
    database_url: str, nats_url: str, talk: Talk, name: str, arrives: str
) -> None:
    async with keyring(database_url) as keys, relaying(database_url, nats_url):
        bad, projection, reason = (await bad_events(keys))[name]
        write = talk.machine.appender.append
        outcome = await write(bad) if arrives == "while catching up" else None
        await talk.goes_on(3)
        async with projecting(database_url, nats_url), connected(database_url) as connection:
            if outcome is None:
                await projected(database_url)
                await copied(database_url, nats_url)
                outcome = await write(bad)
                await talk.goes_on(3)
            await until(lambda: _has_failed(connection, projection), f"{projection} has failed")
            others = [other for other in NAMES if other != projection]
            await projected(database_url, others)
            assert (await checkpoints(connection))[projection] == outcome.position - 1
            failed = await failures(connection)
    position, type_name, told = failed[projection]
    assert list(failed) == [projection]
    assert (position, type_name) == (outcome.position, bad.events[0].type)
    assert told.startswith(reason)


async def _has_failed(connection: Any, projection: str) -> bool:
    return projection in await failures(connection)


async def test_it_goes_on_by_itself_when_the_cause_is_gone(
    database_url: str, nats_url: str, talk: Talk
) -> None:
    """Here the fault was the table's, not the event's."""
    async with connected(database_url) as connection:
        check_name = "ALTER TABLE messages ADD CONSTRAINT fault CHECK (content <> 'message 7')"
        await connection.execute(check_name)
        async with relaying(database_url, nats_url), projecting(database_url, nats_url):
            await talk.goes_on(15)
            await until(lambda: _has_failed(connection, "messages"), "it has failed")
            await projected(database_url, [name for name in NAMES if name != "messages"])
            await connection.execute("ALTER TABLE messages DROP CONSTRAINT fault")
            await projected(database_url)
            await copied(database_url, nats_url)
            await until(lambda: _has_no_failure(connection), "the failure is forgotten")
    await check(database_url, nats_url)


async def _has_no_failure(connection: Any) -> bool:
    return await failures(connection) == {}


async def test_a_failure_recorded_by_an_earlier_process_is_forgotten_too(
    database_url: str, nats_url: str, talk: Talk
) -> None:
    async with connected(database_url) as connection:
        await connection.execute(
            "INSERT INTO projection_failures VALUES ('chats', 2, 'x', 'y', now())"
        )
        async with projecting(database_url, nats_url):
            await until(lambda: _has_no_failure(connection), "the failure is forgotten")
            await projected(database_url)


async def test_a_database_that_is_away_is_no_bad_event(
    database_url: str, nats_url: str, talk: Talk
) -> None:
    await talk.goes_on(20)
    async with projecting(database_url, nats_url), connected(database_url) as connection:
        for _ in range(10):
            await connection.execute(END_PROJECTORS)
            await asyncio.sleep(0.02)
        await projected(database_url)
        assert await failures(connection) == {}


# ------------------------------------------------------------------------------------- pace


def test_a_batch_never_takes_more_than_it_may_however_slow_or_quick() -> None:
    pace = Pace(most=7, target_seconds=0.008)
    for seconds in (1.0, 0.001, 1.0, 0.02, 0.001):
        assert pace.events == 7
        pace.took(pace.events, seconds)


def test_batches_grow_while_they_are_quick_and_shrink_when_slow() -> None:
    pace = Pace()
    for _ in range(20):
        pace.took(pace.events, 0.01)
    assert pace.events == MAX_BATCH_EVENTS
    for _ in range(20):
        pace.took(pace.events, 60.0)
    assert pace.events == MIN_BATCH_EVENTS


def test_batches_that_are_not_full_do_not_grow() -> None:
    pace = Pace()
    size = pace.events
    for _ in range(20):
        pace.took(size - 1, 0.01)
    assert pace.events == size


async def test_batches_grow_under_lag(
    database_url: str, nats_url: str, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far behind, it commits fewer times than there are hundreds of events.

    However slow the machine is: that slow batches shrink is shown above.
    """
    monkeypatch.setattr(projector, "BATCH_TARGET_SECONDS", WAIT_SECONDS)
    commits: list[int] = []
    apply = projector.Writer.apply

    async def counted(self: Any, events: Any, *, after: int) -> int:
        commits.append(len(events))
        return await apply(self, events, after=after)

    monkeypatch.setattr(projector.Writer, "apply", counted)
    await talk.at_once(1_500)
    async with projecting(database_url, nats_url, [BY_NAME["messages"]]):
        await projected(database_url, ["messages"])
    assert sum(commits) == await head_of(database_url)
    assert max(commits) >= 1_000
    assert len(commits) < 8


async def test_progress_is_told_after_each_commit(
    database_url: str, nats_url: str, talk: Talk
) -> None:
    told: list[int] = []

    async def hear(message: Any) -> None:
        told.append(int(message.data))

    async with bus_to(nats_url) as bus:
        await bus.listen(f"{buses.PROJECTED}.users", hear)
        async with projecting(database_url, nats_url, [BY_NAME["users"]]):
            await talk.goes_on(3)
            await projected(database_url, ["users"])
            head = await head_of(database_url)
            await until(lambda: _is(lambda: told[-1:] == [head]), "the head was told")
    assert told == sorted(told)


async def _is(holds: Any) -> bool:
    return bool(holds())


# ----------------------------------------------------------------------------------- kill -9


async def spawned(url: str, nats_url: str, name: str) -> asyncio.subprocess.Process:
    """`messenger project NAME` as a process of its own."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.cli", "project", name),
        cwd=ROOT,
        stderr=asyncio.subprocess.DEVNULL,
        env={
            **os.environ,
            "MESSENGER_DATABASE_URL": url,
            "MESSENGER_NATS_URL": nats_url,
            "MESSENGER_SECRET": machines.SECRET_TEXT,
        },
    )


@pytest.mark.parametrize("name", NAMES)
async def test_killed_in_mid_work_again_and_again_it_loses_and_doubles_nothing(
    database_url: str, nats_url: str, talk: Talk, name: str
) -> None:
    chance = random.Random(name)
    finished = asyncio.Event()

    async def kill() -> None:
        for _ in range(KILLS):
            process = await spawned(database_url, nats_url, name)
            begun = (await _positions(database_url)).get(name, 0)
            await until(partial(_moves, database_url, name, begun), f"{name} moves")
            await asyncio.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            await process.wait()
        finished.set()

    async with relaying(database_url, nats_url), tasks(kill()):
        while not finished.is_set():
            await talk.at_once(20)
            await asyncio.sleep(BETWEEN_SECONDS)
    async with relaying(database_url, nats_url), projecting(database_url, nats_url):
        await projected(database_url)
        await copied(database_url, nats_url)
    await check(database_url, nats_url)


async def _positions(url: str) -> dict[str, int]:
    async with connected(url) as connection:
        return await checkpoints(connection)


async def _moves(url: str, name: str, begun: int) -> bool:
    return (await _positions(url)).get(name, 0) > begun
