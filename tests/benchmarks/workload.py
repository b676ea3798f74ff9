"""People, chats and messages for benchmarks, made through the real executor."""

import asyncio
from itertools import cycle, islice
from typing import NamedTuple

from commands.send_message import SendMessage
from domain.ids import ChatId, UserId
from tests.infra.machines import Machine

# Bcrypt's queue is bounded: no more than this register at once.
REGISTERED_TOGETHER = 100

TEXTS = (
    "ok",
    "does anyone know why the installer stops at 82 percent?",
    "try the alternate disc, the live one needs more memory than that machine has",
    "thanks, that did it",
    "I have the same card and it works here with the driver from the restricted repository",
    "see the wiki page about it, there is a table of what is supported and what is not",
)


class Seat(NamedTuple):
    """Somebody who sends, and where."""

    chat_id: ChatId
    user_id: UserId


async def people(machine: Machine, count: int) -> list[UserId]:
    found: list[UserId] = []
    for begin in range(0, count, REGISTERED_TOGETHER):
        numbers = range(begin, min(count, begin + REGISTERED_TOGETHER))
        found += await asyncio.gather(*(machine.register(f"bench_{n}") for n in numbers))
    return found


async def group(machine: Machine, members: list[UserId]) -> list[Seat]:
    chat_id = await machine.group(members[0], *members[1:])
    return [Seat(chat_id, user_id) for user_id in members]


async def send(machine: Machine, seats: list[Seat], count: int, *, together: int) -> None:
    """`count` messages from the seats in turn, some at once."""
    pending = zip(islice(cycle(seats), count), cycle(TEXTS), strict=False)

    async def sender() -> None:
        for seat, text in pending:
            await machine.run(SendMessage(chat_id=seat.chat_id, content=text), seat.user_id)

    await asyncio.gather(*(sender() for _ in range(together)))
