"""Work that stands still while somebody is waited for.

Niceness is not enough where processors are few: what runs beside a command still takes its caches
and, on two threads of one core, half of the core. So it stands still for as long as a command is
under way, but for no more than a share of its time: it ends, however many commands there are.
"""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Self

# At most three quarters of its time.
STANDS_PER_RUN = 3.0
LEAST_STAND_SECONDS = 0.03
MOST_STAND_SECONDS = 0.3
# How soon it is seen that one may stand again.
LOOK_SECONDS = 0.1
# Commands come one after the other; to go on between two of them is to be in the way of both.
LINGER_SECONDS = 0.01

Listener = Callable[[bool], None]


class UnderWay:
    """Counts what is under way, entered once for each, in an event loop; tells when there begins
    to be something, and when there has been nothing for LINGER_SECONDS."""

    def __init__(self) -> None:
        self._count = 0
        self._ending: asyncio.TimerHandle | None = None
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def __enter__(self) -> None:
        self._count += 1
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        elif self._count == 1:
            self._tell(True)

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if self._count == 0:
            self._ending = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._end)

    def _end(self) -> None:
        self._ending = None
        self._tell(False)

    def _tell(self, is_something: bool) -> None:
        for listener in self._listeners:
            listener(is_something)


class Allowance:
    """How long somebody may stand still: earned by running, STANDS_PER_RUN for each second."""

    def __init__(self, now: float) -> None:
        self.stands = False
        self._seconds = 0.0
        self._since = now

    def look(self, now: float, *, is_wanted: bool) -> float:
        """Sets `stands`; the seconds that passed since the last look."""
        passed, self._since = now - self._since, now
        if self.stands:
            self._seconds -= passed
        else:
            earned = self._seconds + passed * STANDS_PER_RUN
            self._seconds = min(MOST_STAND_SECONDS, earned)
        least = 0.0 if self.stands else LEAST_STAND_SECONDS
        self.stands = is_wanted and self._seconds > least
        return passed

    @property
    def seconds_to_change(self) -> float:
        """After which `stands` changes, as long as it is wanted."""
        if self.stands:
            return self._seconds
        return (LEAST_STAND_SECONDS - self._seconds) / STANDS_PER_RUN


class Standing:
    """A process that can be asked to stand still, and does for as long as it `may`; `after_stand`
    is told the seconds of each stand. For use as a context manager, while it is at work."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        may: Callable[[], bool],
        after_stand: Callable[[float], None],
    ) -> None:
        self._process = process
        self._may = may
        self._after_stand = after_stand
        self._allowance = Allowance(monotonic())
        self._timer: asyncio.TimerHandle | None = None
        self._is_wanted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ask(False)

    def ask(self, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._look()

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        stood = self._allowance.stands
        is_wanted = self._is_wanted and self._may()
        passed = self._allowance.look(monotonic(), is_wanted=is_wanted)
        if stood != self._allowance.stands:
            self._send(signal.SIGCONT if stood else signal.SIGSTOP)
        if stood:
            self._after_stand(passed)
        if self._is_wanted:
            again = self._allowance.seconds_to_change if is_wanted else LOOK_SECONDS
            self._timer = asyncio.get_running_loop().call_later(again, self._look)

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
