"""What a state machine costs here: the figures of docs/DRIVER_HSM_MIDDLE_GROUND.md, on this machine.

    python scripts/measure_lifecycle.py

Medians of several rounds; the load of the machine shows in them. Memory is what tracemalloc counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from transitions import Machine
from transitions.extensions import HierarchicalMachine

from shmdriver.driver.lifecycle import Event, Lifecycle

ROUNDS = 7
LEASE_STATES = ["attached", "active", "stalled", "detached", "expired", "revoked"]
LEASE_TABLE: Any = [
    ["confirm", "attached", "active"],
    ["stall", "active", "stalled"],
    ["recover", "stalled", "active"],
    ["detach", LEASE_STATES[:3], "detached"],
    ["expire", LEASE_STATES[:3], "expired"],
    ["revoke", LEASE_STATES[:3], "revoked"],
]


class NoHooks:
    """Hooks that do nothing, so that only the machine is measured."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_arguments: None


class Model:
    """What the library hangs its attributes on."""

    state: str

    def hook(self) -> None:
        """Nothing."""


def microseconds(call: Callable[[], Any], count: int) -> float:
    """Median time of one call."""
    found = []
    for _ in range(ROUNDS):
        started_ns = time.perf_counter_ns()
        for _ in range(count):
            call()
        found.append((time.perf_counter_ns() - started_ns) / count / 1000)
    return statistics.median(found)


def show(text: str, value: float, unit: str = "us") -> None:
    """One line."""
    print(f"{text:<66} {value:10.2f} {unit}")


def ours() -> None:
    """The lifecycle as the driver uses it."""
    lifecycle = Lifecycle(NoHooks())
    lifecycle.dispatch(Event.START, 0)

    def suspend_and_resume() -> None:
        lifecycle.dispatch(Event.SUSPEND, 0, reason="measured")
        lifecycle.dispatch(Event.RESUME, 0)

    show("lifecycle: tick", microseconds(lambda: lifecycle.dispatch(Event.TICK, 0), 5000))
    attach = microseconds(lambda: lifecycle.dispatch(Event.ATTACH_REQUESTED, 0, subject=None), 5000)
    show("lifecycle: attach_requested", attach)
    show("lifecycle: suspend and resume, two changes of state", microseconds(suspend_and_resume, 500))
    show("lifecycle: reading attach_refusal", microseconds(lambda: lifecycle.attach_refusal, 50_000))


def stock() -> None:
    """The library with its own callbacks, nested and flat, against an assignment."""
    children = {"name": "running", "initial": "healthy", "children": ["healthy", "degraded"]}
    nested, flat = Model(), Model()
    machine = HierarchicalMachine(nested, ["init", children], initial="init", auto_transitions=False)
    machine.add_transition("start", "init", "running")
    machine.add_transition("tick", "running", None, after="hook")
    nested.start()  # type: ignore[attr-defined]
    plain = Machine(flat, ["running"], initial="running", auto_transitions=False)
    plain.add_transition("tick", "running", None, after="hook")
    show("library: nested trigger, callback by name", microseconds(nested.tick, 5000))  # type: ignore[attr-defined]
    show("library: flat trigger, callback by name", microseconds(flat.tick, 5000))  # type: ignore[attr-defined]
    lease = Model()
    lease.state = "attached"

    def by_hand() -> None:
        if lease.state in ("attached", "active", "stalled"):
            lease.state = "active"

    show("by hand: a check and an assignment", microseconds(by_hand, 100_000))


def a_machine_each(count: int) -> None:
    """What a lease would cost as a machine of its own, and as one more model of a shared machine."""

    def make(model: Model | None) -> HierarchicalMachine:
        return HierarchicalMachine(
            model, LEASE_STATES, initial="attached", auto_transitions=False, transitions=LEASE_TABLE
        )

    started_ns = time.perf_counter_ns()
    own = [make(Model()) for _ in range(count)]
    show("a machine a lease: to build", (time.perf_counter_ns() - started_ns) / count / 1000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    own = [make(Model()) for _ in range(count)]
    show("a machine a lease: memory", (tracemalloc.get_traced_memory()[0] - before) / count / 1024, "KiB")
    tracemalloc.stop()
    del own
    shared, models = make(None), [Model() for _ in range(1000)]
    started_ns = time.perf_counter_ns()
    for model in models:
        shared.add_model(model)
    show("one machine, a model a lease: to add", (time.perf_counter_ns() - started_ns) / 1e6)
    started_ns = time.perf_counter_ns()
    for model in models:
        model.confirm()  # type: ignore[attr-defined]
    show("one machine, a model a lease: a change of state", (time.perf_counter_ns() - started_ns) / 1e6)


def main() -> int:
    """Prints all figures."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    ours()
    stock()
    a_machine_each(100)
    return 0


if __name__ == "__main__":
    sys.exit(main())
