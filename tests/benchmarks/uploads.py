"""`POST /v1/attachments` with a photograph of 3 megapixels, 16 at once; and what uploads do to
`send-message`.

The sends go on at a fixed rate, by turns alone and beside uploaders that never rest, so that
what else the machine does meets both alike; and by turns beside a process as nice as the workers
that does nothing but take the processor, which is what uploads would cost if they cost nothing
else. Baseline of the speed of uploads in the same run: Pillow making the three renditions of the
same photograph, one after the other, in one process.
"""

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from time import perf_counter

import httpx
import msgspec
from PIL import Image

from tests.benchmarks import harness, http_send, system
from tests.benchmarks.harness import Report, below, below_times_baseline, mean, percentile
from tests.benchmarks.system import Running
from tests.benchmarks.uploading import TIMEOUT_SECONDS, Plan, upload, uploading

SIZE = (2_048, 1_536)
AT_ONCE = 16
SECONDS = 20.0
QUICK_SECONDS = 3.0
BESIDE_UPLOADERS = 4
RATE = 200.0
ROUNDS = 5
ROUND_SECONDS = 8.0
WARM_UP_SECONDS = 5.0
BASELINE_IMAGES = 8
RATIO = 1.5
BURNER = "from infra.images.worker import be_nice\nbe_nice()\nwhile True: pass"
PEAK_MIB = 300.0  # of an API process, whatever is uploaded


async def run(report: Report, *, is_quick: bool) -> None:
    seconds = QUICK_SECONDS if is_quick else SECONDS
    image = photograph()
    report.note(f"a JPEG of {SIZE[0]} x {SIZE[1]}, {len(image) / 1e6:.2f} MB")
    async with system.up() as running:
        harness.note_server(report, running.database_url)
        plan = await _plan(running, image)
        await _many(report, running, plan, seconds)
        few = msgspec.structs.replace(plan, people=plan.people[:BESIDE_UPLOADERS])
        await _beside(report, running, few, is_quick=is_quick)


def photograph() -> bytes:
    """Noise over a slope: about as many bytes as a camera makes of such a size."""
    slope = Image.linear_gradient("L").resize(SIZE)
    noise = Image.effect_noise(SIZE, 30)
    file = io.BytesIO()
    Image.merge("RGB", (slope, noise, Image.blend(slope, noise, 0.3))).save(file, "JPEG")
    return file.getvalue()


async def _plan(running: Running, image: bytes) -> Plan:
    """A group of those who upload; the workers have made one image."""
    numbers = count(1_000)  # of users that the senders do not use
    async with httpx.AsyncClient(base_url=running.api_url, timeout=TIMEOUT_SECONDS) as client:
        people = [await http_send.person(client, next(numbers)) for _ in range(AT_ONCE)]
        seats = await http_send.group(client, people)
        plan = Plan(running.api_url, [token for token, _ in seats], seats[0][1], image)
        client.headers["Authorization"] = f"Bearer {plan.people[0]}"
        await upload(client, plan)
    return plan


async def _many(report: Report, running: Running, plan: Plan, seconds: float) -> None:
    alone = _pillow(plan.image)
    before = system.peak_mib(running.pids["api"])
    began = perf_counter()
    async with uploading(plan) as uploads:
        await asyncio.sleep(seconds)
    times, took = uploads.seconds, perf_counter() - began
    after = _pillow(plan.image)
    name = f"{AT_ONCE} at once"
    report.add(f"{name}", len(times) / took, "uploads/s", baseline=mean([alone, after]))
    report.add(f"{name}, p50", percentile(times, 0.5), "s")
    report.add(f"{name}, p99", percentile(times, 0.99), "s")
    peak, workers = system.peak_mib(running.pids["api"]), system.children_mib(running.pids["api"])
    report.add(f"{name}, most memory of the API process", peak, "MiB", target=below(PEAK_MIB))
    report.note(f"API process before: {before:.0f} MiB at most; no upload is in it whole")
    for number, worker in enumerate(workers, 1):
        report.add(f"{name}, most memory of worker {number}", worker, "MiB")


def _pillow(image: bytes) -> float:
    """Images a second."""
    began = perf_counter()
    for _ in range(BASELINE_IMAGES):
        original = Image.open(io.BytesIO(image)).convert("RGB")
        original.save(io.BytesIO(), "JPEG", quality=85, progressive=True)
        for size, quality in ((800, 80), (300, 75)):
            smaller = original.copy()
            smaller.thumbnail((size, size))
            smaller.save(io.BytesIO(), "JPEG", quality=quality)
    return BASELINE_IMAGES / (perf_counter() - began)


async def _beside(report: Report, running: Running, plan: Plan, *, is_quick: bool) -> None:
    sends = await http_send.requests(running.api_url)
    seconds = QUICK_SECONDS if is_quick else ROUND_SECONDS
    await http_send.load(running, sends, RATE, WARM_UP_SECONDS)
    alone, burning, beside = [], [], []
    for number in range(2 if is_quick else ROUNDS):
        one = await http_send.load(running, sends, RATE, seconds)
        async with _burner():
            hot = await http_send.load(running, sends, RATE, seconds)
        async with uploading(plan) as uploads:
            other = await http_send.load(running, sends, RATE, seconds)
        assert one.failures == other.failures == 0, (one.errors, other.errors)
        for times, result in ((alone, one), (burning, hot), (beside, other)):
            times.append(result.p99_ms)
        report.note(
            f"round {number + 1}, alone, beside the burner, beside uploaders: "
            f"p50 {one.p50_ms:.1f}, {hot.p50_ms:.1f}, {other.p50_ms:.1f} ms, "
            f"p99 {one.p99_ms:.1f}, {hot.p99_ms:.1f}, {other.p99_ms:.1f} ms, {len(uploads.seconds)} uploads, "
            f"p50 {percentile(uploads.seconds, 0.5):.2f} s"
        )
    base = percentile(alone, 0.5)
    name = f"send-message at {RATE:.0f}/s"
    report.add(
        f"{name} beside a process that burns, p99 (median of rounds)",
        percentile(burning, 0.5),
        "ms",
        baseline=base,
    )
    report.add(
        f"{name} beside {len(plan.people)} uploaders, p99 (median of rounds)",
        percentile(beside, 0.5),
        "ms",
        baseline=base,
        target=below_times_baseline(RATIO),
    )


@asynccontextmanager
async def _burner() -> AsyncIterator[None]:
    """In a session of its own, as workers are."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BURNER, start_new_session=True
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()
