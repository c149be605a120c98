"""What an adopting driver takes over of its predecessor's lifecycle: maintenance, and a draining under way.

Both stand in the authority, as clients and tools saw them last. They stay there, untouched, until this driver
publishes the same state itself: one that is killed in between leaves them to its own successor. Reasons to be
degraded are not taken over, because they are facts that this driver finds anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from shmdriver._native import lib
from shmdriver.driver.authority import Authority
from shmdriver.driver.lifecycle import Event, State

__all__ = ["Inheritance"]

REASON = "the driver before this one"


@dataclass(frozen=True, slots=True)
class Inheritance:
    """A state to go to right after ``start``; ``deadline_ns`` of a draining, 0 when none was stored yet."""

    state: State
    event: Event
    reason: str
    deadline_ns: int = 0

    @classmethod
    def of(cls, authority: Authority) -> Inheritance | None:
        """What an adopted authority says; None: nothing but an ordinary start."""
        lifecycle = int(authority.base.lifecycle)
        if lifecycle == lib.SHMD_LIFECYCLE_MAINTENANCE:
            return cls(State.MAINTENANCE, Event.SUSPEND, f"{REASON} was in maintenance")
        if lifecycle == lib.SHMD_LIFECYCLE_DRAINING:
            # The state is published before mode and deadline: killed in between, the whole time is left.
            return cls(
                State.DRAINING,
                Event.SHUTDOWN_REQUESTED,
                f"{REASON} was draining, and this one finishes that: start again for one that serves",
                int(authority.base.shutdown_deadline_ns),
            )
        return None
