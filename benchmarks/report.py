"""Rewrites the measured regions of docs/PERFORMANCE.md and README.md, and docs/plots, from what was measured.

    make bench-report                            # measures everything, then writes
    python -m benchmarks.report --measure peers  # one step anew: peers, all, growth, instructions, operations
    python -m benchmarks.report                  # writes from what is in build/bench

A region stands between two comments, as ``figures:begin`` and ``figures:end``; nothing else is touched.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.native_peers import GROUP
from benchmarks.peers import OURS
from benchmarks.run import ROOT
from shmdriver.bench import plots, tables
from shmdriver.bench.machine import line
from shmdriver.bench.placement import FAR, NEAR, boundary_ns, placed
from shmdriver.bench.report import Figure, Report
from shmdriver.bench.series import Series, number

BUILD = ROOT / "build" / "bench"
PAGE = ROOT / "docs" / "PERFORMANCE.md"
README = ROOT / "README.md"
PLOTS = ROOT / "docs" / "plots"
_PYTEST = ("pytest", "-q", "-o", "addopts=--import-mode=importlib", "benchmarks", "--benchmark-only")
STEPS: dict[str, tuple[str, ...]] = {
    "peers": ("benchmarks", "--rounds", "5", "--limit", "540", "--json", str(BUILD / "peers.json")),
    "all": ("shmdriver", "bench", "all", "--rounds", "3", "--out", str(BUILD / "all.json")),
    "growth": (
        "shmdriver",
        "bench",
        "growth",
        "--rounds",
        "3",
        "--seconds",
        "0.2",
        "--out",
        str(BUILD / "growth.json"),
    ),
    "instructions": ("benchmarks.instructions", str(BUILD / "instructions.json")),
    "operations": (*_PYTEST, "--benchmark-max-time=0.2", f"--benchmark-json={BUILD / 'operations.json'}"),
}
Rows = list[tuple[str, ...]]


def measure(steps: Sequence[str]) -> None:
    """Runs some steps; a step in which something failed still leaves its figures."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for step in steps:
        print(f"measuring: {step}", file=sys.stderr, flush=True)
        done = subprocess.run((sys.executable, "-m", *STEPS[step]), cwd=ROOT, check=False)
        if done.returncode != 0:
            print(f"{step}: exit code {done.returncode}; see above", file=sys.stderr)


def put(page: Path, name: str, text: str) -> None:
    """Replaces a region. ValueError when the page has none of that name."""
    before = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if len(pattern.findall(before)) != 1:
        raise ValueError(f"{page}: expected one region {begin} ... {end}")
    page.write_text(
        pattern.sub(lambda found: found[1] + text.rstrip() + "\n" + found[2], before), encoding="utf-8"
    )


def _where(report: Report) -> str:
    floor = report.floor
    return (
        f"{line(report.machine)}. Cache line there and back {floor['p50_ns'].text()} ns, memcpy of 1 MiB "
        f"{floor['memcpy_gb_s'].text()} GB/s, a call from Python into C {floor['python_call_ns'].text()} ns: "
        f"{report.verdict}. Medians of {report.rounds} rounds [lowest-highest]"
        + (f"; {report.disturbed} native runs stayed disturbed" if report.disturbed else "")
        + "."
    )


def peers_tables(report: Report, *, spread: bool) -> list[Rows]:
    """Python: ours, every peer, and how many times better than the best; by where the cores stood."""
    own = [each for each in report.figures.values() if each.group == "python"]
    return _by_place("Python to Python", own, _boundary_ns(report), spread=spread)


def native_peers_tables(report: Report, *, spread: bool) -> list[Rows]:
    """The same of native ones, of what ours and a peer were measured in."""
    compared = {each.what for each in report.figures.values() if each.group == GROUP}
    figures = (*_native(report, ("latency", "throughput")), *_native(report, (GROUP,)))
    own = [each for each in figures if each.what in compared]
    return _by_place("C to C", own, _boundary_ns(report), spread=spread)


def _boundary_ns(report: Report) -> float | None:
    return boundary_ns(report.figures.values())


