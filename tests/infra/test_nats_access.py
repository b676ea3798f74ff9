"""infra/production/nats.conf, run: the relay alone writes the log's copy, and everybody reads it."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from fnmatch import fnmatchcase
from typing import NamedTuple

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError

from infra import history
from infra.bus import HEAD, PROJECTED, Access, Bus, stream_name
from infra.errors import Unavailable
from infra.follower import Follower
from infra.logs import Logger
from infra.projector import Projector
from infra.relay import Relay
from projections import BY_NAME
from tests.infra import guarded, machines
from tests.infra.certificates import Authority
from tests.infra.daemons import (
    ALL_TYPES,
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
from tests.infra.guarded import CONFIGURATION, READER_PASSWORD, RELAY_PASSWORD, Nats
from tests.infra.machines import Machine

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
# What a reader may ask of JetStream, with what gets an answer of some length.
CONSUMER = (
    f'{{"stream_name": "{STREAM}", "config": {{"name": "any", "ack_policy": "none"}}}}'.encode()
)
ASKED = (
    ("STREAM.NAMES", b""),
    (f"STREAM.INFO.{STREAM}", b""),
    (f"STREAM.INFO.{NEXT_STREAM}", b""),  # there is none
    (f"STREAM.MSG.GET.{STREAM}", b'{"seq": 1}'),
    (f"DIRECT.GET.{STREAM}", b'{"seq": 1}'),
    (f"DIRECT.GET.{STREAM}", b'{"seq": 1, "batch": 3}'),
    (f"DIRECT.GET.{STREAM}.event.user.nobody.user_registered", b""),
    (f"CONSUMER.CREATE.{STREAM}", CONSUMER),
    (f"CONSUMER.CREATE.{STREAM}.any", CONSUMER),
    (f"CONSUMER.CREATE.{STREAM}.any", b"no JSON"),
    (f"CONSUMER.INFO.{STREAM}.any", b""),
    (f"CONSUMER.DELETE.{STREAM}.any", b""),
)
FOREIGN = "event.chat.nobody.shouted"
# To where a consumer could be told to deliver.
DELIVERED = (
    FOREIGN,
    "event.user.x.user_registered",
    "event.x",
    f"$JS.API.STREAM.PURGE.{STREAM}",
    f"$JS.API.STREAM.DELETE.{STREAM}",
    f"$JS.API.STREAM.MSG.GET.{STREAM}",
    HEAD,
    "_INBOX.nobody",
)
WAIT_SECONDS = 60.0
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
async def copied(at: Guarded, database_url: str, people: int) -> AsyncIterator[Machine]:
    """The relay, signed in as itself, brings some events into JetStream, and goes on."""
    async with (
        machines.running(database_url) as machine,
        Bus(at.server.relay_url, name="relay", access=at.access) as bus,
    ):
        for name in (STREAM, NEXT_STREAM):
            await bus.delete_stream(name)  # an earlier test's
        async with tasks(Relay(database_url, bus, LOGGER).run()):
            await machine.people(people)

            async def holds() -> bool:
                return await bus.last_sequence(STREAM) == people

            await until(holds, "the copy has all of them")
            yield machine


async def check_relay_goes_on(client: Client, machine: Machine, people: int) -> None:
    """The copy has what it had, and the log's next event comes to stand behind it."""
    await asyncio.sleep(SETTLED_SECONDS)
    streams = client.jetstream()
    state = (await streams.stream_info(STREAM)).state
    assert (state.messages, state.last_seq) == (people, people)
    await machine.register("late")

    async def holds() -> bool:
        return (await streams.stream_info(STREAM)).state.last_seq == people + 1

    await until(holds, "the relay goes on")
    newest = await streams.get_msg(STREAM, people + 1)
    assert str(newest.subject).endswith(".user_registered")


async def sent(client: Client) -> None:
    """All before has reached the server. A ping of nats-py overtakes what waits to be sent, and
    the next one does not."""
    await client.flush()
    await client.flush()


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


async def test_who_reads_follows_the_copy_live(at: Guarded, database_url: str) -> None:
    async with (
        copied(at, database_url, people=3) as machine,
        Bus(at.server.reader_url, name="projector", access=at.access) as bus,
        Follower(bus, ALL_TYPES) as follower,
    ):
        assert await follower.start(STREAM, after=0) == 3
        await machine.register("late")
        for position in range(1, 5):
            (taken,) = await follower.take(after=position - 1, most=1, timeout_seconds=WAIT_SECONDS)
            assert taken.position == position
        assert follower.follows


async def test_hints_go_to_all_who_look_sooner_for_them(at: Guarded) -> None:
    heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    async with (
        Bus(at.server.relay_url, name="relay", access=at.access) as relay,
        Bus(at.server.reader_url, name="projector", access=at.access) as projector,
        Bus(at.server.reader_url, name="api", access=at.access) as api,
    ):
        for bus, name, subject in (
            (relay, "relay", HEAD),
            (projector, "projector", HEAD),
            (api, "api", f"{PROJECTED}.*"),
        ):

            async def hear(message: Msg, name: str = name) -> None:
                heard.put_nowait((name, message.subject))

            await bus.listen(subject, hear)
            await sent(bus.client)
        api.hint(HEAD, b"1")
        projector.hint(f"{PROJECTED}.users", b"1")
        async with asyncio.timeout(WAIT_SECONDS):
            found = {await heard.get() for _ in range(3)}
    assert found == {("relay", HEAD), ("projector", HEAD), ("api", f"{PROJECTED}.users")}


