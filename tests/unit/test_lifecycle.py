"""The lifecycle: every state with every event, against a matrix written down here a second time."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shmdriver.driver import lifecycle
from shmdriver.driver.lifecycle import (
    TABLE,
    DegradedBy,
    Event,
    Hooks,
    Lifecycle,
    ShutdownMode,
    State,
)
from shmdriver.errors import LifecycleError, Reason, ShmDriverError

ROOT = Path(__file__).resolve().parents[2]
LEAVES: list[State] = [state for state in State if state is not State.RUNNING]

# How to get into each state, by events alone.
WAYS: dict[State, list[tuple[Event, str]]] = {
    State.INIT: [],
    State.HEALTHY: [(Event.START, "")],
    State.DEGRADED: [(Event.START, ""), (Event.DEGRADE, "low_memory")],
    State.MAINTENANCE: [(Event.START, ""), (Event.SUSPEND, "test")],
    State.DRAINING: [(Event.START, ""), (Event.SHUTDOWN_REQUESTED, "test")],
    State.STOPPED: [(Event.SHUTDOWN_REQUESTED, "test")],
}

_, H, D, M, G, S = LEAVES
SAME = None
# The lifecycle, cell by cell: (state afterwards, hooks called), None where it raises.
RAISES = None
Cell = tuple[State | None, list[str]] | None
NOTHING: Cell = (SAME, [])
CHANGED = "on_lifecycle_changed"


def stays(hook: str) -> Cell:
    return (SAME, [hook])


MATRIX: dict[Event, list[Cell]] = {
    Event.START: [(H, [CHANGED, "on_enter_running"]), RAISES, RAISES, RAISES, RAISES, RAISES],
    Event.TICK: [RAISES, *[stays("on_tick")] * 4, RAISES],
    Event.ATTACH_REQUESTED: [
        stays("on_reject"), stays("on_attach"), stays("on_attach"), *[stays("on_reject")] * 3,
    ],
    Event.KEEPALIVE: [RAISES, *[stays("on_keepalive")] * 4, RAISES],
    Event.DETACH: [RAISES, *[stays("on_detach")] * 4, RAISES],
    Event.EXPIRY: [RAISES, *[stays("on_expiry")] * 4, RAISES],
    Event.ANNOUNCE_DUE: [RAISES, *[stays("on_announce")] * 4, NOTHING],
    Event.LEASE_CHECK_DUE: [RAISES, *[stays("on_lease_check")] * 4, NOTHING],
    Event.DEGRADE: [
        RAISES, (D, [CHANGED, "on_reasons_changed"]), stays("on_reasons_changed"),
        stays("on_reasons_changed"), NOTHING, NOTHING,
    ],
    Event.RECOVER: [RAISES, NOTHING, (H, [CHANGED, "on_reasons_changed"]), NOTHING, NOTHING, NOTHING],
    Event.SUSPEND: [
        RAISES, (M, [CHANGED, "on_enter_maintenance"]), (M, [CHANGED, "on_enter_maintenance"]),
        NOTHING, NOTHING, NOTHING,
    ],
    Event.RESUME: [RAISES, NOTHING, NOTHING, (H, [CHANGED]), NOTHING, NOTHING],
    Event.SHUTDOWN_REQUESTED: [
        (S, [CHANGED, "on_enter_stopped"]), *[(G, [CHANGED, "on_enter_draining"])] * 3, NOTHING, NOTHING,
    ],
    Event.SHUTDOWN_TIMEOUT: [
        RAISES, NOTHING, NOTHING, NOTHING, (S, [CHANGED, "on_enter_stopped"]), NOTHING,
    ],
    Event.DRAINED: [RAISES, RAISES, RAISES, RAISES, (S, [CHANGED, "on_enter_stopped"]), RAISES],
}  # fmt: skip
CELLS = [
    (event, state, cell) for event, row in MATRIX.items() for state, cell in zip(LEAVES, row, strict=True)
]


class Recorder:
    """Implements Hooks with the Protocol's own signatures: a wrong call raises TypeError."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.then: dict[str, Any] = {}

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def _recorded(name: str) -> Any:
    signature = inspect.signature(getattr(Hooks, name))

    def hook(self: Recorder, *args: Any) -> None:
        signature.bind(self, *args)
        self.calls.append((name, args))
        if name in self.then:
            self.then[name](*args)

    return hook


HOOKS = [name for name in vars(Hooks) if name.startswith("on_")]
for _name in HOOKS:
    setattr(Recorder, _name, _recorded(_name))


def make(state: State = State.INIT) -> tuple[Lifecycle, Recorder]:
    recorder = Recorder()
    life = Lifecycle(recorder)  # type: ignore[arg-type]
    for event, reason in WAYS[state]:
        life.dispatch(event, 1, reason=reason)
    assert life.state is state
    recorder.calls.clear()
    return life, recorder


