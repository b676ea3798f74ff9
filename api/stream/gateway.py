"""Follows the log once for the whole process, and brings each event to those it concerns.

`position` is what was routed last. A batch is addressed (who is concerned, event by event, as the
chats move), then made ready (opened, named), then sent, all under `turn`; whoever takes the turn
sees the gateway at one position, and gets what comes after it.

It reads PostgreSQL while behind or busy, else JetStream, as the projectors do. What can not be
read waits; if it waits for too long, every connection is told to come back (1012), and the gateway
begins anew at the head. If the log went back in time, or begins a new epoch, it is over: `run`
raises Stopped, and the process ends with it, for all that it remembers is of another log.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import datetime
from time import monotonic
from typing import NamedTuple, Protocol, TypeVar

from api.metrics import StreamMetrics
from api.stream import shown
from api.stream.frames import event_frame, presence_frame
from api.stream.moves import moves_of
from api.stream.people import People
from api.stream.readings import ROOMS_LOADED_AT_ONCE, Readings, Whereabouts
from api.stream.receipts import Pending
from api.stream.rooms import Rooms
from api.stream.showing import Showing
from api.stream.shown import Surroundings
from api.stream.statuses import Statuses
from domain.attachment import AttachmentEvent
from domain.chat import ChatEvent, DirectChatOpened, GroupCreated
from domain.contact import ContactEvent
from domain.event import Event, Recorded
from domain.ids import ChatId, UserId
from domain.message import MessageSent
from domain.receipt import DeliveriesRecorded, DeliveryMark, ReceiptEvent
from domain.user import AccountDeleted, ProfileUpdated, StatusChanged, UserEvent
from infra import codec
from infra.bus import Bus, stream_name
from infra.database import DOWN, first_line
from infra.errors import MessengerError, Stopped
from infra.event_log import Head
from infra.follower import Follower
from infra.history import REMEDY, Witness
from infra.logs import Logger

MAX_BATCH_EVENTS = 500
POLL_SECONDS = 0.25
# As the projectors: from so many events at once on, ranges of PostgreSQL cost less.
BUSY_EVENTS = 16
BUSY_PAUSE_SECONDS = 0.02
QUIET_ROUNDS = 8
RETRY_SECONDS = 0.5
MAX_RETRIES = 60
# Then others have their turn: commands waited 30 to 90 ms for a batch with some messages to 300.
FRAMES_A_TURN = 200
# Beyond, a message's senders are not remembered: everybody is told who has it.
SENDERS_REMEMBERED = 200

# What happens before a batch is begun.
NOT_HALFWAY = (MessengerError, TimeoutError, *DOWN)

A = TypeVar("A")
R = TypeVar("R")


class Connection(Protocol):
    """What the gateway knows of one; both never wait."""

    @property
    def user_id(self) -> UserId: ...

    def deliver(self, frame: bytes) -> None: ...

    def restart(self) -> None: ...


class Addressed(NamedTuple):
    """An event with those on this process whom it concerns."""

    recorded: Recorded
    event: Event
    audience: set[UserId]


class Presence(NamedTuple):
    """A change of somebody's status that is not sent yet."""

    event: StatusChanged
    at: datetime
    audience: set[UserId]


class Senders:
    """Who sent a chat's latest messages, since the process follows it."""

    def __init__(self) -> None:
        self._since: int | None = None
        self._latest: deque[tuple[int, UserId]] = deque(maxlen=SENDERS_REMEMBERED)

    def sent(self, sent: MessageSent, position: int) -> None:
        if self._since is None:
            self._since = position
        elif len(self._latest) == SENDERS_REMEMBERED:
            self._since = self._latest[1][0]
        self._latest.append((position, sent.sender_id))

    def of(self, marks: list[DeliveryMark], audience: set[UserId]) -> set[UserId]:
        """Those in the audience whose messages the marks are about; all, if it is not known."""
        after = min((mark.after for mark in marks), default=0)
        up_to = max((mark.up_to for mark in marks), default=0)
        if self._since is None or after + 1 < self._since:
            return audience
        return {sender for position, sender in self._latest if after < position <= up_to} & audience


class Halfway(Exception):
    """A batch could not be routed to its end."""


class _User:
    """Somebody with connections here, or on the way to have one."""

    def __init__(self) -> None:
        self.entering = 0
        self.connections: set[Connection] = set()


