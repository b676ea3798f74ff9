"""What is left of a user, found by looking: in the log and its copy, the keys, the read models and
their copies, the object store, and what stands beside them.

`readable` counts what can be read although the user's deletion meant it to be gone. The content
of messages counts only where it was to be erased too.
"""

from collections import Counter
from typing import Any, LiteralString, NamedTuple

import msgspec
import nats.errors
from nats.js.errors import NotFoundError
from psycopg import sql

from domain.attachment import SIZES, AttachmentUploaded
from domain.avatar import avatar_prefix
from domain.event import Event, KeyPurpose
from domain.ids import StreamId, UserId, user_stream
from domain.user import erased_username
from infra import codec, copies, event_log
from infra.bus import Bus, stream_name
from infra.database import Connection, first_line
from infra.errors import Unavailable
from infra.keyring import Keyring
from infra.objects import Objects
from projections import BY_NAME
from projections.messages import DELETED_CONTENT
from projections.search import sender_lexeme
from projections.users import ERASED_NAME, ERASED_PASSWORD

EVENTS_AT_ONCE = 1_000
MAX_COPIED_LOOKED_AT = 1_000
MAX_AVATARS = 1_000
SEALED_NOTE = "sealed: can be read with the key only"

DELETION = """
    SELECT e.position, (e.data ->> 'erase_messages')::boolean, e.recorded_at, d.finished_at
    FROM event_log AS e
    LEFT JOIN erased_keys AS d ON d.user_id = %s AND d.purpose = 'profile'
    WHERE e.stream = %s AND e.type = 'account_deleted'
"""

IS_REGISTERED = """
    SELECT EXISTS (
        SELECT
        FROM event_log
        WHERE stream = %s
    )
"""

SEALED = """
    SELECT position, type, schema_version, data::text
    FROM event_log
    WHERE position > %(after)s
        AND type = ANY (%(types)s)
        AND (stream = %(stream)s OR data ->> 'sender_id' = %(user_id)s)
    ORDER BY position
    LIMIT %(limit)s
"""

KEYS = """
    SELECT purpose
    FROM user_keys
    WHERE user_id = %s
    ORDER BY purpose
"""

UPLOADS = """
    SELECT position, type, schema_version, data::text
    FROM event_log
    WHERE type = 'attachment_uploaded'
        AND data ->> 'sender_id' = %(user_id)s
        AND position > %(after)s
    ORDER BY position
    LIMIT %(limit)s
"""

UNFINISHED = """
    SELECT keys
    FROM unfinished_uploads
    WHERE uploader = %s
"""

# Projection and table: how many of its rows are of the user, and how many can be read.
ROWS: tuple[tuple[str, str, LiteralString], ...] = (
    (
        "users",
        "users",
        """
        SELECT count(*), count(*) FILTER (
            WHERE username <> %(erased_username)s
                OR display_name IS DISTINCT FROM %(erased_name)s
                OR password_hash <> %(erased_password)s
                OR avatar_url IS NOT NULL
        )
        FROM {schema}.users
        WHERE id = %(user_id)s
        """,
    ),
    (
        "messages",
        "messages",
        """
        SELECT count(*), count(*) FILTER (WHERE content <> %(erased_content)s)
        FROM {schema}.messages
        WHERE sender_id = %(user_id)s
        """,
    ),
    (
        "messages",
        "attachments",
        """
        SELECT count(*), count(*)
        FROM {schema}.attachments
        WHERE sender_id = %(user_id)s
        """,
    ),
    (
        "search",
        "message_search",
        """
        SELECT count(*), count(*)
        FROM {schema}.message_search
        WHERE words @@ %(sender)s::tsquery
        """,
    ),
)

# What has the user's id and nothing that says who that was.
BARE: tuple[tuple[str, LiteralString], ...] = (
    ("contacts", "SELECT count(*) FROM contacts WHERE %(user_id)s IN (user_id, contact_id)"),
    (
        "active memberships of groups",
        """
        SELECT count(*)
        FROM chat_participants AS p
        JOIN chats AS c ON c.id = p.chat_id
        WHERE p.user_id = %(user_id)s
            AND p.left_at IS NULL
            AND c.type = 'group'
            AND NOT c.is_deleted
        """,
    ),
    ("reactions", "SELECT count(*) FROM message_reactions WHERE user_id = %(user_id)s"),
)

