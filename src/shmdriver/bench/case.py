"""One thing to measure, and the figures that are taken from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shmdriver.bench.native import Outcome

__all__ = ["Case", "Metric"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of an outcome. ``floor``: the figure of the floor that it is compared with, or nothing."""

    key: str
    label: str
    unit: str
    scale: float = 1.0
    lower: bool = False
    floor: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """``measure(instance)`` runs it once. ``what`` with a metric's label names a figure; ``who``: whose.

    ``size``: what a plot or table has on its axis (bytes, consumers, ...), None when it is one of a kind.
    """

    group: str
    side: str
    what: str
    measure: Callable[[str], Outcome]
    metrics: tuple[Metric, ...]
    who: str = "shmdriver"
    axis: str = ""
    size: float | None = None

    def title(self, metric: Metric) -> str:
        """What a table calls this figure."""
        return f"{self.what}, {metric.label}" if metric.label else self.what
