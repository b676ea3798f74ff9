"""Image workers: bounded, replaced, harmless to everyone else, and gone when their process is."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import PIL.Image
import psutil
import pytest

from infra.errors import ImageBroken, ImageTooLarge, Unavailable
from infra.images import pool
from infra.images.jobs import MEGABYTE, Limits
from infra.images.pool import prolong
from infra.metrics import ImageMetrics
from infra.priority import LAST
from tests.infra.machines import niceness_of_session
from tests.infra.pictures import encoded, quarters
from tests.infra.rendering import Made, Studio, is_worker, studio, workers

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.005
SMALL = encoded(quarters(64, 48), "JPEG")
LARGE = encoded(PIL.Image.effect_noise((2_000, 1_000), 60), "JPEG")

PROGRAM = """
import asyncio, sys, tempfile
from pathlib import Path
from infra.images.pool import Images

async def main():
    async with Images(workers=2) as images:
        source = Path(sys.argv[1])
        with tempfile.TemporaryDirectory() as directory:
            work = [images.render(source, Path(directory), ["thumbnail"]) for _ in range(2)]
            await asyncio.gather(*work)
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""
NOTHING_OF_PILLOW = """
import sys
import infra.images.pool
assert not [name for name in sys.modules if name.startswith("PIL")]
"""


