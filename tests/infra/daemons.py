"""Relay and projectors as tasks of a test, and the check that all copies of the log agree."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import msgspec
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

import domain
from domain.event import Recorded
from domain.ids import StreamId, UserId
from domain.user import UserRegistered
from infra import clock, codec, database, event_log, tables, verify
from infra.appender import Append, EventRow
from infra.bus import Bus, stream_name
from infra.database import Connection
from infra.ending import end
from infra.errors import Unavailable
from infra.follower import FOLLOWED
from infra.keyring import Keyring
from infra.logs import Logger
from infra.projector import Projector
from infra.relay import Envelope, Relay
from projections import PROJECTIONS
from projections.projection import Projection
from tests import model
from tests.infra.machines import SECRET

WAIT_SECONDS = 60.0  # nothing is judged by it: the machine may be busy with other things
POLL_SECONDS = 0.02
COPY_PAGE_SECONDS = 60.0
POOL_SIZE = 2
ALL_TYPES = [event.type for event in domain.EVENTS]
# What is expected to go wrong is part of the tests; it need not fill their output.
LOGGER = Logger("error", process="test")

LOG = """
    SELECT position, event_id::text, stream, stream_version
    FROM event_log
    ORDER BY position
"""

CHECKPOINTS = """
    SELECT projection, position
    FROM projection_checkpoints
"""

FAILURES = """
    SELECT projection, position, type, reason
    FROM projection_failures
"""


class Agreed(NamedTuple):
    """What `check` found to agree."""

    head: int
    rows: int


@asynccontextmanager
async def tasks(*work: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Runs them beside the block; one that ended by itself raises at its end."""
    started = [asyncio.create_task(one) for one in work]
    try:
        yield started
    finally:
        ended = [task for task in started if task.done()]
        await end(*started)
    for task in ended:
        task.result()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    async with await database.connect(url, name="test") as connection:
        yield connection


@asynccontextmanager
async def keyring(url: str) -> AsyncIterator[Keyring]:
    async with database.pool(url, name="test keys", size=POOL_SIZE) as pool:
        yield Keyring(SECRET, pool)


@asynccontextmanager
async def relaying(url: str, nats_url: str) -> AsyncIterator[Relay]:
    async with Bus(nats_url, name="test relay") as bus:
        relay = Relay(url, bus, LOGGER)
        async with tasks(relay.run()):
            yield relay


@asynccontextmanager
async def projecting(
    url: str, nats_url: str, projections: Sequence[Projection] = PROJECTIONS
) -> AsyncIterator[list[Projector]]:
    """One daemon of each; named twice, two daemons of one name."""
    async with AsyncExitStack() as stack:
        keys = await stack.enter_async_context(keyring(url))
        bus = await stack.enter_async_context(Bus(nats_url, name="test projector"))
        projectors = [
            Projector(projection, database_url=url, keyring=keys, bus=bus, logger=LOGGER)
            for projection in projections
        ]
        await stack.enter_async_context(tasks(*(projector.run() for projector in projectors)))
        yield projectors


