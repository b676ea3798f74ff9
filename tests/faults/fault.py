"""What a fault is: done to each of its victims in turn, while the load goes on."""

import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.faults.load import Load
from tests.faults.system import System


class Disturbance:
    """`is_over`: it ends now, and its stroke goes on until what was killed is started again."""

    def __init__(self) -> None:
        self.ended: float | None = None

    def is_over(self) -> None:
        self.ended = time.monotonic()


class Scene(NamedTuple):
    """`hold_seconds`: how long a fault that lasts does. `chance` is the fault's own."""

    system: System
    load: Load
    chance: random.Random
    hold_seconds: float
    disturbance: Disturbance


Stroke = Callable[[Scene, str], Awaitable[None]]


class Fault(NamedTuple):
    """`stroke` comes back when the disturbance is over; the system may not have recovered yet.
    `is_possible` tells whether this machine allows it."""

    name: str
    victims: tuple[str, ...]
    stroke: Stroke
    is_possible: Callable[[], bool] = lambda: True
