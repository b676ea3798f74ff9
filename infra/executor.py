"""Carries out commands: load, decide, seal, append; on a conflict, all over again.

States are folded from their streams and kept in a bounded cache. The cache may be stale: the
guards of the append find that out, and a refusal or a decision to do nothing is only believed
after the states it rests on were compared with the log. So every outcome is one that some
order of single commands gives, whichever process took which.

The first attempt is optimistic. After a conflict, commands that write the same streams take
turns within the process, so that contention costs attempts only between processes.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from datetime import datetime
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from commands import BY_TYPE
from commands.command import (
    Command,
    Context,
    Decision,
    Fact,
    Handler,
    Missing,
    NewestMessage,
    PasswordHash,
    PasswordMatch,
    Versioned,
    View,
)
from domain.event import Event, Place
from domain.ids import StreamId, UserId, user_stream
from domain.refusals import Refusal, SlugTaken, UsernameTaken
from domain.state import aggregate_of
from infra import clock, codec, event_log
from infra.appender import Append, Appender, ClaimRow, EventRow, KeyRow, Outcome
from infra.codec import KeyMissing
from infra.database import DOWN, Pool, first_line
from infra.errors import Unavailable
from infra.keyring import Blinding, Expired, KeyId, Keyring, Secret
from infra.lanes import Lane
from infra.passwords import Passwords
from infra.standing import UnderWay
from infra.tracing import Tracer

MAX_CACHED_STREAMS = 50_000
MAX_ATTEMPTS = 64
MAX_LOADS_PER_DECISION = 16
MAX_SEALINGS = 8
ANONYMOUS = "anonymous"
# Scopes whose values are personal: they are known by a keyed hash.
BLIND_SCOPES = ("username",)
FORMER_MARK = " "

TAKEN = {"username": UsernameTaken, "slug": SlugTaken}


class KeyReused(Refusal):
    """The idempotency key was used for another command"""

    code = "idempotency-key-reused"
    status = 422


class Done(NamedTuple):
    """`answer` is a JSON object; `position` the command's last event, or the head."""

    position: int
    answer: bytes
    replayed: bool = False


class Request(NamedTuple):
    """A command with who sends it; `now` is set by imports, which bring their own time.

    `presumed`: the sender alone writes these streams, and sends on before it is answered. What
    was decided then counts for the next decisions at once; their guards hold only if it lands.
    `lane`: the sender sends on before it is answered, and none rests on one before it.
    """

    command: Command
    actor: UserId | None
    key: str | None = None
    request_id: str | None = None
    now: datetime | None = None
    presumed: bool = False
    lane: Lane | None = None