def test_matrix_lists_every_event_in_every_state() -> None:
    assert set(MATRIX) == set(Event)
    assert set(WAYS) == set(LEAVES)
    assert len(CELLS) == len(Event) * 6


@pytest.mark.parametrize(("event", "state", "cell"), CELLS, ids=[f"{e}-in-{s}" for e, s, _ in CELLS])
def test_every_event_in_every_state(event: Event, state: State, cell: Cell) -> None:
    life, recorder = make(state)
    reason = "tick_overrun" if event is Event.DEGRADE else ""
    if cell is None:
        with pytest.raises(LifecycleError, match=rf"'{event}' in state '{state}'") as raised:
            life.dispatch(event, 2, reason=reason)
        assert (raised.value.state, raised.value.event) == (state, event)
        assert recorder.calls == []
        assert life.state is state
        return
    after, hooks = cell
    life.dispatch(event, 2, reason=reason)
    assert life.state is (after or state)
    assert recorder.names == hooks
    assert all(args[0] == 2 for _, args in recorder.calls)


def test_every_name_in_the_table_resolves() -> None:
    for row in TABLE:
        for name in (row.action, row.guard, row.note):
            if name.startswith("_"):
                assert callable(getattr(Lifecycle, name)), row
            elif name:
                assert name in HOOKS, row
        assert row.note == "" or row.note.startswith("_"), row
        assert row.guard == "" or row.guard.startswith("_"), row


def test_every_hook_is_called_by_something() -> None:
    called = {hook for _, _, cell in CELLS if cell is not None for hook in cell[1]}
    assert called == set(HOOKS)