def _by_place(title: str, figures: Sequence[Figure], boundary: float | None, *, spread: bool) -> list[Rows]:
    found: dict[str, dict[str, dict[str, Series]]] = {"": {}, NEAR: {}, FAR: {}}
    for figure in figures:
        for where, own in placed(figure, boundary):
            found[where].setdefault(figure.what, {})[figure.who] = own.series
    compared = ((where, _both(table)) for where, table in found.items())
    return [
        _beside(_joined(title, where), table, spread=spread, by_round=not where)
        for where, table in compared
        if table
    ]


def _joined(*words: str) -> str:
    return ", ".join(filter(None, words))


def _both(table: dict[str, dict[str, Series]]) -> dict[str, dict[str, Series]]:
    """The rows that have us and somebody else."""
    return {what: row for what, row in table.items() if OURS in row and len(row) > 1}


def _beside(title: str, table: dict[str, dict[str, Series]], *, spread: bool, by_round: bool) -> Rows:
    peers = [who for who in dict.fromkeys(who for row in table.values() for who in row) if who != OURS]
    rows: Rows = [(title, "unit", OURS, *peers, "x best peer")]
    for what, row in table.items():
        cells = [_cell(row.get(who), spread=spread) for who in (OURS, *peers)]
        rows.append((what, next(iter(row.values())).unit, *cells, _over_best(row, by_round=by_round)))
    return rows


def _cell(series: Series | None, *, spread: bool) -> str:
    if series is None:
        return "-"
    return series.text() if spread or not series.good else number(series.median)


def _over_best(row: dict[str, Series], *, by_round: bool) -> str:
    """By round, or of the medians: runs that were sorted by where the cores stood are of no common round."""
    others = [series for who, series in row.items() if who != OURS and series.good]
    ours = row.get(OURS)
    if ours is None or not ours.good or not others:
        return "-"
    best = (min if ours.lower else max)(others, key=lambda series: series.median)
    if by_round:
        return number(ours.advantage_over(best).median)
    return number(best.median / ours.median if ours.lower else ours.median / best.median)


def native_rows(figures: Sequence[Figure], boundary: float | None) -> Rows:
    """Native: what, unit, figure, multiple of the floor; near and far cores beside each other."""
    wheres = ("",) if boundary is None else (NEAR, FAR)
    title = "median [lowest-highest]"
    heads = [head for where in wheres for head in (_joined(where, title), "x floor")]
    rows: Rows = [("C to C", "unit", *heads)]
    for figure in figures:
        own = dict(placed(figure, boundary))
        cells = [cell for where in wheres for cell in _with_floor(own.get(where))]
        rows.append((figure.what, figure.series.unit, *cells))
    return rows


def _with_floor(figure: Figure | None) -> tuple[str, str]:
    return ("-", "") if figure is None else (figure.series.text(), figure.over_floor_text)


def _native(report: Report, groups: Sequence[str], side: str = "native") -> list[Figure]:
    return [each for each in report.figures.values() if each.side == side and each.group in groups]


def _problems(report: Report) -> str:
    lines = [f"- not measured: {name}: {why}" for name, why in report.missing.items()]
    lines += [f"- failed: {problem}" for problem in dict.fromkeys(report.problems)]
    return "\n\n" + "\n".join(lines) if lines else ""


def write_peers(report: Report) -> None:
    """The table of the page, and the short one of the README."""
    versions = ", ".join(f"{name} {version}" for name, version in report.machine["packages"].items())
    boundary = _boundary_ns(report)
    figures = native_rows(_native(report, ("latency", "throughput", "fanout", "frames")), boundary)
    beside = (*peers_tables(report, spread=True), *native_peers_tables(report, spread=True))
    text = "\n\n".join((f"{_where(report)} {versions}.", *map(tables.markdown, beside), ""))
    put(PAGE, "peers", text + tables.markdown(figures) + _problems(report))
    short = [
        [row for row in table if not row[0].endswith(", p99")]
        for table in (*peers_tables(report, spread=False), *native_peers_tables(report, spread=False))
    ]
    highlights: Rows = [("C to C", "", "x floor")]
    for figure in _native(report, ("latency", "throughput", "frames")):
        if figure.axis and figure.what.endswith(("p50", "one by one", "of 64", "copied in", "claimed")):
            highlights += [_highlight(where, each) for where, each in placed(figure, boundary)]
    head = (
        f"Two processes on two cores of one machine ({report.machine['cpu']}, a cache line takes "
        f"{report.floor['p50_ns'].text()} ns there and back), everything in one run, medians of "
        f"{report.rounds} rounds (`make bench`). [Performance](docs/PERFORMANCE.md) has all of it."
    )
    parts = [head, *map(tables.markdown, short), tables.markdown(highlights)]
    put(README, "figures", "\n\n".join(parts))


