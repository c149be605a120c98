"""Near and far cores, told apart by the floors around each run.

The two cores of a virtual machine stand near each other (one cache between them) or far apart, and may change
from one minute to the next. A median over both says nothing about either, and two that are compared may have
met different ones. Runs during which they moved are left out where the two are told apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from shmdriver.bench.report import Figure
from shmdriver.bench.series import Series

__all__ = ["FAR", "NEAR", "boundary_ns", "placed"]

NEAR, FAR = "near cores", "far cores"
_APART = 2.0


def boundary_ns(figures: Iterable[Figure]) -> float | None:
    """From which cache-line round trip on the cores stood far apart; None when they never moved."""
    floors = [ns for figure in figures for ns in figure.floors_ns if ns]
    if not floors or max(floors) < _APART * min(floors):
        return None
    return _APART * min(floors)


def placed(figure: Figure, boundary: float | None) -> list[tuple[str, Figure]]:
    """The figure of near cores and that of far ones, if there are any; without a boundary all of it."""
    if boundary is None or not any(figure.floors_ns):
        return [("", figure)]
    halves = ((where, _only(figure, boundary, far=where == FAR)) for where in (NEAR, FAR))
    return [(where, found) for where, found in halves if found.series.values]


def _only(figure: Figure, boundary: float, *, far: bool) -> Figure:
    here = [ns is not None and (ns >= boundary) == far for ns in figure.floors_ns]
    over = figure.over_floor
    return replace(
        figure,
        series=_those(figure.series, here),
        over_floor=None if over is None else _those(over, here),
        floors_ns=[ns for ns, is_here in zip(figure.floors_ns, here, strict=True) if is_here],
    )


def _those(series: Series, here: list[bool]) -> Series:
    values = [value for value, is_here in zip(series.values, here, strict=True) if is_here]
    return Series(series.unit, series.lower, values)
