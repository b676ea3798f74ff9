"""remove-attachment: one that was uploaded and is in no message; `messenger maintain` sends it
once the time for sending is over."""

from commands.command import Command, Context, Decision, View
from domain.attachment import AttachmentRemoved
from domain.ids import AttachmentId


class RemoveAttachment(Command, frozen=True, kw_only=True):
    attachment_id: AttachmentId


def decide(remove: RemoveAttachment, context: Context, view: View) -> Decision:
    (attachment,) = view.attachments([remove.attachment_id])
    if not attachment.exists or attachment.is_removed:
        return Decision([])
    if remove.attachment_id in view.message(attachment.message_id).attachment_ids:
        return Decision([])
    return Decision([AttachmentRemoved(attachment_id=remove.attachment_id)])
