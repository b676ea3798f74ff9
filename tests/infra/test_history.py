"""A log that went back in time: who follows it notices and stops, and a new epoch mends it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from commands.update_profile import UpdateProfile
from domain.ids import UserId
from infra import database, event_log, history
from infra.bus import Bus, epoch_of, stream_name
from infra.embedded.nats import Nats
from infra.embedded.postgres import Postgres
from infra.embedded.process import while_running
from infra.errors import Stopped, Unavailable
from infra.history import REMEDY, Witness
from infra.projector import Projector
from infra.relay import Relay
from projections import BY_NAME, PROJECTIONS
from tests import model
from tests.api.served import Person, serving, serving_all
from tests.infra import machines
from tests.infra.daemons import (
    LOGGER,
    check,
    check_copy,
    check_rows,
    checkpoints,
    connected,
    copied,
    keyring,
    projected,
    projecting,
    relaying,
    until,
)
from tests.infra.machines import Machine
from tests.infra.restores import Restores, restores
from tests.infra.test_replay import command, replayed
from tests.stream import client as streams

STOP_SECONDS = 60.0
NOBODY = "nats://127.0.0.1:9"


@pytest.fixture
async def machine(database_url: str) -> AsyncIterator[Machine]:
    async with machines.running(database_url) as machine:
        yield machine


@pytest.fixture
def restore(postgres: Postgres, database_url: str) -> Iterator[Restores]:
    with restores(postgres.url, database_url) as made:
        yield made


@asynccontextmanager
async def bus_to(url: str) -> AsyncIterator[Bus]:
    async with Bus(url, name="test") as bus:
        yield bus


async def write(url: str, events: int) -> None:
    """By somebody who has never seen the log before."""
    async with machines.running(url) as machine:
        for _ in range(events):
            async with connected(url) as connection:
                head = (await event_log.head(connection)).position
            await machine.register(f"another_{head}")


async def stopped(running: Any) -> str:
    """The one line with which it stops."""
    with pytest.raises(Stopped) as info:
        await asyncio.wait_for(running, STOP_SECONDS)
    return str(info.value)


async def relay_stops(url: str, nats_url: str) -> str:
    async with bus_to(nats_url) as bus:
        return await stopped(Relay(url, bus, LOGGER).run())


async def projector_stops(url: str, nats_url: str, name: str = "users") -> str:
    async with bus_to(nats_url) as bus, keyring(url) as keys:
        projector = Projector(BY_NAME[name], database_url=url, keyring=keys, bus=bus, logger=LOGGER)
        return await stopped(projector.run())


async def api_stops(url: str, nats_url: str) -> str:
    async def serve() -> None:
        async with serving(url, nats_url):
            pass

    return await stopped(serve())


async def new_epoch(url: str, nats_url: str) -> event_log.Head:
    async with bus_to(nats_url) as bus, connected(url) as connection:
        return await history.new_epoch(bus, connection)


async def brought_to(url: str, nats_url: str, events: int) -> None:
    """Registers people, and has all of it copied and projected."""
    async with machines.running(url) as machine:
        await machine.people(events)
    async with relaying(url, nats_url), projecting(url, nats_url):
        await copied(url, nats_url)
        await projected(url)


# --------------------------------------------------------------------------------- all of it


async def test_a_restored_log_stops_all_who_follow_it_and_a_new_epoch_brings_them_back(
    database_url: str, nats_url: str, restore: Restores
) -> None:
    async with serving_all(database_url, nats_url) as api, relaying(database_url, nats_url):
        ann, bob = await api.person("ann"), await api.person("bob")
        await copied(database_url, nats_url)
        await projected(database_url)
    await restore.keep()
    async with (
        serving(database_url, nats_url) as api,
        bus_to(nats_url) as relay_bus,
        bus_to(nats_url) as projector_bus,
        keyring(database_url) as keys,
    ):
        relay = asyncio.create_task(Relay(database_url, relay_bus, LOGGER).run())
        users = Projector(
            BY_NAME["users"],
            database_url=database_url,
            keyring=keys,
            bus=projector_bus,
            logger=LOGGER,
        )
        projector = asyncio.create_task(users.run())
        async with streams.connected(api.url, ann.session["access_token"]) as client:
            await client.start()
            ann = await api.signed_in("ann")
            for number in range(5):
                done = await ann.do("update-profile", display_name=f"Ann {number}")
            newest = done["position"]
            await client.reached(newest)
            await projected(database_url, ["users"])
            await copied(database_url, nats_url)
            await restore.go_back()
            told = [await stopped(relay), await stopped(api.live.ends()), await stopped(projector)]
            assert await client.close_code() == 1012
    assert all(REMEDY in line and "\n" not in line for line in told)
    # Whoever starts anew finds the same, also when the log has got as far as it was.
    for events in (0, 5, 2):
        await write(database_url, events)
        for stops in (relay_stops, projector_stops, api_stops):
            assert REMEDY in await stops(database_url, nats_url)
    async with connected(database_url) as connection:
        head = (await event_log.head(connection)).position
    code, out, said = await at(nats_url, database_url, "log", "new-epoch")
    assert (code, out) == (0, f"epoch 2 begins after position {head}\n"), said
    async with (
        relaying(database_url, nats_url),
        serving_all(database_url, nats_url) as api,
    ):
        await copied(database_url, nats_url)
        await projected(database_url)
        await check(database_url, nats_url)
        bob = await api.signed_in("bob")
        await check_cursors(api.url, bob, newest)


async def check_cursors(url: str, bob: Person, newest: int) -> None:
    """Of the old epoch none is taken up."""
    token = bob.session["access_token"]
    for cursor in ({"after": newest, "epoch": 1}, {"after": 1, "epoch": 1}, {"after": newest}):
        async with streams.connected(url, token) as client:
            ready = await client.start(**cursor)
            assert (ready["resumed"], ready["epoch"], client.events) == (False, 2, [])
    state = (await bob.client.get("/v1/state")).json()
    done = await bob.do("update-profile", display_name="Bob after all")
    async with streams.connected(url, token) as client:
        ready = await client.start(after=state["position"], epoch=2)
        assert ready["resumed"]
        await client.reached(done["position"])
        assert client.positions == [done["position"]]


async def test_a_process_that_could_not_ask_nats_takes_up_no_cursor(
    database_url: str, nats_url: str
) -> None:
    """It can't know whether the log went back before it started, and has got as far since."""
    async with serving_all(database_url, nats_url) as api:
        ann = await api.person("ann")
        done = await ann.do("update-profile", display_name="Ann")
        cursor = {"after": done["position"] - 1, "epoch": 1}
        token = ann.session["access_token"]
        for url, is_resumed in ((nats_url, True), (NOBODY, False)):
            async with (
                serving(database_url, url) as other,
                streams.connected(other.url, token) as client,
            ):
                ready = await client.start(**cursor)
                assert ready["resumed"] is is_resumed
                if is_resumed:
                    await client.reached(done["position"])
                assert client.positions == [done["position"]] * is_resumed


