"""From an uploaded file to objects in the store and the event that tells of them.

What is about to be stored is written down first, so that nothing that breaks half-way stays for
long: `infra.removals` finds it, asks the log whether it counts, and removes it if not. Only the
log can tell: a broken connection may hide an event that landed, or a put that still goes on. The
event is last: what it names is there.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import LiteralString, NamedTuple

from commands.command import Command
from commands.update_group import UpdateGroup
from commands.update_profile import UpdateProfile
from commands.upload_attachment import StoredImage, UploadAttachment
from domain.attachment import SIZES, FileType, Size, object_key
from domain.avatar import Owner, new_avatar_key
from domain.ids import (
    AttachmentId,
    ChatId,
    MessageId,
    StreamId,
    UserId,
    attachment_stream,
    chat_stream,
    user_stream,
)
from domain.refusals import Refusal
from infra import clock
from infra.database import DOWN, Pool, first_line
from infra.errors import Unavailable
from infra.executor import Executor, Request
from infra.images.pool import Image, Images
from infra.objects import Objects
from infra.spool import scratch

BEGIN = """
    INSERT INTO unfinished_uploads (id, stream, keys, begun_at, uploader)
    VALUES (%s, %s, %s, clock_timestamp(), %s)
"""

FINISH = """
    DELETE FROM unfinished_uploads
    WHERE id = %s
"""


class Uploaded(NamedTuple):
    """`position`: where the log says so."""

    position: int
    id: str
    image: Image
    keys: Mapping[Size, str]


class _Upload(NamedTuple):
    """What shall be stored, and what then is commanded."""

    id: str
    stream: StreamId
    key: Callable[[Size, FileType], str]
    sizes: tuple[Size, ...]
    record: Callable[[Image, Mapping[Size, str]], Command]


class Uploads:
    """Every method raises Refusal, ImageRefused, or Unavailable."""

    def __init__(self, pool: Pool, executor: Executor, images: Images, objects: Objects) -> None:
        self._pool = pool
        self._executor = executor
        self._images = images
        self._objects = objects

    async def attachment(
        self,
        source: Path,
        *,
        actor: UserId,
        chat_id: ChatId,
        message_id: MessageId,
        file_name: str,
    ) -> Uploaded:
        # Whoever may not upload here costs no decoding.
        await self._execute(UploadAttachment(chat_id=chat_id, message_id=message_id), actor)
        attachment_id = AttachmentId(clock.new_id())

        def key(size: Size, file_type: FileType) -> str:
            return object_key(chat_id, message_id, attachment_id, size, file_type)

        def record(image: Image, keys: Mapping[Size, str]) -> Command:
            stored = StoredImage(
                attachment_id=attachment_id,
                file_name=file_name,
                file_type=image.file_type,
                file_size=image.file_size,
                width=image.width,
                height=image.height,
                store=self._objects.plain_url("").rstrip("/"),
            )
            return UploadAttachment(chat_id=chat_id, message_id=message_id, image=stored)

        stream = attachment_stream(attachment_id)
        upload = _Upload(attachment_id, stream, key, SIZES, record)
        return await self._store(source, upload, actor)

    async def user_avatar(self, source: Path, *, actor: UserId) -> Uploaded:
        await self._execute(UpdateProfile(), actor)
        stream = user_stream(actor)

        def record(avatar_url: str) -> Command:
            return UpdateProfile(avatar_url=avatar_url)

        return await self._store(source, self._avatar(stream, actor, record), actor)

    async def chat_avatar(self, source: Path, *, actor: UserId, chat_id: ChatId) -> Uploaded:
        await self._execute(UpdateGroup(chat_id=chat_id), actor)
        stream = chat_stream(chat_id)

        def record(avatar_url: str) -> Command:
            return UpdateGroup(chat_id=chat_id, avatar_url=avatar_url)

        return await self._store(source, self._avatar(stream, chat_id, record), actor)

    def _avatar(self, stream: StreamId, owner: Owner, record: Callable[[str], Command]) -> _Upload:
        """The square alone: an avatar is shown no larger. Its predecessor's object goes by the
        event (infra.removals)."""
        avatar_id = clock.new_id()

        def key(_: Size, file_type: FileType) -> str:
            return new_avatar_key(owner, avatar_id, file_type)

        def address(_: Image, keys: Mapping[Size, str]) -> Command:
            return record(self._objects.plain_url(keys["thumbnail"]))

        return _Upload(avatar_id, stream, key, ("thumbnail",), address)

    async def _store(self, source: Path, upload: _Upload, actor: UserId) -> Uploaded:
        async with self._rendered(source, upload) as (image, files):
            keys: dict[Size, str] = {
                size: upload.key(size, image.file_type) for size in upload.sizes
            }
            await self._run(BEGIN, (upload.id, upload.stream, list(keys.values()), actor))
            for size, key in keys.items():
                await self._objects.put(key, files[size], image.file_type)
            try:
                position = await self._execute(upload.record(image, keys), actor)
            except Refusal:
                await self._discard(upload, keys)
                raise
        with suppress(Unavailable):
            await self._run(FINISH, (upload.id,))
        return Uploaded(position, upload.id, image, keys)

    @asynccontextmanager
    async def _rendered(
        self, source: Path, upload: _Upload
    ) -> AsyncIterator[tuple[Image, Mapping[Size, Path]]]:
        async with scratch(source.parent) as directory:
            image = await self._images.render(source, directory, upload.sizes)
            yield image, {size: directory / f"{size}.{image.extension}" for size in upload.sizes}

    async def _discard(self, upload: _Upload, keys: Mapping[Size, str]) -> None:
        """Now if the store answers, else by the sweep."""
        with suppress(Unavailable):
            await self._objects.remove(list(keys.values()))
            await self._run(FINISH, (upload.id,))

    async def _execute(self, command: Command, actor: UserId) -> int:
        return (await self._executor.execute(Request(command, actor))).position

    async def _run(self, statement: LiteralString, arguments: tuple[object, ...]) -> None:
        try:
            async with self._pool.connection() as connection:
                await connection.execute(statement, arguments)
        except DOWN as error:
            raise Unavailable(f"the database does not answer: {first_line(error)}") from error
