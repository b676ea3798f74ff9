"""The decisions of the messenger: one file a command, all of them pure.

`HANDLERS` is the explicit table: a command in it is served over HTTP, in batches and in
OpenAPI with nothing else to write.
"""

from commands import (
    accept_contact,
    add_members,
    add_reaction,
    block_contact,
    change_password,
    change_role,
    create_group,
    delete_account,
    delete_group,
    delete_message,
    edit_message,
    leave_group,
    mark_delivered,
    mark_read,
    open_direct_chat,
    record_deliveries,
    register_user,
    remove_attachment,
    remove_contact,
    remove_member,
    remove_reaction,
    request_contact,
    send_message,
    set_status,
    settle_deletion,
    settle_presence,
    transfer_ownership,
    unblock_contact,
    update_group,
    update_profile,
    upload_attachment,
)
from commands.command import Answer, Handler

HANDLERS: tuple[Handler, ...] = (
    Handler(
        "register-user",
        register_user.RegisterUser,
        register_user.Registered,
        register_user.decide,
        needs_actor=False,
        has_password=True,
    ),
    Handler("update-profile", update_profile.UpdateProfile, Answer, update_profile.decide),
    Handler(
        "change-password",
        change_password.ChangePassword,
        Answer,
        change_password.decide,
        has_password=True,
    ),
    Handler(
        "delete-account",
        delete_account.DeleteAccount,
        Answer,
        delete_account.decide,
        has_password=True,
    ),
    Handler("set-status", set_status.SetStatus, Answer, set_status.decide),
    Handler("request-contact", request_contact.RequestContact, Answer, request_contact.decide),
    Handler("accept-contact", accept_contact.AcceptContact, Answer, accept_contact.decide),
    Handler("remove-contact", remove_contact.RemoveContact, Answer, remove_contact.decide),
    Handler("block-contact", block_contact.BlockContact, Answer, block_contact.decide),
    Handler("unblock-contact", unblock_contact.UnblockContact, Answer, unblock_contact.decide),
    Handler(
        "open-direct-chat",
        open_direct_chat.OpenDirectChat,
        open_direct_chat.Opened,
        open_direct_chat.decide,
    ),
    Handler("create-group", create_group.CreateGroup, create_group.Created, create_group.decide),
    Handler("update-group", update_group.UpdateGroup, update_group.Updated, update_group.decide),
    Handler("delete-group", delete_group.DeleteGroup, Answer, delete_group.decide),
    Handler("add-members", add_members.AddMembers, add_members.Added, add_members.decide),
    Handler("remove-member", remove_member.RemoveMember, Answer, remove_member.decide),
    Handler("leave-group", leave_group.LeaveGroup, leave_group.Left, leave_group.decide),
    Handler("change-role", change_role.ChangeRole, Answer, change_role.decide),
    Handler(
        "transfer-ownership",
        transfer_ownership.TransferOwnership,
        Answer,
        transfer_ownership.decide,
    ),
    Handler("send-message", send_message.SendMessage, send_message.Sent, send_message.decide),
    Handler("edit-message", edit_message.EditMessage, Answer, edit_message.decide),
    Handler("delete-message", delete_message.DeleteMessage, Answer, delete_message.decide),
    Handler("add-reaction", add_reaction.AddReaction, Answer, add_reaction.decide),
    Handler("remove-reaction", remove_reaction.RemoveReaction, Answer, remove_reaction.decide),
    Handler("mark-delivered", mark_delivered.MarkDelivered, Answer, mark_delivered.decide),
    Handler("mark-read", mark_read.MarkRead, Answer, mark_read.decide),
)

# What the shell itself commands; no client can.
INTERNAL: tuple[Handler, ...] = (
    Handler("settle-deletion", settle_deletion.SettleDeletion, Answer, settle_deletion.decide),
    Handler(
        "upload-attachment", upload_attachment.UploadAttachment, Answer, upload_attachment.decide
    ),
    Handler(
        "remove-attachment",
        remove_attachment.RemoveAttachment,
        Answer,
        remove_attachment.decide,
        needs_actor=False,
    ),
    Handler("settle-presence", settle_presence.SettlePresence, Answer, settle_presence.decide),
    Handler(
        "record-deliveries",
        record_deliveries.RecordDeliveries,
        Answer,
        record_deliveries.decide,
        needs_actor=False,
    ),
)

BY_NAME = {handler.name: handler for handler in HANDLERS}
BY_TYPE = {handler.command: handler for handler in (*HANDLERS, *INTERNAL)}
