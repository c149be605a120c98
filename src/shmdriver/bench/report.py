"""What one call of the benchmarks found: figures, histograms, the floor beside them, the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from shmdriver._native import lib
from shmdriver.bench.case import Case, Metric
from shmdriver.bench.histogram import Histogram
from shmdriver.bench.series import Series
from shmdriver.errors import ShmDriverError
from shmdriver.hints import command
from shmdriver.os_errors import errno_text

__all__ = ["FORMAT", "VERSION", "Figure", "Report"]

FORMAT = "shmdriver-bench"
VERSION = 1


@dataclass(slots=True)
class Figure:
    """One line of a report. ``over_floor``: as a multiple of the floors around it, where that makes sense;
    ``floors_ns``: these floors (a cache line there and back), one a value; None where
    nobody looked or the two differ.
    """

    group: str
    side: str
    what: str
    who: str
    series: Series
    over_floor: Series | None = None
    axis: str = ""
    size: float | None = None
    metric: str = ""
    floors_ns: list[float | None] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for the same figure of two reports."""
        return (self.side, self.what, self.who)

    @property
    def over_floor_text(self) -> str:
        """Median and spread; empty where it makes no sense or nothing was measured."""
        return self.over_floor.text() if self.over_floor is not None and self.over_floor.good else ""

    def as_json(self) -> dict[str, Any]:
        """Plain data; the series' fields stand beside the names."""
        names = ("group", "side", "what", "who", "axis", "size", "metric", "floors_ns")
        floor = None if self.over_floor is None else self.over_floor.as_json()
        return {name: getattr(self, name) for name in names} | self.series.as_json() | {"over_floor": floor}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What as_json made. KeyError, TypeError or ValueError when it did not."""
        names = ("group", "side", "what", "who", "axis", "size", "metric")
        floor = data["over_floor"]
        return cls(
            series=Series.from_json(data),
            over_floor=None if floor is None else Series.from_json(floor),
            floors_ns=list(data.get("floors_ns", [])),  # reports of before had none
            **{name: data[name] for name in names},
        )


@dataclass(slots=True)
class Report:
    """Everything that was measured in one call."""

    machine: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    floor: dict[str, Series] = field(default_factory=dict)
    verdict: str = ""
    figures: dict[tuple[str, str, str], Figure] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    disturbed: int = 0
    problems: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    rounds: int = 0  # that were begun
    retried_s: float = 0.0  # of them, for runs that were repeated

    def figure(self, case: Case, metric: Metric) -> Figure:
        """The line of this figure, made when it is new."""
        key = (case.side, case.title(metric), case.who)
        if key not in self.figures:
            self.figures[key] = Figure(
                case.group, case.side, case.title(metric), case.who, Series(metric.unit, metric.lower),
                Series("x floor", metric.lower) if metric.floor else None, case.axis, case.size, metric.key,
            )  # fmt: skip
        return self.figures[key]

    def as_json(self) -> dict[str, Any]:
        """Plain data, `format` and `version` first."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "machine": self.machine,
            "options": self.options,
            "calibration": {"verdict": self.verdict}
            | {name: each.as_json() for name, each in self.floor.items()},
            "figures": [figure.as_json() for figure in self.figures.values()],
            "histograms": {name: histogram.as_json() for name, histogram in self.histograms.items()},
            "rounds": self.rounds,
            "disturbed": self.disturbed,
            "problems": self.problems,
            "missing": self.missing,
            "seconds": round(self.seconds, 1),
        }

    def save(self, path: Path) -> None:
        """Writes the JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads it back. ShmDriverError when it is no report, or of another version."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ShmDriverError(f"{path}: {errno_text(error, lib.SHMD_CALL_READ)}") from None
        except ValueError as error:
            raise ShmDriverError(f"{path} is no JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            made_by = command("bench", instance=None)
            raise ShmDriverError(f"{path}: expected a report of {made_by}, found no format {FORMAT!r}")
        if data.get("version") != VERSION:
            raise ShmDriverError(
                f"{path} has version {data.get('version')}, this program reads {VERSION}: measure again"
            )
        try:
            return cls._from_json(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ShmDriverError(f"{path}: the report is damaged: {type(error).__name__}: {error}") from None

    @classmethod
    def _from_json(cls, data: dict[str, Any]) -> Self:
        floor = {name: each for name, each in data["calibration"].items() if name != "verdict"}
        figures = [Figure.from_json(each) for each in data["figures"]]
        return cls(
            machine=dict(data["machine"]),
            options=dict(data["options"]),
            floor={name: Series.from_json(each) for name, each in floor.items()},
            verdict=str(data["calibration"]["verdict"]),
            figures={figure.key: figure for figure in figures},
            histograms={name: Histogram(each["encoded"]) for name, each in data["histograms"].items()},
            rounds=int(data["rounds"]),
            disturbed=int(data["disturbed"]),
            problems=list(data["problems"]),
            missing=dict(data["missing"]),
            seconds=float(data["seconds"]),
        )
