"""The independent checker: plain SQL on the log and the read tables, plain JSON from JetStream, and
what clients remember. It shares no code with what it checks.

`judge` finds what was lost, doubled or put out of order since it was asked last, and whatever else
is not as it must be:

    the log is gapless, and so are the versions of each stream; no event is there twice
    JetStream's message n is row n
    what was acknowledged is in the log, once, at the position that was told; nothing else is there
    each socket saw every event of its user once, and rising
    the read tables are what the log says, as counted here, each at its own checkpoint
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import nats
import psycopg
from nats.js.api import AckPolicy, ConsumerConfig

from tests.faults.load import Acknowledged, Load
from tests.stream.concerns import Concerns
from tests.stream.device import Device

NEXT_SECONDS = 60.0
READ_AT_ONCE = 100
SHOWN = 3

Json = dict[str, Any]

LOG = """
    SELECT position, event_id::text, stream, stream_version, type, data::text
    FROM event_log
    ORDER BY position
"""

EPOCH = """
    SELECT epoch
    FROM log_head
"""

CHECKPOINTS = """
    SELECT projection, position
    FROM projection_checkpoints
"""

FAILURES = """
    SELECT projection, position, reason
    FROM projection_failures
"""

MESSAGES = """
    SELECT chat_id, seq, id, position, sender_id
    FROM messages
"""

PARTICIPANTS = """
    SELECT chat_id, user_id
    FROM chat_participants
    WHERE left_at IS NULL
"""

REACTIONS = """
    SELECT message_id, user_id, emoji
    FROM message_reactions
"""

DELIVERIES = """
    SELECT message_id, user_id
    FROM message_delivery
"""

UNREAD = """
    SELECT user_id, chat_id, position
    FROM unread_messages
"""

UNREAD_COUNTS = """
    SELECT user_id, chat_id, count
    FROM unread_counts
"""

CONTACTS = """
    SELECT user_id, contact_id
    FROM contacts
    WHERE status = 'accepted'
"""

USERS = """
    SELECT id
    FROM users
"""

SEARCHED = """
    SELECT message_id
    FROM message_search
