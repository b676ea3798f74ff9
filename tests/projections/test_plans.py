"""Plans on real tables: whatever the batches, the rows are those of a fold event by event."""

import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands.command import Command
from domain.chat import (
    GroupDeleted,
    GroupUpdated,
    MemberLeft,
    MemberRemoved,
    MembersAdded,
    OwnershipTransferred,
    RoleChanged,
)
from domain.contact import ContactBlocked, ContactEvent, ContactRemoved, Standing
from domain.event import Event, Recorded
from domain.ids import GatewayId, UserId, direct_chat_id
from domain.message import MessageDeleted, MessageEdited, ReactionAdded, ReactionRemoved
from domain.receipt import DeliveriesRecorded, DeliveryMark, MessagesDelivered, MessagesRead
from domain.user import AccountDeleted, PasswordChanged, ProfileUpdated, StatusChanged
from infra import database, tables
from infra.database import Connection
from infra.projector import Fenced, Writer
from projections import PROJECTIONS
from projections.projection import Projection
from tests import model
from tests.commands.history import (
    ANNA,
    BEN,
    CARL,
    CHAT,
    DORA,
    FIRST_TIME,
    NOW,
    OTHER_CHAT,
    History,
    chat_id,
    contact,
    direct,
    group,
    message_id,
    people,
    sent,
    uuid,
)
from tests.domain.test_invariants import after, steps

pytestmark = pytest.mark.timeout(300 + settings().max_examples)

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


async def apply(
    connection: Connection, events: Sequence[Recorded], sizes: Callable[[], Iterator[int]]
) -> None:
    """To empty tables, all projections."""
    await connection.execute(EMPTY.encode())
    for projection in PROJECTIONS:
        writer = Writer(projection, connection)
        position = await writer.checkpoint()
        for batch in split(seen_by(projection, events), sizes()):
            position = await writer.apply(batch, after=position)


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    async with await database.connect(database_url, name="test") as connection:
        yield connection


def carried_out(taken: list[tuple[Command, UserId]]) -> list[Recorded]:
    return log_of(after(taken))


@given(steps, st.integers(0, 2**32), st.integers(1, 40))
async def test_rows_do_not_depend_on_where_batches_end(
    connection: Connection, taken: list[tuple[Command, UserId]], seed: int, most: int
) -> None:
    # A generator of our own: Hypothesis can't be drawn from inside the event loop.
    chance = random.Random(seed)
    events = carried_out(taken)
    expected = model.fold(events)
    await apply(connection, events, lambda: iter(lambda: chance.randint(1, most), 0))
    model.assert_same(expected, await model.live_rows(connection))


@given(steps)
@settings(max_examples=10)
async def test_all_in_one_batch_is_one_by_one(
    connection: Connection, taken: list[tuple[Command, UserId]]
) -> None:
    events = carried_out(taken)
    expected = model.fold(events)
    for size in (1, len(events)):
        await apply(connection, events, lambda size=size: repeat(size))
        model.assert_same(expected, await model.live_rows(connection))


DIRECT = direct_chat_id(ANNA, BEN)


def edited(number: int, content: str, by: UserId = BEN) -> MessageEdited:
    return MessageEdited(
        message_id=message_id(number),
        chat_id=CHAT,
        sender_id=by,
        content=content,
        formatting={"bold": [(0, 1)]},
    )


def message_deleted(number: int, *, at: int, by: UserId = BEN) -> MessageDeleted:
    return MessageDeleted(message_id=message_id(number), chat_id=CHAT, by=by, sent_position=at)


def reacted(number: int, by: UserId, emoji: str = "👍") -> ReactionAdded:
    return ReactionAdded(message_id=message_id(number), chat_id=CHAT, user_id=by, emoji=emoji)


def unreacted(number: int, by: UserId, emoji: str = "👍") -> ReactionRemoved:
    return ReactionRemoved(message_id=message_id(number), chat_id=CHAT, user_id=by, emoji=emoji)


def read(by: UserId, up_to: int) -> MessagesRead:
    return MessagesRead(chat_id=CHAT, user_id=by, delivered_up_to=up_to, read_up_to=up_to)


def received(gateway: int = 1, **up_to: int) -> DeliveriesRecorded:
    """By name, as on one gateway and in one flush."""
    users = {"anna": ANNA, "ben": BEN, "carl": CARL, "dora": DORA}
    marks = [DeliveryMark(user_id=users[name], after=0, up_to=mark) for name, mark in up_to.items()]
    return DeliveriesRecorded(gateway_id=GatewayId(uuid(4, gateway)), chat_id=CHAT, marks=marks)


