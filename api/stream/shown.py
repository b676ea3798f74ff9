"""What a client is shown of an event: its type, its chat, and `data`.

A message is shown as the queries show it, with the names of the day, but for what is counted
(`seq`, reactions, receipts): clients count themselves. What was deleted since is not said again.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from api.queries.attachments import Attachment
from domain.chat import ChatEvent, GroupCreated, GroupUpdated
from domain.contact import ContactBlocked, ContactEvent, ContactUnblocked, Standing
from domain.event import Event
from domain.ids import AttachmentId, ChatId, MessageId, UserId
from domain.message import (
    MessageDeleted,
    MessageEdited,
    MessageSent,
    ReactionEvent,
    SystemMessageSent,
)
from domain.receipt import DeliveriesRecorded, MessagesDelivered, ReceiptEvent
from domain.user import AccountDeleted, PasswordChanged, ProfileUpdated, UserRegistered
from projections.messages import DELETED_CONTENT, said, told, worded
from projections.users import ERASED_NAME

REPLY_TO_DELETED = "[Message Deleted]"


class Quoted(NamedTuple):
    """A message that is replied to; `content` is None if it is deleted."""

    sender_id: UserId | None
    content: str | None


class Surroundings(NamedTuple):
    """What a page of events is shown with. `gone`: messages that are deleted by now;
    `avatar_of`: the address that shows an avatar to who may see its owner (the second)."""

    name_of: Callable[[UserId], str]
    quoted: Mapping[MessageId, Quoted] = {}
    gone: frozenset[MessageId] = frozenset()
    attachments: Mapping[AttachmentId, Attachment] = {}
    avatar_of: Callable[[str | None, str], str | None] = lambda url, owner: url


class Shown(NamedTuple):
    type: str
    chat_id: ChatId | None
    data: Any


class Sender(msgspec.Struct, frozen=True):
    id: UserId
    display_name: str


class ReplyTo(msgspec.Struct, frozen=True):
    id: MessageId
    sender: Sender | None
    content: str


class SentMessage(msgspec.Struct, frozen=True, kw_only=True):
    message_id: MessageId
    chat_id: ChatId
    sender_id: UserId | None
    sender: Sender | None
    content: str
    content_type: Literal["text", "image", "system"]
    metadata: dict[str, Any]
    reply_to_id: MessageId | None = None
    reply_to: ReplyTo | None = None
    attachments: list[Attachment] = []
    created_at: datetime


class Mark(msgspec.Struct, frozen=True):
    """How far a user has the chat's messages; null where the event does not say."""

    user_id: UserId
    delivered_up_to: int
    read_up_to: int | None


class Contact(msgspec.Struct, frozen=True):
    """The viewer's row, as /v1/contacts has it, with less of the user."""

    user: Sender
    status: Literal["pending", "accepted", "blocked"]
    requested_by: UserId
    created_at: datetime | None
    accepted_at: datetime | None


def people_in(events: Iterable[Event]) -> set[UserId]:
    """Whose names it takes to show these."""
    found: set[UserId] = set()
    for event in events:
        match event:
            case MessageSent():
                found.add(event.sender_id)
            case ContactEvent():
                found |= {event.user_id, event.contact_id}
            case _:
                pass
    return found


def quoted_in(events: Iterable[Event]) -> set[MessageId]:
    return {
        event.reply_to_id
        for event in events
        if isinstance(event, MessageSent) and event.reply_to_id is not None
    }


def attached_in(events: Iterable[Event]) -> set[AttachmentId]:
    return {
        attachment_id
        for event in events
        if isinstance(event, MessageSent)
        for attachment_id in event.attachment_ids
    }


def shown(event: Event, at: datetime, around: Surroundings) -> Shown:
    """To everybody whom the event concerns; of contacts, see `contact_shown`."""
    match event:
        case MessageSent() | SystemMessageSent() | MessageEdited() | MessageDeleted():
            return Shown(event.type, event.chat_id, _message(event, at, around))
        case DeliveriesRecorded():
            marks = [Mark(mark.user_id, mark.up_to, None) for mark in event.marks]
            return _receipts(MessagesDelivered.type, event.chat_id, marks)
        case ReceiptEvent():
            mark = Mark(event.user_id, event.delivered_up_to, event.read_up_to)
            return _receipts(event.type, event.chat_id, [mark])
        case GroupCreated() | GroupUpdated():
            avatar_url = around.avatar_of(event.avatar_url, event.chat_id)
            data = msgspec.structs.replace(event, avatar_url=avatar_url)
            return Shown(event.type, event.chat_id, data)
        case ChatEvent() | ReactionEvent():
            return Shown(event.type, event.chat_id, event)
        case _:
            return Shown(event.type, None, _account(event, around))