SESSIONS = """
    SELECT
        count(*),
        count(*) FILTER (WHERE ended_at IS NULL),
        count(device_name)
    FROM sessions
    WHERE user_id = %s
"""

COMMAND_KEYS = """
    SELECT count(*)
    FROM command_keys
    WHERE scope = %s
"""

USERNAME_CLAIMS = """
    SELECT count(*)
    FROM unique_values
    WHERE split_part(scope, ' ', 1) = 'username' AND holder = %s
"""

DEAD_ROWS = """
    SELECT coalesce(sum(n_dead_tup), 0)
    FROM pg_stat_user_tables
    WHERE relname = ANY (ARRAY['users', 'user_keys', 'sessions', 'message_search'])
        OR starts_with(relname, 'messages')
"""


class Found(NamedTuple):
    where: str
    number: int
    readable: int = 0
    note: str = ""
    was_looked_at: bool = True


class Deletion(NamedTuple):
    """`position` 0: the account is not deleted."""

    position: int = 0
    erases_messages: bool = False
    recorded_at: Any = None
    finished_at: Any = None


async def is_known(connection: Connection, user_id: UserId) -> bool:
    row: Any = await (await connection.execute(IS_REGISTERED, (user_stream(user_id),))).fetchone()
    return bool(row[0])


async def deletion_of(connection: Connection, user_id: UserId) -> Deletion:
    cursor = await connection.execute(DELETION, (user_id, user_stream(user_id)))
    row = await cursor.fetchone()
    return Deletion(*row) if row else Deletion()


