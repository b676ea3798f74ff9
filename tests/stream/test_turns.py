"""A batch of events on its way to many sockets: commands have their turn in between, and who was
told of an event may say at once that it came."""

import asyncio
from typing import Any, cast

import pytest

from api.stream import gateway
from api.stream.gateway import Addressed, Gateway
from api.stream.shown import Surroundings
from domain.event import Recorded
from domain.ids import UserId
from domain.message import MessageDeleted
from tests.commands.history import ANNA, BEN, CHAT, NOW, message_id

EVENTS = 5


class Told:
    """A connection that notes how far the gateway says it has got, at each frame."""

    def __init__(self, user_id: UserId, sending: Gateway) -> None:
        self.user_id = user_id
        self.positions: list[int] = []
        self._gateway = sending

    def deliver(self, frame: bytes) -> None:
        assert b'"position":%d' % self._gateway.position in frame
        self.positions.append(self._gateway.position)

    def restart(self) -> None:
        raise AssertionError("nobody is sent away here")


def deletion(position: int) -> Addressed:
    event = MessageDeleted(
        message_id=message_id(position), chat_id=CHAT, by=ANNA, sent_position=position
    )
    return Addressed(Recorded(position, NOW, event), event, {ANNA, BEN})


async def test_others_have_their_turn_within_a_batch_and_its_position_moves_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway, "FRAMES_A_TURN", 2)
    nothing = cast("Any", None)
    sending = Gateway(nothing, nothing, nothing, nothing, nothing, nothing, nothing)
    told = [Told(user_id, sending) for user_id in (ANNA, BEN)]
    for connection in told:
        sending._users.setdefault(connection.user_id, gateway._User())
        sending.subscribe(connection, is_fresh=False)
    seen: list[int] = []

    async def other() -> None:
        while True:
            await asyncio.sleep(0)
            seen.append(sending.position)

    looking = asyncio.create_task(other())
    await asyncio.sleep(0)
    batch = [deletion(position) for position in range(1, EVENTS + 1)]
    await sending._send_all(batch, Surroundings(lambda user_id: user_id))
    looking.cancel()
    assert [connection.positions for connection in told] == [[*range(1, EVENTS + 1)]] * 2
    assert set(seen) >= set(range(1, EVENTS))