async def test_nobody_else_publishes_into_the_log(at: Guarded, database_url: str) -> None:
    refused: list[str] = []
    async with copied(at, database_url, people=3), reader(at, refused) as client:
        for subject in ("event.user.x.user_registered", "event.x", f"event.chat.{STREAM}.x"):
            await client.publish(subject, b"{}")
            with pytest.raises(NatsError):
                await client.jetstream().publish(subject, b"{}", timeout=REFUSED_SECONDS)
        await sent(client)
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
        await sent(client)  # and all refusals have come
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


def test_all_that_a_reader_may_ask_is_tried_below() -> None:
    rights = CONFIGURATION.read_text().partition("user: reader")[2].partition("subscribe:")[0]
    allowed = re.findall(r'"\$JS\.API\.([^"]+)"', rights)
    assert len(allowed) == 7
    for right in allowed:
        pattern = right.replace(">", "*")
        assert any(fnmatchcase(what, pattern) for what, _ in ASKED), right


async def test_no_answer_lands_in_the_log(at: Guarded, database_url: str) -> None:
    """NATS asks nobody for a right to the subject that a request names for its answer."""
    refused: list[str] = []
    async with copied(at, database_url, people=3) as machine, reader(at, refused) as client:
        for what, body in ASKED:
            asked = f"$JS.API.{what}"
            answer = await client.request(asked, body, WAIT_SECONDS)
            assert answer.data or answer.headers  # it may ask, and is answered
            await client.publish(asked, body, reply=FOREIGN)
        await client.publish(HEAD, b"1", reply=FOREIGN)
        await sent(client)
        await check_relay_goes_on(client, machine, people=3)
        assert refused == []


async def test_no_trace_of_a_message_lands_in_the_log(at: Guarded, database_url: str) -> None:
    """NATS tells of a message's way to where its header says."""
    refused: list[str] = []
    async with copied(at, database_url, people=3) as machine, reader(at, refused) as client:
        for subject in (HEAD, "$JS.API.STREAM.NAMES", f"$JS.API.STREAM.INFO.{STREAM}"):
            await client.publish(subject, b"", headers={"Nats-Trace-Dest": FOREIGN})
        await sent(client)
        await check_relay_goes_on(client, machine, people=3)
        assert len(refused) == 3


async def test_a_consumer_is_no_way_around(at: Guarded, database_url: str) -> None:
    """The server itself delivers to where a consumer says."""
    async with copied(at, database_url, people=3) as machine, reader(at, []) as client:
        streams = client.jetstream(timeout=WAIT_SECONDS)
        for subject in DELIVERED:
            config = ConsumerConfig(deliver_subject=subject, ack_policy=AckPolicy.NONE)
            with suppress(APIError):  # said no at once, which is as good
                await streams.add_consumer(STREAM, config)
        await check_relay_goes_on(client, machine, people=3)


async def test_what_the_relay_is_answered_nobody_else_hears(at: Guarded, database_url: str) -> None:
    """A consumer could deliver there, and the relay would take it for a refusal."""
    heard: list[str] = []

    async def hear(message: Msg) -> None:
        heard.append(message.subject)

    async with reader(at, []) as client:
        await client.subscribe("_INBOX.>", cb=hear)
        await sent(client)
        async with copied(at, database_url, people=3):
            own = await client.request("$JS.API.STREAM.NAMES", b"", WAIT_SECONDS)
            await sent(client)
        assert heard == [own.subject]


async def test_a_relay_that_signs_in_as_somebody_else_copies_nothing_and_says_why(
    at: Guarded, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with copied(at, database_url, people=1):
        pass
    said = ""
    async with (
        machines.running(database_url) as machine,
        Bus(at.server.reader_url, name="relay", access=at.access) as bus,
    ):
        await machine.register("late")

        async def told() -> bool:
            nonlocal said
            said += capsys.readouterr().err
            return "relay_interrupted" in said

        async with tasks(Relay(database_url, bus, Logger("warning")).run()):
            await until(told, "the relay says so")
        assert f"{STREAM} acknowledges nothing: NATS refuses: permissions violation" in said
        assert await bus.last_sequence(STREAM) == 1


async def test_a_wrong_password_is_told_from_a_nats_that_is_away(at: Guarded) -> None:
    url = at.server.reader_url.replace(READER_PASSWORD, RELAY_PASSWORD)
    async with Bus(url, name="projector", access=at.access) as bus:

        async def refused() -> bool:
            return "Violation" in bus.silence

        await until(refused, "NATS refuses the password")
        with pytest.raises(Unavailable, match=r"^NATS refuses: Authorization Violation$"):
            _ = bus.client
    async with Bus("nats://127.0.0.1:1", name="projector") as bus:
        with pytest.raises(Unavailable, match=r"^NATS does not answer$"):
            _ = bus.client
