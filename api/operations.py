"""What one operation of the API is, for serving it and for describing it.

Each resource's module has an explicit table `OPERATIONS`; `api.app` serves what is in them
and `api.openapi` describes it, so that the document can not say other than the code does.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple

from api.http import Inbound, Reply
from api.parts import Parts
from api.problems import Unauthenticated
from domain.refusals import Refusal
from infra.tokens import Caller

BEARER = b"bearer "
MULTIPART = "multipart/form-data"


class Call(NamedTuple):
    """A request on its way through an operation; `caller` is there if a token is needed."""

    parts: Parts
    inbound: Inbound
    known_caller: Caller | None

    @property
    def caller(self) -> Caller:
        assert self.known_caller is not None, "the operation needs no token"
        return self.known_caller


class Parameter(NamedTuple):
    name: str
    location: Literal["query", "header", "path"]
    schema: dict[str, Any]
    description: str


class Operation(NamedTuple):
    """A line of a table. `path` is Litestar's template; `problems` those beyond the usual.

    A command answers its position in the body too (`answers_position`); all that have one state
    it in a header. `rate_limit` `password` means the usual ones and that for passwords.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    name: str
    summary: str
    handle: Callable[[Call], Awaitable[Reply]]
    body: Any = None
    body_type: str = "application/json"
    answer: Any = None
    answers_position: bool = False
    states_position: bool = False
    media_type: str = "application/json"
    status: int = 200
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[type[Refusal], ...] = ()
    token: Literal["needed", "optional", "none"] = "needed"
    rate_limit: Literal["usual", "password", "none"] = "usual"


async def caller_of(operation: Operation, parts: Parts, inbound: Inbound) -> Caller | None:
    """Raises Unauthenticated, or Unavailable where it can't be known."""
    if operation.token == "none":
        return None
    given = inbound.header(b"authorization")
    if given is not None:
        return await _authenticate(given, parts)
    if operation.token == "needed":
        raise Unauthenticated()
    return None


async def _authenticate(given: bytes, parts: Parts) -> Caller:
    if given[: len(BEARER)].lower() != BEARER:
        raise Unauthenticated("expected `Authorization: Bearer ACCESS_TOKEN`")
    return await caller_with(given[len(BEARER) :].strip().decode("latin-1"), parts)


async def caller_with(token: str, parts: Parts) -> Caller:
    """Raises Unauthenticated, or Unavailable where it can't be known."""
    caller = parts.tokens.caller(token, now=time.time())
    if caller is None:
        raise Unauthenticated("the access token is not valid, or no longer")
    if await parts.ended.has(caller.session_id):
        raise Unauthenticated("the session has ended")
    return caller