@pytest.mark.parametrize("column", ["action", "guard", "note"])
def test_misspelled_name_fails_when_the_machine_is_built(
    monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    for wrong in ("_adimt", "on_atach") if column == "action" else ("_adimt",):
        changed: dict[str, Any] = {column: wrong}
        table = (*TABLE[1:], TABLE[0]._replace(**changed))
        monkeypatch.setattr(lifecycle, "TABLE", table)
        with pytest.raises(AttributeError, match=wrong):
            Lifecycle(Recorder())  # type: ignore[arg-type]


def test_misspelled_state_fails_when_the_machine_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: Any = type("Wrong", (), {"value": "runing"})()
    for column in ("state", "to"):
        monkeypatch.setattr(lifecycle, "TABLE", (TABLE[0]._replace(**{column: wrong}), *TABLE[1:]))
        with pytest.raises(ValueError, match="runing"):
            Lifecycle(Recorder())  # type: ignore[arg-type]


def test_the_machine_has_no_edge_beside_the_table() -> None:
    life, _ = make()
    events = life._machine.events
    assert set(events) == set(Event)
    built = [
        (name, source, transition.dest)
        for name, event in events.items()
        for source, transitions in event.transitions.items()
        for transition in transitions
    ]
    assert sorted(built, key=str) == sorted(((r.event.value, r.state.value, r.to) for r in TABLE), key=str)
    assert set(life._machine.get_nested_state_names()) == {state.value for state in State}


def test_rows_of_one_pair_end_with_an_unguarded_one() -> None:
    last = {(row.event, row.state): row for row in TABLE}
    assert not [row for row in last.values() if row.guard]


def test_lifecycle_exposes_no_triggers() -> None:
    life, _ = make()
    public = {name for name in dir(life) if not name.startswith("_")}
    assert public == {
        "attach_refusal", "dispatch", "lifecycle_code", "may_serve", "reasons", "shutdown_mode",
        "shutdown_reason", "state",
    }  # fmt: skip


def test_a_whole_life() -> None:
    life, recorder = make()
    request, lease, client = object(), object(), object()
    life.dispatch(Event.START, 10)
    life.dispatch(Event.ATTACH_REQUESTED, 11, subject=request)
    life.dispatch(Event.KEEPALIVE, 12, subject=client)
    life.dispatch(Event.SUSPEND, 13, reason="upgrade")
    life.dispatch(Event.ATTACH_REQUESTED, 14, subject=request)
    life.dispatch(Event.RESUME, 15)
    life.dispatch(Event.SHUTDOWN_REQUESTED, 16, reason="SIGTERM", mode=ShutdownMode.END)
    life.dispatch(Event.EXPIRY, 17, subject=lease)
    life.dispatch(Event.DRAINED, 18)
    assert recorder.calls == [
        ("on_lifecycle_changed", (10, State.INIT, State.HEALTHY)),
        ("on_enter_running", (10,)),
        ("on_attach", (11, request)),
        ("on_keepalive", (12, client)),
        ("on_lifecycle_changed", (13, State.HEALTHY, State.MAINTENANCE)),
        ("on_enter_maintenance", (13, "upgrade")),
        ("on_reject", (14, request, Reason.MAINTENANCE, lifecycle.REFUSALS[State.MAINTENANCE][1])),
        ("on_lifecycle_changed", (15, State.MAINTENANCE, State.HEALTHY)),
        ("on_lifecycle_changed", (16, State.HEALTHY, State.DRAINING)),
        ("on_enter_draining", (16, "SIGTERM", ShutdownMode.END)),
        ("on_expiry", (17, lease)),
        ("on_lifecycle_changed", (18, State.DRAINING, State.STOPPED)),
        ("on_enter_stopped", (18, "SIGTERM", ShutdownMode.END)),
    ]


@pytest.mark.parametrize("state", LEAVES)
def test_what_clients_and_tools_see(state: State) -> None:
    life, _ = make(state)
    assert life.lifecycle_code == LEAVES.index(state)
    assert (life.attach_refusal is None) is (state in (State.HEALTHY, State.DEGRADED))
    assert life.attach_refusal == lifecycle.REFUSALS.get(state)
    assert life.may_serve is (state not in (State.INIT, State.STOPPED))


def test_codes_are_those_of_the_header() -> None:
    from shmdriver._native import lib

    names = ("INIT", "HEALTHY", "DEGRADED", "MAINTENANCE", "DRAINING", "STOPPED")
    assert list(lifecycle.CODES.values()) == [getattr(lib, f"SHMD_LIFECYCLE_{name}") for name in names]


def test_degraded_until_the_last_reason_is_gone() -> None:
    life, recorder = make(State.HEALTHY)
    life.dispatch(Event.DEGRADE, 1, reason=DegradedBy.LOW_MEMORY)
    life.dispatch(Event.DEGRADE, 2, reason=DegradedBy.STALLED_CLIENTS)
    life.dispatch(Event.DEGRADE, 3, reason=DegradedBy.STALLED_CLIENTS)
    life.dispatch(Event.RECOVER, 4, reason=DegradedBy.TICK_OVERRUN)
    life.dispatch(Event.RECOVER, 5, reason=DegradedBy.LOW_MEMORY)
    assert (life.state, life.reasons) == (State.DEGRADED, frozenset({"stalled_clients"}))
    life.dispatch(Event.RECOVER, 6, reason=DegradedBy.STALLED_CLIENTS)
    assert (life.state, life.reasons) == (State.HEALTHY, frozenset())
    told = [args for name, args in recorder.calls if name == "on_reasons_changed"]
    assert told == [
        (1, frozenset({"low_memory"})),
        (2, frozenset({"low_memory", "stalled_clients"})),
        (5, frozenset({"stalled_clients"})),
        (6, frozenset()),
    ]


def test_recover_without_a_reason_clears_all() -> None:
    life, _ = make(State.DEGRADED)
    life.dispatch(Event.DEGRADE, 2, reason="lost_events")
    life.dispatch(Event.RECOVER, 3)
    assert (life.state, life.reasons) == (State.HEALTHY, frozenset())


def test_degrade_needs_a_reason() -> None:
    life, _ = make(State.HEALTHY)
    with pytest.raises(ValueError, match="degrade needs a reason"):
        life.dispatch(Event.DEGRADE, 1)
    assert life.state is State.HEALTHY


def test_resume_returns_to_where_the_reasons_say() -> None:
    life, recorder = make(State.DEGRADED)
    life.dispatch(Event.SUSPEND, 2)
    life.dispatch(Event.RESUME, 3)
    life.dispatch(Event.SUSPEND, 4)
    life.dispatch(Event.RECOVER, 5, reason="low_memory")
    life.dispatch(Event.RESUME, 6)
    life.dispatch(Event.SUSPEND, 7)
    life.dispatch(Event.DEGRADE, 8, reason="lost_events")
    life.dispatch(Event.RESUME, 9)
    assert [args for name, args in recorder.calls if name == CHANGED] == [
        (2, State.DEGRADED, State.MAINTENANCE),
        (3, State.MAINTENANCE, State.DEGRADED),
        (4, State.DEGRADED, State.MAINTENANCE),
        (6, State.MAINTENANCE, State.HEALTHY),
        (7, State.HEALTHY, State.MAINTENANCE),
        (9, State.MAINTENANCE, State.DEGRADED),
    ]


def test_second_shutdown_request_changes_nothing() -> None:
    life, recorder = make(State.HEALTHY)
    life.dispatch(Event.SHUTDOWN_REQUESTED, 1, reason="first", mode=ShutdownMode.HANDOVER)
    recorder.calls.clear()
    life.dispatch(Event.SHUTDOWN_REQUESTED, 2, reason="second", mode=ShutdownMode.END)
    assert recorder.calls == []
    life.dispatch(Event.SHUTDOWN_TIMEOUT, 3)
    assert recorder.calls[-1] == ("on_enter_stopped", (3, "first", ShutdownMode.HANDOVER))
    assert (life.shutdown_reason, life.shutdown_mode) == ("first", ShutdownMode.HANDOVER)


def test_what_hooks_dispatch_is_queued_and_meets_the_state_of_its_turn() -> None:
    life, recorder = make(State.HEALTHY)

    def requests(now_ns: int) -> None:
        life.dispatch(Event.ATTACH_REQUESTED, now_ns, subject="before")
        life.dispatch(Event.SHUTDOWN_REQUESTED, now_ns, reason="token")
        life.dispatch(Event.ATTACH_REQUESTED, now_ns, subject="after")
        assert recorder.names == ["on_tick"]  # nothing ran inside the hook
        assert life.state is State.HEALTHY

    recorder.then["on_tick"] = requests
    life.dispatch(Event.TICK, 5)
    assert recorder.names == ["on_tick", "on_attach", CHANGED, "on_enter_draining", "on_reject"]
    assert recorder.calls[-1][1][1:3] == ("after", Reason.DRAINING)


def test_an_impossible_queued_event_is_named_and_ends_the_dispatch() -> None:
    life, recorder = make(State.HEALTHY)

    def wrong(now_ns: int) -> None:
        life.dispatch(Event.DRAINED, now_ns)
        life.dispatch(Event.ANNOUNCE_DUE, now_ns)

    recorder.then["on_tick"] = wrong
    with pytest.raises(LifecycleError, match=r"'drained' in state 'running\.healthy'"):
        life.dispatch(Event.TICK, 5)
    assert recorder.names == ["on_tick"]
    recorder.then.clear()
    life.dispatch(Event.TICK, 6)
    assert recorder.names == ["on_tick", "on_tick"]


@pytest.mark.parametrize(
    ("hook", "state", "event", "after"),
    [
        ("on_tick", State.HEALTHY, Event.TICK, State.HEALTHY),
        ("on_attach", State.DEGRADED, Event.ATTACH_REQUESTED, State.DEGRADED),
        ("on_reject", State.DRAINING, Event.ATTACH_REQUESTED, State.DRAINING),
        ("on_enter_running", State.INIT, Event.START, State.HEALTHY),
        ("on_reasons_changed", State.HEALTHY, Event.DEGRADE, State.DEGRADED),
        ("on_enter_draining", State.HEALTHY, Event.SHUTDOWN_REQUESTED, State.DRAINING),
        ("on_enter_stopped", State.DRAINING, Event.DRAINED, State.STOPPED),
    ],
)
def test_a_raising_hook_leaves_the_state_of_the_table(
    hook: str, state: State, event: Event, after: State
) -> None:
    life, recorder = make(state)

    def fail(*_: Any) -> None:
        life.dispatch(Event.ATTACH_REQUESTED, 0, subject="dropped")
        raise OSError("disk on fire")

    recorder.then[hook] = fail
    with pytest.raises(OSError, match="disk on fire"):
        life.dispatch(event, 2, reason="lost_events" if event is Event.DEGRADE else "")
    assert life.state is after
    recorder.then.clear()
    recorder.calls.clear()
    if life.may_serve:
        life.dispatch(Event.TICK, 3)
        assert recorder.names == ["on_tick"]  # the queue was emptied, the machine works


def test_a_state_that_could_not_be_published_is_entered_all_the_same() -> None:
    life, recorder = make(State.HEALTHY)

    def fail(*_: Any) -> None:
        raise OSError("event ring gone")

    recorder.then[CHANGED] = fail
    with pytest.raises(OSError, match="event ring gone"):
        life.dispatch(Event.SHUTDOWN_REQUESTED, 2)
    assert recorder.names == [CHANGED, "on_enter_draining"]
    recorder.then.clear()
    life.dispatch(Event.SHUTDOWN_TIMEOUT, 3)
    assert recorder.calls[2] == (CHANGED, (3, State.DRAINING, State.STOPPED))


def test_interrupt_in_a_hook_is_not_swallowed() -> None:
    life, recorder = make(State.HEALTHY)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    recorder.then["on_tick"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        life.dispatch(Event.TICK, 1)
    assert life.state is State.HEALTHY


def test_lifecycles_are_independent() -> None:
    one, _ = make(State.DRAINING)
    other, _ = make(State.HEALTHY)
    one.dispatch(Event.DRAINED, 1)
    assert other.state is State.HEALTHY


def test_the_lifecycle_reads_no_clock_and_does_no_io() -> None:
    source = Path(lifecycle.__file__).read_text(encoding="utf-8")
    for word in ("import time", "import os", "import threading", "open(", "logging", "_native"):
        assert word not in source, word


def test_document_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/generate_lifecycle.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_lifecycle_error_is_ours() -> None:
    assert issubclass(LifecycleError, ShmDriverError)
