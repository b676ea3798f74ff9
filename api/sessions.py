"""Sessions over HTTP: log in, refresh, list, end (contract.md, section 3).

A login reads the write side, never a read model: who just registered can log in. Unknown
names cost as much time as wrong passwords.
"""

import secrets
import time
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from api import rate_limits
from api.bodies import decode
from api.http import NoContent, Reply, json_reply
from api.operations import Call, Operation, Parameter
from api.parts import Parts
from api.problems import (
    Malformed,
    RateLimited,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
    WrongCredentials,
)
from domain.ids import StreamId, UserId, user_stream
from domain.refusals import Invalid, NotFound
from domain.user import User
from infra.login_limits import TooManyFailures
from infra.tokens import Caller, RefreshToken

MAX_BODY_BYTES = 16_384
NOBODY = user_stream(UserId("00000000-0000-0000-0000-000000000000"))

Time = Annotated[datetime, Meta(tz=True)]


class LogIn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    username: Annotated[str, Meta(max_length=100)]
    password: Annotated[str, Meta(max_length=1_000)]
    device_name: Annotated[str, Meta(max_length=100)] | None = None


class Refresh(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    refresh_token: Annotated[str, Meta(max_length=1_000)]


class Session(msgspec.Struct, frozen=True, kw_only=True):
    session_id: str
    user_id: UserId
    access_token: str
    expires_in: int
    refresh_token: str


class ListedSession(msgspec.Struct, frozen=True, kw_only=True):
    session_id: str
    device_name: str | None
    created_at: Time
    last_used_at: Time
    current: bool


class ListedSessions(msgspec.Struct, frozen=True):
    items: list[ListedSession]


_log_in_decoder = msgspec.json.Decoder(LogIn)
_refresh_decoder = msgspec.json.Decoder(Refresh)


async def log_in(call: Call) -> Reply:
    given = decode(_log_in_decoder, await call.inbound.json_body(MAX_BODY_BYTES))
    address = rate_limits.address(call.inbound.scope)
    limits = call.parts.login_limits
    try:
        async with limits.attempt(given.username, address) as attempt:
            token = await _opened(call.parts, given)
            if token is None:
                await limits.failed(attempt)
                raise WrongCredentials("the username or the password is wrong")
            await limits.succeeded(attempt)
    except TooManyFailures as error:
        raise RateLimited(str(error), retry_after_seconds=error.retry_after_seconds) from None
    user_id, refresh = token
    return json_reply(_session(call.parts, user_id, refresh), status=201)


async def _opened(parts: Parts, given: LogIn) -> tuple[UserId, RefreshToken] | None:
    """A session's first token, if the credentials are right and still are once it is open."""
    stream = await parts.executor.holder("username", given.username)
    known_hash = await _password_hash(parts, stream)
    matches = await parts.passwords.matches(
        given.password, known_hash or await _nobodys_hash(parts)
    )
    if stream is None or known_hash is None or not matches:
        return None
    user_id = UserId(stream.partition("-")[2])
    token = await parts.sessions.open(user_id, given.device_name)
    # A new password, set meanwhile, ended all sessions that there were: this one too.
    if await _password_hash(parts, stream) != known_hash:
        await parts.sessions.end(token.session_id)
        return None
    return user_id, token


async def _password_hash(parts: Parts, stream: StreamId | None) -> str | None:
    """For nobody too the log is asked: the time it takes tells nothing."""
    user: User = await parts.executor.state(stream or NOBODY)
    return user.password_hash


_nobodys_hashes: dict[int, str] = {}


async def _nobodys_hash(parts: Parts) -> str:
    """A hash of the usual cost that no password matches."""
    rounds = parts.settings.bcrypt_rounds
    if rounds not in _nobodys_hashes:
        _nobodys_hashes[rounds] = await parts.passwords.hash(secrets.token_urlsafe(32))
    return _nobodys_hashes[rounds]


async def refresh(call: Call) -> Reply:
    given = decode(_refresh_decoder, await call.inbound.json_body(MAX_BODY_BYTES))
    rotated = await call.parts.sessions.rotate(given.refresh_token)
    if rotated is None:
        raise Unauthenticated("the refresh token is not valid, or no longer")
    return json_reply(_session(call.parts, *rotated))


async def list_sessions(call: Call) -> Reply:
    listed = await call.parts.sessions.list(call.caller.user_id)
    items = [
        ListedSession(
            session_id=session.session_id,
            device_name=session.device_name,
            created_at=session.created_at,
            last_used_at=session.last_used_at,
            current=session.session_id == call.caller.session_id,
        )
        for session in listed
    ]
    return json_reply(ListedSessions(items))


async def end_current(call: Call) -> Reply:
    await call.parts.sessions.end(call.caller.session_id)
    return NoContent()


async def end_session(call: Call) -> Reply:
    session_id = call.inbound.id("session_id")
    if not await call.parts.sessions.end_of_user(session_id, call.caller.user_id):
        raise NotFound("there is no such session")
    return NoContent()


def _session(parts: Parts, user_id: UserId, token: RefreshToken) -> Session:
    now = int(time.time())
    seconds = parts.settings.access_token_seconds
    caller = Caller(user_id, token.session_id, now + seconds)
    return Session(
        session_id=token.session_id,
        user_id=user_id,
        access_token=parts.tokens.access(caller, issued_at=now),
        expires_in=seconds,
        refresh_token=token.text,
    )


_BODY_PROBLEMS = (Malformed, Invalid, TooLarge, UnsupportedMedia)
SESSION_ID = Parameter(
    "session_id", "path", {"type": "string", "format": "uuid"}, "One of the caller's sessions."
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST",
        "/v1/sessions",
        "log-in",
        "Log in",
        log_in,
        body=LogIn,
        answer=Session,
        status=201,
        problems=(*_BODY_PROBLEMS, WrongCredentials, RateLimited),
        token="none",
        rate_limit="password",
    ),
    Operation(
        "POST",
        "/v1/sessions/refresh",
        "refresh-session",
        "A new access token, and the next refresh token",
        refresh,
        body=Refresh,
        answer=Session,
        problems=(*_BODY_PROBLEMS, Unauthenticated),
        token="none",
    ),
    Operation(
        "GET",
        "/v1/sessions",
        "list-sessions",
        "The caller's open sessions",
        list_sessions,
        answer=ListedSessions,
    ),
    Operation(
        "DELETE",
        "/v1/sessions/current",
        "end-current-session",
        "Log out",
        end_current,
        status=204,
    ),
    Operation(
        "DELETE",
        "/v1/sessions/{session_id:str}",
        "end-session",
        "End one of the caller's sessions",
        end_session,
        status=204,
        parameters=(SESSION_ID,),
        problems=(NotFound,),
    ),
)
