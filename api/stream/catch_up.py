"""What a client missed: read from the log in pages, looked at closely, shown as it is now."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from api.stream import shown
from api.stream.frames import event_frame, presence_frame
from api.stream.gateway import Gateway
from api.stream.readings import Readings
from api.stream.showing import Showing
from api.stream.shown import Surroundings
from api.stream.spans import Spans
from domain.attachment import AttachmentEvent
from domain.contact import ContactEvent
from domain.event import Event, Recorded
from domain.ids import ChatId, UserId
from domain.user import AccountDeleted, ProfileUpdated, UserEvent

PAGE_EVENTS = 500


class Missed(NamedTuple):
    """Of whom, in which chats when, and which part of the log: (`after`, `up_to`]."""

    user_id: UserId
    spans: Spans
    after: int
    up_to: int


class CatchUp:
    def __init__(self, readings: Readings, showing: Showing, gateway: Gateway) -> None:
        self._readings = readings
        self._showing = showing
        self._gateway = gateway
        self._reaching = asyncio.Lock()

    async def frames(self, missed: Missed) -> AsyncIterator[list[bytes]]:
        """Those of a page at once; at the end, how the people's presence is now."""
        after, chats = missed.after, missed.spans.chats
        while after < missed.up_to:
            page = await self._readings.page(
                missed.user_id, chats, after=after, up_to=missed.up_to, limit=PAGE_EVENTS
            )
            concerning = [one for one in page if self._concerns(missed, one)]
            yield await self._shown(missed.user_id, concerning)
            if len(page) < PAGE_EVENTS:
                break
            after = page[-1].position
        await self._reach_back(missed.after)
        yield self._presence(missed)

    def _concerns(self, missed: Missed, recorded: Recorded) -> bool:
        viewer, event = missed.user_id, recorded.event
        match event:
            case ContactEvent():
                return viewer in (event.user_id, event.contact_id)
            case AttachmentEvent():
                return False  # an image is shown with its message
            case ProfileUpdated() | AccountDeleted():
                return event.user_id == viewer or self._gateway.sees(viewer, event.user_id)
            case UserEvent():
                return event.user_id == viewer
            case _:
                chat_id: ChatId | None = getattr(event, "chat_id", None)
                return chat_id is not None and missed.spans.shows(chat_id, recorded.position)

    async def _shown(self, viewer: UserId, page: list[Recorded]) -> list[bytes]:
        events: list[Event] = [one.event for one in page if one.event is not None]
        await self._showing.open(events)
        around = await self._showing.around_past(events)
        return [frame for one in page if (frame := _frame(viewer, one, around))]

    async def _reach_back(self, after: int) -> None:
        """One reads for all that come back at once."""
        statuses = self._gateway.statuses
        if statuses.since <= after:
            return
        async with self._reaching:
            since = statuses.since
            if since > after:
                earlier = await self._readings.statuses(after=after, up_to=since)
                if statuses.since == since:  # else the gateway began anew, or forgot some
                    statuses.reach_back(after, earlier)

    def _presence(self, missed: Missed) -> list[bytes]:
        """Presence has no position: it is told as it is now."""
        viewer, gateway = missed.user_id, self._gateway
        met = gateway.met_by(viewer) - {viewer}
        return [
            presence_frame(event, recorded.recorded_at)
            for recorded, event in gateway.statuses.after(missed.after)
            if event.user_id in met and gateway.people.may_see(viewer, event.user_id)
        ]


def _frame(viewer: UserId, recorded: Recorded, around: Surroundings) -> bytes:
    position, at, event = recorded
    if isinstance(event, ContactEvent):
        mine = shown.contact_shown(event, viewer, around.name_of)
        return event_frame(position, at, mine) if mine else b""
    assert event is not None
    return event_frame(position, at, shown.shown(event, at, around))
