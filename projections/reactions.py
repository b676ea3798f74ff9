"""message_reactions: who reacted to what with which emoji (data-model.md, entity 7).

A deleted message loses its reactions.
"""

from collections.abc import Sequence

from domain.event import Recorded
from domain.ids import MessageId, UserId
from domain.message import MessageDeleted, ReactionAdded, ReactionRemoved
from projections.projection import Projection, Row, Statement, Step

DELETE_OF_MESSAGES = """
    DELETE FROM message_reactions AS m
    USING json_to_recordset(%(messages)s) AS r (message_id uuid)
    WHERE m.message_id = r.message_id
"""

DELETE_REACTIONS = """
    DELETE FROM message_reactions AS m
    USING json_to_recordset(%(removed)s) AS r (message_id uuid, user_id uuid, emoji text)
    WHERE m.message_id = r.message_id AND m.user_id = r.user_id AND m.emoji = r.emoji
"""

INSERT_REACTIONS = """
    INSERT INTO message_reactions (message_id, user_id, emoji, created_at)
    SELECT message_id, user_id, emoji, created_at
    FROM json_to_recordset(%(added)s) AS r (
        message_id uuid,
        user_id uuid,
        emoji text,
        created_at timestamptz
    )
"""

Reaction = tuple[MessageId, UserId, str]


def plan(events: Sequence[Recorded]) -> list[Step]:
    added: dict[Reaction, Row] = {}
    # Whatever a batch does to a reaction, a row of an earlier batch goes first.
    removed: dict[Reaction, Row] = {}
    deleted: set[MessageId] = set()
    for _, at, event in events:
        match event:
            case ReactionAdded():
                key = (event.message_id, event.user_id, event.emoji)
                added[key] = {**_row(key), "created_at": at}
            case ReactionRemoved():
                key = (event.message_id, event.user_id, event.emoji)
                removed[key] = _row(key)
                added.pop(key, None)
            case MessageDeleted():
                deleted.add(event.message_id)
            case _:
                pass
    kept = [row for key, row in added.items() if key[0] not in deleted]
    return [
        Statement(DELETE_OF_MESSAGES, {"messages": [{"message_id": one} for one in deleted]}),
        Statement(DELETE_REACTIONS, {"removed": list(removed.values())}),
        Statement(INSERT_REACTIONS, {"added": kept}),
    ]


def _row(key: Reaction) -> Row:
    return dict(zip(("message_id", "user_id", "emoji"), key, strict=True))


PROJECTION = Projection(
    name="reactions",
    handles=frozenset({ReactionAdded, ReactionRemoved, MessageDeleted}),
    opens=frozenset(),
    plan=plan,
)