async def at(nats_url: str, url: str, *arguments: str) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MESSENGER_NATS_URL", nats_url)
        return await command(url, *arguments)


async def test_a_projector_never_applies_what_a_copy_has_of_a_future_that_is_no_more(
    database_url: str, nats_url: str, restore: Restores
) -> None:
    """The log has got as far again, with other events, before anybody looks."""
    await brought_to(database_url, nats_url, 3)
    await restore.keep()
    await write(database_url, 4)
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    await restore.go_back()
    await write(database_url, 6)
    assert "holds another event at 7" in await projector_stops(database_url, nats_url)
    async with connected(database_url) as connection:
        assert (await checkpoints(connection))["users"] == 9
        names = {row["username"] for row in (await model.live_rows(connection))["users"].values()}
    assert names == {f"user_{n}" for n in range(3)} | {f"another_{n}" for n in range(3, 9)}


async def test_a_log_from_before_an_epoch_began_is_noticed_and_no_number_is_used_twice(
    database_url: str, nats_url: str, restore: Restores
) -> None:
    await brought_to(database_url, nats_url, 3)
    await restore.keep()
    assert await new_epoch(database_url, nats_url) == (3, 2)
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    await restore.go_back()
    for stops in (relay_stops, projector_stops, api_stops):
        told = await stops(database_url, nats_url)
        assert told == f"EVENT_LOG_2 is of a later epoch than the log's 1: {REMEDY}"
    assert await new_epoch(database_url, nats_url) == (3, 3)
    async with relaying(database_url, nats_url), projecting(database_url, nats_url):
        await copied(database_url, nats_url)
        await projected(database_url)
    await check(database_url, nats_url)


async def test_a_restore_to_the_very_end_stops_nobody(
    database_url: str, nats_url: str, restore: Restores
) -> None:
    await brought_to(database_url, nats_url, 3)
    await restore.keep()
    async with (
        relaying(database_url, nats_url),
        projecting(database_url, nats_url),
        serving(database_url, nats_url) as api,
    ):
        await restore.go_back()
        await write(database_url, 3)
        await copied(database_url, nats_url)
        await projected(database_url)
        await until(lambda: _reached(api, 6), "the stream goes on")
    await check(database_url, nats_url)


async def _reached(api: Any, position: int) -> bool:
    shown = (await api.client.get("/metrics")).text
    return f"messenger_stream_position {float(position)}" in shown


# ------------------------------------------------------------------------------- a new epoch


async def test_a_new_epoch_of_a_log_that_is_well_is_followed_by_daemons_that_run(
    database_url: str, nats_url: str, machine: Machine
) -> None:
    async with (
        relaying(database_url, nats_url),
        projecting(database_url, nats_url),
        serving(database_url, nats_url) as api,
        bus_to(nats_url) as bus,
    ):
        await machine.people(3)
        await copied(database_url, nats_url)
        assert await new_epoch(database_url, nats_url) == (3, 2)
        assert "epoch 2 and no more of 1" in await stopped(api.live.ends())
        await machine.register("somebody")
        await copied(database_url, nats_url)
        await projected(database_url)
        assert await bus.extent(stream_name(1)) is None
    await check(database_url, nats_url)


