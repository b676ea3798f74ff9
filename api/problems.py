"""Every error as problem details (RFC 9457), with a stable code: contract.md, section 1.

`problem_of` knows the refusals of the domain, those of the doors (below), what Litestar
raises, and servers that are away. Whatever else comes is `internal`: its traceback goes to
the log under the Request-Id, and nothing of it to the caller.

    Refusal (domain.refusals)
    ├── Malformed           400  the body is not JSON, or no object
    ├── Unauthenticated     401  no access token, or none that holds
    ├── WrongCredentials    401  no such account, or another password
    ├── MethodNotAllowed    405
    ├── TooLarge            413
    ├── UnsupportedMedia    415
    ├── RateLimited         429  with Retry-After
    ├── ReadModelBehind     503  with Retry-After
    ├── ServiceUnavailable  503  with Retry-After
    └── Internal            500
"""

import msgspec
import psycopg
from litestar.exceptions import HTTPException
from msgspec import UNSET, UnsetType

from domain.refusals import (
    Blocked,
    Conflict,
    Forbidden,
    Invalid,
    NotContacts,
    NotFound,
    Refusal,
    SlugTaken,
    UsernameTaken,
    WrongPassword,
)
from infra.database import DOWN
from infra.errors import ImageBroken, ImageTooLarge, LogError, NotAnImage, Unavailable
from infra.executor import KeyReused
from infra.logs import Logger, traceback_of

RETRY_SECONDS = 1
CONTENT_TYPE = b"application/problem+json"

Headers = list[tuple[bytes, bytes]]


class FieldError(msgspec.Struct, frozen=True):
    """`field` is a path into the body, or the name of a header or query parameter."""

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] | UnsetType = UNSET


class DoorRefusal(Refusal):
    """Refused at the door"""

    def headers(self) -> Headers:
        return []


class Malformed(DoorRefusal):
    """The request is malformed"""

    code = "malformed"
    status = 400


class Unauthenticated(DoorRefusal):
    """Not authenticated"""

    code = "unauthenticated"
    status = 401

    def __init__(self, detail: str = "a valid access token is needed") -> None:
        super().__init__(detail)

    def headers(self) -> Headers:
        return [(b"www-authenticate", b"Bearer")]


class WrongCredentials(DoorRefusal):
    """The credentials are wrong"""

    code = "wrong-credentials"
    status = 401

    def headers(self) -> Headers:
        return [(b"www-authenticate", b"Bearer")]


class MethodNotAllowed(DoorRefusal):
    """The method is not allowed"""

    code = "method-not-allowed"
    status = 405

    def __init__(self, allowed: str) -> None:
        super().__init__(f"allowed here: {allowed}")
        self._allowed = allowed

    def headers(self) -> Headers:
        return [(b"allow", self._allowed.encode())]


class TooLarge(DoorRefusal):
    """The request is too large"""

    code = "too-large"
    status = 413


class UnsupportedMedia(DoorRefusal):
    """The media type is not supported"""

    code = "unsupported-media"
    status = 415


class _Later(DoorRefusal):
    """Refused for now"""

    def __init__(self, detail: str, *, retry_after_seconds: int = RETRY_SECONDS) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds

    def headers(self) -> Headers:
        return [(b"retry-after", b"%d" % self.retry_after_seconds)]


class RateLimited(_Later):
    """Too many requests"""

    code = "rate-limited"
    status = 429


class ReadModelBehind(_Later):
    """The read model is behind"""

    code = "read-model-behind"
    status = 503


class ServiceUnavailable(_Later):
    """Not available"""

    code = "unavailable"
    status = 503


class Internal(DoorRefusal):
    """Internal error"""

    code = "internal"
    status = 500


# Every code there is, for the OpenAPI document; one that means two things is there twice.
REFUSALS: tuple[type[Refusal], ...] = (
    Malformed,
    Invalid,
    Unauthenticated,
    WrongCredentials,
    WrongPassword,
    Forbidden,
    NotContacts,
    Blocked,
    NotFound,
    MethodNotAllowed,
    UsernameTaken,
    SlugTaken,
    Conflict,
    TooLarge,
    UnsupportedMedia,
    KeyReused,
    RateLimited,
    ReadModelBehind,
    ServiceUnavailable,
    Internal,
)


def refusal_of(error: Exception, request_id: str, logger: Logger) -> Refusal:
    """What the caller is told; the log is told what the caller is not."""
    if isinstance(error, LogError):
        logger.error("log_unreadable", request_id=request_id, reason=str(error))
    known = _known(error)
    if known is not None:
        return known
    logger.error(
        "internal_error",
        request_id=request_id,
        traceback=traceback_of(error),
    )
    return Internal(f"something went wrong; the log has it under Request-Id {request_id}")


def code_of(error: Exception) -> str:
    return (_known(error) or Internal).code


def _known(error: Exception) -> Refusal | None:
    match error:
        case Refusal():
            return error
        case Unavailable():
            return ServiceUnavailable(str(error))
        case LogError():
            # Code that is newer can, or an operator has to act: nobody's request was wrong.
            return ServiceUnavailable("this process can't read all that this needs of the log")
        case NotAnImage():
            return UnsupportedMedia(str(error))
        case ImageTooLarge():
            return TooLarge(str(error))
        case ImageBroken():
            return Invalid(str(error), field="file")
        case psycopg.InterfaceError():
            return ServiceUnavailable("the database does not answer")
        case HTTPException() if error.status_code < 500:
            return _of_litestar(error)
        case _ if isinstance(error, DOWN):
            return ServiceUnavailable("the database does not answer")
    return None


def problem(refusal: Refusal) -> Problem:
    field = getattr(refusal, "field", None)
    return Problem(
        type=f"/problems/{refusal.code}",
        title=title(type(refusal)),
        status=refusal.status,
        detail=refusal.detail,
        code=refusal.code,
        errors=[FieldError(field, refusal.detail)] if field else UNSET,
    )


def title(refusal: type[Refusal]) -> str:
    return (refusal.__doc__ or refusal.__name__).strip()


def headers(refusal: Refusal) -> Headers:
    return refusal.headers() if isinstance(refusal, DoorRefusal) else []


def _of_litestar(error: HTTPException) -> Refusal:
    match error.status_code:
        case 404:
            return NotFound("there is nothing here")
        case 405:
            return MethodNotAllowed((error.headers or {}).get("allow", ""))
        case 413:
            return TooLarge(error.detail)
        case _:
            return Malformed(error.detail)
