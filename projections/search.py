"""message_search: the words of each message as a tsvector, with a GIN index.

`projections.words` cuts the text; PostgreSQL stems the words and leaves stop words out
('english', which touches no other script). System messages are not here, nor deleted ones, nor
those whose content key is destroyed. Beside its words each vector holds lexemes without a
place, for the index to intersect with: its chat, its sender, and the blocks of positions that
it is in, so that the newest matches of a frequent word are found without looking at all of
them. No word of a text has their colon.
"""

from collections.abc import Sequence
from typing import Any

from domain.event import Event, Recorded
from domain.ids import ChatId, MessageId
from domain.message import MessageDeleted, MessageEdited, MessageSent
from domain.user import AccountDeleted
from projections import words
from projections.projection import Projection, Row, Statement, Step

# Blocks of 8 thousand, 131 thousand and 2 million positions.
BLOCK_BITS = (13, 17, 21)

DELETE_MESSAGES = """
    DELETE FROM message_search AS s
    USING json_to_recordset(%(deleted)s) AS r (message_id uuid)
    WHERE s.message_id = r.message_id
"""

DELETE_OF_SENDERS = """
    DELETE FROM message_search AS s
    USING json_to_recordset(%(erased)s) AS r (sender text)
    WHERE s.words @@ r.sender::tsquery
"""

INSERT_MESSAGES = """
    INSERT INTO message_search (message_id, chat_id, position, words)
    SELECT message_id,
        chat_id,
        position,
        to_tsvector('pg_catalog.english', text) || array_to_tsvector(scope)
    FROM json_to_recordset(%(messages)s) AS r (
        message_id uuid,
        chat_id uuid,
        position bigint,
        text text,
        scope text[]
    )
"""

# What says where a message is stays.
UPDATE_EDITED = """
    UPDATE message_search AS s
    SET words = to_tsvector('pg_catalog.english', r.text)
        || array_to_tsvector(array(
            SELECT lexeme
            FROM unnest(s.words)
            WHERE strpos(lexeme, ':') > 0
        ))
    FROM json_to_recordset(%(edited)s) AS r (message_id uuid, text text)
    WHERE s.message_id = r.message_id
"""


class _Batch:
    """What a batch of events comes to."""

    def __init__(self) -> None:
        self.rows: dict[MessageId, dict[str, Any]] = {}
        self.edited: dict[MessageId, str] = {}
        self.deleted: set[MessageId] = set()
        self.erased: list[str] = []

    def take(self, position: int, event: Event | None) -> None:
        match event:
            case MessageSent(content=str(content)):
                self.rows[event.message_id] = _row(event, content, position)
            case MessageEdited(content=str(content)):
                self._edit(event.message_id, content)
            case MessageDeleted():
                self.rows.pop(event.message_id, None)
                self.edited.pop(event.message_id, None)
                self.deleted.add(event.message_id)
            case AccountDeleted(erase_messages=True):
                self._erase(sender_lexeme(event.user_id))
            case _:
                pass

    def _edit(self, message_id: MessageId, content: str) -> None:
        text = words.indexed(content)
        if message_id in self.rows:
            self.rows[message_id]["text"] = text
        else:
            self.edited[message_id] = text

    def _erase(self, sender: str) -> None:
        self.rows = {key: row for key, row in self.rows.items() if sender not in row["scope"]}
        self.erased.append(sender)


def plan(events: Sequence[Recorded]) -> list[Step]:
    batch = _Batch()
    for position, _, event in events:
        batch.take(position, event)
    deleted: list[Row] = [{"message_id": one} for one in batch.deleted]
    erased: list[Row] = [{"sender": f"'{sender}'"} for sender in batch.erased]
    edited: list[Row] = [{"message_id": one, "text": text} for one, text in batch.edited.items()]
    return [
        Statement(INSERT_MESSAGES, {"messages": list(batch.rows.values())}),
        Statement(UPDATE_EDITED, {"edited": edited}),
        Statement(DELETE_MESSAGES, {"deleted": deleted}),
        Statement(DELETE_OF_SENDERS, {"erased": erased}),
    ]


def chat_lexeme(chat_id: str) -> str:
    return f"chat:{chat_id}"


def sender_lexeme(user_id: str) -> str:
    return f"from:{user_id}"


def block_lexeme(position: int, bits: int) -> str:
    return f"block:{bits}:{position >> bits}"


def _row(event: MessageSent, content: str, position: int) -> dict[str, Any]:
    return {
        "message_id": event.message_id,
        "chat_id": event.chat_id,
        "position": position,
        "text": words.indexed(content),
        "scope": _scope(event.chat_id, event.sender_id, position),
    }


def _scope(chat_id: ChatId, sender_id: str, position: int) -> list[str]:
    blocks = (block_lexeme(position, bits) for bits in BLOCK_BITS)
    return [chat_lexeme(chat_id), sender_lexeme(sender_id), *blocks]


PROJECTION = Projection(
    name="search",
    handles=frozenset({MessageSent, MessageEdited, MessageDeleted, AccountDeleted}),
    opens=frozenset({MessageSent, MessageEdited}),
    plan=plan,
)
