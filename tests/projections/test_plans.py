"""Plans on real tables: whatever the batches, the rows are those of a fold event by event."""

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count, repeat

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.command import Command
from domain.chat import MemberLeft, MembersAdded
from domain.event import Event, Recorded
from domain.ids import UserId
from domain.receipt import MessagesDelivered, MessagesRead
from infra import database, tables
from infra.database import Connection
from infra.projector import Fenced, Writer
from projections import PROJECTIONS
from projections.projection import Projection
from tests import model
from tests.commands.history import ANNA, BEN, CARL, CHAT, History, group, people, sent, uuid
from tests.domain.test_invariants import begun, steps

pytestmark = pytest.mark.timeout(120 + settings().max_examples)

EMPTY = "TRUNCATE {}, projection_checkpoints".format(
    ", ".join(
        table.name for projection in PROJECTIONS for table in tables.tables_of(projection.name)
    )
)


def log_of(history: History) -> list[Recorded]:
    return [Recorded(position, at, event) for event, (position, at) in history.log]


def split(events: Sequence[Recorded], sizes: Iterator[int]) -> Iterator[list[Recorded]]:
    """The whole in batches of these sizes."""
    begin = 0
    while begin < len(events):
        end = begin + next(sizes)
        yield list(events[begin:end])
        begin = end


def seen_by(projection: Projection, events: Sequence[Recorded]) -> list[Recorded]:
    """As the reader gives them: types that it does not handle come without their event."""
    return [
        recorded if type(recorded.event) in projection.handles else recorded._replace(event=None)
        for recorded in events
    ]


async def apply(connection: Connection, events: Sequence[Recorded], sizes: Iterator[int]) -> None:
    """To empty tables, all projections."""
    await connection.execute(EMPTY.encode())
    for projection in PROJECTIONS:
        writer = Writer(projection, connection)
        position = await writer.checkpoint()
        for batch in split(seen_by(projection, events), sizes):
            position = await writer.apply(batch, after=position)


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    async with await database.connect(database_url, name="test") as connection:
        yield connection


def carried_out(taken: list[tuple[Command, UserId]]) -> list[Recorded]:
    history = begun()
    ids = (uuid(0xFFFFFFFF, number) for number in count())
    for command, by in taken:
        history.carry_out(command, by=by, new_id=lambda: next(ids))
    return log_of(history)


@given(steps, st.integers(0, 2**32), st.integers(1, 40))
async def test_rows_do_not_depend_on_where_batches_end(
    connection: Connection, taken: list[tuple[Command, UserId]], seed: int, most: int
) -> None:
    # A generator of our own: Hypothesis can't be drawn from inside the event loop.
    chance = random.Random(seed)
    events = carried_out(taken)
    expected = model.fold(events)
    await apply(connection, events, iter(lambda: chance.randint(1, most), 0))
    model.assert_same(expected, await model.live_rows(connection))


@given(steps)
@settings(max_examples=10)
async def test_all_in_one_batch_is_one_by_one(
    connection: Connection, taken: list[tuple[Command, UserId]]
) -> None:
    events = carried_out(taken)
    expected = model.fold(events)
    for size in (1, len(events)):
        await apply(connection, events, repeat(size))
        model.assert_same(expected, await model.live_rows(connection))


READ_THEN_GONE: tuple[Event, ...] = (
    sent(1, BEN),
    sent(2, ANNA),
    MessagesDelivered(chat_id=CHAT, user_id=CARL, delivered_up_to=5, read_up_to=0),
    sent(3, ANNA),
    MessagesRead(chat_id=CHAT, user_id=CARL, delivered_up_to=6, read_up_to=6),
    sent(4, ANNA),
    MemberLeft(chat_id=CHAT, user_id=CARL),
    sent(5, ANNA),
    MembersAdded(chat_id=CHAT, by=ANNA, user_ids=[CARL]),
    sent(6, ANNA),
    MemberLeft(chat_id=CHAT, user_id=BEN),
    MembersAdded(chat_id=CHAT, by=ANNA, user_ids=[BEN]),
    MessagesRead(chat_id=CHAT, user_id=CARL, delivered_up_to=11, read_up_to=9),
    sent(7, BEN),
)


@pytest.mark.parametrize("first", range(1, 4 + len(READ_THEN_GONE)))
async def test_every_place_to_cut_a_history_of_leaving_reading_and_rejoining(
    connection: Connection, first: int
) -> None:
    history = History().record(*people(ANNA, BEN, CARL), group(BEN, CARL), *READ_THEN_GONE)
    events = log_of(history)
    await apply(connection, events, iter([first] + [len(events)] * 20 * len(PROJECTIONS)))
    model.assert_same(model.fold(events), await model.live_rows(connection))


@pytest.mark.parametrize("projection", PROJECTIONS, ids=lambda projection: projection.name)
async def test_a_batch_delivered_twice_is_applied_once(
    connection: Connection, projection: Projection
) -> None:
    events = log_of(History().record(*people(ANNA, BEN), group(BEN), sent(1), sent(2, ANNA)))
    writer = Writer(projection, connection)
    position = await writer.checkpoint()
    batch = seen_by(projection, events)
    position = await writer.apply(batch, after=position)
    with pytest.raises(Fenced):
        await writer.apply(batch, after=0)
    assert await writer.checkpoint() == position == len(events)
    expected = model.fold(events)
    found = await model.live_rows(connection)
    mine = {table.name for table in tables.tables_of(projection.name)} & expected.keys()
    model.assert_same({table: expected[table] for table in mine}, found)


async def test_a_failed_batch_leaves_nothing(connection: Connection) -> None:
    """Not even the partition that was made for it."""
    messages = next(projection for projection in PROJECTIONS if projection.name == "messages")
    writer = Writer(messages, connection)
    position = await writer.checkpoint()
    events = log_of(History().record(sent(1), sent(1)))
    with pytest.raises(psycopg.errors.UniqueViolation):
        await writer.apply(events, after=position)
    assert await writer.checkpoint() == position == 0
    assert await writer.apply(events[:1], after=0) == 1
    assert len((await model.live_rows(connection))["messages"]) == 1
