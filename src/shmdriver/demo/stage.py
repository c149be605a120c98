"""What all parts of the demo share: the screen, the driver to talk to, how long to run, and the results."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from shmdriver.demo.screen import Screen

__all__ = ["DemoFailed", "Row", "Stage", "cores"]


class DemoFailed(Exception):  # noqa: N818 - it says what happened
    """A part did not show what it is there to show."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the final table. ``lower``: a smaller figure is the better one."""

    what: str
    unit: str
    ours: float
    pipe: float | None = None
    queue: float | None = None
    lost: int = 0
    lower: bool = False


@dataclass(slots=True)
class Stage:
    """One run of the demo."""

    screen: Screen
    instance: str
    quotes: np.ndarray[Any, Any]
    quick: bool
    rows: list[Row] = field(default_factory=list)

    def seconds(self, full_s: float) -> float:
        """How long to measure: ``full_s``, or a sixth of it in a quick run."""
        return full_s / 6 if self.quick else full_s


def cores() -> tuple[int | None, int | None]:
    """Where to pin a producer and a consumer: the first two cores, or nowhere when there is one."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (None, None)