class Executor:
    """Safe for any number of concurrent `execute` calls on one event loop."""

    def __init__(
        self,
        *,
        pool: Pool,
        appender: Appender,
        keyring: Keyring,
        secret: Secret,
        passwords: Passwords,
        tracer: Tracer | None = None,
    ) -> None:
        self.under_way = UnderWay()
        self._tracer = tracer
        self._pool = pool
        self._appender = appender
        self._keyring = keyring
        self._secret = secret
        self._passwords = passwords
        self._states: dict[StreamId, Versioned] = {}
        self._turns: WeakValueDictionary[StreamId, asyncio.Lock] = WeakValueDictionary()
        self._presuming = asyncio.Lock()
        keyring.listen(self._forget_erased)

    async def execute(self, request: Request) -> Done:
        """Raises Refusal, or Unavailable if the log can't be reached."""
        if self._tracer is None:
            return await self._execute(request)
        name = BY_TYPE[type(request.command)].name
        attributes = {"messenger.request_id": request.request_id or ""}
        with self._tracer.span(f"command {name}", attributes) as span:
            try:
                done = await self._execute(request)
            except Exception as error:
                span.set_attribute(
                    "messenger.refused", getattr(error, "code", type(error).__name__)
                )
                raise
            span.set_attribute("messenger.position", done.position)
            return done

    async def _execute(self, request: Request) -> Done:
        try:
            with self.under_way:
                return await _Attempt(self, request).run()
        except DOWN as error:
            raise Unavailable(f"the database does not answer: {first_line(error)}") from error

    async def state(self, stream: StreamId) -> Any:
        """A stream's state as the log has it now."""
        await self.refresh([stream])
        return self._states[stream].state

    async def holder(self, scope: str, value: str) -> StreamId | None:
        """The stream that holds a unique value."""
        async with self._pool.connection() as connection:
            return await event_log.holder(connection, scope, self.stored_value(scope, value))

    def stored_value(self, scope: str, value: str) -> str:
        return self._secret.blind(scope, value.encode()) if scope in BLIND_SCOPES else value

    async def claim_rows(self, decision: Decision) -> list[ClaimRow]:
        rows = [
            ClaimRow(
                claim.scope, self.stored_value(claim.scope, claim.value), claim.holder, release
            )
            for release, group in ((True, decision.releases), (False, decision.claims))
            for claim in group
        ]
        return rows + await self._claims_in_former_houses(decision)

    async def _claims_in_former_houses(self, decision: Decision) -> list[ClaimRow]:
        """What a deleted account holds is known only by its hash, made where the log was then."""
        blind = [claim for claim in decision.claims if claim.scope in BLIND_SCOPES]
        return [
            ClaimRow(
                former_scope(claim.scope, former.name),
                former.blind(claim.scope, claim.value.encode()),
                claim.holder,
                False,
            )
            for former in (await self._former() if blind else {}).values()
            for claim in blind
        ]

    async def _former(self) -> dict[str, Blinding]:
        async with self._pool.connection() as connection:
            return await self._secret.former(connection)

    async def overtaken(self, seen: Mapping[StreamId, int]) -> bool:
        """Whether the log is beyond what a decision saw; the cache is then up to date.

        The cache alone can't tell: another command may have brought it up to date meanwhile.
        """
        await self.refresh(list(seen))
        return any(self._known(stream).version != version for stream, version in seen.items())

    async def refresh(self, streams: list[StreamId]) -> None:
        """Folds what the log has beyond the cache."""
        known = {stream: self._known(stream).version for stream in streams}
        for last_only in (False, True):
            group = {
                stream: version
                for stream, version in known.items()
                if aggregate_of(stream).last_event_suffices is last_only
            }
            if group:
                await self._fold_tails(group, last_only=last_only)

    async def _fold_tails(self, known: Mapping[StreamId, int], *, last_only: bool) -> None:
        async with self._pool.connection() as connection:
            tails = await event_log.tails(connection, known, last_only=last_only)
        # With the connection given back: fetching keys takes one too, and who holds one while
        # waiting for another can wait for ever.
        await event_log.open_events([item.event for item in tails], self._keyring)
        for stream in known:
            self._remember(stream, self._known(stream))
        for item in tails:
            current = self._known(item.stream)
            # It may have been folded further meanwhile, or been dropped to make room.
            if item.version == current.version + 1 or (
                last_only and item.version > current.version
            ):
                state = aggregate_of(item.stream).evolve(current.state, item.event, item.place)
                self._remember(item.stream, Versioned(item.version, state))

    def _known(self, stream: StreamId) -> Versioned:
        return self._states.get(stream) or Versioned(0, aggregate_of(stream).initial)

    def _remember(self, stream: StreamId, versioned: Versioned) -> None:
        """The most recently used are last; the first make room."""
        self._states.pop(stream, None)
        if len(self._states) >= MAX_CACHED_STREAMS:
            del self._states[next(iter(self._states))]
        self._states[stream] = versioned

    def learn(self, events: list[Event], seen: Mapping[StreamId, int], places: list[Place]) -> None:
        """Takes over what was just appended, where the cache is where the decision was."""
        versions = dict(seen)
        for event, place in zip(events, places, strict=True):
            stream = event.stream
            known = self._known(stream)
            if known.version == versions.get(stream):
                state = aggregate_of(stream).evolve(known.state, event, place)
                self._remember(stream, Versioned(known.version + 1, state))
                versions[stream] = known.version + 1

    def place(self, stream: StreamId, position: int) -> None:
        """Sets the position of a stream's beginning, where it was not known when it was learned."""
        known = self._states.get(stream)
        if known is not None and getattr(known.state, "position", None) == 0:
            state = msgspec.structs.replace(known.state, position=position)
            self._states[stream] = Versioned(known.version, state)

    def forget(self, streams: Iterable[StreamId]) -> None:
        for stream in streams:
            self._states.pop(stream, None)

    def _forget_erased(self, key_id: KeyId) -> None:
        """What was opened with the key: profiles are in users' states, digests of what was said
        in those of messages."""
        if key_id.purpose == "profile":
            self.forget([user_stream(key_id.user_id)])
        else:
            sender = key_id.user_id
            self.forget(
                [
                    stream
                    for stream, known in self._states.items()
                    if getattr(known.state, "sender_id", None) == sender
                ]
            )

    def touch(self, streams: Mapping[StreamId, int]) -> None:
        for stream in streams:
            known = self._states.pop(stream, None)
            if known is not None:
                self._states[stream] = known

    @asynccontextmanager
    async def turn(self, streams: list[StreamId]) -> AsyncIterator[None]:
        """One after the other for those that write the same streams."""
        locks = [self._turns.setdefault(stream, asyncio.Lock()) for stream in sorted(streams)]
        async with AsyncExitStack() as held:
            for lock in locks:
                await held.enter_async_context(lock)
            yield

    def in_order(self, request: Request) -> AbstractAsyncContextManager[None]:
        """Presumed commands are decided and sent off one after the other, as they came: whatever
        one waits for on its way, the next rests on it."""
        return self._presuming if request.presumed else nullcontext()

    async def fact(self, fact: Fact) -> Any:
        match fact:
            case PasswordHash():
                return await self._passwords.hash(fact.password)
            case PasswordMatch():
                return await self._passwords.matches(fact.password, fact.password_hash)
            case NewestMessage():
                async with self._pool.connection() as connection:
                    return await event_log.newest_message(
                        connection, fact.chat_id, besides=fact.besides
                    )

    @property
    def states(self) -> Mapping[StreamId, Versioned]:
        return self._states

    async def seal(self, events: list[Event]) -> list[bytes]:
        for event in events:
            if event.founds_keys:
                await self.create_keys([event.user_id])  # type: ignore[attr-defined]
        for _ in range(MAX_SEALINGS):
            await self._keyring.load(codec.key_ids(events))
            try:
                return [codec.encode(event, self._keyring) for event in events]
            except Expired:
                continue  # many came at once, or the process was held up in between
        raise Unavailable("this process is too busy")

    async def create_keys(self, user_ids: Iterable[UserId]) -> None:
        """For many users to come at once; `seal` makes those that are still missing."""
        await self._keyring.create(user_ids)

    async def append(self, append: Append) -> Outcome:
        if self._tracer is None:
            return await self._appender.append(append)
        with self._tracer.span("append", {"messenger.events": len(append.events)}) as span:
            outcome = await self._appender.append(append)
            span.set_attribute("messenger.verdict", outcome.verdict)
            return outcome

    def origin(self) -> dict[str, str]:
        """What of the events' metadata is of the trace that they belong to, if there is one."""
        trace = self._tracer.current() if self._tracer is not None else None
        return {} if trace is None else {"trace": trace}

    async def known_key(self, key: KeyRow) -> event_log.KnownKey | None:
        async with self._pool.connection() as connection:
            return await event_log.known_key(connection, key.scope, key.key, key.body_hash)

    async def remember_key(self, key: KeyRow, position: int) -> bool:
        async with self._pool.connection() as connection:
            return await event_log.remember_key(
                connection, key.scope, key.key, key.body_hash, position, key.answer
            )

    async def head(self) -> int:
        async with self._pool.connection() as connection:
            return (await event_log.head(connection)).position

    async def body_hash(
        self, handler: Handler, command: Command, blinding: Blinding | None = None
    ) -> str:
        blinding = blinding or self._secret.blinding
        body_hash = blinding.blind(handler.name, msgspec.json.encode(command))
        return await self._passwords.stretch(body_hash) if handler.has_password else body_hash

    async def is_of_former_house(
        self, known: event_log.KnownKey, handler: Handler, command: Command
    ) -> bool:
        """Whether the key's command is this one, by a hash made before the log moved in here."""
        former = (await self._former()).get(known.secret) if known.secret else None
        if former is None:
            return False
        return await self.body_hash(handler, command, former) == known.body_hash


