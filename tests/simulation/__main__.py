"""``python -m tests.simulation``: many seeds on all cores, or one again with its trace.

    python -m tests.simulation --seeds 10000              seeds 0 to 9999
    python -m tests.simulation --seed 4711 --trace        that one, with everything that happened
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter

from tests.simulation.model import Violation
from tests.simulation.world import STEPS, World

CHUNK = 50
TRACE_LINES = 40


def run_seed(seed: int, steps: int = STEPS) -> tuple[Counter[str], str]:
    """What happened, counted; and a report when a rule was broken."""
    world = World(seed, steps)
    try:
        world.run()
    except Exception as error:
        kind = "violation" if isinstance(error, Violation) else type(error).__name__
        if not isinstance(error, Violation):
            import traceback

            world.trace.append(traceback.format_exc())
        report = [f"seed {seed}: {kind}: {error}", *(f"    {line}" for line in world.trace[-TRACE_LINES:])]
        report.append(f"again: python -m tests.simulation --seed {seed} --trace" + (f" --steps {steps}" if steps != STEPS else ""))
        return Counter(world.counts), "\n".join(report)
    return Counter(world.counts), ""


def _run_chunk(work: tuple[int, int, int]) -> tuple[Counter[str], list[str], int]:
    first, end, steps = work
    counts: Counter[str] = Counter()
    reports = []
    for seed in range(first, end):
        found, report = run_seed(seed, steps)
        counts.update(found)
        if report:
            reports.append(report)
    return counts, reports, end - first


def run_seeds(first: int, count: int, *, steps: int = STEPS, jobs: int = 0, reports_max: int = 5) -> list[str]:
    """Runs them on all cores; the reports of the first that failed. Prints how it goes."""
    started = time.monotonic()
    work = [(at, min(at + CHUNK, first + count), steps) for at in range(first, first + count, CHUNK)]
    counts: Counter[str] = Counter()
    reports: list[str] = []
    done = 0
    # A process a chunk: whatever a killed driver left in its own memory goes with it.
    with multiprocessing.get_context("fork").Pool(jobs or os.cpu_count() or 1, maxtasksperchild=1) as pool:
        for found, failed, seeds in pool.imap_unordered(_run_chunk, work):
            counts.update(found)
            done += seeds
            for report in failed[: max(reports_max - len(reports), 0)]:
                print(report, flush=True)
            reports += failed
            if done % 1000 < CHUNK and count > 1000:
                print(f"{done} seeds, {len(reports)} failed, {time.monotonic() - started:.0f} s", flush=True)
    shown = ", ".join(f"{number} {name}" for name, number in counts.items())
    print(f"{done} seeds in {time.monotonic() - started:.1f} s, {len(reports)} failed: {shown}", flush=True)
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="one seed, in this process")
    parser.add_argument("--trace", action="store_true", help="with --seed: everything that happened")
    parser.add_argument("--steps", type=int, default=STEPS, help="acts a seed")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0: one a core")
    options = parser.parse_args()
    if options.seed is None:
        return 1 if run_seeds(options.first, options.seeds, steps=options.steps, jobs=options.jobs) else 0
    if options.trace:
        global TRACE_LINES  # noqa: PLW0603 -- a run of one seed shows all
        TRACE_LINES = 1_000_000
    counts, report = run_seed(options.seed, options.steps)
    print(report or f"seed {options.seed}: all rules held: {dict(counts)}")
    return 1 if report else 0


if __name__ == "__main__":
    sys.exit(main())
