"""The driver's lifecycle: every state, every event, and what each event does in each state.

A driver is made (``init``), starts (``running``), is asked to leave (``draining``) and has left
(``stopped``). While it runs it is ``healthy``, or ``degraded`` for one or more named reasons, in
which it keeps serving; or in ``maintenance``, in which attached clients go on and new attaches are
refused. While it drains it still ticks, renews, detaches and expires leases; it only admits nobody.

Time and facts come in as events, consequences go out as calls of :class:`Hooks`. Nothing here does
I/O, reads a clock or starts a thread, so that the whole lifecycle runs in a test with a counter for a
clock. What a table row does not say cannot happen: an event that the present state does not list
raises :class:`~shmdriver.errors.LifecycleError`, which is a defect of the driver.

Order within one event: the reasons and the shutdown's mode are noted, then the state changes, then
hooks are called. So a hook that raises leaves the state that the table says; the exception reaches
the caller of ``dispatch``, and events that were still queued are dropped (clients repeat what was not
answered). Hooks are side effects: they change no state, but may dispatch; such an event waits until
the present one is complete, and meets the state of that moment.

The machine is ``transitions``' HierarchicalMachine and stays private, because that library lets its
owner do more than the table says. Its callbacks are bound methods, looked up by name when the machine
is built, so that a misspelled name fails there. One thread at a time: signals and other threads leave
a note for the driver's loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from enum import StrEnum, unique
from typing import Any, NamedTuple, Protocol, cast

from transitions import EventData, MachineError
from transitions.extensions import HierarchicalMachine
from transitions.extensions.nesting import NestedState

from shmdriver.errors import LifecycleError, Reason

SEPARATOR = "."

__all__ = ["TABLE", "DegradedBy", "Event", "Hooks", "Lifecycle", "Row", "ShutdownMode", "State"]


@unique
class State(StrEnum):
    """Where a driver is in its life. ``RUNNING`` is never a state by itself: one of its three is."""

    INIT = "init"
    RUNNING = "running"
    HEALTHY = "running.healthy"
    DEGRADED = "running.degraded"
    MAINTENANCE = "running.maintenance"
    DRAINING = "draining"
    STOPPED = "stopped"


@unique
class Event(StrEnum):
    """What can happen to a driver; in brackets what ``dispatch`` is given besides the time."""

    START = "start"  # segments are there, the lock is held
    TICK = "tick"  # one duty cycle
    ATTACH_REQUESTED = "attach_requested"  # (subject: the request)
    KEEPALIVE = "keepalive"  # (subject: the client)
    DETACH = "detach"  # (subject: the request, or the lease)
    EXPIRY = "expiry"  # (subject: the lease)
    ANNOUNCE_DUE = "announce_due"
    LEASE_CHECK_DUE = "lease_check_due"
    DEGRADE = "degrade"  # (reason: one more reason to be degraded)
    RECOVER = "recover"  # (reason: the one that is gone; "" for all of them)
    SUSPEND = "suspend"  # (reason: who asked and why)
    RESUME = "resume"
    SHUTDOWN_REQUESTED = "shutdown_requested"  # (reason: who asked and why; mode)
    SHUTDOWN_TIMEOUT = "shutdown_timeout"  # also a second signal: now
    DRAINED = "drained"  # nothing is left to wait for: no lease (end), no pending answer (handover)


WITH_SUBJECT = frozenset({Event.ATTACH_REQUESTED, Event.KEEPALIVE, Event.DETACH, Event.EXPIRY})


@unique
class DegradedBy(StrEnum):
    """The reasons that the driver gives for being degraded."""

    TICK_OVERRUN = "tick_overrun"
    LOW_MEMORY = "low_memory"
    STALLED_CLIENTS = "stalled_clients"
    LOST_EVENTS = "lost_events"
    LOST_LOCK = "lost_lock"


@unique
class ShutdownMode(StrEnum):
    """``END`` drains, seals and unlinks; ``HANDOVER`` leaves segments and leases to the next driver."""

    END = "end"
    HANDOVER = "handover"


class Hooks(Protocol):
    """What the driver does at each event. ``now_ns`` is the time that was dispatched; nothing is returned.

    Subjects (requests, clients, leases) are passed through untouched: what the driver dispatched.
    """

    def on_tick(self, now_ns: int) -> None:
        """A duty cycle may run: the loop then polls control ring and timers, and dispatches what it finds."""

    def on_attach(self, now_ns: int, request: Any) -> None:
        """The state admits this attach request: let policy decide, and answer it."""

    def on_reject(self, now_ns: int, request: Any, reason: Reason, text: str) -> None:
        """The state refuses this attach request: answer ``REJECTED`` with this reason and text."""

    def on_keepalive(self, now_ns: int, client: Any) -> None:
        """A client gave a sign of life by a request."""

    def on_detach(self, now_ns: int, request: Any) -> None:
        """A lease's owner gives it up."""

    def on_expiry(self, now_ns: int, lease: Any) -> None:
        """A lease is over its deadline, or its owner's death is proved."""

    def on_announce(self, now_ns: int) -> None:
        """Announce the streams on the event ring."""

    def on_lease_check(self, now_ns: int) -> None:
        """Renew the leases from the heartbeats; dispatch ``EXPIRY`` for what is overdue (it is queued)."""

    def on_reasons_changed(self, now_ns: int, reasons: frozenset[str]) -> None:
        """The reasons to be degraded are now these (after the state has followed, where it follows)."""

    def on_lifecycle_changed(self, now_ns: int, old: State, new: State) -> None:
        """Publish the new state and its event. The first hook of every change of state."""

    def on_enter_running(self, now_ns: int) -> None:
        """The driver serves from now on: arm the timers."""

    def on_enter_maintenance(self, now_ns: int, reason: str) -> None:
        """New attaches are refused from now on, until ``RESUME``."""

    def on_enter_draining(self, now_ns: int, reason: str, mode: ShutdownMode) -> None:
        """Nobody is admitted any more: final announce, counters snapshot, arm the shutdown timer."""

    def on_enter_stopped(self, now_ns: int, reason: str, mode: ShutdownMode) -> None:
        """The last call: ``DriverShutdown``; by mode seal and unlink, or leave all; mark a clean exit."""


