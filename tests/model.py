"""What the read models must say, folded event by event, one row at a time.

Written from data-model.md and contract.md alone and sharing nothing with `projections/`: plain
dictionaries, no batches, no sets, no cleverness. `fold(events)` answers the rows of the tables
that outsiders may read, by table and key, as `live_rows` reads them from a database.
"""

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from domain import attachment, chat, contact, event, message, receipt, user
from domain.event import Recorded

Row = dict[str, Any]
Rows = dict[tuple[Any, ...], Row]

KEYS: dict[str, tuple[str, ...]] = {
    "users": ("id",),
    "contacts": ("user_id", "contact_id"),
    "chats": ("id",),
    "chat_participants": ("chat_id", "user_id"),
    "messages": ("id",),
    "attachments": ("id",),
    "message_reactions": ("message_id", "user_id", "emoji"),
    "message_delivery": ("message_id", "user_id"),
    "unread_messages": ("user_id", "message_id"),
    "unread_counts": ("user_id", "chat_id"),
}

SYSTEM_SENTENCES = {
    "members_added": "joined the group",
    "member_removed": "was removed from the group",
    "member_left": "left the group",
    "group_renamed": "renamed the group",
    "ownership_transferred": "owns the group now",
    "admin_appointed": "is an admin now",
    "admin_dismissed": "is no admin any more",
}

EXTENSIONS = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/gif": "gif",
    "image/webp": "webp",
}

ALL_ROWS: LiteralString = "SELECT * FROM {schema}.{table}"


def pair_id(first: str, second: str) -> str:
    return str(UUID(bytes=hashlib.md5(UUID(first).bytes + UUID(second).bytes).digest()))


def reaction_id(message_id: str, user_id: str, emoji: str) -> str:
    text = message_id + user_id + emoji
    return str(UUID(bytes=hashlib.md5(text.encode()).digest()))