async def eventually(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not is_so():
            await asyncio.sleep(POLL_SECONDS)


async def is_right(work: Studio) -> bool:
    return (await work.make(SMALL)).image.width == 64


@asynccontextmanager
async def stopped_at_work(
    work: Studio, hangs_after_seconds: float = Limits().wall_seconds
) -> AsyncIterator[tuple[psutil.Process, asyncio.Task[Made]]]:
    """A worker that was given an image and does not get to it."""
    assert await is_right(work)
    (worker,) = workers()
    (idle,) = work.images._idle
    idle._limits = msgspec.structs.replace(idle._limits, wall_seconds=hangs_after_seconds)
    worker.suspend()
    task = asyncio.create_task(work.make(SMALL))
    await asyncio.sleep(POLL_SECONDS * 10)
    assert not task.done()
    try:
        yield worker, task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def standing(work: Studio, *, is_asked: bool) -> asyncio.Task[Made]:
    """An image over which the worker was seen to stand still. Who is held up misses it, and looks
    at the next one."""
    (worker,) = workers()
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            work.images.make_way(is_asked)
            making = asyncio.create_task(work.make(LARGE))
            while not making.done():
                if worker.status() == psutil.STATUS_STOPPED:
                    return making
                await asyncio.sleep(POLL_SECONDS)
                if work.images._busy and not is_asked:
                    work.images.make_way(True)
            await making


async def test_workers_start_with_the_first_image_and_end_with_the_pool(tmp_path: Path) -> None:
    async with studio(tmp_path, workers=2) as work:
        assert workers() == []
        await asyncio.gather(*(work.make(SMALL) for _ in range(8)))
        assert len(workers()) == 2
    assert workers() == []


async def test_a_worker_is_nice_and_knows_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESSENGER_SECRET", "do not tell")
    async with studio(tmp_path, pool.WORKER) as work:
        assert await is_right(work)
        (worker,) = workers()
        assert worker.nice() == LAST
        assert os.sched_getscheduler(worker.pid) == os.SCHED_IDLE
        assert niceness_of_session(worker.pid) in (None, LAST)
        assert not [name for name in worker.environ() if name.startswith("MESSENGER")]
        assert worker.environ()["PYTHONPATH"] == str(ROOT), "it is of the code that we are of"
        limit = worker.rlimit(psutil.RLIMIT_AS)
        assert limit == (Limits().memory_bytes, Limits().memory_bytes)


def test_decoders_are_not_even_loaded_outside_of_workers() -> None:
    subprocess.run([sys.executable, "-c", NOTHING_OF_PILLOW], check=True, timeout=WAIT_SECONDS)


async def test_a_worker_killed_at_work_is_replaced_and_the_image_made(tmp_path: Path) -> None:
    async with studio(tmp_path) as work, stopped_at_work(work) as (worker, task):
        worker.kill()
        assert (await task).image.width == 64
        assert worker.pid not in [one.pid for one in workers()]


async def test_a_worker_killed_while_idle_is_not_missed(tmp_path: Path) -> None:
    async with studio(tmp_path, workers=2) as work:
        await asyncio.gather(*(work.make(SMALL) for _ in range(4)))
        for worker in workers():
            worker.kill()
        assert await is_right(work)


async def test_workers_that_are_always_killed_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = pool._Worker.start

    async def killed(limits: Limits, metrics: ImageMetrics) -> pool._Worker:
        """Before it is given anything: one that is looked for may be done already."""
        worker = await start(limits, metrics)
        os.kill(worker._process.pid, signal.SIGKILL)
        return worker

    async with studio(tmp_path) as work:
        with monkeypatch.context() as killing:
            killing.setattr(pool._Worker, "start", killed)
            with pytest.raises(Unavailable, match="end before"):
                await work.make(SMALL)
        assert await is_right(work)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
async def test_an_image_that_crashes_its_worker_is_broken(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with studio(tmp_path) as work:
        async with stopped_at_work(work) as (worker, task):
            worker.send_signal(number)
            worker.resume()
            with pytest.raises(ImageBroken):
                await task
        assert await is_right(work)


async def test_a_worker_that_hangs_is_killed_and_replaced(tmp_path: Path) -> None:
    async with studio(tmp_path) as work:
        async with stopped_at_work(work, hangs_after_seconds=0.5) as (worker, task):
            with pytest.raises(Unavailable, match="in time"):
                await task
            assert not worker.is_running()
        assert await is_right(work)


async def test_a_worker_makes_way_when_asked_and_is_done_though_nobody_ends_asking(
    tmp_path: Path,
) -> None:
    async with studio(tmp_path) as work:
        assert await is_right(work)
        (worker,) = workers()
        for is_asked_first in (True, False):
            making = await standing(work, is_asked=is_asked_first)
            assert (await making).image.width == 2_000
            assert worker.status() != psutil.STATUS_STOPPED
            work.images.make_way(False)
        assert [one.pid for one in workers()] == [worker.pid]


async def test_no_worker_makes_way_while_an_image_has_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "PATIENT_SECONDS", 0.0)
    stood: list[str] = []
    async with studio(tmp_path) as work:
        assert await is_right(work)
        (worker,) = workers()
        work.images.make_way(True)
        making = [asyncio.create_task(work.make(LARGE)) for _ in range(3)]
        await eventually(lambda: len(work.images._waiting) == 2)
        while work.images._waiting:
            stood += [worker.status()] * (worker.status() == psutil.STATUS_STOPPED)
            await asyncio.sleep(POLL_SECONDS)
        assert stood == []
        assert [(await one).image.width for one in making] == [2_000] * 3
        await (await standing(work, is_asked=True))


async def test_a_worker_killed_while_it_makes_way_is_replaced(tmp_path: Path) -> None:
    async with studio(tmp_path) as work:
        assert await is_right(work)
        (worker,) = workers()
        making = await standing(work, is_asked=True)
        worker.kill()
        assert (await making).image.width == 2_000


async def test_the_time_that_a_worker_may_take_does_not_run_while_it_makes_way() -> None:
    async with asyncio.timeout(WAIT_SECONDS) as patience:
        before = patience.when()
        assert before is not None
        prolong(patience, 3.0)
        prolong(patience, 4.0)
        await asyncio.sleep(0)
        assert patience.when() == before + 7.0


async def test_an_upload_that_is_given_up_takes_its_worker_with_it(tmp_path: Path) -> None:
    async with studio(tmp_path) as work:
        async with stopped_at_work(work) as (worker, task):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not worker.is_running()
        assert await is_right(work)


async def test_an_image_that_takes_too_long_is_too_large(tmp_path: Path) -> None:
    """Hundreds of scans, of which each goes over all pixels: the bomb that no size betrays."""
    picture = encoded(PIL.Image.new("L", (6_000, 6_000)), "JPEG", progressive=True)
    at = picture.rindex(b"\xff\xda")
    scan = picture[at:-2]
    slow = picture[:-2] + scan * ((9 * MEGABYTE - len(picture)) // len(scan)) + b"\xff\xd9"
    async with studio(tmp_path, limits=Limits(cpu_seconds=1)) as work:
        with pytest.raises(ImageTooLarge, match="too long"):
            await work.make(slow)
        assert workers() == []
        assert await is_right(work)


async def test_an_image_that_takes_too_much_memory_is_too_large(tmp_path: Path) -> None:
    large = encoded(PIL.Image.new("RGB", (6_000, 6_000)), "PNG")
    async with studio(tmp_path, limits=Limits(memory_bytes=128 * MEGABYTE)) as work:
        with pytest.raises(ImageTooLarge, match="memory"):
            await work.make(large)
        assert await is_right(work)


async def test_no_more_wait_than_may(tmp_path: Path) -> None:
    async with studio(tmp_path, max_waiting=1) as work, stopped_at_work(work) as (worker, task):
        waiting = asyncio.create_task(work.make(SMALL))
        await asyncio.sleep(POLL_SECONDS)
        with pytest.raises(Unavailable, match="too many"):
            await work.make(SMALL)
        worker.resume()
        assert [made.image.width for made in (await task, await waiting)] == [64, 64]
        assert await is_right(work)


async def test_a_disk_that_takes_no_more_is_not_the_image_s_fault(tmp_path: Path) -> None:
    noise = PIL.Image.effect_noise((500, 500), 90)
    async with studio(tmp_path, limits=Limits(output_bytes=20_000)) as work:
        with pytest.raises(Unavailable, match="could not be stored"):
            await work.make(encoded(noise, "PNG"))
        assert await is_right(work)


async def test_kill_9_of_a_process_leaves_no_worker_not_even_one_that_hangs(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    source.write_bytes(SMALL)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(source)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_SECONDS):
        assert await process.stdout.readline() == b"ready\n"
    children = [one for one in psutil.Process(process.pid).children() if is_worker(one)]
    assert len(children) == 2
    children[0].suspend()
    process.kill()
    await process.wait()
    await eventually(lambda: not any(is_worker(one) for one in children))
