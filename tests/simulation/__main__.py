"""``python -m tests.simulation``: many seeds, or one again with all that happened (docs/SIMULATION.md)."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from shmdriver.driver import driver
from tests.simulation.kernel import Crash
from tests.simulation.mutations import MUTATIONS, applied
from tests.simulation.rules import Violation
from tests.simulation.world import STEPS, World

CHUNK = 25
TRACE_LINES = 40
REPORTS_MAX = 5
MUTANT_SEEDS = 1000


def run_seed(seed: int, *, steps: int = STEPS, lines: int = TRACE_LINES) -> tuple[World, str]:
    """The world as it was left, and a report when a rule was broken or anything else went wrong in it."""
    world = World(seed, steps)
    try:
        world.run()
    except (Exception, Crash) as error:  # a crash that nobody caught is a defect of the simulation
        if not isinstance(error, Violation):
            world.trace.append(traceback.format_exc())
        head = f"seed {seed}: {type(error).__name__}: {error}"
        return world, "\n".join([head, *world.trace[-lines:], f"again: make simulate SEED={seed}"])
    return world, ""


def run_chunk(work: tuple[int, int, int]) -> tuple[Counter[str], Counter[str], list[str]]:
    """Seeds from, until, steps: what happened, where the driver was killed, reports."""
    gc.disable()  # collected once a chunk: a tenth of the time
    counts: Counter[str] = Counter()
    crashes: Counter[str] = Counter()
    reports = []
    for seed in range(work[0], work[1]):
        world, report = run_seed(seed, steps=work[2])
        counts.update(world.counts)
        crashes.update(world.kernel.crashes)
        if report:
            reports.append(report)
    gc.collect()
    return counts, crashes, reports


def run_seeds(first: int, seeds: int, steps: int, jobs: int) -> int:
    """On all cores; how many failed. Prints the first reports and a summary."""
    started = time.monotonic()
    end = first + seeds
    work = [(at, min(at + CHUNK, end), steps) for at in range(first, end, CHUNK)]
    counts: Counter[str] = Counter()
    crashes: Counter[str] = Counter()
    failed = done = 0
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        for chunk, (found, killed, reports) in zip(work, pool.map(run_chunk, work), strict=True):
            counts.update(found)
            crashes.update(killed)
            for report in reports[: max(REPORTS_MAX - failed, 0)]:
                print(report, flush=True)
            failed += len(reports)
            done += chunk[1] - chunk[0]
            if seeds > 1000 and done % 1000 == 0:
                print(f"{done} seeds, {failed} failed, {time.monotonic() - started:.0f} s", flush=True)
    took = time.monotonic() - started
    print(f"{done} seeds in {took:.1f} s ({done / took:.0f}/s), {failed} failed")
    print(", ".join(f"{number} {name}" for name, number in counts.items()))
    never = sorted(failpoints() - set(crashes))
    print(f"the driver was killed at {len(crashes)} places; at these failpoints never: {', '.join(never)}")
    return failed


def failpoints() -> set[str]:
    """The names in the driver's source."""
    sources = Path(driver.__file__).parent.glob("*.py")
    return {name for path in sources for name in re.findall(r'failpoint\("([^"]+)"\)', path.read_text())}


def run_mutations() -> int:
    """Each in turn until a seed finds it; how many were not found."""
    missed = 0
    for name in MUTATIONS:
        report, seed = "", -1
        with applied(name):
            for seed in range(MUTANT_SEEDS):
                report = run_seed(seed)[1]
                if report:
                    break
        missed += not report
        print(f"{name}: {report.splitlines()[0] if report else f'NOT FOUND in {seed + 1} seeds'}", flush=True)
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description="simulates the driver from seeds"
    )
    parser.add_argument("--seeds", type=int, default=10_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone, with all that happened")
    parser.add_argument("--steps", type=int, default=STEPS, help="acts a seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--mutations", action="store_true", help="break the driver, and see that it is noticed"
    )
    options = parser.parse_args()
    if options.mutations:
        return min(run_mutations(), 1)
    if options.seed is None:
        return min(run_seeds(options.first, options.seeds, options.steps, options.jobs), 1)
    world, report = run_seed(options.seed, steps=options.steps, lines=1_000_000)
    print(report or "\n".join([*world.trace, f"seed {options.seed}: all rules held: {world.counts}"]))
    return 1 if report else 0


if __name__ == "__main__":
    sys.exit(main())
