"""Measures cases in rounds: A/B/A/B, so that what the machine does meanwhile meets all alike.

A case runs between two looks at the floor. A native one between floors that differ, that show siblings or a
stranger, or that lost its cores too often, is repeated, and counted as disturbed when it stays so. Ratios
to the floor are taken from the floors around a run, and say where its cores stood, if these are alike.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shmdriver.bench import calibration, machine
from shmdriver.bench.calibration import Floor
from shmdriver.bench.case import Case
from shmdriver.bench.histogram import Histogram
from shmdriver.bench.native import Outcome
from shmdriver.bench.report import Report
from shmdriver.bench.series import Series
from shmdriver.demo.processes import DriverProcess
from shmdriver.errors import ShmDriverError

__all__ = ["Rounds", "measure"]

_FLOORS_DIFFER = 1.3
_PREEMPTED_MAX = 50
_MAX_BYTES = 512 << 20
_SHM = "/dev/shm"
_GRACE_MS = 1000  # an ungated consumer may be late for the end of its stream


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often, with how many tries for a disturbed native case, on which cores."""

    count: int = 5
    tries: int = 3
    cores: tuple[int, int] = (0, 1)
    floors: bool = True  # whether each case gets its own; else one a round
    retry_s: float = 20.0  # for all repetitions of disturbed runs together: a busy machine stays busy
    limit_s: float = 600.0  # no further round is begun that would not end within this


def measure(
    cases: Sequence[Case],
    rounds: Rounds,
    *,
    instance: str | None = None,
    say: Callable[[str], object] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Report:
    """All cases, every round. ``instance``: of a running driver; else one is started and ended.

    ShmDriverError when nothing can be measured at all; a case that fails is a problem of the report.
    """
    report = Report(machine.describe())
    start_s = time.monotonic()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # its processes end with it
    if instance is not None:
        _measure(cases, rounds, instance, report, say)
    else:
        with DriverProcess(f"bench-{os.getpid()}", _room_bytes(), grace_ms=_GRACE_MS) as driver:
            _measure(cases, rounds, driver.instance, report, say)
    report.seconds = time.monotonic() - start_s
    return report


def _room_bytes() -> int:
    found = os.statvfs(_SHM)
    return max(16 << 20, min(_MAX_BYTES, found.f_bavail * found.f_frsize // 2))


def _measure(
    cases: Sequence[Case], rounds: Rounds, instance: str, report: Report, say: Callable[[str], object]
) -> None:
    floor: Floor | None = None
    native = any(case.side == "native" for case in cases)
    start_s = time.monotonic()
    for number in range(rounds.count):
        if number and number * rounds.limit_s < (number + 1) * (time.monotonic() - start_s):
            say(f"no round {number + 1}: it would take longer than the limit of {rounds.limit_s:.0f} s")
            break
        report.rounds = number + 1
        floor = _look_if_possible(rounds, report, needed=native)
        if floor is not None and number == 0:
            say(f"{floor.p50_ns:.0f} ns for a cache line there and back: {report.verdict}")
        for position, case in enumerate(cases, 1):
            done = f"round {number + 1}/{rounds.count}, {position}/{len(cases)}"
            say(f"{done}: {case.side} {case.what}, {case.who}")
            try:
                outcome, floor, stood = _run(case, rounds, instance, report, floor)
            except ShmDriverError:
                raise  # nothing to measure with
            except Exception as error:  # a case that fails is a result too
                _failed(report, case, error)
            else:
                _take(report, case, outcome, floor, stood=stood)
    _look_if_possible(rounds, report, needed=False)


def _look_if_possible(rounds: Rounds, report: Report, *, needed: bool) -> Floor | None:
    """One look at the floor. None when there is no compiler and none is needed."""
    call_ns = report.floor.setdefault("python_call_ns", Series("ns", lower=True))
    call_ns.values.append(calibration.python_call_ns())
    try:
        return _look(rounds, report)
    except ShmDriverError as error:
        if needed:
            raise
        report.verdict = f"not calibrated: {error}"
        return None


def _look(rounds: Rounds, report: Report) -> Floor:
    """One look at the floor, into the report."""
    found = calibration.measure(rounds.cores)
    for name, unit in (("p50_ns", "ns"), ("p99_ns", "ns"), ("memcpy_gb_s", "GB/s"), ("clock_ns", "ns")):
        series = report.floor.setdefault(name, Series(unit, lower=unit == "ns"))
        series.values.append(getattr(found, name))
    report.verdict = calibration.verdict(report.floor["p50_ns"].median, rounds.cores)
    return found


def _run(
    case: Case, rounds: Rounds, instance: str, report: Report, floor: Floor | None
) -> tuple[Outcome, Floor | None, bool]:
    """The outcome, the floor that it is compared with, and whether the cores stood still meanwhile."""
    if floor is None or not rounds.floors:
        return case.measure(instance), floor, False
    tries = 0
    while True:
        start_s = time.monotonic()
        before = _look(rounds, report)
        outcome = case.measure(instance)
        after = _look(rounds, report)
        tries += 1
        low, high = sorted((before.p50_ns, after.p50_ns))
        stood = high <= low * _FLOORS_DIFFER and not before.disturbed and not after.disturbed
        if case.side != "native" or (stood and outcome.preempted <= _PREEMPTED_MAX):
            return outcome, _between(before, after), stood
        if tries >= rounds.tries or report.retried_s > rounds.retry_s:
            report.disturbed += 1
            return outcome, _between(before, after), stood
        report.retried_s += time.monotonic() - start_s


def _between(before: Floor, after: Floor) -> Floor:
    names = Floor.__slots__
    return Floor(*(statistics.mean((getattr(before, name), getattr(after, name))) for name in names))


def _take(report: Report, case: Case, outcome: Outcome, floor: Floor | None, *, stood: bool) -> None:
    for metric in case.metrics:
        figure = report.figure(case, metric)
        value = outcome.values.get(metric.key)
        figure.series.values.append(None if value is None else value * metric.scale)
        figure.floors_ns.append(floor.p50_ns if floor is not None and stood else None)
        if figure.over_floor is not None:
            lowest = getattr(floor, metric.floor, None)
            figure.over_floor.values.append(value / lowest if value is not None and lowest else None)
    if outcome.samples_ns.size:
        name = f"{case.side} {case.what}" + ("" if case.who == "shmdriver" else f", {case.who}")
        if name not in report.histograms:
            report.histograms[name] = Histogram()
        report.histograms[name].record(outcome.samples_ns)


def _failed(report: Report, case: Case, error: Exception) -> None:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
    report.problems.append(f"{case.side} {case.what}, {case.who}: {text}")
    for metric in case.metrics:
        figure = report.figure(case, metric)
        figure.series.values.append(None)
        figure.floors_ns.append(None)
        if figure.over_floor is not None:
            figure.over_floor.values.append(None)
