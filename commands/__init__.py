"""The decisions of the messenger: one file a command, all of them pure.

`HANDLERS` is the explicit table: a command in it is served over HTTP, in batches and in
OpenAPI with nothing else to write.
"""

from commands import (
    add_members,
    change_password,
    create_group,
    leave_group,
    mark_delivered,
    mark_read,
    register_user,
    remove_member,
    send_message,
    update_group,
    update_profile,
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
    Handler("create-group", create_group.CreateGroup, create_group.Created, create_group.decide),
    Handler("update-group", update_group.UpdateGroup, update_group.Updated, update_group.decide),
    Handler("add-members", add_members.AddMembers, add_members.Added, add_members.decide),
    Handler("remove-member", remove_member.RemoveMember, Answer, remove_member.decide),
    Handler("leave-group", leave_group.LeaveGroup, leave_group.Left, leave_group.decide),
    Handler("send-message", send_message.SendMessage, send_message.Sent, send_message.decide),
    Handler("mark-delivered", mark_delivered.MarkDelivered, Answer, mark_delivered.decide),
    Handler("mark-read", mark_read.MarkRead, Answer, mark_read.decide),
)

BY_NAME = {handler.name: handler for handler in HANDLERS}
BY_TYPE = {handler.command: handler for handler in HANDLERS}