async def until(
    holds: Callable[[], Awaitable[bool]], what: str, seconds: float = WAIT_SECONDS
) -> None:
    """Waits for what comes about by itself."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await holds():
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(POLL_SECONDS)


async def copied(
    url: str, nats_url: str, *, head: int | None = None, seconds: float = WAIT_SECONDS
) -> None:
    """Until JetStream ends where the log does (or at `head`)."""
    async with connected(url) as connection, Bus(nats_url, name="test") as bus:

        async def holds() -> bool:
            at = await event_log.head(connection)
            try:
                last = await bus.last_sequence(stream_name(at.epoch))
            except Unavailable:
                return False
            return last == (at.position if head is None else head)

        await until(holds, "JetStream ends where the log does", seconds)


async def projected(
    url: str, names: Sequence[str] = (), *, seconds: float = WAIT_SECONDS, head: int | None = None
) -> None:
    """Until these projections (or all) are at the head."""
    wanted = names or [projection.name for projection in PROJECTIONS]
    async with connected(url) as connection:

        async def holds() -> bool:
            at = (await event_log.head(connection)).position if head is None else head
            reached = await checkpoints(connection)
            return all(reached.get(name, 0) >= at for name in wanted)

        await until(holds, f"{', '.join(wanted)} at the head", seconds)


async def checkpoints(connection: Connection) -> dict[str, int]:
    return dict(await (await connection.execute(CHECKPOINTS)).fetchall())


async def failures(connection: Connection) -> dict[str, tuple[int, str, str]]:
    rows = await (await connection.execute(FAILURES)).fetchall()
    return {projection: tuple(rest) for projection, *rest in rows}


async def log(connection: Connection) -> list[tuple[int, str, str, int]]:
    return await (await connection.execute(LOG)).fetchall()


async def opened_log(connection: Connection, keys: Keyring) -> list[Recorded]:
    """All events, decoded and opened."""
    head = (await event_log.head(connection)).position
    events = await event_log.read(connection, after=0, up_to=head, types=ALL_TYPES)
    await event_log.open_events([recorded.event for recorded in events if recorded.event], keys)
    return events


async def copy_of(bus: Bus, stream: str) -> list[tuple[int, Envelope]]:
    """Every message of the stream with its sequence, in the order it is delivered."""
    state = (await bus.jetstream.stream_info(stream)).state
    found: list[tuple[int, Envelope]] = []
    if state.messages == 0:
        return found
    inbox = bus.client.new_inbox().replace("_INBOX", FOLLOWED)
    subscription = await bus.client.subscribe(inbox)
    await bus.jetstream.add_consumer(
        stream,
        ConsumerConfig(
            deliver_subject=inbox,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
        ),
    )
    while not found or found[-1][0] < state.last_seq:
        message = await subscription.next_msg(timeout=COPY_PAGE_SECONDS)
        envelope = msgspec.json.decode(message.data, type=Envelope)
        found.append((message.metadata.sequence.stream, envelope))
    await subscription.unsubscribe()
    return found


def check_log(rows: list[tuple[int, str, str, int]], head: int) -> None:
    """Dense positions, dense stream versions, no event twice."""
    assert [position for position, *_ in rows] == list(range(1, head + 1))
    assert len({event_id for _, event_id, *_ in rows}) == head
    versions: dict[str, int] = {}
    for _, _, stream, version in rows:
        assert version == versions.get(stream, 0) + 1, f"{stream} goes on with {version}"
        versions[stream] = version


async def check_copy(url: str, nats_url: str, *, first: int = 1) -> None:
    """Message n is log row n, from `first` to the head."""
    async with connected(url) as connection, Bus(nats_url, name="test") as bus:
        head = await event_log.head(connection)
        rows = {position: event_id for position, event_id, *_ in await log(connection)}
        found = await copy_of(bus, stream_name(head.epoch))
    assert [sequence for sequence, _ in found] == list(range(first, head.position + 1))
    for sequence, envelope in found:
        assert envelope.position == sequence
        assert envelope.event_id == rows[sequence], f"message {sequence} is another event"


async def check_rows(url: str) -> int:
    """Live tables = an independent fold = rebuilt tables; the number of rows."""
    count = 0
    async with connected(url) as connection, keyring(url) as keys:
        events = await opened_log(connection, keys)
        model.assert_same(model.fold(events), await model.live_rows(connection))
        for projection in PROJECTIONS:
            verdict = await verify.verify(
                projection, url=url, keyring=keys, progress=lambda *_: None
            )
            assert verdict.differing == 0, verdict.shown
            assert verdict.position == len(events)
            count += verdict.rows
    return count


async def check(url: str, nats_url: str) -> Agreed:
    """Nothing lost, nothing doubled, all equal. Everything must have come to rest."""
    async with connected(url) as connection:
        head = (await event_log.head(connection)).position
        check_log(await log(connection), head)
        assert await failures(connection) == {}
    await check_copy(url, nats_url)
    return Agreed(head, await check_rows(url))


def written(stream: str, type_name: str, data: bytes, version: int = 1) -> Append:
    """An event by hand, that no command would have made."""
    at = clock.now().isoformat()
    row = EventRow(clock.new_id(), StreamId(stream), type_name, version, data, b"{}", at)
    return Append([row], {}, [], None)


async def named_too_long(keys: Keyring) -> Append:
    """A registration that the table of users can't take."""
    user_id = UserId(clock.new_id())
    await keys.create([user_id])
    event = UserRegistered(
        user_id=user_id, username="somebody", display_name="x" * 101, password_hash="hash"
    )
    return written(event.stream, event.type, codec.encode(event, keys))


def table_names(projection: Projection) -> list[str]:
    return [table.name for table in tables.tables_of(projection.name)]
