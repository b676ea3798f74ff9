"""An attachment: an image uploaded for one message, folded from the stream `attachment-ID`.

It belongs to a chat and a message from the upload on, though the message is sent later: it is
no one else's to send, nor for anything else. The file's name is sealed with the sender's
content key; the pixels are in the object store, under keys that say whose they are.
Rules: data-model.md, entity 6.
"""

from typing import ClassVar, Literal, assert_never, get_args

import msgspec

from domain.event import Event, MessageText, Place
from domain.ids import AttachmentId, ChatId, MessageId, StreamId, UserId, attachment_stream

MAX_ATTACHMENTS = 5

FileType = Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
Size = Literal["original", "medium", "thumbnail"]
SIZES: tuple[Size, ...] = get_args(Size)

EXTENSIONS: dict[FileType, str] = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/gif": "gif",
    "image/webp": "webp",
}


def object_key(
    chat_id: ChatId,
    message_id: MessageId,
    attachment_id: AttachmentId,
    size: Size,
    file_type: FileType,
) -> str:
    """Of the object that holds a rendition (contract.md, section 6)."""
    return f"{chat_id}/{message_id}/{attachment_id}_{size}.{EXTENSIONS[file_type]}"


class AttachmentEvent(Event, frozen=True, kw_only=True):
    attachment_id: AttachmentId

    @property
    def stream(self) -> StreamId:
        return attachment_stream(self.attachment_id)


class AttachmentUploaded(AttachmentEvent, frozen=True, kw_only=True):
    """`store`: the plain address of the bucket that holds the objects. `file_size` in bytes and
    the measures in pixels are the original rendition's."""

    type: ClassVar[str] = "attachment_uploaded"
    chat_id: ChatId
    message_id: MessageId
    sender_id: UserId
    file_name: MessageText
    file_type: FileType
    file_size: int
    width: int
    height: int
    store: str

    @property
    def key_prefix(self) -> str:
        """Of the keys of all its renditions."""
        return f"{self.chat_id}/{self.message_id}/{self.attachment_id}_"

    def key(self, size: Size) -> str:
        return object_key(self.chat_id, self.message_id, self.attachment_id, size, self.file_type)


class AttachmentRemoved(AttachmentEvent, frozen=True, kw_only=True):
    """It was never sent, and will not be."""

    type: ClassVar[str] = "attachment_removed"


class Attachment(msgspec.Struct, frozen=True):
    exists: bool = False
    chat_id: ChatId = ChatId("")
    message_id: MessageId = MessageId("")
    sender_id: UserId | None = None
    is_removed: bool = False


def evolve(attachment: Attachment, event: Event, place: Place) -> Attachment:
    assert isinstance(event, AttachmentUploaded | AttachmentRemoved), event
    match event:
        case AttachmentUploaded():
            return Attachment(True, event.chat_id, event.message_id, event.sender_id)
        case AttachmentRemoved():
            return msgspec.structs.replace(attachment, is_removed=True)
        case _:
            assert_never(event)