def between(one: UserId, other: UserId, **standing: Any) -> ContactEvent:
    """Which event it is says nothing that its standing does not."""
    return ContactBlocked(user_id=one, contact_id=other, standing=Standing(**standing))


CHAT_BEGUN: tuple[Event, ...] = (*people(ANNA, BEN, CARL), group(BEN, CARL))

READ_THEN_GONE: tuple[Event, ...] = (
    *CHAT_BEGUN,
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


# The first message is at position 5.
RECEIVED_ON_THE_STREAM: tuple[Event, ...] = (
    *CHAT_BEGUN,
    sent(1, BEN),
    sent(2, ANNA),
    received(anna=5, carl=5),
    received(2, ben=6),
    sent(3, ANNA),
    read(CARL, 9),
    received(carl=9),
    received(2, carl=6, ben=9),
    sent(4, BEN),
    # Nothing that was: the sender's own, what is to come, somebody who never was here.
    received(ben=13, anna=100, dora=13),
    sent(5, BEN),
    MemberLeft(chat_id=CHAT, user_id=CARL),
    received(carl=15),
    sent(6, ANNA),
    MembersAdded(chat_id=CHAT, by=ANNA, user_ids=[CARL]),
    received(carl=18),
    sent(7, ANNA),
    message_deleted(7, at=21, by=ANNA),
    received(carl=21, ben=21),
    MessagesDelivered(chat_id=CHAT, user_id=CARL, delivered_up_to=21, read_up_to=9),
    received(),
    sent(8, ANNA),
    AccountDeleted(user_id=BEN, erase_messages=True),
    received(ben=26, carl=26),
    GroupDeleted(chat_id=CHAT, by=ANNA),
    received(carl=29),
)

EDITED_REACTED_DELETED: tuple[Event, ...] = (
    *CHAT_BEGUN,
    sent(1, BEN),
    sent(2, ANNA, content="bold"),
    edited(1, "one"),
    reacted(1, CARL),
    reacted(1, ANNA),
    reacted(2, CARL, ":tada:"),
    edited(2, "two", ANNA),
    unreacted(1, CARL),
    reacted(1, CARL),
    edited(1, "one again"),
    message_deleted(1, at=5),
    read(CARL, 6),
    sent(3, BEN),
    edited(3, "three"),
    reacted(3, BEN),
    unreacted(3, BEN),
    reacted(3, BEN, ":tada:"),
    unreacted(2, CARL, ":tada:"),
    message_deleted(3, at=17),
    sent(4, BEN),
    reacted(4, ANNA),
    MemberLeft(chat_id=CHAT, user_id=CARL),
    MembersAdded(chat_id=CHAT, by=ANNA, user_ids=[CARL]),
    sent(5, BEN),
    message_deleted(4, at=24),
    message_deleted(5, at=28),
    message_deleted(2, at=6, by=ANNA),
    sent(6, ANNA),
)

GROUPS_DELETED: tuple[Event, ...] = (
    *CHAT_BEGUN,
    sent(1, BEN),
    RoleChanged(chat_id=CHAT, by=ANNA, user_id=CARL, role="admin"),
    OwnershipTransferred(chat_id=CHAT, from_id=ANNA, to_id=BEN),
    RoleChanged(chat_id=CHAT, by=ANNA, user_id=ANNA, role="admin"),
    MemberRemoved(chat_id=CHAT, by=BEN, user_id=CARL),
    sent(2, ANNA),
    MembersAdded(chat_id=CHAT, by=BEN, user_ids=[CARL]),
    RoleChanged(chat_id=CHAT, by=BEN, user_id=CARL, role="admin"),
    sent(3, ANNA),
    read(CARL, 10),
    GroupUpdated(chat_id=CHAT, by=BEN, name="Foes", slug="foes", avatar_url=None),
    group(BEN, CARL, chat=OTHER_CHAT, slug="friends"),
    sent(4, BEN, OTHER_CHAT),
    sent(5, BEN),
    GroupDeleted(chat_id=CHAT, by=BEN),
    GroupUpdated(chat_id=OTHER_CHAT, by=ANNA, name="Foes", slug="FOES", avatar_url=None),
    MembersAdded(chat_id=OTHER_CHAT, by=ANNA, user_ids=[DORA]),
    sent(6, ANNA, OTHER_CHAT),
    MemberLeft(chat_id=OTHER_CHAT, user_id=CARL),
    GroupDeleted(chat_id=OTHER_CHAT, by=ANNA),
    group(BEN, CARL, DORA, chat=chat_id(3), slug="foes"),
    sent(7, ANNA, chat_id(3)),
)

ACCOUNTS_DELETED: tuple[Event, ...] = (
    *CHAT_BEGUN,
    StatusChanged(user_id=BEN, status="online"),
    contact(ANNA, BEN),
    direct(ANNA, BEN),
    sent(1, ANNA, DIRECT),
    sent(2, BEN, DIRECT),
    sent(3, BEN),
    sent(4, ANNA),
    edited(3, "secret"),
    reacted(4, BEN),
    read(BEN, 11),
    sent(5, CARL),
    ProfileUpdated(user_id=BEN, display_name="Benno", avatar_url="http://b.example"),
    PasswordChanged(user_id=BEN, password_hash="other"),
    StatusChanged(user_id=BEN, status="away"),
    PasswordChanged(user_id=ANNA, password_hash="other"),
    ProfileUpdated(user_id=ANNA, display_name="Annie", avatar_url=None),
    StatusChanged(user_id=CARL, status="away"),
    AccountDeleted(user_id=BEN, erase_messages=True),
    sent(6, ANNA),
    message_deleted(5, at=15, by=ANNA),
    MemberLeft(chat_id=CHAT, user_id=BEN),
    sent(7, ANNA),
    ContactRemoved(user_id=BEN, contact_id=ANNA, standing=Standing()),
    AccountDeleted(user_id=CARL, erase_messages=False),
    sent(8, ANNA),
    GroupDeleted(chat_id=CHAT, by=ANNA),
    *people(DORA),
    StatusChanged(user_id=DORA, status="online"),
    AccountDeleted(user_id=DORA, erase_messages=True),
)

CONTACTS_MADE_AND_UNMADE: tuple[Event, ...] = (
    *people(ANNA, BEN, CARL),
    between(ANNA, BEN, requested_by=ANNA, requested_at=NOW),
    between(CARL, BEN, blocked_at={CARL: NOW}),
    contact(ANNA, BEN),
    contact(ANNA, BEN, blocked_by=[BEN]),
    contact(ANNA, BEN, blocked_by=[BEN, ANNA]),
    between(ANNA, BEN, blocked_at={BEN: NOW}),
    between(CARL, BEN),
    between(ANNA, BEN),
    between(BEN, CARL, requested_by=BEN, requested_at=NOW),
    between(BEN, CARL),
    between(ANNA, BEN, requested_by=BEN, requested_at=NOW, blocked_at={ANNA: FIRST_TIME}),
)

HISTORIES = {
    "leaving, reading and rejoining": READ_THEN_GONE,
    "receipts of the stream": RECEIVED_ON_THE_STREAM,
    "editing, reacting and deleting": EDITED_REACTED_DELETED,
    "roles and deleted groups": GROUPS_DELETED,
    "deleted accounts": ACCOUNTS_DELETED,
    "contacts": CONTACTS_MADE_AND_UNMADE,
}


@pytest.mark.parametrize("name", HISTORIES)
async def test_every_place_to_cut_a_history(connection: Connection, name: str) -> None:
    events = log_of(History().record(*HISTORIES[name]))
    expected = model.fold(events)
    for first in range(1, len(events) + 1):
        await apply(connection, events, lambda first=first: iter([first, len(events)]))
        model.assert_same(expected, await model.live_rows(connection))


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
async def test_a_history_in_batches_of_any_size(
    connection: Connection, name: str, size: int
) -> None:
    """From each place on: so that any few events side by side are in one batch once."""
    events = log_of(History().record(*HISTORIES[name]))
    expected = model.fold(events)
    for first in range(1, size + 1):
        await apply(connection, events, lambda first=first: chain([first], repeat(size)))
        model.assert_same(expected, await model.live_rows(connection))


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
    events = log_of(History().record(sent(1), sent(2, content="x" * 10_001)))
    with pytest.raises(psycopg.errors.CheckViolation):
        await writer.apply(events, after=position)
    assert await writer.checkpoint() == position == 0
    assert await writer.apply(events[:1], after=0) == 1
    assert len((await model.live_rows(connection))["messages"]) == 1
