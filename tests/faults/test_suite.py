"""The fault suite in short: some of its faults, on one system, judged as all of them are.

`make faults` runs all; a seed repeats what happens, and in which order.
"""

import os
from pathlib import Path
from random import Random

import pytest

from tests.faults.fault import Disturbance, Scene
from tests.faults.faults import FAULTS
from tests.faults.killing import BACKENDS, BACKENDS_OF, LEADING_RELAY, found
from tests.faults.suite import Suite, ordered, prepared, table

SEED = int(os.environ.get("FAULTS_SEED", "1"))
HOLD_SECONDS = 1.0
# What no other test does to real processes under load.
SHORT = (
    "relay killed: mid-window",
    "API killed: after commit, before the answer",
    "projector killed: between rows and checkpoint",
)


def test_names_are_no_one_else_s() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert set(SHORT) <= {fault.name for fault in FAULTS}


def test_a_seed_repeats_the_order() -> None:
    orders = [[fault.name for fault in ordered(FAULTS, seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert sorted(orders[0]) == sorted(fault.name for fault in FAULTS)


@pytest.mark.timeout(600)
async def test_nothing_is_lost_doubled_or_out_of_order(tmp_path: Path) -> None:
    chosen = [fault for fault in FAULTS if fault.name in SHORT]
    async with prepared(tmp_path, seed=SEED, hold_seconds=HOLD_SECONDS) as suite:
        await they_are_there(suite)
        results = [await suite.run(fault, victims=1) for fault in ordered(chosen, SEED)]
    print(table(results))
    assert [result.line for result in results if not result.is_good] == []
    assert all(result.acknowledged for result in results)


async def they_are_there(suite: Suite) -> None:
    """The sessions that other faults look for by what their processes call themselves."""
    scene = Scene(suite.system, suite.load, Random(SEED), HOLD_SECONDS, Disturbance())
    for name in BACKENDS:
        assert await found(scene, BACKENDS_OF, name)
    assert await found(scene, LEADING_RELAY)