def _highlight(where: str, figure: Figure) -> tuple[str, ...]:
    ratio = figure.over_floor
    floor = number(ratio.median) if ratio is not None and ratio.good else ""
    return _joined(figure.what, where), f"{number(figure.series.median)} {figure.series.unit}", floor


def write_all(report: Report) -> None:
    """Latencies, fan-out, frames, attach, idle."""
    percentiles = tables.markdown(tables.histograms(report))
    pictures = _pictures(report)
    put(PAGE, "latencies", f"{_where(report)}\n\n{percentiles}\n\n{pictures.pop('percentiles', '')}")
    parts = []
    for group in ("throughput", "fanout", "frames", "attach", "idle"):
        rows: Rows = [(group, "side", "median [lowest-highest]", "unit")]
        found = [each for each in report.figures.values() if each.group == group]
        rows += [(each.what, each.side, each.series.text(), each.series.unit) for each in found]
        parts.append(tables.markdown(rows))
    put(PAGE, "commands", "\n\n".join((*parts, *pictures.values())) + _problems(report))


def write_growth(report: Report) -> None:
    """One table an axis."""
    parts = []
    for axis in dict.fromkeys(figure.axis for figure in report.figures.values()):
        rows: Rows = [(axis, "publish, ns a message [lowest-highest]")]
        own = [figure for figure in report.figures.values() if figure.axis == axis]
        rows += [(figure.what, figure.series.text()) for figure in own]
        parts.append(tables.markdown(rows))
    parts += _pictures(report).values()
    put(PAGE, "growth", f"{_where(report)}\n\n" + "\n\n".join(parts) + _problems(report))


def write_instructions(data: dict[str, dict[str, float]]) -> None:
    """A row a kind of work."""
    rows: Rows = [("instructions a message", "publish", "read and advance")]
    rows += [(name, f"{each['publish']:.0f}", f"{each['read']:.0f}") for name, each in data.items()]
    put(PAGE, "instructions", tables.markdown(rows))


def write_operations(data: dict[str, Any]) -> None:
    """Medians of pytest-benchmark."""
    rows: Rows = [("operation, in one process", "median, µs", "quartiles, µs", "rounds")]
    for each in data["benchmarks"]:
        stats = each["stats"]
        median, low, high = (number(stats[name] * 1e6) for name in ("median", "q1", "q3"))
        rows.append(
            (
                each["name"].removeprefix("test_").replace("_", " "),
                median,
                f"{low}-{high}",
                str(stats["rounds"]),
            )
        )
    put(PAGE, "operations", tables.markdown(rows))


def _pictures(report: Report) -> dict[str, str]:
    """Draws what the report has figures for: Markdown that shows it, by name."""
    drawn = plots.draw(report, PLOTS)
    return {path.stem: f"![{path.stem.replace('-', ' over ', 1)}](plots/{path.name})" for path in drawn}


WRITERS: dict[str, Callable[[Path], None]] = {
    "peers": lambda path: write_peers(Report.load(path)),
    "all": lambda path: write_all(Report.load(path)),
    "growth": lambda path: write_growth(Report.load(path)),
    "instructions": lambda path: write_instructions(json.loads(path.read_text(encoding="utf-8"))),
    "operations": lambda path: write_operations(json.loads(path.read_text(encoding="utf-8"))),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--measure", nargs="*", choices=list(STEPS), metavar="STEP", help="measure these first (none: all)"
    )
    options = parser.parse_args(arguments)
    if options.measure is not None:
        measure(options.measure or list(STEPS))
    for step, write in WRITERS.items():
        path = BUILD / f"{step}.json"
        if path.exists():
            write(path)
        else:
            print(f"{step}: not measured, its region stays as it is", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