async def test_nothing_more_goes_into_the_copy_of_an_epoch_that_has_ended(
    database_url: str, nats_url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From that very moment, not from when the relay looks the next time."""
    monkeypatch.setattr("infra.relay.LOOK_SECONDS", 60.0)
    async with relaying(database_url, nats_url), bus_to(nats_url) as bus:
        await machine.people(3)
        await copied(database_url, nats_url)
        await new_epoch(database_url, nats_url)
        await machine.register("somebody")
        await asyncio.sleep(0.6)
        assert await bus.last_sequence(stream_name(1)) == 3
    async with relaying(database_url, nats_url):
        await copied(database_url, nats_url)
    await check_copy(database_url, nats_url)


async def test_a_new_epoch_needs_nats_which_knows_the_numbers_that_were_used(
    database_url: str, machine: Machine
) -> None:
    code, out, said = await at("nats://127.0.0.1:9", database_url, "log", "new-epoch")
    assert (code, out, said) == (1, "", "messenger: NATS does not answer\n")
    async with connected(database_url) as connection:
        assert (await event_log.head(connection)).epoch == 1


async def test_two_new_epochs_at_once_are_two(database_url: str, nats_url: str) -> None:
    begun = await asyncio.gather(*(new_epoch(database_url, nats_url) for _ in range(3)))
    assert sorted(head.epoch for head in begun) == [2, 3, 4]


@pytest.mark.parametrize(
    ("stream", "epoch"),
    [("EVENT_LOG_12", 12), ("EVENT_LOG_", 0), ("OTHER_3", 0), ("3", 0), (None, 0)],
)
def test_a_stream_says_its_epoch(stream: str | None, epoch: int) -> None:
    assert epoch_of(stream) == epoch


# -------------------------------------------------------------------------------- by memory


async def test_a_process_remembers_what_it_has_seen_when_nats_knows_nothing(
    database_url: str, restore: Restores, machine: Machine
) -> None:
    await machine.people(3)
    await restore.keep()
    async with (
        bus_to("nats://127.0.0.1:9") as bus,
        database.pool(database_url, name="test", size=1) as pool,
    ):
        witness = Witness(pool, bus)
        await write(database_url, 2)
        assert await witness.look() == (5, 1)
        await restore.go_back()
        assert (await stopped(looked(witness))).startswith("the log ends at 3, but had an event 5")
        await write(database_url, 4)
        assert (await stopped(looked(witness))).startswith("the log is another one, but had")
        assert REMEDY in await stopped(witness.watch())


async def looked(witness: Witness) -> None:
    """Over sessions that were cut off."""
    while True:
        try:
            await witness.look()
        except (Unavailable, *database.DOWN):
            await asyncio.sleep(0.1)


async def test_nats_is_asked_as_soon_as_it_is_there(
    database_url: str, restore: Restores, tmp_path: Path
) -> None:
    async with while_running(Nats(tmp_path)) as nats:
        await restore.keep()
        await brought_to(database_url, nats.url, 3)
        await nats.stop()
        await restore.go_back()
        async with (
            bus_to(nats.url) as bus,
            database.pool(database_url, name="test", size=1) as pool,
        ):
            witness = Witness(pool, bus)
            assert await witness.look() == (0, 1)
            await nats.start()
            assert "EVENT_LOG_1 ends at 3 but the log at 0" in await stopped(witness.watch())


async def test_what_a_stranger_published_ends_no_api(
    database_url: str, nats_url: str, machine: Machine
) -> None:
    await brought_to(database_url, nats_url, 2)
    async with bus_to(nats_url) as bus, serving(database_url, nats_url) as api:
        await bus.jetstream.publish("event.user.x.user_registered", b'{"position":7}')
        async with serving(database_url, nats_url) as another:
            await machine.register("somebody")
            for one in (api, another):
                await until(lambda one=one: _reached(one, 3), "the stream goes on")  # type: ignore[misc]


# ------------------------------------------------------------------- a log without its rows


async def test_read_models_beyond_a_log_that_went_back_are_rebuilt_from_it(
    database_url: str, nats_url: str, machine: Machine
) -> None:
    """Where the log alone was restored: the live tables stop, and a replay takes their place."""
    await machine.people(2)
    async with connected(database_url) as connection:
        for projection in PROJECTIONS:
            begin = "INSERT INTO projection_checkpoints VALUES (%s, 50, now())"
            await connection.execute(begin, (projection.name,))
    assert "users is at 50 but the log ends at 2" in await projector_stops(database_url, nats_url)
    for projection in PROJECTIONS:
        assert (await replayed(database_url, projection)).position == 2
    await machine.run(UpdateProfile(display_name="After all"), UserId(await _anybody(database_url)))
    async with projecting(database_url, nats_url):
        await projected(database_url)
    await check_rows(database_url)


async def _anybody(url: str) -> str:
    async with connected(url) as connection:
        cursor = await connection.execute("SELECT id::text FROM users LIMIT 1")
        row: Any = await cursor.fetchone()
        return str(row[0])