class Gateway:
    """`run` it; `enter` a user, then `subscribe` a connection under `turn`."""

    def __init__(
        self,
        readings: Readings,
        showing: Showing,
        pending: Pending,
        bus: Bus,
        witness: Witness,
        logger: Logger,
        metrics: StreamMetrics,
    ) -> None:
        self._metrics = metrics
        self._readings = readings
        self._witness = witness
        self._showing = showing
        self._pending = pending
        self._bus = bus
        self._logger = logger
        self._users: dict[UserId, _User] = {}
        self._loaded = asyncio.Event()
        self._moved = asyncio.Event()
        self._routed = 0
        self._senders: dict[ChatId, Senders] = {}
        self._presence: dict[UserId, Presence] = {}
        self.turn = asyncio.Lock()
        self.rooms = Rooms()
        self.people = People()
        self.statuses = Statuses()
        self.position = 0
        self.epoch = 0
        self.generation = 0

    # ------------------------------------------------------------------- connections

    async def enter(self, user_id: UserId, *, since: int | None) -> Whereabouts:
        """From now on what happens is routed to the user; `exit` it once for each `enter`."""
        user = self._users.setdefault(user_id, _User())
        user.entering += 1
        try:
            self.people.take_in(user_id)
            self._pending.take_in(user_id)
            low = self._routed if since is None else min(since, self._routed)
            found = await self._readings.whereabouts(user_id, since=low)
            self.people.load(user_id, found.contacts)
            self._pending.load(user_id, found.pending)
            await self.load_rooms(
                [
                    chat_id
                    for chat_id in found.spans.chats
                    if found.spans.shows(chat_id, self._routed)
                    or found.spans.shows(chat_id, found.position)
                ]
            )
        except BaseException:
            self.exit(user_id)
            raise
        return found

    def exit(self, user_id: UserId) -> None:
        self._users[user_id].entering -= 1
        self._let_go(user_id)

    def subscribe(self, connection: Connection, *, is_fresh: bool) -> None:
        """While the user is entering, under `turn`: gets what comes after `position`, and where
        it is not fresh, what it missed."""
        user = self._users[connection.user_id]
        if is_fresh and not user.connections:
            # What was sent to chats that were left while it started never comes.
            self._pending.keep(connection.user_id, self.rooms.joined_by(connection.user_id))
        user.connections.add(connection)

    def unsubscribe(self, connection: Connection) -> None:
        user = self._users.get(connection.user_id)
        if user is not None:
            user.connections.discard(connection)
            self._let_go(connection.user_id)

    def connections_of(self, user_ids: Iterable[UserId]) -> list[Connection]:
        return [
            connection
            for user_id in user_ids
            if user_id in self._users
            for connection in self._users[user_id].connections
        ]

    def here(self, user_ids: Collection[UserId]) -> set[UserId]:
        return self._users.keys() & user_ids

    def sees(self, viewer: UserId, person: UserId) -> bool:
        """Whether what a person is called concerns the viewer."""
        return viewer in self.people.who_watch(person) or viewer in self.rooms.who_see(person)

    def met_by(self, viewer: UserId) -> set[UserId]:
        """Those of whom it concerns somebody here whether they are online."""
        return self.people.known_to(viewer) | self.rooms.who_share(viewer)

    def who_meet(self, person: UserId) -> set[UserId]:
        """Those whom it concerns whether a person is online."""
        return self.people.who_watch(person) | self.rooms.who_share(person)

    async def reached(self, position: int) -> None:
        """Waits for as long as the caller has time."""
        while self.position < position:
            await self._moved.wait()

    def _let_go(self, user_id: UserId) -> None:
        user = self._users[user_id]
        if user.entering or user.connections:
            return
        del self._users[user_id]
        self.people.let_go(user_id)
        self._pending.let_go(user_id)
        empty = [
            chat_id
            for chat_id in self.rooms.of(user_id)
            if (room := self.rooms.get(chat_id)) and not self.here(room.members)
        ]
        self.rooms.drop(empty)
        for chat_id in empty:
            self._senders.pop(chat_id, None)

    # ------------------------------------------------------------------------- rooms

    async def load_rooms(self, chat_ids: list[ChatId]) -> None:
        while missing := self.rooms.lacks(chat_ids)[:ROOMS_LOADED_AT_ONCE]:
            after = self._routed
            self.rooms.begin(missing, after=after)
            try:
                history = await self._readings.rooms(missing, up_to=after)
            except BaseException:
                self.rooms.abandon(missing)
                raise
            finally:
                self._tell_loaded()
            self.rooms.finish(missing, history)
        while self.rooms.are_loading(chat_ids):
            await self._loaded.wait()
        if self.rooms.lacks(chat_ids):  # whoever was loading them failed
            await self.load_rooms(chat_ids)

    def _tell_loaded(self) -> None:
        self._loaded.set()
        self._loaded = asyncio.Event()

    # ----------------------------------------------------------------------- the log

    async def head(self) -> Head:
        """Raises Stopped where the log is not the one that was routed so far."""
        return await self._witness.look()

    async def sure_head(self) -> Head | None:
        """None while JetStream can't be asked whether the log is the one that clients know."""
        head = await self.head()
        return head if self._witness.is_sure else None

    async def begin(self) -> None:
        """At the log's head, with nobody connected."""
        head = await self.head()
        self.position = self._routed = head.position
        self.epoch = head.epoch
        self.statuses.begin(head.position)

    async def run(self) -> None:
        """For as long as the process lives."""
        async with Follower(self._bus, codec.TYPES) as follower:
            while True:
                try:
                    await self._poll()
                    await follower.start(stream_name(self.epoch), after=self.position)
                    await self._follow(follower)
                    continue
                except Stopped:
                    await self._send_away()
                    raise
                except NOT_HALFWAY as error:
                    self._metrics.interruptions.inc()
                    self._logger.warning("gateway_waits", reason=first_line(error))
                except Exception as error:  # noqa: BLE001 - whatever it is, nobody gets half of it
                    self._metrics.interruptions.inc()
                    self._logger.error("gateway_begins_anew", reason=first_line(error))
                    await self._begin_anew()
                await asyncio.sleep(RETRY_SECONDS)

    async def _poll(self) -> None:
        """From PostgreSQL, until there is little to do."""
        quiet_rounds = 0
        while quiet_rounds < QUIET_ROUNDS:
            began, position = monotonic(), self.position
            head = await self.head()
            if head.position < self.position:
                raise Stopped(
                    f"the log ends at {head.position}, {self.position} was told: {REMEDY}"
                )
            while self.position < head.position:
                up_to = min(head.position, self.position + MAX_BATCH_EVENTS)
                await self._route(
                    await self._readings.read(after=self.position, up_to=up_to, types=codec.TYPES)
                )
            events = self.position - position
            if events == 0:
                return
            quiet_rounds = quiet_rounds + 1 if events < BUSY_EVENTS else 0
            await asyncio.sleep(max(0.0, BUSY_PAUSE_SECONDS - (monotonic() - began)))

    async def _follow(self, follower: Follower) -> None:
        while events := await follower.take(
            after=self.position, most=MAX_BATCH_EVENTS, timeout_seconds=POLL_SECONDS
        ):
            await self._route(events)
            if len(events) >= BUSY_EVENTS:
                await follower.stop()
                return

    async def _begin_anew(self) -> None:
        await self._send_away()
        async with self.turn:
            self.rooms = Rooms()
            self._senders.clear()
            self._showing.begin_anew()
            await self.begin()

    async def _send_away(self) -> None:
        """Who is on the way to be connected too, by the generation."""
        async with self.turn:
            for connection in self.connections_of(list(self._users)):
                connection.restart()
                self.unsubscribe(connection)
            self.generation += 1

    async def _route(self, events: list[Recorded]) -> None:
        """All or nothing: halfway, the rooms would have moved without anybody told."""
        began = monotonic()
        async with self.turn:
            # What can't be read concerns nobody here: others, newer than we are, may have written
            # it, or it is broken, and stands in the way of the read models that need it alone.
            known = [one for one in events if one.event is not None]
            addressed = [await self._patiently(self._address, one) for one in known]
            heard = [one for one in addressed if one.audience]
            told = [one.event for one in heard]
            await self._patiently(self._showing.open, told)
            self._showing.learn(told)
            self._showing.forget([one.event for one in addressed if not one.audience])
            around = await self._patiently(self._showing.around, told)
            await self._send_all(heard, around)
            self.position = self._routed = events[-1].position
        self._metrics.batch_events.observe(len(events))
        self._metrics.route_seconds.observe(monotonic() - began)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _patiently(self, work: Callable[[A], Awaitable[R]], argument: A) -> R:
        """Tries again while PostgreSQL is away. Raises after MAX_RETRIES."""
        for _ in range(MAX_RETRIES):
            try:
                return await work(argument)
            except NOT_HALFWAY as error:
                self._metrics.interruptions.inc()
                self._logger.warning("gateway_waits", reason=first_line(error))
                await asyncio.sleep(RETRY_SECONDS)
        raise Halfway("the database does not answer")

    async def _address(self, recorded: Recorded) -> Addressed:
        event = recorded.event
        assert event is not None
        if isinstance(event, ChatEvent):
            await self._load_for_joining(event)
        # From here on nothing waits: an event moves a room once.
        audience = self.here(self._concerned(event))
        self._routed = recorded.position
        self._note(event, recorded, audience)
        return Addressed(recorded, event, audience)

    async def _load_for_joining(self, event: ChatEvent) -> None:
        """A chat that somebody here joins is routed from that moment on."""
        if not self.here(set(moves_of(event).joining)):
            return
        is_new = isinstance(event, DirectChatOpened | GroupCreated)
        if is_new and self.rooms.lacks([event.chat_id]):
            self.rooms.finish([event.chat_id], [])
            return
        await self.load_rooms([event.chat_id])

    def _concerned(self, event: Event) -> Collection[UserId]:
        match event:
            case ChatEvent():
                return self.rooms.apply(event)
            case ContactEvent():
                return (event.user_id, event.contact_id)
            case StatusChanged():
                return self.who_meet(event.user_id)
            case ProfileUpdated() | AccountDeleted():
                person = event.user_id
                return {person, *self.people.who_watch(person), *self.rooms.who_see(person)}
            case UserEvent():
                return (event.user_id,)
            case AttachmentEvent():
                return ()  # an image is shown with its message
            case _:
                chat_id: ChatId | None = getattr(event, "chat_id", None)
                room = self.rooms.get(chat_id) if chat_id else None
                return room.members if room else ()

    def _note(self, event: Event, recorded: Recorded, audience: set[UserId]) -> None:
        """What later events are routed by."""
        position = recorded.position
        match event:
            case StatusChanged():
                self.statuses.changed(recorded, event)
            case ContactEvent():
                self.people.apply(event, position)
            case MessageSent():
                for user_id in audience - {event.sender_id}:
                    self._pending.sent(user_id, event.chat_id, position)
                if audience:
                    self._senders.setdefault(event.chat_id, Senders()).sent(event, position)
            case DeliveriesRecorded():
                for mark in event.marks:
                    self._pending.recorded(mark.user_id, event.chat_id, mark.up_to)
            case ReceiptEvent():
                self._pending.recorded(event.user_id, event.chat_id, event.delivered_up_to)
            case _:
                pass

    # ------------------------------------------------------------------------ sending

    async def _send_all(self, heard: list[Addressed], around: Surroundings) -> None:
        """What was told is acknowledged at once: the position moves before each."""
        frames = 0
        for one in heard:
            self.position = one.recorded.position
            self._send(one, around)
            frames += len(one.audience)
            if frames >= FRAMES_A_TURN:
                frames = 0
                await asyncio.sleep(0)

    def _send(self, one: Addressed, around: Surroundings) -> None:
        position, at, _ = one.recorded
        match one.event:
            case StatusChanged():
                self._presence[one.event.user_id] = Presence(one.event, at, one.audience)
            case ContactEvent():
                for viewer in one.audience:
                    mine = shown.contact_shown(one.event, viewer, around.name_of)
                    if mine is not None:
                        self._deliver([viewer], event_frame(position, at, mine))
            case DeliveriesRecorded():
                self._send_marks(one, one.event, around)
            case _:
                frame = event_frame(position, at, shown.shown(one.event, at, around))
                self._deliver(one.audience, frame)

    def _send_marks(self, one: Addressed, event: DeliveriesRecorded, around: Surroundings) -> None:
        """Who has a message concerns its sender; the others learn that there was something, in
        a few bytes: 300 marks to each of 300 members would be 6 MB a message."""
        position, at, _ = one.recorded
        senders = self._senders.get(event.chat_id)
        told = senders.of(event.marks, one.audience) if senders else one.audience
        others = [user_id for user_id in one.audience if user_id not in told]
        if told:
            self._deliver(told, event_frame(position, at, shown.shown(event, at, around)))
        if others:
            self._deliver(others, event_frame(position, at, shown.without_marks(event)))

    def _deliver(self, user_ids: Iterable[UserId], frame: bytes) -> None:
        for user_id in user_ids:
            user = self._users.get(user_id)
            if user is not None:
                for connection in tuple(user.connections):
                    connection.deliver(frame)

    def send_presence(self) -> None:
        """What changed since the last time: each viewer gets the last of each user at once."""
        changed, self._presence = self._presence, {}
        frames_of: defaultdict[UserId, list[bytes]] = defaultdict(list)
        for person, (event, at, audience) in changed.items():
            frame = presence_frame(event, at)
            for viewer in audience:
                if viewer != person and self.people.may_see(viewer, person):
                    frames_of[viewer].append(frame)
        for viewer, of_viewer in frames_of.items():
            self._deliver([viewer], b"".join(of_viewer))