"""

# Which read model's table is counted how.
TABLES = {
    "users": ("users", USERS),
    "contacts": ("contacts", CONTACTS),
    "participants": ("chats", PARTICIPANTS),
    "messages": ("messages", MESSAGES),
    "reactions": ("reactions", REACTIONS),
    "deliveries": ("delivery", DELIVERIES),
    "unread": ("unread", UNREAD),
    "unread counts": ("unread", UNREAD_COUNTS),
    "searched": ("search", SEARCHED),
}

# What the position told by a command is that of.
LAST_EVENTS = {
    "send-message": "message_sent",
    "edit-message": "message_edited",
    "add-reaction": "reaction_added",
    "remove-member": "system_message_sent",
    "add-members": "system_message_sent",
    "request-contact": "contact_requested",
    "accept-contact": "contact_accepted",
    "remove-contact": "contact_removed",
}
# Of these there must be as many events as commands were acknowledged.
COUNTED = {
    "send-message": "message_sent",
    "edit-message": "message_edited",
    "add-reaction": "reaction_added",
    "remove-member": "member_removed",
    "add-members": "members_added",
    "request-contact": "contact_requested",
    "accept-contact": "contact_accepted",
    "remove-contact": "contact_removed",
}
NAMED = ("message_id", "chat_id", "user_id", "contact_id", "emoji", "attachment_id")


class Row(NamedTuple):
    position: int
    event_id: str
    stream: str
    version: int
    type: str
    data: Json


class Findings(NamedTuple):
    """Each a line about one thing."""

    lost: list[str]
    doubled: list[str]
    disordered: list[str]
    wrong: list[str]

    @property
    def are_none(self) -> bool:
        return not any(self)

    @property
    def lines(self) -> list[str]:
        return [
            line
            for kind, lines in zip(self._fields, self, strict=True)
            for line in [f"{kind}: {one}" for one in lines[:SHOWN]]
        ]


def nothing() -> Findings:
    return Findings([], [], [], [])


def check_log(rows: Sequence[Row]) -> Findings:
    """Dense positions, dense versions of each stream, no event twice."""
    found = nothing()
    versions: dict[str, int] = {}
    for expected, row in enumerate(rows, 1):
        if row.position != expected:
            found.wrong.append(f"the log has {row.position} where {expected} belongs")
            break
        if row.version != versions.get(row.stream, 0) + 1:
            found.wrong.append(f"{row.stream} goes on with version {row.version}")
        versions[row.stream] = row.version
    for event_id, times in Counter(row.event_id for row in rows).items():
        if times > 1:
            found.doubled.append(f"event {event_id} is in the log {times} times")
    return found


def check_copy(rows: Sequence[Row], copied: Sequence[tuple[int, str]]) -> Findings:
    """Message n is row n, from the first to the last row."""
    found = nothing()
    have = dict(copied)
    if [sequence for sequence, _ in copied] != sorted(have):
        found.disordered.append("JetStream's sequences do not rise")
    for row in rows:
        event_id = have.get(row.position)
        if event_id is None:
            found.lost.append(f"JetStream lacks {row.position}")
        elif event_id != row.event_id:
            found.wrong.append(f"JetStream has another event at {row.position}")
    return found


def check_acknowledged(rows: Sequence[Row], acknowledged: Sequence[Acknowledged]) -> Findings:
    """There, once, where it was told; and nobody did what nobody was told of."""
    found = nothing()
    uploads = {row.data["attachment_id"] for row in rows if row.type == "attachment_uploaded"}
    for one in acknowledged:
        if one.name == "upload":
            is_there = one.answer["attachment_id"] in uploads
        else:
            is_there = _is_at(rows, one)
        if not is_there:
            found.lost.append(f"{one.name} {one.key} is not where it was told: {one.answer}")
    asked = Counter(one.name for one in acknowledged)
    there = Counter(row.type for row in rows)
    for name, event_type in COUNTED.items():
        more = there[event_type] - asked[name]
        if more > 0:
            found.doubled.append(f"{more} events {event_type} more than were acknowledged")
    keys = Counter((one.name, one.answer["position"]) for one in acknowledged if _changes(one))
    found.doubled.extend(f"{key} answers two commands" for key, times in keys.items() if times > 1)
    return found


def _changes(one: Acknowledged) -> bool:
    return one.name in LAST_EVENTS


def _is_at(rows: Sequence[Row], one: Acknowledged) -> bool:
    position = one.answer["position"]
    if not 1 <= position <= len(rows):
        return False
    row = rows[position - 1]
    if one.name not in LAST_EVENTS:
        return True  # it may have changed nothing
    if row.type != LAST_EVENTS[one.name]:
        return False
    return all(_is_same(row, one, name) for name in NAMED if name in row.data)


def _is_same(row: Row, one: Acknowledged, name: str) -> bool:
    """What the event says of it, the command or its answer says too, or does not say."""
    said = one.answer.get(name) or one.body.get(name)
    if name in ("user_id", "contact_id") and row.type.startswith("contact_"):
        pair = {one.user_id, one.body["user_id"]}
        return row.data[name] in pair
    if name == "user_id" and row.type == "reaction_added":
        said = one.user_id
    return said is None or row.data[name] == said


def check_sockets(devices: Sequence[Device], concerns: Concerns) -> Findings:
    """Each saw what concerns its user, up to where `concerns` has read, once and rising."""
    found = nothing()
    for device in devices:
        who = f"a socket of {device.user_id}"
        for wrong in device.wrong:
            found.disordered.append(f"{who}: {wrong}")
        seen = [one for one in device.applied if one <= concerns.head]
        must = concerns.must(device.user_id, after=device.began, up_to=concerns.head)
        may = concerns.may(device.user_id, after=device.began, up_to=concerns.head)
        for position, times in Counter(seen).items():
            if times > 1:
                found.doubled.append(f"{who} saw {position} {times} times")
        for one in sorted(set(must) - set(seen)):
            found.lost.append(f"{who} did not see {one} ({concerns.at(one).type})")
        for one in sorted(set(seen) - set(must) - may):
            found.wrong.append(f"{who} saw {one} ({concerns.at(one).type})")
    return found


class World:
    """What the log says, folded by hand from what these clients do."""

    def __init__(self) -> None:
        self.position = 0
        self.users: set[str] = set()
        self.accepted: set[tuple[str, str]] = set()
        self.members: defaultdict[str, set[str]] = defaultdict(set)
        self.messages: dict[str, tuple[str, int, str, int, str | None]] = {}
        self.sequences: Counter[str] = Counter()
        self.reactions: set[tuple[str, str, str]] = set()
        self.deliveries: set[tuple[str, str]] = set()
        self.unread: set[tuple[str, str, int]] = set()
        self.searched: set[str] = set()

    def take(self, row: Row) -> None:
        self.position = row.position
        data = row.data
        match row.type:
            case "user_registered":
                self.users.add(data["user_id"])
            case "contact_accepted":
                pair = (data["user_id"], data["contact_id"])
                self.accepted |= {pair, pair[::-1]}
            case "contact_removed":
                pair = (data["user_id"], data["contact_id"])
                self.accepted -= {pair, pair[::-1]}
            case "group_created":
                self.members[data["chat_id"]] |= {data["owner_id"], *data["member_ids"]}
            case "members_added":
                self.members[data["chat_id"]] |= set(data["user_ids"])
            case "member_removed":
                self._leave(data["chat_id"], data["user_id"])
            case "message_sent" | "system_message_sent":
                self._message(row)
            case "messages_read":
                self._read(data)
            case "reaction_added":
                self.reactions.add((data["message_id"], data["user_id"], data["emoji"]))
            case _:
                pass

    def rows(self, table: str) -> Counter[tuple[Any, ...]]:
        match table:
            case "users":
                return Counter((user,) for user in self.users)
            case "contacts":
                return Counter(self.accepted)
            case "participants":
                return Counter((c, user) for c, users in self.members.items() for user in users)
            case "messages":
                return Counter(self.messages.values())
            case "reactions":
                return Counter(self.reactions)
            case "deliveries":
                return Counter(self.deliveries)
            case "unread":
                return Counter(self.unread)
            case "unread counts":
                counts = Counter((user, chat_id) for user, chat_id, _ in self.unread)
                return Counter((*pair, count) for pair, count in counts.items())
            case _:
                return Counter((message_id,) for message_id in self.searched)

    def _leave(self, chat_id: str, user_id: str) -> None:
        self.members[chat_id].discard(user_id)
        self.unread = {one for one in self.unread if one[:2] != (user_id, chat_id)}

    def _read(self, data: Json) -> None:
        who, up_to = (data["user_id"], data["chat_id"]), data["read_up_to"]
        self.unread = {one for one in self.unread if one[:2] != who or one[2] > up_to}

    def _message(self, row: Row) -> None:
        chat_id, message_id = row.data["chat_id"], row.data["message_id"]
        sender = row.data.get("sender_id")
        self.sequences[chat_id] += 1
        place = (chat_id, self.sequences[chat_id], message_id, row.position, sender)
        self.messages[message_id] = place
        if sender is None:
            return
        self.searched.add(message_id)
        others = self.members[chat_id] - {sender}
        self.deliveries |= {(message_id, user) for user in others}
        self.unread |= {(user, chat_id, row.position) for user in others}


def check_table(table: str, world: World, live: Iterable[tuple[Any, ...]]) -> Findings:
    found = nothing()
    must, have = world.rows(table), Counter(live)
    for row, times in (must - have).items():
        found.lost.append(f"{table} at {world.position} lacks {row} ({times})")
    for row, times in (have - must).items():
        found.wrong.append(f"{table} at {world.position} has {row} ({times})")
    return found


class Checker:
    """`look` when the load is at rest, then `judge` when all have come to where it looked. It
    reads everything each time. What the system does by itself, such as presence, may go on."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._concerns = Concerns()

    async def look(self, database_url: str) -> tuple[int, dict[str, int]]:
        """The head, and the last event that concerns each user."""
        async with await connected(database_url) as connection:
            head = await self._concerns.read(connection)
        return head, {
            person.user_id: max(self._concerns.must(person.user_id, after=0, up_to=head))
            for person in self._load.people
        }

    async def judge(self, database_url: str, nats_url: str) -> Findings:
        async with await connected(database_url) as connection:
            rows = await read_log(connection)
            epoch: Any = await (await connection.execute(EPOCH)).fetchone()
            copied = await read_copy(nats_url, f"EVENT_LOG_{epoch[0]}")
            parts = [
                check_log(rows),
                check_copy(rows[: self._concerns.head], copied),
                check_acknowledged(rows, self._load.acknowledged),
                check_sockets(self._load.devices, self._concerns),
                *await self._tables(connection),
            ]
        return Findings(*([line for part in parts for line in part[at]] for at in range(4)))

    async def _tables(self, connection: "psycopg.AsyncConnection[Any]") -> list[Findings]:
        """In one snapshot, each table at its own checkpoint."""
        async with connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            rows = await read_log(connection)
            reached = dict(await (await connection.execute(CHECKPOINTS)).fetchall())
            failed = await (await connection.execute(FAILURES)).fetchall()
            live = {
                table: [plain(row) for row in await (await connection.execute(sql)).fetchall()]
                for table, (_, sql) in TABLES.items()
            }
        found = [check_table(t, w, live[t]) for t, w in worlds(rows, reached)]
        return [*found, Findings([], [], [], [f"{one[0]} stopped: {one}" for one in failed])]


