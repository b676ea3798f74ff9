"""A user over HTTP who never gives up on a command before its answer, and asks with the same key."""

import asyncio
import time
from typing import Any

import httpx

from infra import clock
from tests.infra.machines import PASSWORD

ANSWER_SECONDS = 120.0
RETRY_SECONDS = 0.1
RETRIED_STATUSES = (429, 503)
SESSIONS = "/v1/sessions"


class Client:
    """`sign_in` first. `retries` counts the answers that did not come."""

    def __init__(
        self, http: httpx.AsyncClient, username: str, *, answer_seconds: float = ANSWER_SECONDS
    ) -> None:
        self._http = http
        self._username = username
        self._answer_seconds = answer_seconds
        self._token = ""
        self.user_id = ""
        self.retries = 0

    async def sign_in(self) -> None:
        body = {"username": self._username, "password": PASSWORD}
        self.user_id = (await self.command("register-user", body))["user_id"]
        await self._log_in()

    async def _log_in(self) -> None:
        body = {"username": self._username, "password": PASSWORD}
        self._token = (await self._until_answered(SESSIONS, {"json": body}))["access_token"]

    async def command(self, name: str, body: dict[str, Any], key: str = "") -> dict[str, Any]:
        path = f"/v1/commands/{name}"
        return await self._until_answered(path, {"json": body}, key or clock.new_id())

    async def _until_answered(
        self, path: str, content: dict[str, Any], key: str = ""
    ) -> dict[str, Any]:
        deadline = time.monotonic() + self._answer_seconds
        while True:
            answer = await self._ask(path, content, key)
            if answer is not None:
                return answer
            assert time.monotonic() < deadline, f"no answer to {path} in time"
            self.retries += 1
            await asyncio.sleep(RETRY_SECONDS)

    async def _ask(self, path: str, content: dict[str, Any], key: str) -> dict[str, Any] | None:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        headers |= {"Idempotency-Key": key} if key else {}
        try:
            response = await self._http.post(path, headers=headers, **content)
        except httpx.TransportError:
            return None
        if response.status_code in RETRIED_STATUSES:
            return None
        return await self._understood(path, response)

    async def _understood(self, path: str, response: httpx.Response) -> dict[str, Any] | None:
        assert response.status_code in (200, 201), response.text
        answer: dict[str, Any] = response.json()
        return answer
