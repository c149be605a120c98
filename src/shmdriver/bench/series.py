"""Repetitions of one measurement, and ratios of two that were taken in the same rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Series", "number"]


@dataclass(slots=True)
class Series:
    """One value a round (None: that round failed). ``lower``: a smaller value is the better one."""

    unit: str
    lower: bool = False
    values: list[float | None] = field(default_factory=list)

    @property
    def good(self) -> list[float]:
        """Those that did not fail."""
        return [value for value in self.values if value is not None]

    @property
    def median(self) -> float:
        """NaN when all failed."""
        return statistics.median(self.good) if self.good else float("nan")

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest."""
        return (min(self.good), max(self.good)) if self.good else (float("nan"), float("nan"))

    def advantage_over(self, other: Series) -> Series:
        """How many times better this is than ``other``, round by round."""
        ratio = Series("x")
        for ours, theirs in zip(self.values, other.values, strict=False):
            if ours and theirs:
                ratio.values.append(theirs / ours if self.lower else ours / theirs)
        return ratio

    def as_json(self) -> dict[str, object]:
        """Unit, direction, median, spread (None when all failed), and the values."""
        low, high = self.spread
        return {
            "unit": self.unit,
            "lower_is_better": self.lower,
            "median": self.median if self.good else None,
            "low": low if self.good else None,
            "high": high if self.good else None,
            "values": self.values,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Series:
        """What as_json made. KeyError, TypeError or ValueError when it did not."""
        values = [None if value is None else float(value) for value in data["values"]]
        return cls(str(data["unit"]), bool(data["lower_is_better"]), values)

    def text(self) -> str:
        """Median, and from where to where."""
        if not self.good:
            return "failed"
        low, high = self.spread
        if len(self.good) == 1:
            return number(self.median)
        return f"{number(self.median)} [{number(low)}-{number(high)}]"


def number(value: float) -> str:
    """Three significant digits: 0.0123, 4.56, 789, 12.3k, 4.56M."""
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    if value >= 1e4:
        return f"{value / 1e3:.3g}k"
    if value >= 1e3:
        return f"{value:.0f}"
    return f"{value:.3g}"