class Remains:
    """Looks everywhere, one place after the other."""

    def __init__(
        self,
        connection: Connection,
        keyring: Keyring,
        bus: Bus,
        objects: Objects,
        user_id: UserId,
        deletion: Deletion,
    ) -> None:
        self._connection = connection
        self._keyring = keyring
        self._bus = bus
        self._objects = objects
        self._user_id = user_id
        self._stream: StreamId = user_stream(user_id)
        self._deletion = deletion
        self._copied: dict[int, bytes] = {}

    async def find(self) -> list[Found]:
        return [
            *await self._in_log(),
            await self._in_copy(),
            await self._keys(),
            *await self._in_read_models(),
            *await self._in_store(),
            *await self._bare(),
            *await self._beside(),
            await self._dead_rows(),
        ]

    async def _in_log(self) -> list[Found]:
        sealed: Counter[KeyPurpose] = Counter()
        opened: Counter[KeyPurpose] = Counter()
        after = 0
        while page := await self._sealed(after):
            after = page[-1][0]
            events = [
                codec.decode(type_name, version, data) for _, type_name, version, data in page
            ]
            await event_log.open_events(events, self._keyring)
            for event, row in zip(events, page, strict=True):
                purpose = codec.key_ids([event])[0].purpose
                sealed[purpose] += 1
                opened[purpose] += _is_open(event)
                if len(self._copied) < MAX_COPIED_LOOKED_AT:
                    self._copied[row[0]] = row[3].encode()
        return [
            Found(
                "log: events with the profile", sealed["profile"], opened["profile"], SEALED_NOTE
            ),
            self._content("log: events with messages", sealed["content"], opened["content"]),
        ]

    async def _sealed(self, after: int) -> list[tuple[int, str, int, str]]:
        arguments = {
            "after": after,
            "types": list(codec.SEALED_TYPES),
            "stream": self._stream,
            "user_id": self._user_id,
            "limit": EVENTS_AT_ONCE,
        }
        return await self._page(SEALED, arguments)

    async def _in_copy(self) -> Found:
        """NATS has each event as the log has it: sealed. What differs would be readable."""
        where = "NATS: copies of those events"
        same = other = 0
        head = await event_log.head(self._connection)
        try:
            for position, data in self._copied.items():
                copy = await self._copy_of(stream_name(head.epoch), position)
                if copy is not None:
                    same += copy == msgspec.json.decode(data)
                    other += copy != msgspec.json.decode(data)
        except (nats.errors.Error, Unavailable) as error:
            return Found(where, same + other, other, f"not looked at: {first_line(error)}", False)
        note = "sealed, as in the log"
        if len(self._copied) == MAX_COPIED_LOOKED_AT:
            note += f" (the first {MAX_COPIED_LOOKED_AT} were looked at)"
        return Found(where, same + other, other, note)

    async def _copy_of(self, stream: str, position: int) -> Any:
        try:
            message = await self._bus.jetstream.get_msg(stream, position)
        except NotFoundError:
            return None
        return msgspec.json.decode(message.data or b"{}").get("data")

    async def _keys(self) -> Found:
        cursor = await self._connection.execute(KEYS, (self._user_id,))
        purposes = [purpose for (purpose,) in await cursor.fetchall()]
        left = ["profile", "content"] if self._deletion.erases_messages else ["profile"]
        wrong = [purpose for purpose in purposes if purpose in left]
        return Found("keys", len(purposes), len(wrong), ", ".join(purposes))

    async def _in_read_models(self) -> list[Found]:
        found = []
        for name, table, statement in ROWS:
            for schema in ("public", *await copies.schemas(self._connection, BY_NAME[name])):
                query = sql.SQL(statement).format(schema=sql.Identifier(schema))
                row: Any = await (await self._connection.execute(query, self._values())).fetchone()
                where = table if schema == "public" else f"{table} in schema {schema}"
                if name == "users":
                    found.append(Found(where, *row))
                else:
                    found.append(self._content(where, *row))
        return found

    def _values(self) -> dict[str, Any]:
        return {
            "user_id": self._user_id,
            "erased_username": erased_username(self._user_id),
            "erased_name": ERASED_NAME,
            "erased_password": ERASED_PASSWORD,
            "erased_content": DELETED_CONTENT,
            "sender": f"'{sender_lexeme(self._user_id)}'",
        }

    def _content(self, where: str, number: int, readable: int) -> Found:
        was_to_stay = self._deletion.position and not self._deletion.erases_messages
        if not readable or not was_to_stay:
            return Found(where, number, readable)
        return Found(where, number, 0, f"{readable} can be read: messages were to stay")

    async def _in_store(self) -> list[Found]:
        try:
            avatars = len(await self._objects.below(avatar_prefix(self._user_id), MAX_AVATARS))
            images = await self._images()
            begun = await self._begun()
        except Unavailable as error:
            return [Found("object store", 0, 0, f"not looked at: {first_line(error)}", False)]
        return [
            Found("object store: avatars", avatars, avatars),
            self._content("object store: images sent", images, images),
            Found("object store: uploads that broke off", begun, begun),
        ]

    async def _images(self) -> int:
        number, after = 0, 0
        arguments = {"user_id": self._user_id, "limit": EVENTS_AT_ONCE}
        while page := await self._page(UPLOADS, arguments | {"after": after}):
            after = page[-1][0]
            for _, type_name, version, data in page:
                uploaded = codec.decode(type_name, version, data)
                assert isinstance(uploaded, AttachmentUploaded), uploaded
                number += len(await self._objects.below(uploaded.key_prefix, len(SIZES)))
        return number

    async def _begun(self) -> int:
        cursor = await self._connection.execute(UNFINISHED, (self._user_id,))
        keys = [key for (of_upload,) in await cursor.fetchall() for key in of_upload]
        return len([key for key in keys if await self._objects.below(key, 1)])

    async def _page(self, statement: LiteralString, arguments: dict[str, Any]) -> list[Any]:
        return await (await self._connection.execute(statement, arguments)).fetchall()

    async def _bare(self) -> list[Found]:
        found = []
        for where, statement in BARE:
            row: Any = await (await self._connection.execute(statement, self._values())).fetchone()
            found.append(Found(where, row[0], 0, "ids only" if row[0] else ""))
        return found

    async def _beside(self) -> list[Found]:
        sessions: Any = await self._one(SESSIONS, self._user_id)
        answers: Any = await self._one(COMMAND_KEYS, self._user_id)
        names: Any = await self._one(USERNAME_CLAIMS, self._stream)
        return [
            Found("sessions", sessions[0], sessions[2], f"{sessions[1]} open"),
            Found("idempotency keys", answers[0], 0, "keyed hashes, and answers with ids"),
            Found("reserved username", names[0], 0, "as a keyed hash"),
        ]

    async def _dead_rows(self) -> Found:
        row: Any = await self._one(DEAD_ROWS)
        note = "of anybody; in the files until VACUUM, in WAL and base backups as long as they live"
        return Found("old versions of rows", int(row[0]), 0, note)

    async def _one(self, statement: LiteralString, *values: Any) -> Any:
        return await (await self._connection.execute(statement, values)).fetchone()


def _is_open(event: Event) -> bool:
    return any(getattr(event, field) is not None for field in codec.sealed_fields(event))