class Model:
    """`take` events in log order; then `tables`."""

    def __init__(self) -> None:
        self.users: Rows = {}
        self.contacts: Rows = {}
        self.chats: Rows = {}
        self.participants: Rows = {}
        self.messages: Rows = {}
        self.attachments: Rows = {}
        self.reactions: Rows = {}
        self.delivery: Rows = {}
        self.unread: Rows = {}
        self.lengths: dict[str, int] = {}

    def tables(self) -> dict[str, Rows]:
        return {
            "users": self.users,
            "contacts": self.contacts,
            "chats": self.chats,
            "chat_participants": self.participants,
            "messages": self.messages,
            "attachments": self.attachments,
            "message_reactions": self.reactions,
            "message_delivery": self.delivery,
            "unread_messages": self.unread,
            "unread_counts": self._counts(),
        }

    def _counts(self) -> Rows:
        counts: Rows = {}
        for row in self.unread.values():
            key = (row["user_id"], row["chat_id"])
            counts.setdefault(key, {"user_id": key[0], "chat_id": key[1], "count": 0})["count"] += 1
        return counts

    def take(self, recorded: Recorded) -> None:
        position, at, happened = recorded
        match happened:
            case user.UserEvent():
                self._user(happened, at)
            case chat.ChatEvent():
                self._chat(happened, at)
            case contact.ContactEvent():
                self._contact(happened)
            case message.MessageSent():
                self._sent(happened, at, position)
            case message.SystemMessageSent():
                self._told(happened, at, position)
            case message.MessageEvent():
                self._changed(happened, at)
            case receipt.ReceiptEvent():
                self._marked(happened, at)
            case attachment.AttachmentUploaded():
                self._uploaded(happened, at)
            case attachment.AttachmentRemoved():
                del self.attachments[(happened.attachment_id,)]
            case receipt.DeliveriesRecorded():
                self._received(happened, at)
            case _:
                raise AssertionError(f"the model does not know {happened}")

    # ------------------------------------------------------------------------------ users

    def _user(self, happened: event.Event, at: datetime) -> None:
        match happened:
            case user.UserRegistered():
                self.users[(happened.user_id,)] = {
                    "id": happened.user_id,
                    "username": happened.username,
                    "password_hash": happened.password_hash,
                    "display_name": happened.display_name,
                    "avatar_url": None,
                    "status": "offline",
                    "last_seen": None,
                    "created_at": at,
                    "updated_at": at,
                }
            case user.ProfileUpdated():
                row = self.users[(happened.user_id,)]
                row["display_name"] = happened.display_name
                row["avatar_url"] = happened.avatar_url
                row["updated_at"] = at
            case user.PasswordChanged():
                row = self.users[(happened.user_id,)]
                row["password_hash"] = happened.password_hash
                row["updated_at"] = at
            case user.StatusChanged():
                self.users[(happened.user_id,)]["status"] = happened.status
                self._seen(happened.user_id, at)
            case user.AccountDeleted():
                self._deleted(happened, at)
            case _:
                raise AssertionError(f"the model does not know {happened}")

    def _deleted(self, deleted: user.AccountDeleted, at: datetime) -> None:
        self.users[(deleted.user_id,)].update(
            username="deleted_" + UUID(deleted.user_id).hex,
            password_hash="!",
            display_name="[Deleted User]",
            avatar_url=None,
            status="offline",
            last_seen=None,
            updated_at=at,
        )
        for key, row in list(self.unread.items()):
            if row["user_id"] == deleted.user_id:
                del self.unread[key]
        for row in self.messages.values():
            if deleted.erase_messages and row["sender_id"] == deleted.user_id:
                row["content"] = "[Deleted]"
                row["metadata"] = {}
        if deleted.erase_messages:
            self._drop_attachments("sender_id", deleted.user_id)

    def _seen(self, user_id: str, at: datetime) -> None:
        row = self.users.get((user_id,))
        if row is not None and (row["last_seen"] is None or row["last_seen"] < at):
            row["last_seen"] = at

    # --------------------------------------------------------------------------- contacts

    def _contact(self, happened: contact.ContactEvent) -> None:
        standing = happened.standing
        for mine, other in (
            (happened.user_id, happened.contact_id),
            (happened.contact_id, happened.user_id),
        ):
            self.contacts.pop((mine, other), None)
            row = {
                "id": pair_id(mine, other),
                "user_id": mine,
                "contact_id": other,
                "requested_by": standing.requested_by,
                "created_at": standing.requested_at,
                "accepted_at": standing.accepted_at,
            }
            if standing.requested_by is not None:
                row["status"] = "accepted" if standing.accepted_at else "pending"
                self.contacts[mine, other] = row
            if mine in standing.blocked_at:
                row["status"] = "blocked"
                row["requested_by"] = standing.requested_by or mine
                row["created_at"] = standing.requested_at or standing.blocked_at[mine]
                self.contacts[mine, other] = row

    # ------------------------------------------------------------------------------ chats

    def _chat(self, happened: chat.ChatEvent, at: datetime) -> None:
        match happened:
            case chat.DirectChatOpened():
                self._opened(happened, at)
            case chat.GroupCreated():
                self._created(happened, at)
            case chat.MembersAdded():
                for user_id in happened.user_ids:
                    self._joins(happened.chat_id, user_id, "member", at)
            case chat.MemberRemoved() | chat.MemberLeft():
                self._leaves(happened.chat_id, happened.user_id, at)
            case chat.GroupUpdated():
                row = self.chats[(happened.chat_id,)]
                row["name"] = happened.name
                row["slug"] = happened.slug
                row["avatar_url"] = happened.avatar_url
                row["updated_at"] = at
            case chat.GroupDeleted():
                row = self.chats[(happened.chat_id,)]
                row["is_deleted"] = True
                row["updated_at"] = at
                for key, unread in list(self.unread.items()):
                    if unread["chat_id"] == happened.chat_id:
                        del self.unread[key]
            case chat.RoleChanged():
                self.participants[happened.chat_id, happened.user_id]["role"] = happened.role
            case chat.OwnershipTransferred():
                row = self.chats[(happened.chat_id,)]
                row["owner_id"] = happened.to_id
                row["updated_at"] = at
                self.participants[happened.chat_id, happened.from_id]["role"] = "member"
                self.participants[happened.chat_id, happened.to_id]["role"] = "owner"
            case _:
                raise AssertionError(f"the model does not know {happened}")

    def _opened(self, opened: chat.DirectChatOpened, at: datetime) -> None:
        self.chats[(opened.chat_id,)] = {
            "id": opened.chat_id,
            "type": "direct",
            "name": None,
            "slug": opened.slug,
            "avatar_url": None,
            "owner_id": None,
            "created_at": at,
            "updated_at": at,
            "last_message_at": None,
            "is_deleted": False,
        }
        for user_id in opened.user_ids:
            self._joins(opened.chat_id, user_id, "member", at)

    def _created(self, created: chat.GroupCreated, at: datetime) -> None:
        self.chats[(created.chat_id,)] = {
            "id": created.chat_id,
            "type": "group",
            "name": created.name,
            "slug": created.slug,
            "avatar_url": created.avatar_url,
            "owner_id": created.owner_id,
            "created_at": at,
            "updated_at": at,
            "last_message_at": None,
            "is_deleted": False,
        }
        self._joins(created.chat_id, created.owner_id, "owner", at)
        for user_id in created.member_ids:
            self._joins(created.chat_id, user_id, "member", at)

    def _joins(self, chat_id: str, user_id: str, role: str, at: datetime) -> None:
        row = self.participants.setdefault(
            (chat_id, user_id),
            {
                "id": pair_id(chat_id, user_id),
                "chat_id": chat_id,
                "user_id": user_id,
                "joined_at": at,
            },
        )
        row["role"] = role
        row["left_at"] = None

    def _leaves(self, chat_id: str, user_id: str, at: datetime) -> None:
        self.participants[chat_id, user_id]["left_at"] = at
        for key, row in list(self.unread.items()):
            if row["user_id"] == user_id and row["chat_id"] == chat_id:
                del self.unread[key]

    # --------------------------------------------------------------------------- messages

    def _sent(self, sent: message.MessageSent, at: datetime, position: int) -> None:
        content, metadata = self._text(sent)
        if sent.attachment_ids and sent.content is not None:
            metadata["attachments"] = list(sent.attachment_ids)
        content_type = "image" if sent.attachment_ids else "text"
        self._message(sent, sent.sender_id, content, content_type, metadata, at, position)
        for ordinal, attachment_id in enumerate(sent.attachment_ids):
            if (attachment_id,) in self.attachments:
                self.attachments[(attachment_id,)]["ordinal"] = ordinal
        self.messages[(sent.message_id,)]["reply_to_id"] = sent.reply_to_id
        self._seen(sent.sender_id, at)
        for chat_id, user_id in list(self.participants):
            is_active = self.participants[chat_id, user_id]["left_at"] is None
            if chat_id == sent.chat_id and user_id != sent.sender_id and is_active:
                self._receives(sent, user_id, at, position)

    def _text(self, said: message.MessageSent | message.MessageEdited) -> tuple[str, Row]:
        """What is left of a text whose key was destroyed says nothing of it."""
        if said.content is None:
            return "[Deleted]", {}
        if not said.formatting:
            return said.content, {}
        formatting = {
            style: [list(pair) for pair in ranges] for style, ranges in said.formatting.items()
        }
        return said.content, {"formatting": formatting}

    def _changed(self, happened: message.MessageEvent, at: datetime) -> None:
        row = self.messages[(happened.message_id,)]
        match happened:
            case message.MessageEdited():
                attached = {
                    name: value for name, value in row["metadata"].items() if name == "attachments"
                }
                row["content"], formatting = self._text(happened)
                row["metadata"] = attached | formatting
                row["is_edited"] = True
                row["edited_at"] = at
            case message.MessageDeleted():
                row["content"] = "[Deleted]"
                row["metadata"] = {}
                row["is_deleted"] = True
                row["deleted_at"] = at
                self._drop_attachments("message_id", happened.message_id)
                for key in [key for key in self.reactions if key[0] == happened.message_id]:
                    del self.reactions[key]
                for key in [key for key in self.unread if key[1] == happened.message_id]:
                    del self.unread[key]
            case message.ReactionAdded():
                key = (happened.message_id, happened.user_id, happened.emoji)
                assert key not in self.reactions
                self.reactions[key] = {
                    "id": reaction_id(*key),
                    "message_id": happened.message_id,
                    "user_id": happened.user_id,
                    "emoji": happened.emoji,
                    "created_at": at,
                }
            case message.ReactionRemoved():
                del self.reactions[happened.message_id, happened.user_id, happened.emoji]
            case _:
                raise AssertionError(f"the model does not know {happened}")

    def _uploaded(self, uploaded: attachment.AttachmentUploaded, at: datetime) -> None:
        prefix = f"{uploaded.chat_id}/{uploaded.message_id}/{uploaded.attachment_id}"
        original, medium, thumbnail = (
            f"{prefix}_{size}.{EXTENSIONS[uploaded.file_type]}"
            for size in ("original", "medium", "thumbnail")
        )
        self.attachments[(uploaded.attachment_id,)] = {
            "id": uploaded.attachment_id,
            "message_id": uploaded.message_id,
            "chat_id": uploaded.chat_id,
            "sender_id": uploaded.sender_id,
            "file_name": "[Deleted]" if uploaded.file_name is None else uploaded.file_name,
            "file_type": uploaded.file_type,
            "file_size": uploaded.file_size,
            "storage_key": original,
            "medium_key": medium,
            "thumbnail_key": thumbnail,
            "url": f"{uploaded.store}/{original}",
            "thumbnail_url": f"{uploaded.store}/{thumbnail}",
            "width": uploaded.width,
            "height": uploaded.height,
            "created_at": at,
            "ordinal": None,
        }

    def _drop_attachments(self, name: str, value: str) -> None:
        """Those of a message, or of a sender."""
        for key in [key for key, row in self.attachments.items() if row[name] == value]:
            del self.attachments[key]

    def _told(self, told: message.SystemMessageSent, at: datetime, position: int) -> None:
        system: Row = {
            "kind": told.kind,
            "actor_id": told.actor_id,
            "user_ids": list(told.user_ids),
        }
        if told.kind == "group_renamed":
            system["name"] = told.name
        content = SYSTEM_SENTENCES[told.kind]
        self._message(told, None, content, "system", {"system": system}, at, position)

    def _message(
        self,
        said: message.MessageSent | message.SystemMessageSent,
        sender_id: str | None,
        content: str | None,
        content_type: str,
        metadata: Row,
        at: datetime,
        position: int,
    ) -> None:
        self.lengths[said.chat_id] = seq = self.lengths.get(said.chat_id, 0) + 1
        self.messages[(said.message_id,)] = {
            "id": said.message_id,
            "chat_id": said.chat_id,
            "sender_id": sender_id,
            "content": content,
            "content_type": content_type,
            "metadata": metadata,
            "reply_to_id": None,
            "is_edited": False,
            "edited_at": None,
            "is_deleted": False,
            "deleted_at": None,
            "created_at": at,
            "seq": seq,
            "position": position,
        }
        self.chats[(said.chat_id,)]["last_message_at"] = at

    # ------------------------------------------------------------------ delivery and unread

    def _receives(
        self, sent: message.MessageSent, user_id: str, at: datetime, position: int
    ) -> None:
        self.delivery[sent.message_id, user_id] = {
            "id": pair_id(sent.message_id, user_id),
            "message_id": sent.message_id,
            "user_id": user_id,
            "status": "pending",
            "delivered_at": None,
            "read_at": None,
            "created_at": at,
            "chat_id": sent.chat_id,
            "position": position,
        }
        self.unread[user_id, sent.message_id] = {
            "id": pair_id(user_id, sent.message_id),
            "user_id": user_id,
            "chat_id": sent.chat_id,
            "message_id": sent.message_id,
            "created_at": at,
            "position": position,
        }

    def _marked(self, marked: receipt.ReceiptEvent, at: datetime) -> None:
        for row in self.delivery.values():
            if (row["user_id"], row["chat_id"]) == (marked.user_id, marked.chat_id):
                self._mark_row(row, marked, at)
        if isinstance(marked, receipt.MessagesRead):
            self._seen(marked.user_id, at)
            for key, row in list(self.unread.items()):
                is_theirs = (row["user_id"], row["chat_id"]) == (marked.user_id, marked.chat_id)
                if is_theirs and row["position"] <= marked.read_up_to:
                    del self.unread[key]

    def _received(self, recorded: receipt.DeliveriesRecorded, at: datetime) -> None:
        up_to = {mark.user_id: mark.up_to for mark in recorded.marks}
        assert len(up_to) == len(recorded.marks)
        for row in self.delivery.values():
            is_marked = row["chat_id"] == recorded.chat_id and row["user_id"] in up_to
            if is_marked and row["position"] <= up_to[row["user_id"]]:
                self._deliver_row(row, at)

    def _mark_row(self, row: Row, marked: receipt.ReceiptEvent, at: datetime) -> None:
        if row["position"] <= marked.delivered_up_to:
            self._deliver_row(row, at)
        if row["position"] <= marked.read_up_to and row["status"] != "read":
            row["status"] = "read"
            row["read_at"] = at

    def _deliver_row(self, row: Row, at: datetime) -> None:
        if row["status"] == "pending":
            row["status"] = "delivered"
            row["delivered_at"] = at


