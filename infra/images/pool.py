"""Uploaded images: looked at, decoded and made anew, in a few worker processes.

Never in this process: a stranger's bytes meet decoders only where the kernel bounds memory and
time, and where a crash costs that one upload. Workers start with the first image, are nice to
everyone else, stand still while commands are under way (`infra.standing`), know none of our
secrets, and end with us, even by kill -9. One that overdoes it is killed, and the next image gets a
new one. Which refusal is whose fault:

    it took more CPU or memory than it may   ImageTooLarge
    its bytes crashed the decoder            ImageBroken
    its worker was killed from outside       tried once more, then Unavailable
    its worker hangs, or gets no CPU         Unavailable
    too many wait before it                  Unavailable
"""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Self

import msgspec

from domain.attachment import EXTENSIONS, FileType, Size
from infra.embedded.process import KILL_TIMEOUT_SECONDS, leashed, plain_environ
from infra.errors import (
    ImageBroken,
    ImageTooLarge,
    MessengerError,
    NotAnImage,
    Unavailable,
)
from infra.images.jobs import Answer, Done, Failed, Job, Limits, Refused
from infra.metrics import ImageMetrics
from infra.standing import Standing

MAX_WAITING = 32
WAIT_SECONDS = 30.0
# Workers make no way while an image has waited for longer than this.
PATIENT_SECONDS = 5.0
# What decoders leak goes with the worker.
JOBS_PER_WORKER = 500

WORKER = "infra.images.worker"
ROOT = Path(__file__).parents[2]
ENVIRON = {
    "PYTHONPATH": str(ROOT),
    # Else glibc learns from large pictures to keep them: 190 MB of an idle worker, not 30.
    "MALLOC_MMAP_THRESHOLD_": str(256 * 1024),
}
ANSWERS: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
REFUSALS = {refusal.__name__: refusal for refusal in (NotAnImage, ImageTooLarge, ImageBroken)}
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """The first of the renditions that were asked for; all of them are of its type."""

    file_type: FileType
    file_size: int
    width: int
    height: int

    @property
    def extension(self) -> str:
        return EXTENSIONS[self.file_type]


class _Ended(Exception):
    """The worker is gone, by no fault of the image's."""


