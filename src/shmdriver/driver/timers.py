"""Timers that are asked, never threads: the driver's loop asks each one whether it is due at a given time.

Deadlines stand on a grid (start, start + interval, ...). A late tick fires once, however many
deadlines it missed, and the next deadline is the next one on the grid: lateness neither adds up to
drift nor to a burst. Times are monotonic nanoseconds, passed in.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["PolledTimer", "Timers"]


class PolledTimer:
    """One timer. ``interval_ns`` must be positive. It does nothing until it is started."""

    __slots__ = ("_deadline_ns", "interval_ns", "late_ns", "missed", "name")

    def __init__(self, name: str, interval_ns: int) -> None:
        if interval_ns <= 0:
            raise ValueError(f"timer {name!r}: interval {interval_ns} ns, expected more than 0")
        self.name = name
        self.interval_ns = interval_ns
        self.late_ns = 0
        """How late the last firing was noticed, in nanoseconds."""
        self.missed = 0
        """Deadlines that passed without a firing of their own, ever."""
        self._deadline_ns: int | None = None

    @property
    def deadline_ns(self) -> int | None:
        """When it is due next; None while it is stopped."""
        return self._deadline_ns

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped since."""
        return self._deadline_ns is not None

    def start(self, now_ns: int) -> None:
        """Due one interval from ``now_ns``, and then on that grid. A running timer starts afresh."""
        self._deadline_ns = now_ns + self.interval_ns

    def start_at(self, deadline_ns: int) -> None:
        """Due at ``deadline_ns``, and then one interval after another."""
        self._deadline_ns = deadline_ns

    def stop(self) -> None:
        """Never due until started again."""
        self._deadline_ns = None

    def due(self, now_ns: int) -> bool:
        """Whether a deadline has come; asking moves on to the next one after ``now_ns``."""
        deadline_ns = self._deadline_ns
        if deadline_ns is None or now_ns < deadline_ns:
            return False
        passed = (now_ns - deadline_ns) // self.interval_ns
        self.late_ns = now_ns - deadline_ns
        self.missed += passed
        self._deadline_ns = deadline_ns + (passed + 1) * self.interval_ns
        return True

    def __repr__(self) -> str:
        """Name, interval and deadline."""
        return f"PolledTimer({self.name!r}, {self.interval_ns}, deadline_ns={self._deadline_ns})"


class Timers:
    """The timers of one loop, by name, in the order in which they were added."""

    def __init__(self) -> None:
        self._timers: dict[str, PolledTimer] = {}

    def add(self, name: str, interval_ns: int) -> PolledTimer:
        """A new stopped timer. ValueError when the name is taken."""
        if name in self._timers:
            raise ValueError(f"timer {name!r} exists already")
        timer = self._timers[name] = PolledTimer(name, interval_ns)
        return timer

    def __getitem__(self, name: str) -> PolledTimer:
        """The timer of that name. KeyError when there is none."""
        return self._timers[name]

    def __iter__(self) -> Iterator[PolledTimer]:
        """All timers, in their order."""
        return iter(self._timers.values())

    def due(self, now_ns: int) -> Iterator[PolledTimer]:
        """The timers that are due, one after another: each is asked when its turn comes.

        So a timer that was stopped in consequence of an earlier one does not fire any more.
        """
        for timer in tuple(self._timers.values()):
            if timer.due(now_ns):
                yield timer

    def next_deadline_ns(self, *, but: PolledTimer | None = None) -> int | None:
        """The earliest deadline of all running timers, ``but`` for one; None when none runs."""
        deadlines = [
            timer.deadline_ns for timer in self if timer is not but and timer.deadline_ns is not None
        ]
        return min(deadlines, default=None)

    def stop_all(self) -> None:
        """Stop every timer."""
        for timer in self:
            timer.stop()
