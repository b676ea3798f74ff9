"""Places to start at: never more at once than there are, and a client that is waited for has none."""

import asyncio

import pytest

from api.stream import places
from api.stream.places import Crowded, Place, Places


async def test_who_is_waited_for_lends_the_place_and_takes_it_again() -> None:
    of_all = Places()
    of_all.free = asyncio.Semaphore(1)
    slow, prompt = Place(of_all), Place(of_all)
    await slow.take()
    async with slow.lent():
        await prompt.take()
        assert of_all.free.locked()
        prompt.give_back()
    assert of_all.free.locked()
    slow.give_back()
    slow.give_back()
    assert not of_all.free.locked()
    await prompt.take()
    assert of_all.free.locked(), "given back once, however often it is said"


async def test_who_leaves_while_waited_for_has_no_place_to_give_back() -> None:
    of_all = Places()
    of_all.free = asyncio.Semaphore(1)
    gone, other = Place(of_all), Place(of_all)
    await gone.take()
    leaving = gone.lent()
    await leaving.__aenter__()
    await other.take()
    await leaving.__aexit__(ConnectionError, ConnectionError(), None)
    gone.give_back()
    assert of_all.free.locked()
    assert of_all.stalled == 0


async def test_only_so_many_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_STALLED", 1)
    of_all = Places()
    one, other = Place(of_all), Place(of_all)
    await one.take()
    await other.take()
    async with one.lent():
        with pytest.raises(Crowded):
            async with other.lent():
                raise AssertionError("there is one too many")


async def test_a_place_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "TAKE_SECONDS", 0.01)
    of_all = Places()
    of_all.free = asyncio.Semaphore(0)
    with pytest.raises(TimeoutError):
        await Place(of_all).take()