def fold(events: Iterable[Recorded]) -> dict[str, Rows]:
    model = Model()
    for recorded in events:
        model.take(recorded)
    return model.tables()


async def live_rows(
    connection: psycopg.AsyncConnection[Any], *, schema: str = "public"
) -> dict[str, Rows]:
    """The same tables as a database has them."""
    return {table: await _rows(connection, schema, table) for table in KEYS}


async def _rows(connection: psycopg.AsyncConnection[Any], schema: str, table: str) -> Rows:
    statement = sql.SQL(ALL_ROWS).format(schema=sql.Identifier(schema), table=sql.Identifier(table))
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement)
        found = [
            {name: str(value) if isinstance(value, UUID) else value for name, value in row.items()}
            for row in await cursor.fetchall()
        ]
    rows = {tuple(row[name] for name in KEYS[table]): row for row in found}
    assert len(rows) == len(found), f"{table} has a key twice"
    return rows


def assert_same(expected: dict[str, Rows], found: dict[str, Rows]) -> None:
    """Says which row differs, not that two big things do."""
    for table, rows in expected.items():
        missing = rows.keys() - found[table].keys()
        extra = found[table].keys() - rows.keys()
        assert not missing, f"{table} lacks {rows[min(missing)]}"
        assert not extra, f"{table} has too much: {found[table][min(extra)]}"
        for key, row in rows.items():
            differing = {name for name in row if found[table][key].get(name) != row[name]}
            shown = {name: (row[name], found[table][key].get(name)) for name in differing}
            assert found[table][key] == row, f"{table} differs at {key}: {shown}"
