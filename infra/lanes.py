"""Commands of one sender that are under way together, and take effect in the order they came.

Each is decided and sent off in its turn, while those before it are still being written. One that
comes back (its guards failed) is the next again, before all that came after it. Two that saw
different versions of a stream are never under way at once: else the guards of the first could
fail where those of the second hold, and the second would come before it.
"""

import asyncio
from bisect import insort
from collections.abc import Mapping

from domain.ids import StreamId


class Lane:
    """For any number of commands, in the order in which they join."""

    def __init__(self) -> None:
        self._joined = 0
        self._unsent: list[Place] = []
        self._under_way: set[Place] = set()
        self._seen: dict[StreamId, int] = {}

    def join(self) -> "Place":
        """Who joins leaves in any case, or those behind it wait for ever."""
        self._joined += 1
        place = Place(self, self._joined)
        self._unsent.append(place)
        return place

    def is_next(self, place: "Place") -> bool:
        return self._unsent[0] is place

    def agrees(self, seen: Mapping[StreamId, int]) -> bool:
        return all(self._seen.get(stream, version) == version for stream, version in seen.items())

    def send_off(self, place: "Place", seen: Mapping[StreamId, int]) -> None:
        self._unsent.remove(place)
        self._under_way.add(place)
        self._seen.update(seen)
        self._wake_next()

    def take_back(self, place: "Place") -> None:
        self._land(place)
        insort(self._unsent, place, key=lambda one: one.number)
        self._wake_next()

    def remove(self, place: "Place") -> None:
        if place in self._under_way:
            self._land(place)
        else:
            self._unsent.remove(place)
        self._wake_next()

    def _land(self, place: "Place") -> None:
        self._under_way.remove(place)
        if not self._under_way:
            self._seen.clear()

    def _wake_next(self) -> None:
        if self._unsent:
            self._unsent[0].wake()


class Place:
    """One command's place in its lane."""

    def __init__(self, lane: Lane, number: int) -> None:
        self._lane = lane
        self._woken: asyncio.Future[None] | None = None
        self.number = number

    async def turn(self) -> None:
        """Waits for those before it to be sent off."""
        while not self._lane.is_next(self):
            await self._wait()

    async def send_off(self, seen: Mapping[StreamId, int]) -> None:
        """Waits for those under way that saw other versions, or came back to go before it."""
        while not (self._lane.is_next(self) and self._lane.agrees(seen)):
            await self._wait()
        self._lane.send_off(self, seen)

    def come_back(self) -> None:
        self._lane.take_back(self)

    def leave(self) -> None:
        self._lane.remove(self)

    def wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def _wait(self) -> None:
        self._woken = asyncio.get_running_loop().create_future()
        await self._woken