def without_marks(event: DeliveriesRecorded) -> Shown:
    """For those whose messages it is not about."""
    return _receipts(MessagesDelivered.type, event.chat_id, [])


def contact_shown(
    event: ContactEvent, viewer: UserId, name_of: Callable[[UserId], str]
) -> Shown | None:
    """What one of the two is shown; None if it is the other's own matter."""
    if isinstance(event, ContactBlocked | ContactUnblocked) and event.user_id != viewer:
        return None
    other = event.contact_id if event.user_id == viewer else event.user_id
    row = _row(event.standing, viewer, Sender(other, name_of(other)))
    data = {"user_id": event.user_id, "contact_id": event.contact_id, "contact": row}
    return Shown(event.type, None, data)


def _row(standing: Standing, viewer: UserId, other: Sender) -> Contact | None:
    blocked_at = standing.blocked_at.get(viewer)
    if blocked_at is None and standing.requested_by is None:
        return None
    between: Literal["pending", "accepted"] = (
        "pending" if standing.accepted_at is None else "accepted"
    )
    return Contact(
        user=other,
        status=between if blocked_at is None else "blocked",
        requested_by=standing.requested_by or viewer,
        created_at=standing.requested_at or blocked_at,
        accepted_at=standing.accepted_at,
    )


def _receipts(type_name: str, chat_id: ChatId, marks: list[Mark]) -> Shown:
    return Shown(type_name, chat_id, {"chat_id": chat_id, "marks": marks})


def _message(event: Event, at: datetime, around: Surroundings) -> Any:
    match event:
        case MessageSent():
            return _sent(event, at, around)
        case SystemMessageSent():
            row = told(event)
            return SentMessage(
                message_id=event.message_id,
                chat_id=event.chat_id,
                sender_id=None,
                sender=None,
                created_at=at,
                **row,
            )
        case MessageEdited():
            text = None if event.message_id in around.gone else event.content
            return {
                "message_id": event.message_id,
                "chat_id": event.chat_id,
                "sender_id": event.sender_id,
                **worded(text, event.formatting),
                "edited_at": at,
            }
        case _:
            assert isinstance(event, MessageDeleted)
            return {
                "message_id": event.message_id,
                "chat_id": event.chat_id,
                "by": event.by,
                "content": DELETED_CONTENT,
                "deleted_at": at,
            }


def _sent(event: MessageSent, at: datetime, around: Surroundings) -> SentMessage:
    if event.message_id in around.gone:
        event = msgspec.structs.replace(event, content=None)
    return SentMessage(
        message_id=event.message_id,
        chat_id=event.chat_id,
        sender_id=event.sender_id,
        sender=Sender(event.sender_id, around.name_of(event.sender_id)),
        content_type="image" if event.attachment_ids else "text",
        reply_to_id=event.reply_to_id,
        reply_to=_reply_to(event.reply_to_id, around),
        attachments=[] if event.content is None else _attachments(event, around),
        created_at=at,
        **said(event),
    )


def _attachments(event: MessageSent, around: Surroundings) -> list[Attachment]:
    known = (around.attachments.get(attachment_id) for attachment_id in event.attachment_ids)
    return [attachment for attachment in known if attachment is not None]


def _reply_to(message_id: MessageId | None, around: Surroundings) -> ReplyTo | None:
    if message_id is None:
        return None
    quoted = around.quoted.get(message_id, Quoted(None, None))
    sender_id = quoted.sender_id
    sender = None if sender_id is None else Sender(sender_id, around.name_of(sender_id))
    return ReplyTo(message_id, sender, quoted.content or REPLY_TO_DELETED)


def _account(event: Event, around: Surroundings) -> Any:
    match event:
        case UserRegistered():
            return {
                "user_id": event.user_id,
                "username": event.username,
                "display_name": event.display_name or ERASED_NAME,
            }
        case ProfileUpdated():
            return {
                "user_id": event.user_id,
                "display_name": event.display_name or ERASED_NAME,
                "avatar_url": around.avatar_of(event.avatar_url, event.user_id),
            }
        case AccountDeleted():
            return {
                "user_id": event.user_id,
                "display_name": ERASED_NAME,
                "erase_messages": event.erase_messages,
            }
        case _:
            assert isinstance(event, PasswordChanged)
            return {"user_id": event.user_id}
