"""The accounts of an import: the bridge, and one for every nick. Nobody can log in to them.

A nick is registered with the first of its usernames that nobody else holds, once in a run,
before the first day that names it; the next run finds the account by its key.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial

from api.irc.parse import Nick
from api.irc.pipeline import Pipeline, Result, carried_out
from api.irc.plan import BRIDGE, display_name
from api.irc.usernames import BRIDGE_USERNAME, user_id, usernames
from commands.register_user import RegisterUser
from domain.ids import UserId
from domain.refusals import Conflict, Refusal
from infra.errors import Stopped
from infra.executor import Done, Executor, Request
from infra.passwords import Passwords

# The process keeps the keys of so many users at hand. Beyond, sending would have to wait for
# keys, and messages could overtake each other.
MAX_NICKS = 40_000
PASSWORD_BYTES = 48
BRIDGE_NAME = "IRC bridge"
# What commands name. `LockedPasswords` makes nothing of it, so it opens no account.
UNUSED_PASSWORD = "nobody can log in"


class LockedPasswords(Passwords):
    """Gives every account the hash of one random password that nobody ever learns."""

    def __init__(self, *, rounds: int) -> None:
        super().__init__(rounds=rounds)
        self._locked: asyncio.Task[str] | None = None

    async def hash(self, password: str) -> str:
        if self._locked is None:
            unknown = super().hash(secrets.token_urlsafe(PASSWORD_BYTES))
            self._locked = asyncio.create_task(unknown, name="locked password")
        return await self._locked

    async def matches(self, password: str, password_hash: str) -> bool:
        return False

    async def stretch(self, body_hash: str) -> str:
        """As it is: there is no password in it to be guessed."""
        return body_hash


class TooManyNicks(Exception):
    """More nicks than one run can take."""

    def __str__(self) -> str:
        return f"with it there would be more than {MAX_NICKS:,} nicks: import it in another run"


class Accounts:
    """Who is registered already in this run."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._known: set[Nick] = set()

    async def register(
        self, nicks: Iterable[Nick], at: datetime, tell: Callable[[Nick, str], None]
    ) -> None:
        """Tells of nicks that get another username than expected, or none.

        Raises TooManyNicks, and Stopped if the bridge can't be registered.
        """
        newcomers = [nick for nick in nicks if nick not in self._known]
        if len(self._known) + len(newcomers) > MAX_NICKS:
            raise TooManyNicks
        if not self._known:
            await self._register_bridge(at)
        await self._executor.create_keys([user_id(nick) for nick in newcomers])
        async with Pipeline() as pipeline:
            for nick in newcomers:
                tasks = await pipeline.begin(partial(self._settle, nick, tell))
                tasks.append(asyncio.create_task(self._register_nick(nick, at, tell)))
            await pipeline.settle()

    def _settle(self, nick: Nick, tell: Callable[[Nick, str], None], results: list[Result]) -> None:
        self._known.add(nick)
        for result in results:
            if isinstance(result, Refusal):
                tell(nick, f"can't be registered: {result.detail}")

    async def _register_bridge(self, at: datetime) -> None:
        result = await self._register(BRIDGE, BRIDGE_USERNAME, BRIDGE_NAME, key="irc/bridge", at=at)
        if isinstance(result, Refusal):
            raise Stopped(f"the bridge account {BRIDGE_USERNAME} can't be made: {result.detail}")

    async def _register_nick(
        self, nick: Nick, at: datetime, tell: Callable[[Nick, str], None]
    ) -> Result:
        user, name = user_id(nick), display_name(nick)[0] or None
        forms = usernames(nick)
        result: Result = Conflict("it has no username")
        for form, username in enumerate(forms, 1):
            result = await self._register(
                user, username, name, key=f"irc/nick/{user}/{form}", at=at
            )
            # The account itself is in the way of the first form when the second is asked again.
            if not isinstance(result, Conflict):
                break
        if isinstance(result, Done) and username != forms[0]:
            tell(nick, f"the username is {username}, as {forms[0]} is somebody else's")
        return result

    async def _register(
        self, user: UserId, username: str, name: str | None, *, key: str, at: datetime
    ) -> Result:
        command = RegisterUser(
            username=username, password=UNUSED_PASSWORD, display_name=name, user_id=user
        )
        return await carried_out(self._executor, Request(command, None, key, now=at))
