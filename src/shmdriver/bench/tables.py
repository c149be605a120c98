"""A report as text: one table a group, for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shmdriver.bench.histogram import PERCENTILES
from shmdriver.bench.machine import line
from shmdriver.bench.placement import boundary_ns, placed
from shmdriver.bench.report import Figure, Report
from shmdriver.bench.series import number

__all__ = ["aligned", "head", "histograms", "markdown", "text"]

_HEADS = ("", "what", "median [low-high]", "unit", "x floor")


def head(report: Report) -> str:
    """Machine, calibration, and how far to believe it."""
    lines = [line(report.machine)]
    if "p50_ns" in report.floor:
        lines.append(
            f"cache line there and back {report.floor['p50_ns'].text()} ns, memcpy of 1 MiB "
            f"{report.floor['memcpy_gb_s'].text()} GB/s: {report.verdict}"
        )
    else:
        lines.append(report.verdict)
    if "python_call_ns" in report.floor:
        lines.append(
            f"a call from Python into C that does nothing {report.floor['python_call_ns'].text()} ns"
        )
    lines.append(f"{report.rounds} round{'s' if report.rounds != 1 else ''}, {report.seconds:.0f} s")
    if report.disturbed:
        lines.append(f"{report.disturbed} native runs stayed disturbed after all tries")
    return "\n".join(lines)


def text(report: Report, *, without: tuple[str, ...] = ()) -> str:
    """Everything that was measured but some groups, then what failed or is missing."""
    parts = [head(report)]
    groups = dict.fromkeys(figure.group for figure in report.figures.values())
    boundary = boundary_ns(report.figures.values())
    for group in [name for name in groups if name not in without]:
        figures = [figure for figure in report.figures.values() if figure.group == group]
        rows = [_row(own, where) for figure in figures for where, own in placed(figure, boundary)]
        parts.append(f"{group}\n{aligned([_HEADS, *rows])}")
    if report.histograms:
        parts.append(f"latencies, HDR histograms\n{aligned(histograms(report))}")
    parts += [f"not measured: {name}: {why}" for name, why in report.missing.items()]
    parts += [f"FAILED {problem}" for problem in report.problems]
    return "\n\n".join(parts)


def _row(figure: Figure, where: str) -> tuple[str, ...]:
    who = "" if figure.who == "shmdriver" else f", {figure.who}"
    where = where and f" ({where})"
    return (
        figure.side,
        figure.what + who + where,
        figure.series.text(),
        figure.series.unit,
        figure.over_floor_text,
    )


def histograms(report: Report) -> list[tuple[str, ...]]:
    """Rows of percentiles in microseconds, a head first."""
    rows = [("µs", *(("max" if at == 100 else f"p{at:g}") for at in PERCENTILES), "samples")]
    for name, histogram in report.histograms.items():
        cells = (number(histogram.at(at) / 1e3) for at in PERCENTILES)
        rows.append((name, *cells, number(histogram.count)))
    return rows


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, a line under the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join((lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]))


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    first, *rest = rows
    lines = ["| " + " | ".join(first) + " |", "|" + "---|" * len(first)]
    lines += ["| " + " | ".join(row) + " |" for row in rest]
    return "\n".join(lines)
