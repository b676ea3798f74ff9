"""chats and chat_participants: direct chats and groups, their metadata and who is or was in them
(data-model.md, entities 3 and 4).

A participant's row stays when they leave (`left_at`) and is taken up again, with its
`joined_at`, when they come back.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from domain.chat import (
    DirectChatOpened,
    GroupCreated,
    GroupDeleted,
    GroupUpdated,
    MemberLeft,
    MemberRemoved,
    MembersAdded,
    OwnershipTransferred,
    RoleChanged,
)
from domain.event import Event, Recorded
from domain.ids import ChatId, UserId
from domain.message import MessageSent, SystemMessageSent
from projections.projection import Projection, Row, Statement, Step

# First of all, so that a slug that one chat gives up in a batch is free for another.
FREE_SLUGS = """
    UPDATE chats AS c
    SET slug = NULL
    FROM json_to_recordset(%(slugs)s) AS r (id uuid)
    WHERE c.id = r.id
"""

INSERT_CHATS = """
    INSERT INTO chats (
        id, type, name, slug, avatar_url, owner_id, created_at, updated_at, last_message_at,
        is_deleted
    )
    SELECT id, type, name, slug, avatar_url, owner_id, created_at, updated_at, last_message_at,
        is_deleted
    FROM json_to_recordset(%(chats)s) AS r (
        id uuid,
        type text,
        name text,
        slug text,
        avatar_url text,
        owner_id uuid,
        created_at timestamptz,
        updated_at timestamptz,
        last_message_at timestamptz,
        is_deleted boolean
    )
"""

UPDATE_METADATA = """
    UPDATE chats AS c
    SET name = r.name,
        slug = r.slug,
        avatar_url = r.avatar_url
    FROM json_to_recordset(%(metadata)s) AS r (
        id uuid,
        name text,
        slug text,
        avatar_url text
    )
    WHERE c.id = r.id
"""

UPDATE_CHATS = """
    UPDATE chats AS c
    SET owner_id = coalesce(r.owner_id, c.owner_id),
        updated_at = coalesce(r.updated_at, c.updated_at),
        last_message_at = coalesce(r.last_message_at, c.last_message_at),
        is_deleted = coalesce(r.is_deleted, c.is_deleted)
    FROM json_to_recordset(%(chats)s) AS r (
        id uuid,
        owner_id uuid,
        updated_at timestamptz,
        last_message_at timestamptz,
        is_deleted boolean
    )
    WHERE c.id = r.id
"""

# A null role or joined_at keeps what the row has.
UPSERT_PARTICIPANTS = """
    INSERT INTO chat_participants AS p (chat_id, user_id, role, joined_at, left_at)
    SELECT chat_id, user_id, coalesce(role, 'member'), joined_at, left_at
    FROM json_to_recordset(%(joined)s) AS r (
        chat_id uuid,
        user_id uuid,
        role text,
        joined_at timestamptz,
        left_at timestamptz
    )
    ON CONFLICT (chat_id, user_id) DO UPDATE
    SET role = excluded.role,
        left_at = excluded.left_at
"""

UPDATE_PARTICIPANTS = """
    UPDATE chat_participants AS p
    SET role = coalesce(r.role, p.role),
        left_at = coalesce(r.left_at, p.left_at)
    FROM json_to_recordset(%(changed)s) AS r (
        chat_id uuid,
        user_id uuid,
        role text,
        left_at timestamptz
    )
    WHERE p.chat_id = r.chat_id AND p.user_id = r.user_id
