"""Commands over HTTP: one route for each line of `commands.HANDLERS`, and the batch.

The way of one command (`send-message` above all) is kept short: token from a cache, strict
decoding into the command's struct, the executor, and its answer's bytes with the position
before them.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from api import problems, rate_limits
from api.bodies import decode
from api.http import Inbound, Reply, log_position
from api.operations import Call, Operation, Parameter
from api.parts import Parts
from api.problems import (
    Malformed,
    Problem,
    RateLimited,
    ServiceUnavailable,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
)
from commands import BY_NAME, HANDLERS
from commands.command import Command, Handler
from domain.ids import UserId
from domain.refusals import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Refusal,
    SlugTaken,
    UsernameTaken,
    WrongPassword,
)
from infra.errors import LogError
from infra.executor import Done, KeyReused, Request
from infra.lanes import Lane
from infra.login_limits import TooManyFailures
from infra.tokens import Caller

MAX_COMMAND_BYTES = 1_000_000
MAX_BATCH_BYTES = 8_000_000
MAX_BATCH_COMMANDS = 500
MAX_KEY_CHARACTERS = 128

REPLAYED = (b"idempotency-replayed", b"true")
KEY = Parameter(
    "Idempotency-Key",
    "header",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS, "pattern": "^[!-~]+$"},
    "The same key with the same command answers what it answered first, for ever.",
)

_KEY = re.compile(rf"[ -~]{{1,{MAX_KEY_CHARACTERS}}}")
_DECODERS: dict[str, msgspec.json.Decoder[Command]] = {
    handler.name: msgspec.json.Decoder(handler.command) for handler in HANDLERS
}


class BatchItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    data: msgspec.Raw
    idempotency_key: str | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    commands: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=MAX_BATCH_COMMANDS)]


class Results(msgspec.Struct, frozen=True):
    results: list[msgspec.Raw]


class BatchProblem(msgspec.Struct, frozen=True):
    problem: Problem


_batch_decoder = msgspec.json.Decoder(Batch)
_item_decoder = msgspec.json.Decoder(BatchItem)


async def execute(
    parts: Parts,
    handler: Handler,
    command: Command,
    caller: Caller | None,
    inbound: Inbound,
    key: str | None,
    lane: Lane | None = None,
) -> Done:
    """What HTTP adds to the executor: metrics, the sessions that a new password ends, and all
    that the end of an account brings."""
    actor = caller.user_id if caller else None
    request = Request(command, actor, key, inbound.request_id, lane=lane)
    try:
        if handler.has_password and actor is not None:
            done = await _with_password(parts, request, actor, inbound)
        else:
            done = await parts.executor.execute(request)
        if handler.name == "change-password" and caller is not None:
            await parts.sessions.end_others(caller.user_id, caller.session_id)
        if handler.name == "delete-account" and caller is not None:
            last = await parts.erasure.finish(caller.user_id)
            done = done._replace(position=max(done.position, last))
    except Exception as error:
        _count(parts, handler, request, problems.code_of(error))
        raise
    _count(parts, handler, request, "replayed" if done.replayed else "done", done.position)
    return done


def _count(
    parts: Parts, handler: Handler, request: Request, outcome: str, position: int | None = None
) -> None:
    """And says it, where every command is logged."""
    parts.metrics.command(handler.name, outcome)
    if parts.logger.is_debug:
        parts.logger.debug(
            "command",
            command=handler.name,
            request_id=request.request_id,
            actor=request.actor,
            outcome=outcome,
            position=position,
        )


async def _with_password(parts: Parts, request: Request, user_id: UserId, inbound: Inbound) -> Done:
    """Wrong passwords count as at a login: a stolen token may not guess without end."""
    limits = parts.login_limits
    try:
        # No username has a space in it.
        async with limits.attempt(f"user {user_id}", rate_limits.address(inbound.scope)) as attempt:
            try:
                done = await parts.executor.execute(request)
            except WrongPassword:
                await limits.failed(attempt)
                raise
            await limits.succeeded(attempt)
            return done
    except TooManyFailures as error:
        raise RateLimited(str(error), retry_after_seconds=error.retry_after_seconds) from None


async def run_named(
    parts: Parts,
    inbound: Inbound,
    caller: Caller | None,
    name: str,
    data: msgspec.Raw,
    key: str | None,
    lane: Lane | None = None,
) -> Done:
    """A command that is named in a body, or on the stream. Raises Refusal, or Unavailable."""
    handler = BY_NAME.get(name)
    if handler is None:
        raise NotFound("there is no such command")
    if handler.needs_actor and caller is None:
        raise Unauthenticated()
    if handler.has_password:
        parts.rate_limits.with_password(inbound.scope)
    checked = None if key is None else _checked_key(key)
    command = decode(_DECODERS[handler.name], data)
    return await execute(parts, handler, command, caller, inbound, checked, lane)


def _single(handler: Handler) -> Callable[[Call], Awaitable[Reply]]:
    decoder = _DECODERS[handler.name]

    async def handle(call: Call) -> Reply:
        parts, inbound, caller = call
        key = _header_key(inbound)
        command = decode(decoder, await inbound.json_body(MAX_COMMAND_BYTES))
        done = await execute(parts, handler, command, caller, inbound, key)
        headers = [log_position(done.position)]
        if done.replayed:
            headers.append(REPLAYED)
        return Reply(200, _answer(done), headers)

    return handle


async def _batch(call: Call) -> Reply:
    parts, inbound, caller = call
    batch = decode(_batch_decoder, await inbound.json_body(MAX_BATCH_BYTES), has_parts=True)
    user_id = caller.user_id if caller else None
    parts.rate_limits.batch(inbound.scope, user_id, len(batch.commands))
    run = _BatchRun(parts, inbound, caller)
    results = [await run.result(raw) for raw in batch.commands]
    body = msgspec.json.encode(Results(results))
    return Reply(200, body, [log_position(run.position or await parts.executor.head())])


class _BatchRun:
    """One batch on its way; `position` is the highest that it reached."""

    def __init__(self, parts: Parts, inbound: Inbound, caller: Caller | None) -> None:
        self._parts = parts
        self._inbound = inbound
        self._caller = caller
        self._gone: ServiceUnavailable | None = None
        self.position = 0

    async def result(self, raw: msgspec.Raw) -> msgspec.Raw:
        # Each further command would wait as long for what does not answer.
        if self._gone is not None:
            return _problem(self._gone)
        try:
            return msgspec.Raw(answer(await self._run(decode(_item_decoder, raw))))
        except Exception as error:  # noqa: BLE001 - one command's failure is not the batch's
            refusal = problems.refusal_of(error, self._inbound.request_id, self._parts.logger)
            self._parts.metrics.problem(refusal.code)
            # What can't be read concerns this one alone.
            if isinstance(refusal, ServiceUnavailable) and not isinstance(error, LogError):
                self._gone = refusal
            return _problem(refusal)

    async def _run(self, item: BatchItem) -> Done:
        done = await run_named(
            self._parts, self._inbound, self._caller, item.name, item.data, item.idempotency_key
        )
        self.position = max(self.position, done.position)
        return done


def _answer(done: Done) -> bytes:
    """The answer is a JSON object; the position becomes its first member."""
    rest = done.answer.lstrip()[1:].lstrip()
    return b'{"position":%d%s%s' % (done.position, b"" if rest == b"}" else b",", rest)


def answer(done: Done) -> bytes:
    """As `_answer`, where there are no headers to say that it is replayed."""
    whole = _answer(done)
    return whole[:-1] + b',"idempotency_replayed":true}' if done.replayed else whole


def _problem(refusal: Refusal) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(BatchProblem(problems.problem(refusal))))


def _header_key(inbound: Inbound) -> str | None:
    given = inbound.header(b"idempotency-key")
    if given is None:
        return None
    return _checked_key(given.decode("latin-1"), field="Idempotency-Key")


def _checked_key(key: str, *, field: str = "idempotency_key") -> str:
    if not _KEY.fullmatch(key):
        raise Invalid(f"expected 1 to {MAX_KEY_CHARACTERS} printable characters", field=field)
    return key


_BODY_PROBLEMS: tuple[type[Refusal], ...] = (Malformed, Invalid, TooLarge, UnsupportedMedia)
_COMMAND_PROBLEMS: tuple[type[Refusal], ...] = (
    *_BODY_PROBLEMS,
    WrongPassword,
    Forbidden,
    NotFound,
    Conflict,
    UsernameTaken,
    SlugTaken,
    KeyReused,
)


def _operation(handler: Handler) -> Operation:
    return Operation(
        "POST",
        f"/v1/commands/{handler.name}",
        handler.name,
        handler.name.replace("-", " ").capitalize(),
        _single(handler),
        body=handler.command,
        answer=handler.answer,
        answers_position=True,
        states_position=True,
        parameters=(KEY,),
        problems=_COMMAND_PROBLEMS,
        token="needed" if handler.needs_actor else "none",
        rate_limit="password" if handler.has_password else "usual",
    )


OPERATIONS: tuple[Operation, ...] = (
    *(_operation(handler) for handler in HANDLERS),
    Operation(
        "POST",
        "/v1/commands",
        "commands",
        "Several commands, each on its own, in order",
        _batch,
        body=Batch,
        answer=Results,
        states_position=True,
        problems=(*_BODY_PROBLEMS, Unauthenticated),
        token="optional",
    ),
)
