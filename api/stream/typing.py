"""Who is typing: told to the online members of a chat, on every process, and kept nowhere.

Goes by NATS as it is; while NATS is away, the members on this process hear of it all the same.
Told at most once in INTERVAL_SECONDS for a user and chat; more often says nothing new.
"""

import time
from collections.abc import Callable

import msgspec
from nats.aio.msg import Msg

from domain.ids import ChatId, GatewayId, UserId
from infra.bus import Bus

TYPING = "messenger.typing"
INTERVAL_SECONDS = 1.0
MAX_TOLD = 10_000


class Told(msgspec.Struct, frozen=True):
    gateway_id: GatewayId
    chat_id: ChatId
    user_id: UserId


_decoder = msgspec.json.Decoder(Told)


class TypingNews:
    """`tell` calls `show` here and on every other process."""

    def __init__(
        self, bus: Bus, gateway_id: GatewayId, show: Callable[[ChatId, UserId], None]
    ) -> None:
        self._bus = bus
        self._gateway_id = gateway_id
        self._show = show
        self._told_at: dict[tuple[ChatId, UserId], float] = {}

    async def listen(self) -> None:
        await self._bus.listen(TYPING, self._hear)

    def tell(self, chat_id: ChatId, user_id: UserId) -> None:
        now = time.monotonic()
        if now - self._told_at.get((chat_id, user_id), float("-inf")) < INTERVAL_SECONDS:
            return
        self._told_at.pop((chat_id, user_id), None)
        self._told_at[chat_id, user_id] = now
        if len(self._told_at) > MAX_TOLD:
            del self._told_at[next(iter(self._told_at))]
        self._show(chat_id, user_id)
        self._bus.hint(TYPING, msgspec.json.encode(Told(self._gateway_id, chat_id, user_id)))

    async def _hear(self, message: Msg) -> None:
        try:
            told = _decoder.decode(message.data)
        except msgspec.DecodeError:
            return
        if told.gateway_id != self._gateway_id:
            self._show(told.chat_id, told.user_id)
