"""Makes events ready to be shown: opens them, and finds the names and replies they need."""

from collections.abc import Sequence
from uuid import UUID

from api.queries.attachments import Attachment, shown_attachment
from api.queries.users import shown_avatar
from api.stream.names import Names
from api.stream.readings import Readings
from api.stream.shown import Surroundings, attached_in, people_in, quoted_in
from domain.attachment import AttachmentUploaded
from domain.event import Event
from domain.message import MessageEdited, MessageSent
from domain.user import ProfileUpdated, UserRegistered
from infra.logs import Logger
from infra.objects import Objects
from projections.attachments import DELETED_NAME

OPENED = frozenset({MessageSent, MessageEdited, ProfileUpdated, UserRegistered})


class Showing:
    def __init__(self, readings: Readings, names: Names, objects: Objects, logger: Logger) -> None:
        self._readings = readings
        self._names = names
        self._objects = objects
        self._logger = logger

    async def open(self, events: Sequence[Event]) -> None:
        """In place, once. What was tampered with is then as if its key were gone."""
        for event in await self._readings.open([one for one in events if type(one) in OPENED]):
            self._logger.error("event_not_opened", type=event.type, stream=event.stream)

    def learn(self, events: Sequence[Event]) -> None:
        """What opened events say of names holds from now on."""
        for event in events:
            self._names.apply(event)

    def forget(self, events: Sequence[Event]) -> None:
        """What events say of names that are not opened here, as nobody is told."""
        for event in events:
            self._names.forget(event)

    def begin_anew(self) -> None:
        """Events were passed over."""
        self._names.clear()

    async def around(self, events: Sequence[Event]) -> Surroundings:
        """For events that happen now."""
        quoted = await self._readings.quoted(quoted_in(events))
        senders = {one.sender_id for one in quoted.values() if one.sender_id is not None}
        await self._names.load(people_in(events) | senders)
        uploaded = await self._readings.attachments(attached_in(events))
        return Surroundings(
            self._names.of,
            quoted,
            attachments={one.attachment_id: self._attachment(one) for one in uploaded},
            avatar_of=lambda url, owner: shown_avatar(url, owner, self._objects),
        )

    async def around_past(self, events: Sequence[Event]) -> Surroundings:
        """For what happened a while ago: nothing is said that was deleted since."""
        said = [
            event.message_id for event in events if isinstance(event, MessageSent | MessageEdited)
        ]
        gone = await self._readings.deleted(said)
        return (await self.around(events))._replace(gone=frozenset(gone))

    def _attachment(self, uploaded: AttachmentUploaded) -> Attachment:
        row = {
            "attachment_id": UUID(uploaded.attachment_id),
            "file_name": uploaded.file_name or DELETED_NAME,
            "file_type": uploaded.file_type,
            "file_size": uploaded.file_size,
            "width": uploaded.width,
            "height": uploaded.height,
            "storage_key": uploaded.key("original"),
            "medium_key": uploaded.key("medium"),
            "thumbnail_key": uploaded.key("thumbnail"),
        }
        return shown_attachment(row, self._objects)