async def connected(database_url: str) -> "psycopg.AsyncConnection[Any]":
    return await psycopg.AsyncConnection.connect(database_url, autocommit=True)


def worlds(rows: Sequence[Row], reached: dict[str, int]) -> Iterable[tuple[str, World]]:
    """Each table with the log as far as its read model is."""
    world = World()
    for table in sorted(TABLES, key=lambda table: reached.get(TABLES[table][0], 0)):
        for row in rows[world.position : reached.get(TABLES[table][0], 0)]:
            world.take(row)
        yield table, world


def plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(str(value) if isinstance(value, UUID) else value for value in row)


async def read_log(connection: "psycopg.AsyncConnection[Any]") -> list[Row]:
    found = await (await connection.execute(LOG)).fetchall()
    return [Row(*rest, msgspec.json.decode(data)) for *rest, data in found]


async def read_copy(nats_url: str, stream: str) -> list[tuple[int, str]]:
    """Sequence and event id of each message. Asked for some at a time: a server that may send as it
    likes hangs up on who reads more slowly, and what was on its way is not sent again."""
    client = await nats.connect(nats_url)
    try:
        jetstream = client.jetstream()
        state = (await jetstream.stream_info(stream)).state
        found: list[tuple[int, str]] = []
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True)
        subscription = await jetstream.pull_subscribe("", stream=stream, config=config)
        while state.messages and (not found or found[-1][0] < state.last_seq):
            for message in await subscription.fetch(READ_AT_ONCE, timeout=NEXT_SECONDS):
                event_id = msgspec.json.decode(message.data)["event_id"]
                found.append((message.metadata.sequence.stream, event_id))
        return found
    finally:
        await client.close()
