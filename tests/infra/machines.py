"""An executor with all it stands on, as a process has them; several of them race in tests."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from psycopg import AsyncConnection

from commands.add_members import AddMembers
from commands.command import Command
from commands.create_group import CreateGroup
from commands.register_user import RegisterUser
from domain.chat import GroupCreated, MemberLeft, MemberRemoved, MembersAdded
from domain.event import Event
from domain.ids import ChatId, UserId
from domain.message import MessageSent, SystemMessageSent
from infra import clock, database, event_log
from infra.appender import Appender
from infra.database import Pool
from infra.executor import Done, Executor, Request
from infra.keyring import Keyring, Secret
from infra.passwords import Passwords

EVERY_TYPE = [
    event.type
    for event in (
        GroupCreated,
        MembersAdded,
        MemberRemoved,
        MemberLeft,
        MessageSent,
        SystemMessageSent,
    )
]
POOL_SIZE = 4
QUEUE_LIMIT = 10_000
BCRYPT_ROUNDS = 4
PASSWORD = "correct horse"
SECRET_TEXT = "8f2d0c6b1e9a47358f2d0c6b1e9a4735"  # good enough for production's form
SECRET = Secret(SECRET_TEXT.encode())


class Machine(NamedTuple):
    """What one process has for writing."""

    executor: Executor
    appender: Appender
    pool: Pool

    async def run(
        self, command: Command, by: UserId | None = None, *, key: str | None = None
    ) -> Done:
        return await self.executor.execute(Request(command, by, key))

    async def register(self, username: str, **fields: Any) -> UserId:
        command = RegisterUser(username=username, password=PASSWORD, **fields)
        return UserId(answer(await self.run(command))["user_id"])

    async def people(self, count: int) -> list[UserId]:
        return await asyncio.gather(*(self.register(f"user_{n}") for n in range(count)))

    async def group(self, owner: UserId, *members: UserId, slug: str | None = None) -> ChatId:
        command = CreateGroup(name="Friends", member_ids=list(members), slug=slug)
        return ChatId(answer(await self.run(command, owner))["chat_id"])

    async def add(self, owner: UserId, chat_id: ChatId, *user_ids: UserId) -> Done:
        return await self.run(AddMembers(chat_id=chat_id, user_ids=list(user_ids)), owner)


def answer(done: Done) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(done.answer)
    return decoded


def new_user_id() -> UserId:
    return UserId(clock.new_id())


@asynccontextmanager
async def running(
    url: str, *, queue_limit: int = QUEUE_LIMIT, secret: Secret = SECRET
) -> AsyncIterator[Machine]:
    async with (
        database.pool(url, name="test", size=POOL_SIZE) as pool,
        Appender(url, queue_limit=queue_limit) as appender,
    ):
        executor = Executor(
            pool=pool,
            appender=appender,
            keyring=Keyring(secret, pool),
            secret=secret,
            passwords=Passwords(rounds=BCRYPT_ROUNDS),
        )
        yield Machine(executor, appender, pool)


@asynccontextmanager
async def several(url: str, count: int) -> AsyncIterator[list[Machine]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running(url)) for _ in range(count)]


async def events(machine: Machine, types: Iterable[str] = EVERY_TYPE) -> list[Event]:
    """The log's events of these types, in order and opened; that it is dense is checked."""
    async with machine.pool.connection() as connection:
        head = (await event_log.head(connection)).position
        recorded = await event_log.read(connection, after=0, up_to=head, types=list(types))
    assert [item.position for item in recorded] == list(range(1, head + 1))
    found = [item.event for item in recorded if item.event is not None]
    await event_log.open_events(found, Keyring(SECRET, machine.pool))
    return found


async def fetch(connection: AsyncConnection[Any], statement: Any, *values: Any) -> list[Any]:
    return await (await connection.execute(statement, values)).fetchall()


def niceness_of_session(pid: int) -> int | None:
    """None where the kernel does not share by session."""
    path = Path(f"/proc/{pid}/autogroup")
    # Empty where it can share, and does not: in the kernel's root group, say.
    told = path.read_text().split() if path.exists() else []
    return int(told[-1]) if told else None
