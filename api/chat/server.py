"""The server over HTTP: a session whose tokens are kept fresh, and queries.

A query waits out what passes: a server that restarts, a read model that is behind, too many
requests; PATIENCE_SECONDS at most. The password is not kept: a session that is ended, here or
elsewhere, stays ended.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from api.chat.errors import Refused, SessionEnded, Unreachable

TIMEOUT_SECONDS = 15.0
CONNECTIONS_MAX = 8
PATIENCE_SECONDS = 60.0
PAUSE_MAX_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.25
# A token is changed for a new one when this share of its life is left.
FRESH_SHARE = 0.2
LOG_OUT_SECONDS = 2.0
DEVICE = "messenger chat"
PASSING = (429, 502, 503, 504)

Json = dict[str, Any]


class Server:
    """`url` is the API's address; log in before anything else."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        limits = httpx.Limits(max_connections=CONNECTIONS_MAX)
        self._http = httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT_SECONDS, limits=limits)
        self._session: Json = {}
        self._stale_at = 0.0
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    @property
    def user_id(self) -> str:
        user_id: str = self._session["user_id"]
        return user_id

    async def log_in(self, username: str, password: str) -> None:
        """Raises Refused, Unreachable. Not tried again: somebody waits before the screen."""
        body = {"username": username, "password": password, "device_name": DEVICE}
        try:
            response = await self._http.post("/v1/sessions", json=body)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Unreachable(f"{self.url} does not answer: {_said(error)}") from None
        self._keep(self._good(response, 201))

    async def log_out(self) -> None:
        """As well as it can be done: a session that stays open runs out by itself."""
        try:
            async with asyncio.timeout(LOG_OUT_SECONDS):
                headers = {"Authorization": f"Bearer {await self.token()}"}
                await self._http.delete("/v1/sessions/current", headers=headers)
        except (httpx.HTTPError, TimeoutError, Refused, SessionEnded, Unreachable):
            pass

    async def token(self, *, refused: str = "") -> str:
        """An access token that still holds: another one than the one that was refused."""
        async with self._turn:
            known: str = self._session["access_token"]
            if known == refused or time.monotonic() > self._stale_at:
                await self._refresh()
            token: str = self._session["access_token"]
            return token

    async def get(self, path: str, *, at_least: int = 0, **parameters: Any) -> tuple[Json, int]:
        """The answer, and the position that it is as of."""
        refused = ""
        while True:
            token = await self.token(refused=refused)
            headers = {"Authorization": f"Bearer {token}", "Min-Log-Position": str(at_least)}
            response = await self._patiently("GET", path, headers=headers, params=parameters)
            if response.status_code != 401 or refused:
                answer = self._good(response, 200)
                return answer, int(response.headers.get("log-position", at_least))
            refused = token

    async def _refresh(self) -> None:
        body = {"refresh_token": self._session["refresh_token"]}
        response = await self._patiently("POST", "/v1/sessions/refresh", json=body)
        if response.status_code == 401:
            raise SessionEnded("the session has ended: log in again")
        self._keep(self._good(response, 200))

    async def _patiently(self, method: str, path: str, **given: Any) -> httpx.Response:
        """Raises Unreachable after PATIENCE_SECONDS."""
        for pause_seconds in _pauses():
            try:
                response = await self._http.request(method, path, **given)
            except httpx.HTTPError:
                await asyncio.sleep(pause_seconds)
                continue
            if response.status_code not in PASSING:
                return response
            asked = response.headers.get("retry-after")
            await asyncio.sleep(retry_after(asked, pause_seconds))
        raise Unreachable(f"{self.url} does not answer")

    def _keep(self, session: Json) -> None:
        self._session = session
        self._stale_at = time.monotonic() + (1 - FRESH_SHARE) * session["expires_in"]

    def _good(self, response: httpx.Response, status: int) -> Json:
        """Raises Refused for a problem, Unreachable for what no messenger says."""
        answer = _object(response.content)
        if answer and response.status_code == status:
            return answer
        if "code" in answer and "detail" in answer:
            raise Refused(str(answer["detail"]), status=response.status_code)
        said = f"HTTP {response.status_code}"
        raise Unreachable(f"{self.url} does not answer as a messenger does: {said}")


def _object(content: bytes) -> Json:
    """Empty if it is none."""
    try:
        answer = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _pauses() -> Iterator[float]:
    """Each longer than the last, for PATIENCE_SECONDS together."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    attempt = 0
    while time.monotonic() < deadline:
        yield backoff(attempt)
        attempt += 1


def backoff(attempt: int) -> float:
    """Doubled each time, up to a limit; spread, so that not all come back at once."""
    longest: float = min(PAUSE_MAX_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(attempt, 16))
    return longest * random.uniform(0.5, 1)


def retry_after(given: str | None, pause: float) -> float:
    """What the server asks for, if that is not too long; else what we would wait anyway."""
    return min(PAUSE_MAX_SECONDS, float(given)) if given and given.isdigit() else pause


def _said(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
