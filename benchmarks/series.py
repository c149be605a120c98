"""Repetitions of one measurement, and ratios of two that were taken in the same rounds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass(slots=True)
class Series:
    """One value a round (None: that round failed). ``lower``: a smaller value is the better one."""

    unit: str
    lower: bool = False
    values: list[float | None] = field(default_factory=list)

    @property
    def good(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def median(self) -> float:
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

    def over(self, other: Series) -> Series:
        """This divided by ``other``, round by round."""
        ratio = Series("x")
        for ours, theirs in zip(self.values, other.values, strict=False):
            if ours and theirs:
                ratio.values.append(ours / theirs)
        return ratio

    def as_json(self) -> dict[str, object]:
        low, high = self.spread
        return {
            "unit": self.unit,
            "lower_is_better": self.lower,
            "median": self.median,
            "low": low,
            "high": high,
            "values": self.values,
        }

    def text(self) -> str:
        """Median, and from where to where."""
        if not self.good:
            return "failed"
        low, high = self.spread
        return f"{number(self.median)} [{number(low)}-{number(high)}]"


def number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    if value >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.3g}"