class Images:
    """A pool of workers; for use as a context manager."""

    def __init__(
        self,
        *,
        workers: int,
        max_waiting: int = MAX_WAITING,
        limits: Limits | None = None,
        metrics: ImageMetrics | None = None,
    ) -> None:
        self._metrics = metrics or ImageMetrics()
        self._turns = asyncio.Semaphore(workers)
        self._places = self.limit = workers + max_waiting
        self._limits = limits or Limits()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._makes_way = False
        # Since when each waits, the first of them first.
        self._waiting: dict[object, float] = {}

    def make_way(self, is_wanted: bool) -> None:
        """Those at work stand still for now, unless others wait for them for long; or go on."""
        self._makes_way = is_wanted
        for worker in self._busy:
            worker.make_way(is_wanted)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Those at work go with whoever waits for them."""
        while self._idle:
            await self._idle.pop().kill()

    @property
    def under_way(self) -> int:
        return self.limit - self._places

    async def render(self, source: Path, directory: Path, sizes: Sequence[Size]) -> Image:
        """Writes DIRECTORY/SIZE.EXTENSION; both paths are absolute. Raises ImageRefused, or
        Unavailable."""
        outcome = "interrupted"
        try:
            with self._metrics.seconds.time():
                image = await self._render(source, directory, sizes)
            outcome = "done"
        except MessengerError as error:
            outcome = type(error).__name__
            raise
        finally:
            self._metrics.outcomes.labels(outcome).inc()
        return image

    async def _render(self, source: Path, directory: Path, sizes: Sequence[Size]) -> Image:
        job = Job(source=str(source), directory=str(directory), sizes=tuple(sizes))
        async with self._turn():
            with suppress(_Ended):
                return _image(await self._answer(job, self._living()))
            # Whoever ended one idle worker may have ended them all.
            with suppress(_Ended):
                return _image(await self._answer(job, None))
        raise Unavailable("the workers for images end before they are done: try again")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._places <= 0:
            raise Unavailable("too many images wait to be worked on: try again")
        self._places -= 1
        mine = object()
        self._waiting[mine] = monotonic()
        try:
            async with asyncio.timeout(WAIT_SECONDS) as patience, self._turns:
                patience.reschedule(None)
                del self._waiting[mine]
                yield
        except TimeoutError:
            raise Unavailable("the images before this one take too long: try again") from None
        finally:
            self._places += 1
            self._waiting.pop(mine, None)

    def _may_stand(self) -> bool:
        longest = next(iter(self._waiting.values()), None)
        return longest is None or monotonic() - longest < PATIENT_SECONDS

    async def _answer(self, job: Job, idle: "_Worker | None") -> Answer:
        """A worker that did not answer, for whatever reason, is not used again."""
        if idle is None:
            self._metrics.workers_started.inc()
        worker = idle or await _Worker.start(self._limits, self._metrics)
        self._busy.add(worker)
        try:
            answer = await worker.do(job, self._may_stand, makes_way=self._makes_way)
        except BaseException:
            await worker.kill()
            raise
        finally:
            self._busy.discard(worker)
        if worker.jobs < JOBS_PER_WORKER:
            self._idle.append(worker)
        else:
            await worker.kill()
        return answer

    def _living(self) -> "_Worker | None":
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
        return None


class _Worker:
    """One process, which does one job after the other."""

    def __init__(self, process: Process, limits: Limits, metrics: ImageMetrics) -> None:
        self._metrics = metrics
        self._process = process
        self._limits = limits
        self._standing: Standing | None = None
        self.jobs = 0

    def make_way(self, is_wanted: bool) -> None:
        if self._standing is not None:
            self._standing.ask(is_wanted)

    @classmethod
    async def start(cls, limits: Limits, metrics: ImageMetrics) -> Self:
        python = [sys.executable, "-P", "-s", "-m", WORKER]
        try:
            process = await asyncio.create_subprocess_exec(
                *leashed([*python, msgspec.json.encode(limits).decode()]),
                stdin=PIPE,
                stdout=PIPE,
                cwd="/",
                env={**plain_environ(Path("/")), **ENVIRON},
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(f"no worker for images can be started: {error}") from error
        return cls(process, limits, metrics)

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def do(self, job: Job, may_stand: Callable[[], bool], *, makes_way: bool) -> Answer:
        """Meanwhile it can be asked to `make_way`."""
        self.jobs += 1
        try:
            async with asyncio.timeout(self._limits.wall_seconds) as patience:
                after_stand = partial(self._after_stand, patience)
                with Standing(self._process, may_stand, after_stand) as self._standing:
                    self.make_way(makes_way)
                    line = await self._ask(msgspec.json.encode(job) + b"\n")
                    if line.endswith(b"\n"):
                        return ANSWERS.decode(line)
                    code = await self._process.wait()
        except TimeoutError:
            raise Unavailable("the image was not done in time: try again") from None
        raise _ending(code)

    def _after_stand(self, patience: asyncio.Timeout, seconds: float) -> None:
        prolong(patience, seconds)
        self._metrics.stood_seconds.inc(seconds)

    async def _ask(self, line: bytes) -> bytes:
        """Its answer; without its end if the worker ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(ConnectionError):
            self._process.stdin.write(line)
            await self._process.stdin.drain()
        return await self._process.stdout.readline()

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await asyncio.wait_for(self._process.wait(), KILL_TIMEOUT_SECONDS)


def prolong(patience: asyncio.Timeout, seconds: float) -> None:
    """By the time in which it was not allowed to run."""
    when = patience.when()
    if when is not None and not patience.expired():
        patience.reschedule(when + seconds)


def _ending(code: int) -> Exception:
    if code == -signal.SIGXCPU:
        return ImageTooLarge("the image takes too long to work on")
    if -code in CRASHES:
        return ImageBroken("the image is corrupt")
    return _Ended(code)


def _image(answer: Answer) -> Image:
    match answer:
        case Done():
            return Image(**msgspec.structs.asdict(answer))
        case Refused():
            raise REFUSALS[answer.kind](answer.detail)
        case Failed(is_fault=False):
            raise Unavailable(f"the image could not be stored: {answer.detail}")
        case Failed():
            raise MessengerError(f"an image was not worked on: {answer.detail}")
