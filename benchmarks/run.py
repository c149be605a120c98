"""Runs everything, interleaved, and prints one table; writes the same and more as JSON.

    make bench
    python -m benchmarks --reps 5 --json results.json
    python -m benchmarks --only python --scenarios single,roundtrip --peers shmdriver,pyzmq

Rounds go A/B/A/B: every round measures everything once, so that what the machine does meanwhile meets
all alike; ratios are taken within a round. Before and after each native case the floor is measured (two
threads bounce one cache line): a virtual machine's cores can be near to or far from one another, and that
changes by itself. A case between two floors that differ, or that lost its cores to somebody else, is
repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, native_programs, scenarios
from benchmarks.peers import available
from benchmarks.series import Series
from benchmarks.table import native_table, python_table
from shmdriver.demo.processes import DriverProcess

_MAX_BYTES = 256 << 20
_TRIES = 3
_FLOORS_DIFFER = 1.3
_PREEMPTED_MAX = 50


class Results:
    """Everything that was measured in one call."""

    def __init__(self) -> None:
        self.floor_ns = Series("ns", lower=True)
        self.memcpy_gb_s = Series("GB/s")
        self.native: dict[str, Series] = {}
        self.over_floor: dict[str, Series] = {}  # round trips as multiples of the floors around them
        self.python: dict[str, dict[str, Series]] = {}
        self.disturbed = 0
        self.errors: list[str] = []

    def as_json(self, reps: int) -> dict[str, Any]:
        return {
            "machine": machine.describe(),
            "reps": reps,
            "floor": {"cache_line_ns": self.floor_ns.as_json(), "memcpy_gb_s": self.memcpy_gb_s.as_json()},
            "native": {name: series.as_json() for name, series in self.native.items()},
            "native_over_floor": {name: series.as_json() for name, series in self.over_floor.items()},
            "python": {
                name: {peer: series.as_json() for peer, series in row.items()}
                for name, row in self.python.items()
            },
            "disturbed": self.disturbed,
            "errors": self.errors,
        }


def measure_native(results: Results, instance: str) -> None:
    """One round of all native cases."""
    values: dict[tuple[str, tuple[str, ...]], dict[str, float]] = {}
    for case in native_programs.CASES:
        key = (case.program, case.arguments)
        if key not in values:
            values[key] = _between_floors(results, case, instance)
        found = values[key]
        series = results.native.setdefault(case.name, Series(case.unit, case.lower))
        value = found.get(case.metric)
        series.values.append(None if value is None else value * case.scale)
        if case.program == "roundtrip":
            over = results.over_floor.setdefault(case.name, Series("x floor", lower=True))
            floor = found.get("floor_" + case.metric)
            over.values.append(None if value is None or floor is None else value / floor)


def _between_floors(results: Results, case: native_programs.Case, instance: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for attempt in range(_TRIES):
        before = native_programs.floor().values
        try:
            run = native_programs.run(case, instance)
        except RuntimeError as error:
            results.errors.append(str(error))
            return {}
        after = native_programs.floor().values
        results.floor_ns.values += [before["p50_ns"], after["p50_ns"]]
        results.memcpy_gb_s.values += [before["memcpy_gb_s"], after["memcpy_gb_s"]]
        found = dict(run.values)
        for metric in ("p50_ns", "p99_ns"):
            found["floor_" + metric] = (before[metric] + after[metric]) / 2
        low, high = sorted((before["p50_ns"], after["p50_ns"]))
        if high <= low * _FLOORS_DIFFER and run.preempted <= _PREEMPTED_MAX:
            break
        results.disturbed += attempt == _TRIES - 1
    return found


def measure_python(results: Results, instance: str, names: set[str], peers: set[str]) -> None:
    """One round of all scenarios, the peers of each next to one another."""
    for scenario in scenarios.SCENARIOS:
        if names and scenario.name not in names:
            continue
        row = results.python.setdefault(scenario.title, {})
        for name, peer in available().items():
            if scenario.name not in peer.counts or (peers and name not in peers):
                continue
            series = row.setdefault(name, Series(scenario.unit, scenario.lower))
            try:
                found = scenarios.run(scenario, peer, instance)
            except Exception as error:  # a peer that fails is a result too
                results.errors.append(f"{name}, {scenario.name}: {error}")
                series.values.append(None)
            else:
                series.values.append(found[scenario.metric])
                _add_tail(results, scenario, name, found)


def _add_tail(results: Results, scenario: scenarios.Scenario, name: str, found: dict[str, float]) -> None:
    for metric, label in (("p99_us", "p99"), ("p999_us", "p99.9")):
        if metric in found:
            title = scenario.title.replace("p50", label)
            row = results.python.setdefault(title, {})
            row.setdefault(name, Series(scenario.unit, scenario.lower)).values.append(found[metric])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reps", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--only", choices=("native", "python"), help="one half of it")
    parser.add_argument("--scenarios", default="", metavar="A,B", help="some of the Python scenarios")
    parser.add_argument("--peers", default="", metavar="A,B", help="some of the peers")
    parser.add_argument("--json", type=Path, default=native_programs.BUILD / "results.json", metavar="FILE")
    options = parser.parse_args(arguments)
    known = {scenario.name for scenario in scenarios.SCENARIOS}, set(available())
    wanted = tuple({name for name in text.split(",") if name} for text in (options.scenarios, options.peers))
    for chosen, possible in zip(wanted, known, strict=True):
        if chosen - possible:
            parser.error(f"{', '.join(chosen - possible)}: expected some of {', '.join(sorted(possible))}")
    native_programs.build()
    results, started_s = Results(), time.monotonic()
    with DriverProcess(f"bench-{os.getpid()}", _MAX_BYTES) as driver:
        for number in range(options.reps):
            print(f"round {number + 1} of {options.reps}", file=sys.stderr, flush=True)
            if options.only != "python":
                measure_native(results, driver.instance)
            if options.only != "native":
                measure_python(results, driver.instance, *wanted)
    found = results.as_json(options.reps)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    host = found["machine"]
    print(
        f"{host['cpu']}, {host['cores']} cores, Linux {host['kernel']}, Python {host['python']}, "
        f"{host['compiler']}, commit {host['commit']}{' and changes' if host['dirty'] else ''}"
    )
    print(f"medians of {options.reps} [smallest-largest], {time.monotonic() - started_s:.0f} s")
    if results.native:
        print(native_table(results.native, results.over_floor, results.floor_ns, results.memcpy_gb_s))
        print(f"{results.disturbed} native runs stayed disturbed after {_TRIES} tries")
    if results.python:
        print(python_table(results.python))
    for error in results.errors:
        print(f"FAILED {error}")
    print(f"all figures: {options.json}")
    return 1 if results.errors else 0
