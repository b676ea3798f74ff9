"""Who stands still while somebody is waited for: never otherwise, and never for too long."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.standing import (
    LEAST_STAND_SECONDS,
    LINGER_SECONDS,
    MOST_STAND_SECONDS,
    STANDS_PER_RUN,
    Allowance,
    Standing,
    UnderWay,
)

WAIT_SECONDS = 60.0
POLL_SECONDS = 0.001
LATE_SECONDS = 0.01

asks = st.lists(
    st.tuples(st.booleans(), st.floats(0, 2), st.floats(0, LATE_SECONDS)), min_size=1, max_size=60
)


@given(asks)
def test_it_stands_only_when_asked_and_three_quarters_of_its_time_at_most(
    asked: list[tuple[bool, float, float]],
) -> None:
    """Looked at when asked and, a little late, whenever it may have changed."""
    now, stood, ran, longest = 0.0, 0.0, 0.0, 0.0
    allowance = Allowance(now)
    for is_wanted, seconds, late in asked:
        allowance.look(now, is_wanted=is_wanted)
        until = now + seconds
        while now < until:
            change = allowance.seconds_to_change + late if is_wanted else seconds
            was_standing, begun = allowance.stands, now
            assert is_wanted or not was_standing
            now = min(until, now + max(change, 1e-6))
            passed = allowance.look(now, is_wanted=is_wanted)
            assert passed == now - begun
            if was_standing:
                stood += passed
                longest = max(longest, passed)
            else:
                ran += passed
            assert stood <= ran * STANDS_PER_RUN + LATE_SECONDS + 1e-6
    assert longest <= MOST_STAND_SECONDS + LATE_SECONDS + 1e-6


def test_it_stands_as_long_as_it_has_earned_and_then_runs_until_it_has_again() -> None:
    allowance = Allowance(0.0)
    allowance.look(0.0, is_wanted=True)
    assert not allowance.stands
    first = allowance.seconds_to_change
    assert first == pytest.approx(LEAST_STAND_SECONDS / STANDS_PER_RUN)
    allowance.look(first * 1.01, is_wanted=True)
    assert allowance.stands
    assert allowance.seconds_to_change == pytest.approx(LEAST_STAND_SECONDS * 1.01)
    allowance.look(first * 1.01 + LEAST_STAND_SECONDS * 1.02, is_wanted=True)
    assert not allowance.stands


def always() -> bool:
    return True


def untold(seconds: float) -> None:
    pass


@asynccontextmanager
async def burning() -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def becomes(process: asyncio.subprocess.Process, *, standing: bool) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while (psutil.Process(process.pid).status() == psutil.STATUS_STOPPED) != standing:
            await asyncio.sleep(POLL_SECONDS)


async def test_a_process_stands_and_goes_on_again_and_again_while_it_is_asked_to() -> None:
    stands: list[float] = []
    async with burning() as process:
        with Standing(process, always, stands.append) as standing:
            standing.ask(True)
            for _ in range(5):
                await becomes(process, standing=True)
                await becomes(process, standing=False)
            assert len(stands) >= 4
            standing.ask(False)
            await becomes(process, standing=False)
            told = len(stands)
            await asyncio.sleep(LEAST_STAND_SECONDS * 4)
            assert len(stands) == told
        assert sum(stands) > 4 * LEAST_STAND_SECONDS * 0.9


async def test_who_is_no_more_asked_goes_on_at_once_and_so_does_whose_work_is_over() -> None:
    async with burning() as process:
        with Standing(process, always, untold) as standing:
            for _ in range(3):
                standing.ask(True)
                await becomes(process, standing=True)
                standing.ask(False)
                await becomes(process, standing=False)
            standing.ask(True)
            await becomes(process, standing=True)
        await becomes(process, standing=False)
        await asyncio.sleep(LEAST_STAND_SECONDS * 4)
        await becomes(process, standing=False)


async def test_who_may_not_stand_runs_until_it_may_again() -> None:
    may: list[bool] = []
    stands: list[float] = []
    async with burning() as process:
        with Standing(process, lambda: bool(may), stands.append) as standing:
            standing.ask(True)
            for _ in range(2):
                told = len(stands)
                await asyncio.sleep(LEAST_STAND_SECONDS * 4)
                assert len(stands) == told
                assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED
                may.append(True)
                await becomes(process, standing=True)
                may.clear()
                await becomes(process, standing=False)


async def test_one_that_has_ended_is_asked_in_vain() -> None:
    async with burning() as process:
        with Standing(process, always, untold) as standing:
            process.kill()
            await process.wait()
            standing.ask(True)
            await asyncio.sleep(LEAST_STAND_SECONDS * 4)


async def test_of_many_that_are_under_way_the_first_and_the_last_are_told() -> None:
    told: list[bool] = []
    under_way = UnderWay()
    under_way.listen(told.append)
    with under_way:
        with under_way, under_way:
            pass
        await asyncio.sleep(LINGER_SECONDS * 4)
        assert told == [True]
    with under_way:
        pass
    assert told == [True], "one comes after the other"
    await asyncio.sleep(LINGER_SECONDS * 4)
    assert told == [True, False]
    with pytest.raises(ValueError, match="wrong"), under_way:
        raise ValueError("wrong")
    await asyncio.sleep(LINGER_SECONDS * 4)
    assert told == [True, False] * 2