class Row(NamedTuple):
    """One line of the table: what an event does in a state. The first row whose guard holds is taken.

    ``to`` None: no change of state. ``action`` names a hook, or with an underscore, as ``guard`` and
    ``note`` do, a method of :class:`Lifecycle`.
    """

    event: Event
    state: State
    to: State | None = None
    action: str = ""  # called when the state has changed; "": handled, no change
    guard: str = ""  # must be true for the row to be taken
    note: str = ""  # called before the state changes: bookkeeping


# An event in a state that is not listed here cannot happen, and raises. A row of RUNNING holds for all
# three of its states.
TABLE: tuple[Row, ...] = (
    Row(Event.START, State.INIT, to=State.RUNNING, action="on_enter_running"),
    Row(Event.TICK, State.RUNNING, action="on_tick"),
    Row(Event.TICK, State.DRAINING, action="on_tick"),
    Row(Event.ATTACH_REQUESTED, State.INIT, action="_reject"),
    Row(Event.ATTACH_REQUESTED, State.HEALTHY, action="on_attach"),
    Row(Event.ATTACH_REQUESTED, State.DEGRADED, action="on_attach"),
    Row(Event.ATTACH_REQUESTED, State.MAINTENANCE, action="_reject"),
    Row(Event.ATTACH_REQUESTED, State.DRAINING, action="_reject"),
    Row(Event.ATTACH_REQUESTED, State.STOPPED, action="_reject"),
    Row(Event.KEEPALIVE, State.RUNNING, action="on_keepalive"),
    Row(Event.KEEPALIVE, State.DRAINING, action="on_keepalive"),
    Row(Event.DETACH, State.RUNNING, action="on_detach"),
    Row(Event.DETACH, State.DRAINING, action="on_detach"),
    Row(Event.EXPIRY, State.RUNNING, action="on_expiry"),
    Row(Event.EXPIRY, State.DRAINING, action="on_expiry"),
    Row(Event.ANNOUNCE_DUE, State.RUNNING, action="on_announce"),
    Row(Event.ANNOUNCE_DUE, State.DRAINING, action="on_announce"),
    Row(Event.ANNOUNCE_DUE, State.STOPPED),
    Row(Event.LEASE_CHECK_DUE, State.RUNNING, action="on_lease_check"),
    Row(Event.LEASE_CHECK_DUE, State.DRAINING, action="on_lease_check"),
    Row(Event.LEASE_CHECK_DUE, State.STOPPED),
    Row(Event.DEGRADE, State.HEALTHY, to=State.DEGRADED, note="_add_reason", action="_tell_reasons"),
    Row(Event.DEGRADE, State.DEGRADED, note="_add_reason", action="_tell_reasons"),
    Row(Event.DEGRADE, State.MAINTENANCE, note="_add_reason", action="_tell_reasons"),
    Row(Event.DEGRADE, State.DRAINING),
    Row(Event.DEGRADE, State.STOPPED),
    Row(Event.RECOVER, State.HEALTHY),
    Row(Event.RECOVER, State.DEGRADED, State.HEALTHY, "_tell_reasons", "_last_reason", "_drop_reason"),
    Row(Event.RECOVER, State.DEGRADED, note="_drop_reason", action="_tell_reasons"),
    Row(Event.RECOVER, State.MAINTENANCE, note="_drop_reason", action="_tell_reasons"),
    Row(Event.RECOVER, State.DRAINING),
    Row(Event.RECOVER, State.STOPPED),
    Row(Event.SUSPEND, State.HEALTHY, to=State.MAINTENANCE),
    Row(Event.SUSPEND, State.DEGRADED, to=State.MAINTENANCE),
    Row(Event.SUSPEND, State.MAINTENANCE),
    Row(Event.SUSPEND, State.DRAINING),
    Row(Event.SUSPEND, State.STOPPED),
    Row(Event.RESUME, State.HEALTHY),
    Row(Event.RESUME, State.DEGRADED),
    Row(Event.RESUME, State.MAINTENANCE, to=State.DEGRADED, guard="_reasons_left"),
    Row(Event.RESUME, State.MAINTENANCE, to=State.HEALTHY),
    Row(Event.RESUME, State.DRAINING),
    Row(Event.RESUME, State.STOPPED),
    Row(Event.SHUTDOWN_REQUESTED, State.INIT, to=State.STOPPED, note="_note_shutdown"),
    Row(Event.SHUTDOWN_REQUESTED, State.RUNNING, to=State.DRAINING, note="_note_shutdown"),
    Row(Event.SHUTDOWN_REQUESTED, State.DRAINING),
    Row(Event.SHUTDOWN_REQUESTED, State.STOPPED),
    Row(Event.SHUTDOWN_TIMEOUT, State.RUNNING),
    Row(Event.SHUTDOWN_TIMEOUT, State.DRAINING, to=State.STOPPED),
    Row(Event.SHUTDOWN_TIMEOUT, State.STOPPED),
    Row(Event.DRAINED, State.DRAINING, to=State.STOPPED),
)

