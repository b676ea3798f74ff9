"""infra/production/nats.conf, run: the relay alone writes the log's copy, and everybody reads it."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig

from infra import history
from infra.bus import HEAD, Access, Bus, stream_name
from infra.errors import Unavailable
from infra.projector import Projector
from infra.relay import Relay
from projections import BY_NAME
from tests.infra import guarded, machines
from tests.infra.certificates import Authority
from tests.infra.daemons import (
    LOGGER,
    check_log,
    connected,
    copy_of,
    keyring,
    log,
    projected,
    tasks,
    until,
)
from tests.infra.guarded import Nats

STREAM, NEXT_STREAM = stream_name(1), stream_name(2)
REFUSED_SECONDS = 0.5
CHANGES = (
    f"PURGE.{STREAM}",
    f"MSG.DELETE.{STREAM}",
    f"DELETE.{STREAM}",
    f"UPDATE.{STREAM}",
    f"CREATE.{STREAM}",
    f"CREATE.{NEXT_STREAM}",
    f"DELETE.{NEXT_STREAM}",
    "CREATE.OTHER",
    f"RESTORE.{STREAM}",
    f"SNAPSHOT.{STREAM}",
)
WAIT_SECONDS = 10.0
SETTLED_SECONDS = 0.3


class Guarded(NamedTuple):
    server: Nats
    ca: Authority

    @property
    def access(self) -> Access:
        return Access(ca=self.ca.ca)


@pytest.fixture(scope="module")
async def at(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Guarded]:
    directory = tmp_path_factory.mktemp("nats")
    authority = Authority(directory / "certificates", "ours")
    async with guarded.nats(directory, authority.sign("server")) as server:
        yield Guarded(server, authority)


@asynccontextmanager
async def copied(at: Guarded, database_url: str, people: int) -> AsyncIterator[None]:
    """The relay, signed in as itself, brings some events into JetStream; all is left as it is."""
    async with (
        machines.running(database_url) as machine,
        Bus(at.server.relay_url, name="relay", access=at.access) as bus,
    ):
        for name in (STREAM, NEXT_STREAM):
            await bus.delete_stream(name)  # an earlier test's
        async with tasks(Relay(database_url, bus, LOGGER).run()):
            await machine.people(people)
            while await bus.last_sequence(STREAM) != people:
                await asyncio.sleep(0.02)
            yield


@asynccontextmanager
async def reader(at: Guarded, refused: list[str]) -> AsyncIterator[Client]:
    """Signed in as who is no relay; what the server refuses is gathered."""

    async def note(error: Exception) -> None:
        refused.append(str(error))

    context = ssl.create_default_context(cafile=at.ca.ca)
    client = await nats.connect(at.server.reader_url, tls=context, error_cb=note)
    try:
        yield client
    finally:
        await client.close()


async def test_relay_and_projectors_do_their_work_under_their_rights(
    at: Guarded, database_url: str
) -> None:
    async with (
        copied(at, database_url, people=5),
        keyring(database_url) as keys,
        Bus(at.server.reader_url, name="projector", access=at.access) as bus,
    ):
        users = Projector(
            BY_NAME["users"], database_url=database_url, keyring=keys, bus=bus, logger=LOGGER
        )
        async with tasks(users.run()):
            await projected(database_url, ["users"])
        assert bus.connected
        copy = await copy_of(bus, STREAM)
        async with connected(database_url) as connection:
            rows = await log(connection)
        check_log(rows, 5)
        assert [envelope.event_id for _, envelope in copy] == [event_id for _, event_id, *_ in rows]


async def test_hints_go_to_everybody(at: Guarded) -> None:
    heard = asyncio.Event()

    async def hear(_: Any) -> None:
        heard.set()

    async with (
        Bus(at.server.relay_url, name="relay", access=at.access) as relay,
        Bus(at.server.reader_url, name="api", access=at.access) as api,
    ):
        await relay.listen(HEAD, hear)
        await relay.client.flush()
        api.hint(HEAD, b"1")
        await asyncio.wait_for(heard.wait(), WAIT_SECONDS)


async def test_nobody_else_publishes_into_the_log(at: Guarded, database_url: str) -> None:
    refused: list[str] = []
    async with copied(at, database_url, people=3), reader(at, refused) as client:
        for subject in ("event.user.x.user_registered", "event.x", f"event.chat.{STREAM}.x"):
            await client.publish(subject, b"{}")
            with pytest.raises(NatsError):
                await client.jetstream().publish(subject, b"{}", timeout=REFUSED_SECONDS)
        await client.flush()
        assert len(refused) >= 6
        assert all("permissions violation for publish to" in one.lower() for one in refused)
        assert (await client.jetstream().stream_info(STREAM)).state.last_seq == 3


async def test_nobody_else_makes_changes_or_removes_a_stream(
    at: Guarded, database_url: str
) -> None:
    refused: list[str] = []
    async with copied(at, database_url, people=3), reader(at, refused) as client:
        streams = client.jetstream()
        before = await streams.stream_info(STREAM)
        asked = [
            client.request(f"$JS.API.STREAM.{what}", b"{}", REFUSED_SECONDS) for what in CHANGES
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [answer for answer in answers if not isinstance(answer, NatsError)] == []
        for what in CHANGES:
            assert any(f"$js.api.stream.{what}".lower() in one.lower() for one in refused), what
        assert (await streams.stream_info(STREAM)).state == before.state


async def test_a_new_epoch_begins_for_who_reads_and_the_relay_makes_its_stream(
    at: Guarded, database_url: str
) -> None:
    """The operator's own rights are in PostgreSQL; in NATS there is only to ask."""
    async with (
        connected(database_url) as connection,
        copied(at, database_url, people=3),
        Bus(at.server.reader_url, name="new epoch", access=at.access) as bus,
    ):
        assert await history.new_epoch(bus, connection) == (3, 2)

        async def holds() -> bool:
            return await bus.last_sequence(NEXT_STREAM) == 3

        await until(holds, "the relay has made the new stream")
        assert await bus.extent(STREAM) is None
        await history.check_copy(bus, connection)
        with pytest.raises(Unavailable):
            await bus.delete_stream(NEXT_STREAM)
        assert await bus.last_sequence(NEXT_STREAM) == 3


@pytest.mark.parametrize(
    "subject", ["event.user.x.user_registered", f"$JS.API.STREAM.PURGE.{STREAM}"]
)
async def test_a_consumer_is_no_way_around(at: Guarded, database_url: str, subject: str) -> None:
    """The server itself delivers to where a consumer says."""
    async with copied(at, database_url, people=3), reader(at, []) as client:
        streams = client.jetstream(timeout=REFUSED_SECONDS)
        config = ConsumerConfig(deliver_subject=subject, ack_policy=AckPolicy.NONE)
        with suppress(NatsError):  # said no at once, which is as good
            await streams.add_consumer(STREAM, config)
        await asyncio.sleep(SETTLED_SECONDS)
        state = (await streams.stream_info(STREAM)).state
        assert (state.messages, state.last_seq) == (3, 3)


async def test_a_relay_that_signs_in_as_somebody_else_copies_nothing(
    at: Guarded, database_url: str
) -> None:
    async with copied(at, database_url, people=1):
        pass
    async with (
        machines.running(database_url) as machine,
        Bus(at.server.reader_url, name="relay", access=at.access) as bus,
    ):
        await machine.register("late")
        async with tasks(Relay(database_url, bus, LOGGER).run()):
            await asyncio.sleep(SETTLED_SECONDS)
        assert await bus.last_sequence(STREAM) == 1
