"""`python -m tests.faults [WORD…]`: the fault suite, or those faults whose names have these words.

Prints the seed, a line for each fault as it is judged, and the table; exit code 1 if anything was
lost, doubled, out of order or otherwise wrong, or if the system did not come back.
"""

import asyncio
import random
import sys
import tempfile
import traceback
from pathlib import Path

import click

from tests.faults.fault import Fault
from tests.faults.faults import FAULTS
from tests.faults.suite import Result, Suite, ordered, prepared, table

MAX_SEED = 2**32


@click.command()
@click.argument("words", nargs=-1)
@click.option("--seed", type=int, default=None, help="Repeats a run; chance's, if not given.")
@click.option("--seconds", type=float, default=30.0, show_default=True, help="What lasts, does so.")
@click.option("--victims", type=int, default=None, help="At most so many of each fault.")
@click.option("--list", "lists", is_flag=True, help="Only the names.")
def main(
    words: tuple[str, ...], seed: int | None, seconds: float, victims: int | None, lists: bool
) -> None:
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    if lists or not chosen:
        print("\n".join(fault.name for fault in chosen or FAULTS))
        sys.exit(not chosen)
    seed = random.randrange(MAX_SEED) if seed is None else seed
    print(f"seed {seed}", flush=True)
    for fault in chosen:
        if not fault.is_possible():
            print(f"{fault.name}: not run, this machine does not allow it")
    chosen = [fault for fault in chosen if fault.is_possible()]
    results = asyncio.run(_run(chosen, seed, seconds, victims))
    by_name = {result.name: result for result in results}
    print(table(by_name[fault.name] for fault in chosen if fault.name in by_name))
    print(f"seed {seed}")
    sys.exit(len(results) != len(chosen) or not all(result.is_good for result in results))


async def _run(chosen: list[Fault], seed: int, seconds: float, victims: int | None) -> list[Result]:
    """A system that did not come back, or has something wrong, is not used further."""
    left, results = ordered(chosen, seed), []
    while left:
        with tempfile.TemporaryDirectory(prefix="messenger-faults-") as directory:
            async with prepared(Path(directory), seed=seed, hold_seconds=seconds) as suite:
                while left:
                    result = await _result(suite, left.pop(0), victims)
                    results += [result] if result else []
                    if result is None or not result.is_good:
                        break
    return results


async def _result(suite: Suite, fault: Fault, victims: int | None) -> Result | None:
    try:
        result = await suite.run(fault, victims)
    except Exception:  # noqa: BLE001 - whatever it is, the others go on
        print(f"{fault.name}: the system did not come back", flush=True)
        traceback.print_exc()
        return None
    print(result.line, flush=True)
    return result


if __name__ == "__main__":
    main()
