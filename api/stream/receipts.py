"""What clients on this process say they have: gathered, and recorded together.

Of each user with an open connection it is known, by chat, which messages they may not have yet.
`received` turns what they cover into marks; every flush writes the marks of all users, one event
a chat. What can not be written waits for the next flush; a mark that is written twice changes
nothing. Erring is towards too many: a mark too many is only a little more to write.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping

from api.stream.readings import Range
from commands.record_deliveries import RecordDeliveries
from domain.ids import ChatId, GatewayId, UserId
from domain.receipt import DeliveryMark
from infra.database import DOWN, first_line
from infra.errors import MessengerError
from infra.executor import Executor, Request
from infra.logs import Logger

MAX_CHATS_A_COMMAND = 200
WRITE_TIMEOUT_SECONDS = 10.0

Marks = dict[ChatId, dict[UserId, DeliveryMark]]


class Pending:
    """What the users of this process may not have yet, and the marks of what they have got."""

    def __init__(self) -> None:
        self._of: dict[UserId, dict[ChatId, Range]] = {}
        self._marks: defaultdict[ChatId, dict[UserId, DeliveryMark]] = defaultdict(dict)

    def take_in(self, user_id: UserId) -> None:
        self._of.setdefault(user_id, {})

    def keep(self, user_id: UserId, chat_ids: Collection[ChatId]) -> None:
        """What there is in other chats will not come."""
        of_user = self._of[user_id]
        for chat_id in of_user.keys() - chat_ids:
            del of_user[chat_id]

    def let_go(self, user_id: UserId) -> None:
        self._of.pop(user_id, None)

    def load(self, user_id: UserId, pending: Mapping[ChatId, Range]) -> None:
        of_user = self._of.get(user_id, {})
        for chat_id, found in pending.items():
            known = of_user.get(chat_id, found)
            of_user[chat_id] = Range(min(known.first, found.first), max(known.last, found.last))

    def sent(self, user_id: UserId, chat_id: ChatId, position: int) -> None:
        of_user = self._of.get(user_id)
        if of_user is not None:
            first = of_user[chat_id].first if chat_id in of_user else position
            of_user[chat_id] = Range(first, position)

    def recorded(self, user_id: UserId, chat_id: ChatId, up_to: int) -> None:
        """By another process, or by a command."""
        of_user = self._of.get(user_id)
        if of_user is not None and chat_id in of_user:
            self._trim(of_user, chat_id, up_to)

    def received(self, user_id: UserId, up_to: int) -> None:
        of_user = self._of.get(user_id, {})
        for chat_id, (first, last) in list(of_user.items()):
            if first <= up_to:
                covered = min(last, up_to)
                known = self._marks[chat_id].get(user_id)
                after = known.after if known else first - 1
                self._marks[chat_id][user_id] = DeliveryMark(
                    user_id=user_id, after=after, up_to=covered
                )
                self._trim(of_user, chat_id, covered)

    def take_marks(self) -> Marks:
        """All there are; they are gone here."""
        marks = dict(self._marks)
        self._marks.clear()
        return marks

    def put_back(self, marks: Marks) -> None:
        for chat_id, of_chat in marks.items():
            for user_id, mark in of_chat.items():
                later = self._marks[chat_id].get(user_id)
                up_to = max(mark.up_to, later.up_to if later else 0)
                self._marks[chat_id][user_id] = DeliveryMark(
                    user_id=user_id, after=mark.after, up_to=up_to
                )

    def _trim(self, of_user: dict[ChatId, Range], chat_id: ChatId, up_to: int) -> None:
        first, last = of_user[chat_id]
        if last <= up_to:
            del of_user[chat_id]
        elif first <= up_to:
            of_user[chat_id] = Range(up_to + 1, last)


class Recorder:
    """Writes the marks, at most once a chat and flush."""

    def __init__(
        self,
        pending: Pending,
        executor: Executor,
        gateway_id: GatewayId,
        logger: Logger,
        *,
        flush_seconds: float,
    ) -> None:
        self._pending = pending
        self._executor = executor
        self._gateway_id = gateway_id
        self._logger = logger
        self._flush_seconds = flush_seconds

    async def run(self) -> None:
        """For as long as the process lives."""
        while True:
            await asyncio.sleep(self._flush_seconds)
            await self.flush()

    async def flush(self) -> None:
        marks = self._pending.take_marks()
        while marks:
            some = {chat_id: marks.pop(chat_id) for chat_id in list(marks)[:MAX_CHATS_A_COMMAND]}
            try:
                async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
                    await self._executor.execute(Request(self._command(some), None))
            except (MessengerError, TimeoutError, *DOWN) as error:
                self._pending.put_back(some | marks)
                self._logger.warning("deliveries_wait", reason=first_line(error))
                return
            except BaseException:
                self._pending.put_back(some | marks)
                raise

    def _command(self, marks: Marks) -> RecordDeliveries:
        return RecordDeliveries(
            gateway_id=self._gateway_id,
            marks={chat_id: list(of_chat.values()) for chat_id, of_chat in marks.items()},
        )