# Why an attach is refused, by state. A state that is not here admits.
REFUSALS: dict[State, tuple[Reason, str]] = {
    State.INIT: (Reason.NONE, "driver starting: attach again in a moment"),
    State.MAINTENANCE: (
        Reason.MAINTENANCE,
        "driver in maintenance: attached streams go on; attach again later",
    ),
    State.DRAINING: (Reason.DRAINING, "driver draining: attach again when the next driver has started"),
    State.STOPPED: (Reason.STOPPED, "driver stopped: attach again when the next driver has started"),
}

# SHMD_LIFECYCLE_*, as the authority segment publishes it.
CODES: dict[State, int] = {
    State.INIT: 0,
    State.HEALTHY: 1,
    State.DEGRADED: 2,
    State.MAINTENANCE: 3,
    State.DRAINING: 4,
    State.STOPPED: 5,
}


class Occurrence(NamedTuple):
    """One event with what came with it."""

    event: Event
    now_ns: int
    subject: Any
    reason: str
    mode: ShutdownMode


_STATES = {state.value: state for state in State}  # several times a request: State(value) costs more


class _State(NestedState):
    separator = SEPARATOR


class _Machine(HierarchicalMachine):
    state_cls = _State

    # The library resolves names here and writes a log line a call; ours are callables, called often.
    def callbacks(self, funcs: Iterable[Any], event_data: EventData) -> None:
        for func in funcs:
            func(*event_data.args)


class _Model:
    """What the library hangs its attributes on; nobody else sees it."""

    state: str


