"""Plots of a report as PNG: percentile curves, throughput over message size, scaling over consumers.

matplotlib is an extra. Small pictures with few colours, so that a repository can keep them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from shmdriver.bench.histogram import Histogram
from shmdriver.bench.machine import line
from shmdriver.bench.report import Figure, Report
from shmdriver.errors import ShmDriverError

__all__ = ["draw"]

_WIDTH_INCHES, _HEIGHT_INCHES, _DPI = 7.0, 4.2, 90
_LEGEND_INSIDE, _LEGEND_INCHES = 8, 3.2  # more lines than that go beside the picture
_NINES = (0, 1, 2, 3, 4, 5, 6)
_GROUPS = {"throughput": "bytes", "frames": "bytes", "fanout": "consumers", "growth": ""}


def draw(report: Report, folder: Path, prefix: str = "") -> list[Path]:
    """Writes what the report has figures for. ShmDriverError without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise ShmDriverError(
            "plots need matplotlib, which is not installed: pip install 'shmdriver[plots]'"
        ) from None
    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    if report.histograms:
        found.append(_save(folder / f"{prefix}percentiles.png", report, _percentiles(report.histograms)))
    for group, axis in _GROUPS.items():
        figures = [figure for figure in report.figures.values() if figure.group == group]
        for kind in [axis] if axis else sorted({figure.axis for figure in figures}):
            for unit, own in _by_unit(figure for figure in figures if figure.axis == kind):
                name = f"{prefix}{group}-{kind}" + ("" if unit == "M/s" else f"-{_word(unit)}")
                found.append(_save(folder / f"{name}.png", report, _over_axis(group, kind, unit, own)))
    return found


def _by_unit(figures: Iterable[Figure]) -> list[tuple[str, list[Figure]]]:
    units: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.size is not None and figure.series.good:
            units.setdefault(figure.series.unit, []).append(figure)
    return [
        (unit, own) for unit, own in units.items() if len({figure.size for figure in own}) > 1
    ]  # one point is no curve


def _word(unit: str) -> str:
    return "".join(letter for letter in unit.lower() if letter.isalnum())


def _save(path: Path, report: Report, paint: Callable[[Any], None]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    sheet = Sheet(figsize=(_WIDTH_INCHES, _HEIGHT_INCHES), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(sheet)
    axes = sheet.subplots()
    paint(axes)
    axes.grid(visible=True, which="major", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[0]) > _LEGEND_INSIDE:
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        sheet.set_size_inches(_WIDTH_INCHES + _LEGEND_INCHES, _HEIGHT_INCHES)
    else:
        axes.legend(fontsize=7, frameon=False)
    axes.set_title(line(report.machine), fontsize=5.5, color="0.5", loc="left")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:,g}" if _is_shown(axes, value) else "")
    axes.tick_params(which="both", labelsize=8)
    sheet.savefig(path, metadata={"Software": None})
    return path


def _percentiles(histograms: dict[str, Histogram]) -> Callable[[Any], None]:
    def paint(axes: Any) -> None:
        styles: dict[str, int] = {}
        for name, histogram in histograms.items():
            side = name.partition(" ")[0]
            color = styles[side] = styles.get(side, -1) + 1
            curve = histogram.curve()
            nines = [-math.log10(max(1 - percentile / 100, 1e-12)) for percentile, _ in curve]
            axes.plot(
                nines,
                [ns / 1e3 for _, ns in curve],
                linewidth=1.2,
                color=f"C{color % 10}",
                linestyle="-" if side == "native" else "--",
                label=textwrap.fill(name, 46),
            )
        axes.set_yscale("log")
        top = max(math.ceil(math.log10(max(each.count, 10))) for each in histograms.values())
        labels = ["0 %"] + [f"{100 * (1 - 10.0**-nine):.{max(nine - 2, 0)}f} %" for nine in _NINES[1:]]
        axes.set_xticks(_NINES[: top + 1], labels[: top + 1])
        axes.set_xlabel("share of all messages")
        axes.set_ylabel("latency not exceeded, µs")

    return paint


def _over_axis(group: str, axis: str, unit: str, figures: list[Figure]) -> Callable[[Any], None]:
    lines: dict[str, list[Figure]] = {}
    for figure in figures:
        lines.setdefault(_label(figure), []).append(figure)

    def paint(axes: Any) -> None:
        for label, own in lines.items():
            own.sort(key=lambda figure: figure.size or 0)
            sizes, medians = [each.size for each in own], [each.series.median for each in own]
            low = [each.series.median - each.series.spread[0] for each in own]
            high = [each.series.spread[1] - each.series.median for each in own]
            axes.errorbar(
                sizes,
                medians,
                yerr=(low, high),
                marker="o",
                markersize=3,
                capsize=2,
                linewidth=1.2,
                label=label,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({figure.size or 0 for figure in figures}))
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))
        if unit != "x":
            axes.set_yscale("log")
        axes.set_xlabel({"bytes": "payload, bytes"}.get(axis, axis))
        axes.set_ylabel(f"{group}, {unit}")

    return paint


def _label(figure: Figure) -> str:
    """What stays of a title when the size is on the axis."""
    words = figure.what.split(" ")
    from shmdriver.bench.cases import size_text

    size = size_text(int(figure.size or 0)) if figure.axis == "bytes" else None
    what = figure.what.replace(size, "").strip() if size else figure.what
    if figure.axis == "consumers":
        what = " ".join(words[:2]) + (", producer" if figure.what.endswith("producer") else "")
    elif figure.axis != "bytes":
        what = figure.what.partition(", ")[0]
    return f"{figure.side}, {what}" + ("" if figure.who == "shmdriver" else f", {figure.who}")


def _is_shown(axes: Any, value: float) -> bool:
    """Whether a minor tick of a logarithmic axis gets a label: at 2 and 5, of a short axis."""
    low, high = axes.get_ylim()
    return bool(high < 100 * low and round(value / 10 ** math.floor(math.log10(value)), 3) in (2, 5))


def _short(value: float) -> str:
    for size, unit in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
