"""Two reports, figure by figure: how many times better is the second?

Better or worse is said only where the spreads of the rounds do not meet; everything else is within the noise.
Latencies of native round trips are compared as multiples of the floor that was measured beside them, where
both reports have it, because the floor of a virtual machine moves by itself.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from shmdriver.bench.report import Figure, Report
from shmdriver.bench.series import Series
from shmdriver.bench.tables import aligned

__all__ = ["Change", "as_json", "compare", "text"]

_LITTLE = 0.03  # less than this is no change, however quiet it was


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of both reports. ``times``: how many times better the second is (1: the same)."""

    side: str
    what: str
    who: str
    unit: str
    before: float
    after: float
    times: float
    verdict: str  # better, worse, same, noise, failed
    over_floor: bool


def compare(before: Report, after: Report) -> list[Change]:
    """What stands in both, in the order of the second."""
    return [
        _change(before.figures[key], figure) for key, figure in after.figures.items() if key in before.figures
    ]


def _change(before: Figure, after: Figure) -> Change:
    both = before.over_floor, after.over_floor
    over_floor = before.series.lower and all(each is not None and each.good for each in both)
    first, second = (before.series, after.series)
    if over_floor:
        assert both[0] is not None
        assert both[1] is not None
        first, second = both[0], both[1]
    times = _times(first, second)
    return Change(
        after.side, after.what, after.who, first.unit, first.median, second.median, times,
        _verdict(first, second, times), over_floor,
    )  # fmt: skip


def _times(before: Series, after: Series) -> float:
    better, worse = (before.median, after.median) if after.lower else (after.median, before.median)
    return better / worse if worse else math.nan


def _verdict(before: Series, after: Series, times: float) -> str:
    if not before.good or not after.good or math.isnan(times):
        return "failed"
    if abs(times - 1) < _LITTLE:
        return "same"
    (low, high), (other_low, other_high) = before.spread, after.spread
    if low <= other_high and other_low <= high:
        return "noise"
    return "better" if times > 1 else "worse"


def as_json(before: Report, after: Report) -> dict[str, object]:
    """Plain data."""
    return {
        "before": before.machine,
        "after": after.machine,
        "changes": [_plain(change) for change in compare(before, after)],
        "only_before": [list(key) for key in before.figures if key not in after.figures],
        "only_after": [list(key) for key in after.figures if key not in before.figures],
    }


def _plain(change: Change) -> dict[str, object]:
    data = asdict(change)
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in data.items()
    }


def text(before: Report, after: Report) -> str:
    """A table; what stands in one report only is counted."""
    rows = [("", "what", "before", "after", "unit", "x better", "")]
    for change in compare(before, after):
        who = "" if change.who == "shmdriver" else f", {change.who}"
        figures = (f"{change.before:.3g}", f"{change.after:.3g}", change.unit, f"{change.times:.2f}")
        rows.append((change.side, change.what + who, *figures, change.verdict))
    lines = [f"before: commit {before.machine.get('commit')}, after: commit {after.machine.get('commit')}"]
    if before.machine.get("cpu") != after.machine.get("cpu"):
        lines.append("these are figures of different machines: only multiples of the floor can be compared")
    if len(rows) == 1:
        return "\n".join((*lines, "no figure stands in both reports"))
    only = [len(set(one.figures) - set(other.figures)) for one, other in ((before, after), (after, before))]
    if any(only):
        lines.append(f"in one report only: {only[0]} before, {only[1]} after")
    return "\n".join((*lines, "", aligned(rows)))
