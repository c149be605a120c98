"""The floor: what two cores of this machine can do, and whether they are fit to measure on just now.

One cache line bounces between two pinned threads. On the usual server two cores of a socket need 100 to
350 ns for a round trip. About 85 ns and less says that the two are hardware threads of one core (on a virtual
machine they can become that from one minute to the next); 700 ns and more that somebody else computes, or
that they stand in different sockets.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from shmdriver.bench import native
from shmdriver.bench.native import Outcome

__all__ = ["BUSY_LOAD", "BUSY_NS", "SIBLINGS_NS", "Floor", "measure", "python_call_ns", "verdict"]

SIBLINGS_NS = 95
BUSY_NS = 700
BUSY_LOAD = 4.0
_RUN_MS = 20
_CALLS = 2000


@dataclass(frozen=True, slots=True)
class Floor:
    """One look: cache line there and back (ns, percentiles), memcpy of 1 MiB, one read of the clock."""

    p50_ns: float
    p99_ns: float
    p999_ns: float
    memcpy_gb_s: float
    clock_ns: float

    @property
    def disturbed(self) -> bool:
        """Whether a figure taken now is worth little."""
        return not SIBLINGS_NS < self.p50_ns < BUSY_NS


def measure(cores: tuple[int, int]) -> Floor:
    """Takes about 50 ms. ShmDriverError without a compiler; RuntimeError when it fails."""
    found = native.run("floor", {"first_core": cores[0], "second_core": cores[1], "run_ms": _RUN_MS})
    return _floor_of(found)


def python_call_ns() -> float:
    """What Python pays for a call into C that does nothing: how fast this interpreter is just now."""
    from shmdriver._native import lib

    call, best = lib.shmd_fork_generation, float("inf")
    for _ in range(5):
        start = time.perf_counter_ns()
        for _ in range(_CALLS):
            call()
        best = min(best, (time.perf_counter_ns() - start) / _CALLS)
    return best


def _floor_of(found: Outcome) -> Floor:
    names = ("p50_ns", "p99_ns", "p999_ns", "memcpy_gb_s", "clock_ns")
    return Floor(*(found.values[name] for name in names))


def verdict(p50_ns: float, cores: tuple[int, int]) -> str:
    """What a cache-line round trip of that long says about the two cores."""
    if cores[0] == cores[1]:
        return "one core only: two processes take turns, no figure is worth anything"
    if p50_ns <= SIBLINGS_NS:
        return "the two cores are siblings (hardware threads of one core): throw this run away"
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        return f"somebody else computes (load {load:.1f}, these make two): figures are worth little"
    if p50_ns >= BUSY_NS:
        return (
            f"somebody else computes (load {load:.1f}), or the cores are far apart: figures are worth little"
        )
    return "two separate cores, nobody else"