class _Attempt:
    """One command on its way, with what it found out so far."""

    def __init__(self, executor: Executor, request: Request) -> None:
        self._executor = executor
        self._request = request
        self._handler = BY_TYPE[type(request.command)]
        self._context = Context(request.actor, request.now or clock.now(), clock.new_id)
        self._facts: dict[Fact, Any] = {}
        self._metadata = b""
        self._body_hash = ""
        self._place = request.lane.join() if request.lane is not None else None

    async def run(self) -> Done:
        try:
            return await self._run()
        finally:
            if self._place is not None:
                self._place.leave()

    async def _run(self) -> Done:
        if self._request.key is not None:
            self._body_hash = await self._executor.body_hash(self._handler, self._request.command)
        contended: list[StreamId] = []
        for _ in range(MAX_ATTEMPTS):
            async with self._executor.turn(contended):
                done = await self._once(contended)
            if done is not None:
                return done
        raise Unavailable("too many others change the same thing at once")

    async def _once(self, contended: list[StreamId]) -> Done | None:
        """None after a conflict: `contended` then names what it was about."""
        async with self._executor.in_order(self._request):
            if self._place is not None:
                await self._place.turn()
            view, decision = await self._decide()
            if isinstance(decision, Refusal):
                return await self._replayed_or(view, decision)
            key = self._key(decision)
            if not decision.events and (key is None or decision.repeats is not None):
                return await self._confirmed(view, decision)
            try:
                append = await self._append(view, decision, key)
            except KeyMissing:
                # Its user was deleted after the decision: made anew, it will know.
                if await self._executor.overtaken(view.used):
                    return None
                raise
            if self._request.presumed:
                self._presume(view, decision)
            if self._place is not None:
                await self._place.send_off(view.used)
        outcome = await self._outcome(view, decision, append)
        if self._place is not None and outcome.verdict in ("conflict", "reused"):
            self._place.come_back()
        match outcome.verdict:
            case "appended":
                self._learn(view, decision, outcome)
                return Done(outcome.position, msgspec.json.encode(decision.answer))
            case "replayed":
                return Done(outcome.position, (outcome.answer or "{}").encode(), replayed=True)
            case "reused":
                return await self._known()
            case "taken":
                what = (outcome.detail or "").partition(FORMER_MARK)[0]
                raise TAKEN[what](f"this {what} is taken")
            case "conflict":
                contended[:] = {event.stream for event in decision.events}
                await self._executor.refresh(list(view.used))
                return None

    async def _outcome(self, view: View, decision: Decision, append: Append) -> Outcome:
        if not self._request.presumed:
            return await self._executor.append(append)
        try:
            outcome = await self._executor.append(append)
        except BaseException:
            # Whether it landed is not known: only the log can tell what the streams are now.
            self._executor.forget(event.stream for event in decision.events)
            raise
        self._correct(view, decision, outcome)
        return outcome

    async def _decide(self) -> tuple[View, Decision | Refusal]:
        """The decision, with whatever it misses fetched on the way."""
        for _ in range(MAX_LOADS_PER_DECISION):
            view = View(self._executor.states, self._facts)
            try:
                return view, self._handler.decide(self._request.command, self._context, view)
            except Refusal as refusal:
                return view, refusal
            except Missing as missing:
                if missing.fact is not None:
                    self._facts[missing.fact] = await self._executor.fact(missing.fact)
                else:
                    await self._executor.refresh(list(missing.streams))
        raise Unavailable("the decision needs more than fits in the cache")

    async def _replayed_or(self, view: View, refusal: Refusal) -> Done | None:
        """A refusal holds if the log agrees, and the key (if any) is not known already."""
        if await self._executor.overtaken(view.used):
            return None
        replayed = await self._known()
        if replayed is None:
            raise refusal
        return replayed

    async def _confirmed(self, view: View, decision: Decision) -> Done | None:
        """Nothing to do, if the log agrees."""
        head = await self._executor.head()
        if await self._executor.overtaken(view.used):
            return None
        replayed = await self._known()
        if replayed is not None:
            return replayed
        key = self._key(decision)
        if key is not None and not await self._executor.remember_key(key, decision.repeats or head):
            # Another command with this key was quicker: this one is made anew, and will know.
            return None
        return Done(decision.repeats or head, msgspec.json.encode(decision.answer))

    async def _known(self) -> Done | None:
        """What the key's command was answered. Raises KeyReused for another body."""
        key = self._key(Decision([]))
        known = await self._executor.known_key(key) if key else None
        if known is None:
            return None
        if not known.same_body and not await self._executor.is_of_former_house(
            known, self._handler, self._request.command
        ):
            raise _reused()
        return Done(known.position, known.answer, replayed=True)

    def _key(self, decision: Decision) -> KeyRow | None:
        if self._request.key is None:
            return None
        return KeyRow(
            self._request.actor or ANONYMOUS,
            self._request.key,
            self._body_hash,
            msgspec.json.encode(decision.answer).decode(),
        )

    async def _append(self, view: View, decision: Decision, key: KeyRow | None) -> Append:
        sealed = await self._executor.seal(decision.events)
        metadata = self._metadata or self._describe()
        recorded_at = self._context.now.isoformat()
        events = [
            EventRow(
                clock.new_id(), event.stream, event.type, event.version, data, metadata, recorded_at
            )
            for event, data in zip(decision.events, sealed, strict=True)
        ]
        return Append(events, view.used, await self._executor.claim_rows(decision), key)

    def _describe(self) -> bytes:
        """The events' metadata: who, by which command, for which request."""
        command_id = clock.new_id()
        self._metadata = msgspec.json.encode(
            {
                "actor": self._request.actor,
                "command": self._handler.name,
                "command_id": command_id,
                "correlation_id": self._request.request_id or command_id,
                "causation_id": command_id,
                **self._executor.origin(),
            }
        )
        return self._metadata

    def _learn(self, view: View, decision: Decision, outcome: Outcome) -> None:
        first = outcome.position - len(decision.events) + 1
        places = [Place(first + n, self._context.now) for n in range(len(decision.events))]
        self._executor.learn(decision.events, view.used, places)
        self._executor.touch(view.used)

    def _presume(self, view: View, decision: Decision) -> None:
        """As learned, but for the positions, which are not known yet."""
        places = [Place(0, self._context.now)] * len(decision.events)
        self._executor.learn(decision.events, view.used, places)

    def _correct(self, view: View, decision: Decision, outcome: Outcome) -> None:
        """Takes back what was wrong; a new stream is told its position."""
        streams = [event.stream for event in decision.events]
        if outcome.verdict != "appended":
            self._executor.forget(streams)
            return
        first = outcome.position - len(streams) + 1
        for stream in {stream for stream in streams if view.used.get(stream) == 0}:
            self._executor.place(stream, first + streams.index(stream))


def former_scope(scope: str, secret: str) -> str:
    """Where values stand that were hashed with another instance's secret."""
    return scope + FORMER_MARK + secret


def _reused() -> KeyReused:
    return KeyReused("this idempotency key was used with another body before")
