"""upload-attachment: an image for a message that is about to be sent.

No client sends it: the shell does, which has put the objects into the store. Asked before without
an image, it answers whether the upload would be allowed: so that nothing is decoded in vain.
"""

import msgspec

from commands.command import Command, Context, Decision, View, open_chat
from commands.sending import check_may_send
from domain.attachment import AttachmentUploaded, FileType
from domain.ids import AttachmentId, ChatId, MessageId
from domain.refusals import Conflict


class StoredImage(msgspec.Struct, frozen=True, kw_only=True):
    """As in AttachmentUploaded."""

    attachment_id: AttachmentId
    file_name: str
    file_type: FileType
    file_size: int
    width: int
    height: int
    store: str


class UploadAttachment(Command, frozen=True, kw_only=True):
    chat_id: ChatId
    message_id: MessageId
    image: StoredImage | None = None


def decide(upload: UploadAttachment, context: Context, view: View) -> Decision:
    chat = open_chat(view, upload.chat_id, context.actor)
    check_may_send(view, chat, context.actor)
    if view.new_message(upload.message_id).exists:
        raise Conflict("the message is sent already: attachments come before it")
    if upload.image is None:
        return Decision([])
    if view.new_attachment(upload.image.attachment_id).exists:
        raise Conflict("this attachment is uploaded already")
    uploaded = AttachmentUploaded(
        chat_id=upload.chat_id,
        message_id=upload.message_id,
        sender_id=context.actor,
        **msgspec.structs.asdict(upload.image),
    )
    return Decision([uploaded])
