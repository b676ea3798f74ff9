"""The relay: message n of the copy is row n of the log, whatever happens to either."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from domain.ids import StreamId
from infra import bus as buses
from infra import clock, event_log
from infra import relay as relays
from infra.appender import Append, Appender, EventRow
from infra.bus import Bus, stream_name
from infra.embedded.nats import Nats
from infra.embedded.process import while_running
from infra.errors import Stopped
from infra.relay import WINDOW_EVENTS, Relay
from tests.infra.daemons import (
    LOGGER,
    WAIT_SECONDS,
    check_copy,
    connected,
    copied,
    copy_of,
    relaying,
    tasks,
    until,
)

QUEUE_LIMIT = 10_000
NOW = "2026-01-02T03:04:05+00:00"
STREAM = stream_name(1)
ABSENT_SECONDS = 0.4
STOP_SECONDS = 60.0


@pytest.fixture
async def appender(database_url: str) -> AsyncIterator[Appender]:
    async with Appender(database_url, queue_limit=QUEUE_LIMIT) as appender:
        yield appender


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    async with Bus(nats_url, name="test") as bus:
        yield bus


@pytest.fixture
async def own_nats(tmp_path: Path) -> AsyncIterator[Nats]:
    """A server of the test's own, to be stopped and wiped."""
    async with while_running(Nats(tmp_path)) as server:
        yield server


async def write(appender: Appender, count: int) -> None:
    await asyncio.gather(*(appender.append(Append([event()], {}, [], None)) for _ in range(count)))


def event() -> EventRow:
    stream = StreamId(f"test-{clock.new_id()}")
    return EventRow(clock.new_id(), stream, "test_event", 1, b'{"n":1}', b"{}", NOW)


async def stopped(relay: Relay) -> str:
    """The one line that it stops with."""
    with pytest.raises(Stopped) as info:
        await asyncio.wait_for(relay.run(), STOP_SECONDS)
    assert "\n" not in str(info.value)
    return str(info.value)


async def test_every_event_is_copied_once_in_order(
    database_url: str, nats_url: str, appender: Appender, bus: Bus
) -> None:
    await write(appender, 2 * relays.WINDOW_EVENTS + 17)
    async with relaying(database_url, nats_url) as relay:
        await copied(database_url, nats_url)
        await write(appender, 3)
        await copied(database_url, nats_url)
        await until(lambda: _at(relay, 2 * relays.WINDOW_EVENTS + 20), "the relay knows")
    await check_copy(database_url, nats_url)
    (sequence, first), *_ = await copy_of(bus, STREAM)
    async with connected(database_url) as connection:
        statement = "SELECT to_jsonb(e) - 'recorded_at' FROM event_log AS e WHERE position = 1"
        row = (await (await connection.execute(statement)).fetchone() or [{}])[0]
    assert sequence == first.position == 1
    assert {name: getattr(first, name) for name in row if name not in ("data", "metadata")} == {
        name: value for name, value in row.items() if name not in ("data", "metadata")
    }
    message = await bus.jetstream.get_msg(STREAM, 1)
    assert message.subject == f"event.test.{row['stream'].removeprefix('test-')}.test_event"


async def _at(relay: Relay, position: int) -> bool:
    return relay.position == position