class Lifecycle:
    """The table, running. ``hooks`` is called from inside :meth:`dispatch` only."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._model = _Model()
        self._machine = self._build()
        self._shown = State.INIT
        self._reasons: frozenset[str] = frozenset()
        self._reasons_told: frozenset[str] = frozenset()
        self.shutdown_reason = ""
        """The reason of the shutdown that was accepted: the first one; later ones change nothing."""
        self.shutdown_mode = ShutdownMode.END
        """Its mode."""
        self._queue: deque[Occurrence] = deque()
        self._busy = False

    @property
    def state(self) -> State:
        """The present state, one of the six that are not ``RUNNING``."""
        return _STATES[self._model.state]

    @property
    def lifecycle_code(self) -> int:
        """The present state as a ``SHMD_LIFECYCLE_*`` number."""
        return CODES[self.state]

    @property
    def may_serve(self) -> bool:
        """Whether ticks, detaches and expiries are allowed: running or draining."""
        return self.state not in (State.INIT, State.STOPPED)

    @property
    def attach_refusal(self) -> tuple[Reason, str] | None:
        """Why an attach request would be refused now; None: it would reach policy."""
        return REFUSALS.get(self.state)

    @property
    def reasons(self) -> frozenset[str]:
        """Why the driver is degraded, or would be once out of maintenance."""
        return self._reasons

    def dispatch(
        self,
        event: Event,
        now_ns: int,
        *,
        subject: Any = None,
        reason: str = "",
        mode: ShutdownMode = ShutdownMode.END,
    ) -> None:
        """Let ``event`` happen at ``now_ns`` (monotonic), and everything that hooks dispatch meanwhile.

        From inside a hook: queue the event and return. Raises LifecycleError for an event that the state
        does not list, ValueError for a ``DEGRADE`` without a reason, and whatever a hook raises.
        """
        if event is Event.DEGRADE and not reason:
            raise ValueError("degrade needs a reason, which recover will name: one of DegradedBy")
        self._queue.append(Occurrence(event, now_ns, subject, reason, mode))
        if self._busy:
            return
        self._busy = True
        try:
            while self._queue:
                self._fire(self._queue.popleft())
        finally:
            self._queue.clear()
            self._busy = False

    def _fire(self, occurrence: Occurrence) -> None:
        before = self.state
        try:
            self._machine.trigger_event(self._model, occurrence.event.value, occurrence)
        except MachineError as error:
            raise LifecycleError(
                f"event {occurrence.event.value!r} in state {before.value!r} is not in the lifecycle's table "
                "(docs/LIFECYCLE.md): a defect of the driver, please report it with the driver's log",
                state=before.value,
                event=occurrence.event.value,
            ) from error

    # ---- guards and notes: pure bookkeeping, so that they cannot fail half way -------------------

    def _last_reason(self, occurrence: Occurrence) -> bool:
        return not occurrence.reason or self._reasons <= {occurrence.reason}

    def _reasons_left(self, _occurrence: Occurrence) -> bool:
        return bool(self._reasons)

    def _add_reason(self, occurrence: Occurrence) -> None:
        self._reasons |= {occurrence.reason}

    def _drop_reason(self, occurrence: Occurrence) -> None:
        self._reasons = self._reasons - {occurrence.reason} if occurrence.reason else frozenset()

    def _note_shutdown(self, occurrence: Occurrence) -> None:
        self.shutdown_reason = occurrence.reason
        self.shutdown_mode = occurrence.mode

    # ---- actions and entries: side effects only ---------------------------------------------------

    def _reject(self, occurrence: Occurrence) -> None:
        reason, text = REFUSALS[self.state]
        self._hooks.on_reject(occurrence.now_ns, occurrence.subject, reason, text)

    def _tell_reasons(self, occurrence: Occurrence) -> None:
        if self._reasons != self._reasons_told:
            self._reasons_told = self._reasons
            self._hooks.on_reasons_changed(occurrence.now_ns, self._reasons)

    def _enter(self, occurrence: Occurrence) -> None:
        now_ns = occurrence.now_ns
        old, self._shown = self._shown, self.state
        try:
            self._hooks.on_lifecycle_changed(now_ns, old, self._shown)
        finally:  # a change that could not be published is no reason to leave out what the state needs
            if self._shown is State.MAINTENANCE:
                self._hooks.on_enter_maintenance(now_ns, occurrence.reason)
            elif self._shown is State.DRAINING:
                self._hooks.on_enter_draining(now_ns, self.shutdown_reason, self.shutdown_mode)
            elif self._shown is State.STOPPED:
                self._hooks.on_enter_stopped(now_ns, self.shutdown_reason, self.shutdown_mode)

    # ---- the machine ------------------------------------------------------------------------------

    def _build(self) -> HierarchicalMachine:
        children = [self._leaf(state) for state in (State.HEALTHY, State.DEGRADED, State.MAINTENANCE)]
        machine = _Machine(
            model=self._model,
            states=[
                {"name": State.INIT.value},
                {"name": State.RUNNING.value, "initial": "healthy", "children": children},
                self._leaf(State.DRAINING),
                self._leaf(State.STOPPED),
            ],
            initial=State.INIT.value,
            auto_transitions=False,
            ignore_invalid_triggers=False,
        )
        for row in TABLE:
            machine.get_states(
                [row.state.value, (row.to or row.state).value]
            )  # raises; the next call does not
            machine.add_transition(
                row.event.value,
                row.state.value,
                row.to.value if row.to else None,
                conditions=[getattr(self, row.guard)] if row.guard else None,
                before=[getattr(self, row.note)] if row.note else None,
                after=[self._action(row)] if row.action else None,
            )
        return machine

    def _action(self, row: Row) -> Callable[[Occurrence], None]:
        if row.action.startswith("_"):
            return cast("Callable[[Occurrence], None]", getattr(self, row.action))
        hook = getattr(self._hooks, row.action)
        if row.event in WITH_SUBJECT:
            return lambda occurrence: hook(occurrence.now_ns, occurrence.subject)
        return lambda occurrence: hook(occurrence.now_ns)

    def _leaf(self, state: State) -> dict[str, Any]:
        return {"name": state.value.rpartition(SEPARATOR)[2], "on_enter": [self._enter]}
