"""Uploads over HTTP: attachments of messages, and avatars (contract.md, section 3).

A slot is taken before the body is read, so that no more uploads are on disk, in the workers or
on their way to the store than the process can hold; who finds none is told to come again.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import msgspec

from api.http import Reply, is_id, json_reply, log_position
from api.multipart import Form, read_form
from api.operations import MULTIPART, Call, Operation
from api.problems import Malformed, TooLarge, UnsupportedMedia
from api.queries.attachments import Attachment
from api.queries.chats import CHAT_ID
from api.queries.query import Time
from domain.ids import ChatId, MessageId
from domain.refusals import Blocked, Conflict, Forbidden, Invalid, NotContacts, NotFound
from infra.errors import Unavailable
from infra.uploads import Uploaded

UPLOAD_SECONDS = 120.0
UNNAMED = "image"


class AttachmentForm(msgspec.Struct, frozen=True, kw_only=True):
    """multipart/form-data: an image, and the message that it is for."""

    file: bytes
    chat_id: str
    message_id: str


class AvatarForm(msgspec.Struct, frozen=True, kw_only=True):
    """multipart/form-data: an image, of which the middle square is kept."""

    file: bytes


class Avatar(msgspec.Struct, frozen=True, kw_only=True):
    """The address is good until `expires_at`; queries sign it anew."""

    avatar_url: str
    expires_at: Time


async def upload(call: Call) -> Reply:
    async with _form(call, "chat_id", "message_id") as form:
        file_name = form.file_name or UNNAMED
        uploaded = await call.parts.uploads.attachment(
            form.file,
            actor=call.caller.user_id,
            chat_id=ChatId(_id(form, "chat_id")),
            message_id=MessageId(_id(form, "message_id")),
            file_name=file_name,
        )
    return json_reply(
        _attachment(call, uploaded, file_name),
        status=201,
        headers=[log_position(uploaded.position)],
    )


async def set_own_avatar(call: Call) -> Reply:
    async with _form(call) as form:
        uploaded = await call.parts.uploads.user_avatar(form.file, actor=call.caller.user_id)
    return _avatar(call, uploaded)


async def set_chat_avatar(call: Call) -> Reply:
    chat_id = ChatId(call.inbound.id("chat_id"))
    async with _form(call) as form:
        uploaded = await call.parts.uploads.chat_avatar(
            form.file, actor=call.caller.user_id, chat_id=chat_id
        )
    return _avatar(call, uploaded)


@asynccontextmanager
async def _form(call: Call, *fields: str) -> AsyncIterator[Form]:
    parts = call.parts
    with parts.upload_slots.taken(call.caller.user_id):
        async with read_form(call.inbound, parts.spool, fields=fields) as form:
            try:
                async with asyncio.timeout(UPLOAD_SECONDS):
                    yield form
            except TimeoutError:
                raise Unavailable("the upload took too long: try again") from None


def _id(form: Form, field: str) -> str:
    if not is_id(form.fields[field]):
        raise Invalid("expected a lowercase UUID", field=field)
    return form.fields[field]


def _attachment(call: Call, uploaded: Uploaded, file_name: str) -> Attachment:
    image = uploaded.image
    signed = {size: call.parts.objects.signed(key) for size, key in uploaded.keys.items()}
    return Attachment(
        attachment_id=UUID(uploaded.id),
        file_name=file_name,
        file_type=image.file_type,
        file_size=image.file_size,
        width=image.width,
        height=image.height,
        url=signed["original"].url,
        medium_url=signed["medium"].url,
        thumbnail_url=signed["thumbnail"].url,
        expires_at=min(one.expires_at for one in signed.values()),
    )


def _avatar(call: Call, uploaded: Uploaded) -> Reply:
    signed = call.parts.objects.signed(uploaded.keys["thumbnail"])
    answer = Avatar(avatar_url=signed.url, expires_at=signed.expires_at)
    return json_reply(answer, headers=[log_position(uploaded.position)])


_PROBLEMS: tuple[Any, ...] = (Malformed, Invalid, TooLarge, UnsupportedMedia)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST",
        "/v1/attachments",
        "upload-attachment",
        "Upload an image for a message that is about to be sent",
        upload,
        body=AttachmentForm,
        body_type=MULTIPART,
        answer=Attachment,
        status=201,
        states_position=True,
        problems=(*_PROBLEMS, NotFound, NotContacts, Blocked, Conflict),
    ),
    Operation(
        "PUT",
        "/v1/users/me/avatar",
        "set-own-avatar",
        "Upload the caller's avatar; it replaces the one before",
        set_own_avatar,
        body=AvatarForm,
        body_type=MULTIPART,
        answer=Avatar,
        states_position=True,
        problems=(*_PROBLEMS, NotFound),
    ),
    Operation(
        "PUT",
        "/v1/chats/{chat_id:str}/avatar",
        "set-chat-avatar",
        "Upload a group's avatar, as its owner or an admin; it replaces the one before",
        set_chat_avatar,
        body=AvatarForm,
        body_type=MULTIPART,
        answer=Avatar,
        states_position=True,
        parameters=(CHAT_ID,),
        problems=(*_PROBLEMS, NotFound, Forbidden),
    ),
)