async def test_an_event_is_copied_at_once(
    database_url: str, nats_url: str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hint comes with each commit; the poll alone would do too, later: here, too late."""
    for name in ("MIN_POLL_SECONDS", "MAX_POLL_SECONDS"):
        monkeypatch.setattr(relays, name, 10 * WAIT_SECONDS)
    async with (
        Appender(
            database_url, queue_limit=9, on_commit=lambda head: bus.hint(buses.HEAD, b"%d" % head)
        ) as appender,
        relaying(database_url, nats_url),
    ):
        for _ in range(3):
            await write(appender, 1)
            await copied(database_url, nats_url)


async def test_an_empty_log_is_no_trouble_and_goes_on_after_a_restart(
    database_url: str, nats_url: str, appender: Appender, bus: Bus
) -> None:
    for _ in range(2):
        async with relaying(database_url, nats_url):
            await until(lambda: _has_stream(bus), "there is a stream")
    async with relaying(database_url, nats_url):
        await write(appender, 2)
        await copied(database_url, nats_url)
    await check_copy(database_url, nats_url)


async def _has_stream(bus: Bus) -> bool:
    return await bus.last_sequence(STREAM) is not None


async def test_two_relays_at_once_copy_once(
    database_url: str,
    nats_url: str,
    appender: Appender,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even where both believe that they lead."""

    async def lead(*_: object) -> None:
        return None

    monkeypatch.setattr(Relay, "_lead", lead)
    monkeypatch.setattr(relays, "WINDOW_EVENTS", 5)
    async with relaying(database_url, nats_url), relaying(database_url, nats_url):
        for _ in range(20):
            await write(appender, 7)
        await copied(database_url, nats_url)
    await check_copy(database_url, nats_url)


async def test_a_second_relay_takes_over(
    database_url: str, nats_url: str, appender: Appender
) -> None:
    async with relaying(database_url, nats_url) as second:
        async with relaying(database_url, nats_url):
            await write(appender, 5)
            await copied(database_url, nats_url)
        await write(appender, 5)
        await copied(database_url, nats_url)
        await until(lambda: _at(second, 10), "the second one leads")
    await check_copy(database_url, nats_url)


async def test_a_relay_interrupted_anywhere_loses_and_doubles_nothing(
    database_url: str, nats_url: str, appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "WINDOW_EVENTS", 10)
    await write(appender, 400)
    for milliseconds in range(2, 40, 3):
        async with relaying(database_url, nats_url):
            await asyncio.sleep(milliseconds / 1000)
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    await check_copy(database_url, nats_url)


async def test_nats_stopped_for_a_while_gets_what_it_missed(
    database_url: str, own_nats: Nats, appender: Appender
) -> None:
    async with relaying(database_url, own_nats.url):
        await write(appender, 20)
        await copied(database_url, own_nats.url)
        await own_nats.stop()
        await write(appender, 20)
        await asyncio.sleep(ABSENT_SECONDS)
        await own_nats.start()
        await write(appender, 20)
        await copied(database_url, own_nats.url)
    await check_copy(database_url, own_nats.url)


async def test_nats_killed_under_load_gets_what_it_missed(
    database_url: str, own_nats: Nats, appender: Appender
) -> None:
    async with relaying(database_url, own_nats.url):
        for _ in range(3):
            writing = asyncio.create_task(write(appender, 500))
            await own_nats.kill()
            await own_nats.start()
            await writing
        await copied(database_url, own_nats.url)
    await check_copy(database_url, own_nats.url)


async def test_a_wiped_nats_directory_is_filled_again(
    database_url: str, own_nats: Nats, appender: Appender, tmp_path: Path
) -> None:
    async with relaying(database_url, own_nats.url):
        await write(appender, 30)
        await copied(database_url, own_nats.url)
        await own_nats.stop()
        shutil.rmtree(tmp_path / "nats")
        await own_nats.start()
        await copied(database_url, own_nats.url)
        await write(appender, 3)
        await copied(database_url, own_nats.url)
    await check_copy(database_url, own_nats.url)


async def test_a_nats_directory_of_an_older_day_is_brought_up_to_date(
    database_url: str, own_nats: Nats, appender: Appender, tmp_path: Path
) -> None:
    async with relaying(database_url, own_nats.url):
        await write(appender, 10)
        await copied(database_url, own_nats.url)
        await own_nats.stop()
        shutil.copytree(tmp_path / "nats", tmp_path / "older")
        await own_nats.start()
        await write(appender, 10)
        await copied(database_url, own_nats.url)
        await own_nats.stop()
        shutil.rmtree(tmp_path / "nats")
        (tmp_path / "older").rename(tmp_path / "nats")
        await own_nats.start()
        await copied(database_url, own_nats.url)
    await check_copy(database_url, own_nats.url)


async def test_a_deleted_stream_is_made_and_filled_again(
    database_url: str, nats_url: str, appender: Appender, bus: Bus
) -> None:
    async with relaying(database_url, nats_url):
        await write(appender, 30)
        await copied(database_url, nats_url)
        await bus.jetstream.delete_stream(STREAM)
        await copied(database_url, nats_url)
        await bus.jetstream.delete_stream(STREAM)
        await write(appender, 5)
        await copied(database_url, nats_url)
    await check_copy(database_url, nats_url)


@pytest.mark.parametrize("events_after", [0, 5])
async def test_a_purged_stream_is_filled_again(
    database_url: str, nats_url: str, appender: Appender, bus: Bus, events_after: int
) -> None:
    async with relaying(database_url, nats_url):
        await write(appender, 30)
        await copied(database_url, nats_url)
        await bus.jetstream.purge_stream(STREAM)
        await write(appender, events_after)
        await until(lambda: _begins_with(bus, 1), "it begins with the first event again")
        await copied(database_url, nats_url)
    await check_copy(database_url, nats_url)


async def _begins_with(bus: Bus, sequence: int) -> bool:
    extent = await bus.extent(STREAM)
    return extent is not None and extent.first == sequence and extent.messages > 0


async def test_a_copy_ahead_of_the_log_stops_the_relay(
    database_url: str, nats_url: str, appender: Appender, bus: Bus
) -> None:
    await write(appender, 3)
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    await bus.jetstream.publish("event.test.x.test_event", b"{}")
    async with Bus(nats_url, name="test relay") as its_bus:
        line = await stopped(Relay(database_url, its_bus, LOGGER))
    assert line.startswith(f"{STREAM} ends at 4 but the log at 3: the log went back in time")


async def test_another_event_at_the_same_position_stops_the_relay(
    database_url: str, nats_url: str, appender: Appender, bus: Bus
) -> None:
    await write(appender, 3)
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    await bus.jetstream.publish("event.test.x.test_event", b"{}")
    await write(appender, 1)
    async with Bus(nats_url, name="test relay") as its_bus:
        line = await stopped(Relay(database_url, its_bus, LOGGER))
    assert line.startswith(f"{STREAM} holds another event at 4 than the log")


async def test_a_foreign_message_stops_a_relay_that_runs(
    database_url: str, nats_url: str, appender: Appender, bus: Bus
) -> None:
    await write(appender, 3)
    async with Bus(nats_url, name="test relay") as its_bus:
        relay = Relay(database_url, its_bus, LOGGER)
        running = asyncio.create_task(relay.run())
        await copied(database_url, nats_url)
        await bus.jetstream.publish("event.test.x.test_event", b"{}")
        with pytest.raises(Stopped, match="ends at 4 but the log at 3"):
            await asyncio.wait_for(running, STOP_SECONDS)


def intrude(bus: Bus, monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """A stranger is quicker with a message than the relay with one event of a window."""
    publish = Client.publish

    async def behind_a_stranger(self: Client, *arguments: Any, **options: Any) -> None:
        if (options.get("headers") or {}).get("Nats-Expected-Last-Sequence") == str(at - 1):
            monkeypatch.setattr(Client, "publish", publish)
            # The client's PING overtakes what waits to be sent; a second one comes after it.
            await self.flush()
            await self.flush()
            await bus.jetstream.publish("event.test.x.test_event", b"{}")
        await publish(self, *arguments, **options)

    monkeypatch.setattr(Client, "publish", behind_a_stranger)


async def test_a_foreign_message_in_the_middle_of_a_window_stops_the_relay(
    database_url: str,
    nats_url: str,
    appender: Appender,
    bus: Bus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes one event's place, and all after it would fit."""
    await write(appender, 10)
    intrude(bus, monkeypatch, at=5)
    async with Bus(nats_url, name="test relay") as its_bus:
        relay = Relay(database_url, its_bus, LOGGER)
        with pytest.raises(Stopped, match=f"{STREAM} holds another event at 5 than the log"):
            await asyncio.wait_for(relay.run(), STOP_SECONDS)


@pytest.mark.parametrize("events", [12, WINDOW_EVENTS + 12])
async def test_a_foreign_message_that_a_relay_did_not_live_to_hear_of_stops_the_next_one(
    database_url: str,
    nats_url: str,
    appender: Appender,
    bus: Bus,
    monkeypatch: pytest.MonkeyPatch,
    events: int,
) -> None:
    """The copy ends where it should, with the event that it should end with: its sequences tell
    nothing. A window may be as long as it can be."""

    async def hears_nothing(_: object) -> None:
        await asyncio.Event().wait()

    await write(appender, events)
    intrude(bus, monkeypatch, at=10)
    async with Bus(nats_url, name="test relay") as its_bus:
        with monkeypatch.context() as patched:
            patched.setattr(relays._Window, "refused", hears_nothing)
            async with tasks(Relay(database_url, its_bus, LOGGER).run()):
                await until(lambda: _ends_at(bus, min(events, WINDOW_EVENTS)), "all is sent")
        await write(appender, 3)
        line = await stopped(Relay(database_url, its_bus, LOGGER))
    assert line.startswith(f"{STREAM} holds another event at 10 than the log: somebody else")


async def _ends_at(bus: Bus, sequence: int) -> bool:
    return await bus.last_sequence(STREAM) == sequence


async def test_a_copy_shorter_than_the_log_begins_at_its_place(
    database_url: str,
    nats_url: str,
    appender: Appender,
    bus: Bus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sequences stay positions where retention is shorter than the log."""
    monkeypatch.setattr(buses, "RETAINED_EVENTS", 10)
    await write(appender, 35)
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
        await check_copy(database_url, nats_url, first=26)
        await write(appender, 4)
        await copied(database_url, nats_url)
        await check_copy(database_url, nats_url, first=30)
        await bus.jetstream.purge_stream(STREAM)
        await until(lambda: _begins_with(bus, 30), "it is filled again")
        await copied(database_url, nats_url)
    await check_copy(database_url, nats_url, first=30)


async def test_a_new_epoch_has_a_stream_of_its_own(
    database_url: str, nats_url: str, appender: Appender, bus: Bus
) -> None:
    await write(appender, 5)
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    async with connected(database_url) as connection:
        await connection.execute("UPDATE log_head SET epoch = 2")
        assert (await event_log.head(connection)).epoch == 2
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    await check_copy(database_url, nats_url)
    assert await bus.last_sequence(stream_name(2)) == 5


async def test_the_relay_outlives_its_database_session(
    database_url: str, nats_url: str, appender: Appender
) -> None:
    end_sessions = """
        SELECT pg_terminate_backend(pid)
        FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'messenger relay %'
    """
    async with relaying(database_url, nats_url), connected(database_url) as connection:
        for _ in range(3):
            await write(appender, 20)
            await copied(database_url, nats_url)
            assert (await (await connection.execute(end_sessions)).fetchall()) == [(True,)]
        await write(appender, 20)
        await copied(database_url, nats_url)
    await check_copy(database_url, nats_url)
