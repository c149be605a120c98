"""Everything in one run: ours native and in Python, and the peers beside it, interleaved.

    make bench
    python -m benchmarks --rounds 5 --json results.json
    python -m benchmarks --only python --scenarios single,roundtrip --peers pyzmq

Rounds go A/B/A/B: every round measures everything once, so that what the machine does meanwhile meets all
alike; ratios are taken within a round. A peer that is not installed, or fails, is reported as such.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.native_peers import native_peer_cases
from benchmarks.peers import OURS, available
from shmdriver.bench import cases, machine, runner, tables
from shmdriver.bench import scenarios as scenarios_
from shmdriver.bench.case import Case, Metric
from shmdriver.bench.channel import Channel
from shmdriver.bench.native import Outcome
from shmdriver.bench.report import Report
from shmdriver.bench.scenarios import SCENARIOS, Run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "bench" / "results.json"
MIB = 1 << 20
_RATE = (cases.MESSAGES,)
_TRIPS = tuple(
    Metric(key, label, "µs", lower=True)
    for key, label in (("p50_us", "p50"), ("p99_us", "p99"), ("p999_us", "p99.9"))
)
# name: (title, bytes, metrics, messages between two looks at the clock)
PYTHON: dict[str, tuple[str, int, tuple[Metric, ...], int]] = {
    "single": ("64 B one by one", 64, _RATE, 500),
    "iterate": ("64 B, iterated", 64, _RATE, 500),
    "batch": (f"64 B records, {scenarios_.RECORDS} a call", 64, _RATE, 500),
    "array": (f"64 B records, {scenarios_.RECORDS} in one message", 64, _RATE, 500),
    "roundtrip": ("64 B round trip", 64, _TRIPS, 100),
    "frames": ("1 MiB copied in", MIB, (Metric("gb_s", "", "GB/s"),), 500),
    "claim": ("1 MiB claimed", MIB, (Metric("messages_s", "", "M frames/s", 1e-6),), 500),
}


def native_cases(how: Run) -> tuple[list[Case], dict[str, str]]:
    """The peers' and ours, between looks at the floor; and why a peer is missing, by name."""
    own = cases.Wanted(sides=("native",), seconds=how.seconds / 2, warm_s=0.05, cores=how.cores)
    made, missing = native_peer_cases(own)
    made += cases.make(("latency", "throughput"), own)
    made += cases.make(("fanout",), replace(own, consumers=(2,)))
    made += cases.make(("frames",), replace(own, bytes_each=(MIB,)))
    return made, missing


def python_cases(how: Run, names: set[str], kinds: dict[str, type[Channel]]) -> list[Case]:
    """Every scenario, the peers of each next to one another."""
    made = []
    batches: dict[str, Outcome] = {}
    for name, (title, size, metrics, chunk) in PYTHON.items():
        for who, kind in kinds.items():
            if name in names and name not in kind.skips:
                run = _measured(name, kind, Run(how.seconds, how.warm_s, how.cores, chunk), size)
                if kind.array_sender is Channel.array_sender:
                    run = _shared(name, who, run, batches)
                made.append(Case("python", "python", title, run, metrics, who))
    return made


def _shared(
    name: str, who: str, run: Callable[[str], Outcome], batches: dict[str, Outcome]
) -> Callable[[str], Outcome]:
    """Who sends records as one message anyway runs that once a round; the figure stands in both rows."""

    def batch(instance: str) -> Outcome:
        batches[who] = run(instance)
        return batches[who]

    def array(instance: str) -> Outcome:
        return batches.pop(who, None) or run(instance)

    return {"batch": batch, "array": array}.get(name, run)


def _measured(name: str, kind: type[Channel], how: Run, size: int) -> Callable[[str], Outcome]:
    options: dict[str, Any] = {"bytes_each": size}
    return lambda instance: scenarios_.run(SCENARIOS[name], kind, how, instance=instance, **options)


def peers_table(report: Report) -> str:
    """One row a scenario, one column a peer, and how many times better ours is."""
    figures = [figure for figure in report.figures.values() if figure.group == "python"]
    peers = list(dict.fromkeys(figure.who for figure in figures))
    others = [peer for peer in peers if peer != OURS]
    rows: list[tuple[str, ...]] = [
        ("Python, two processes", "unit", *peers, *(f"x {peer}" for peer in others))
    ]
    for what in dict.fromkeys(figure.what for figure in figures):
        row = {figure.who: figure.series for figure in figures if figure.what == what}
        ours = row.get(OURS)
        cells = [row[peer].text() if peer in row else "-" for peer in peers]
        ratios = [ours.advantage_over(row[peer]).text() if ours and peer in row else "-" for peer in others]
        rows.append((what, next(iter(row.values())).unit, *cells, *ratios))
    return tables.aligned(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", "--reps", type=int, default=3, help="rounds (default 3)")
    parser.add_argument(
        "--limit", type=float, default=280, metavar="SECONDS", help="no round that would end later"
    )
    parser.add_argument("--seconds", type=float, default=0.4, help="length of a run (default 0.4)")
    parser.add_argument("--only", choices=("native", "python"), help="one half of it")
    parser.add_argument("--scenarios", default="", metavar="A,B", help="some of the Python scenarios")
    parser.add_argument("--peers", default="", metavar="A,B", help="some of the peers; ours is always there")
    parser.add_argument("--cores", default=None, metavar="A,B", help="producer's and consumer's core")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE")
    return parser


def _chosen(parser: argparse.ArgumentParser, text: str, known: set[str]) -> set[str]:
    names = {name for name in text.split(",") if name}
    if names - known:
        parser.error(f"{', '.join(sorted(names - known))}: expected some of {', '.join(sorted(known))}")
    return names or known


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    kinds, missing = available()
    chosen = _chosen(parser, options.peers, set(kinds) | set(missing)) | {OURS}
    names = _chosen(parser, options.scenarios, set(PYTHON))
    kinds = {name: kind for name, kind in kinds.items() if name in chosen}
    how = Run(options.seconds, 0.1, machine.cores(options.cores))
    made: list[Case] = []
    if options.only != "python":
        made, absent = native_cases(how)
        missing |= absent
        chosen |= set(absent)
    made += [] if options.only == "native" else python_cases(how, names, kinds)
    report = runner.measure(made, runner.Rounds(count=options.rounds, cores=how.cores, limit_s=options.limit))
    report.missing = {name: why for name, why in missing.items() if name in chosen}
    report.options = {"rounds": options.rounds, "seconds": options.seconds, "peers": sorted(kinds)}
    report.machine["packages"] |= machine.versions(("pyzmq", "faster-fifo", "iceoryx2", "tachyon-ipc"))
    report.save(options.json)
    print(tables.text(report, without=("python",)))
    if options.only != "native":
        print("\n" + peers_table(report))
    print(f"\nall figures: {options.json}", file=sys.stderr)
    return 1 if report.problems else 0