"""


class _Batch:
    """The rows that a batch of events folds to."""

    def __init__(self) -> None:
        self.created: dict[ChatId, dict[str, Any]] = {}
        self.metadata: dict[ChatId, Row] = {}
        self.freed: set[ChatId] = set()
        self.changed: dict[ChatId, dict[str, Any]] = {}
        self.joined: dict[tuple[ChatId, UserId], dict[str, Any]] = {}
        self.members: dict[tuple[ChatId, UserId], dict[str, Any]] = {}

    def take(self, event: Event | None, at: datetime) -> None:
        match event:
            case MessageSent() | SystemMessageSent():
                self._change(event.chat_id, last_message_at=at)
            case DirectChatOpened():
                self._open(event, at)
            case GroupCreated():
                self._create(event, at)
            case GroupUpdated():
                self._update(event, at)
            case GroupDeleted():
                self._change(event.chat_id, is_deleted=True, updated_at=at)
            case MembersAdded():
                for user_id in event.user_ids:
                    self._join(event.chat_id, user_id, "member", at)
            case MemberRemoved() | MemberLeft():
                self._member(event.chat_id, event.user_id, left_at=at)
            case RoleChanged():
                self._member(event.chat_id, event.user_id, role=event.role)
            case OwnershipTransferred():
                self._change(event.chat_id, owner_id=event.to_id, updated_at=at)
                self._member(event.chat_id, event.from_id, role="member")
                self._member(event.chat_id, event.to_id, role="owner")
            case _:
                pass

    def _open(self, event: DirectChatOpened, at: datetime) -> None:
        self.created[event.chat_id] = _chat(event.chat_id, "direct", event.slug, at)
        for user_id in event.user_ids:
            self._join(event.chat_id, user_id, "member", at)

    def _create(self, event: GroupCreated, at: datetime) -> None:
        self.created[event.chat_id] = _chat(event.chat_id, "group", event.slug, at) | {
            "name": event.name,
            "avatar_url": event.avatar_url,
            "owner_id": event.owner_id,
        }
        self._join(event.chat_id, event.owner_id, "owner", at)
        for user_id in event.member_ids:
            self._join(event.chat_id, user_id, "member", at)

    def _update(self, event: GroupUpdated, at: datetime) -> None:
        values = {"name": event.name, "slug": event.slug, "avatar_url": event.avatar_url}
        if event.chat_id in self.created:
            self.created[event.chat_id].update(values)
        else:
            self.metadata[event.chat_id] = {"id": event.chat_id, **values}
            self.freed.add(event.chat_id)
        self._change(event.chat_id, updated_at=at)

    def _change(self, chat_id: ChatId, **values: object) -> None:
        rows = self.created if chat_id in self.created else self.changed
        rows.setdefault(chat_id, {"id": chat_id}).update(values)

    def _join(self, chat_id: ChatId, user_id: UserId, role: str, at: datetime) -> None:
        row = self.joined.setdefault(
            (chat_id, user_id), {"chat_id": chat_id, "user_id": user_id, "joined_at": at}
        )
        row.update(role=role, left_at=None)
        # What this batch did to an older row before is overwritten by the joining.
        self.members.pop((chat_id, user_id), None)

    def _member(self, chat_id: ChatId, user_id: UserId, **values: object) -> None:
        key = (chat_id, user_id)
        rows = self.joined if key in self.joined else self.members
        rows.setdefault(key, {"chat_id": chat_id, "user_id": user_id}).update(values)


def _chat(chat_id: ChatId, kind: str, slug: str, at: datetime) -> dict[str, Any]:
    return {
        "id": chat_id,
        "type": kind,
        "name": None,
        "slug": slug,
        "avatar_url": None,
        "owner_id": None,
        "created_at": at,
        "updated_at": at,
        "last_message_at": None,
        "is_deleted": False,
    }


def plan(events: Sequence[Recorded]) -> list[Step]:
    batch = _Batch()
    for _, at, event in events:
        batch.take(event, at)
    return [
        Statement(FREE_SLUGS, {"slugs": [{"id": chat_id} for chat_id in batch.freed]}),
        Statement(UPDATE_CHATS, {"chats": list(batch.changed.values())}),
        Statement(UPDATE_METADATA, {"metadata": list(batch.metadata.values())}),
        Statement(INSERT_CHATS, {"chats": list(batch.created.values())}),
        Statement(UPSERT_PARTICIPANTS, {"joined": list(batch.joined.values())}),
        Statement(UPDATE_PARTICIPANTS, {"changed": list(batch.members.values())}),
    ]


PROJECTION = Projection(
    name="chats",
    handles=frozenset(
        {
            DirectChatOpened,
            GroupCreated,
            GroupUpdated,
            GroupDeleted,
            MembersAdded,
            MemberRemoved,
            MemberLeft,
            RoleChanged,
            OwnershipTransferred,
            MessageSent,
            SystemMessageSent,
        }
    ),
    opens=frozenset(),
    plan=plan,
)
