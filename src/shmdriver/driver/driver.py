"""The driver: one object that owns an instance's tables, runs its duty cycle and obeys its lifecycle.

An attach goes control.py (read, check) -> here (dispatch) -> lifecycle.py (may it?) -> here (on_attach) ->
admission.py (policy, wiring) -> streams.py, leases.py (tables) -> events.py (answer).

The driver runs in a process of its own (process.py), in a thread (embedded.py), and tick by tick
under a fake clock in tests. It reads the clock that it is given, and so do the time stamps of its
events; what else is below its loop is told the time. Only the sleep of an idle driver (rest.py)
asks the kernel how long it took.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from shmdriver._native import lib
from shmdriver.driver.admission import Admission
from shmdriver.driver.authentication import Authentication
from shmdriver.driver.boot import boot
from shmdriver.driver.clients import Client
from shmdriver.driver.config import Config
from shmdriver.driver.connections import Connections
from shmdriver.driver.control import ControlRings, Request
from shmdriver.driver.damage import DamageWatch
from shmdriver.driver.desk import RequestDesk
from shmdriver.driver.door import NO_GROUP, Door
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.inheritance import Inheritance
from shmdriver.driver.leasewatch import LeaseWatch
from shmdriver.driver.lifecycle import DegradedBy, Event, Lifecycle, ShutdownMode, State
from shmdriver.driver.limits import lock_shortage
from shmdriver.driver.memory import Completion, InlineMemory, MemoryThread, Provision
from shmdriver.driver.notify import Notifier
from shmdriver.driver.oversight import HealthWatch, StreamWatch
from shmdriver.driver.rest import Rest
from shmdriver.driver.shm import Modes, ShmSpace, lock_memory
from shmdriver.driver.signals import signals_end_sleep
from shmdriver.driver.sleeper import Sleeper, Woken
from shmdriver.driver.tables import Tables
from shmdriver.driver.timers import Timers
from shmdriver.driver.work import Work
from shmdriver.errors import Code, Reason
from shmdriver.os_errors import remedy
from shmdriver.runtime_folder import RuntimeFolder
from shmdriver.truncation import guard_truncation

__all__ = ["Driver"]

MILLISECOND_NS = 1_000_000
TICK_ALLOWED_NS = 50 * MILLISECOND_NS  # a longer one delays heartbeats and expiry noticeably
GAP_NS = 1000 * MILLISECOND_NS  # no tick for so long, or two lease checks: the silence is its own
POLL_NS = 1 * MILLISECOND_NS  # while memory is being made
DOORBELLS = 128  # of one client that wake the driver within 10 ms
ANNOUNCED_MAX = 256  # streams an interval: more of them are announced in turn
ASLEEP_MAX_NS = 1000 * MILLISECOND_NS


@dataclass(frozen=True, slots=True)
class _Order:
    """A shutdown that a signal, another thread or an authenticated request asked for."""

    mode: ShutdownMode
    reason: str


class Driver:
    """One instance's driver. ``start``, then ``run`` (or ``tick`` by ``tick``), then ``close``.

    ``clock`` returns monotonic nanoseconds. ``memory`` None: a helper thread for large segments.
    ``token``: who has it may send Shutdown and Admin requests; None: nobody may. A function is called for it
    with the runtime folder, when the instance is locked, and again when that folder had to be made anew.
    """

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], int] = lib.shmd_now_ns,
        memory: InlineMemory | None = None,
        log: Callable[[str], None] = lambda _line: None,
        token: bytes | Callable[[RuntimeFolder], bytes] | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._memory = memory if memory is not None else MemoryThread(self.wake)
        self._log = log
        self._token = token
        self._notifier = notifier or Notifier("")
        self._lifecycle = Lifecycle(self)
        self._timers = Timers()
        self._orders: deque[_Order] = deque()
        self._last_tick_ns = self._overrun_ns = 0  # time of the last tick, and how long it took
        self._gap_ns = max(GAP_NS, 2 * config.policies.lease_check_interval_ms * MILLISECOND_NS)
        self._inheritance: Inheritance | None = None  # what is to be repeated after an adoption
        self._work = 0
        self._announce_from = 0  # which stream's turn it is
        self._tables: Tables | None = None
        self._sleeper: Sleeper | None = None  # once started
        self._woken: list[Woken] = []  # since the tick before
        self._door: Door | None = None  # while clients can connect
        self._connections: Connections | None = None  # likewise
        self.is_lost = False  # somebody truncated the authority: the driver cannot go on
        self._notes: Work
        self._ring: ControlRings
        self._rest: Rest
        self._desk: RequestDesk
        self._admission: Admission
        self._lease_watch: LeaseWatch
        self._stream_watch: StreamWatch
        self._damage: DamageWatch
        self._health: HealthWatch

    # -- life

    @property
    def instance(self) -> str:
        """The instance's name."""
        return self._config.driver.instance

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._lifecycle.state

    @property
    def tables(self) -> Tables:
        """The tables, once started."""
        assert self._tables is not None, "the driver has not been started, or is closed"
        return self._tables

    @property
    def connections(self) -> Connections:
        """Of its clients, once started."""
        assert self._connections is not None, "the driver has not been started, or is closed"
        return self._connections

    @property
    def sleeper(self) -> Sleeper:
        """Where it sleeps, once started."""
        assert self._sleeper is not None, "the driver has not been started, or is closed"
        return self._sleeper

    def start(self) -> None:
        """Takes the lock, adopts or makes the segments, lets clients in.

        Raises DriverAlreadyRunning, LayoutMismatch, ShmSpaceError, ShmDriverError, OSError.
        """
        if not guard_truncation():
            self._log("SHMDRIVER_TRUNCATION_GUARD is off: a client that truncates a segment ends this driver")
        shm = self._config.shm
        modes = Modes.of_group(shm.mode_bits, shm.group, mlock=shm.mlock, prefault=shm.prefault)
        most = shm.max_bytes or ShmSpace.now().free // 2
        if shm.mlock and (text := lock_shortage(most)):
            self._log(text)
        tables, adopted = boot(self._config, modes, self._memory, self._clock, self._log)
        self._tables = tables
        try:
            self._begin(tables, modes, most, adopted=adopted)
        except BaseException as error:
            if not adopted and isinstance(error, Exception):  # nobody was let in: nothing of it stays
                tables.authority.unlink()
            self.close(is_refused=isinstance(error, Exception))
            raise

    def _begin(self, tables: Tables, modes: Modes, most: int, *, adopted: bool) -> None:
        shm, now_ns = self._config.shm, self._clock()
        self._sleeper = Sleeper(DOORBELLS)
        self._assemble(tables, modes, most + (0 if shm.max_bytes else tables.streams.segment_bytes))
        for text in self._notes.inherit(now_ns):
            tables.authority.log_error(text, now_ns)
            self._log(text)
        self._inheritance = Inheritance.of(tables.authority) if adopted else None
        draining = self._inheritance is not None and self._inheritance.state is State.DRAINING
        tables.authority.introduce(now_ns, keep_shutdown=draining)
        self._last_tick_ns = now_ns
        self._lifecycle.dispatch(Event.START, now_ns)
        failpoint("start.filled")
        if not adopted:
            tables.authority.complete(modes)
        failpoint("start.complete")
        self._open_door(modes)
        failpoint("start.open")
        self.tables.announce_all()
        tables.authority.wake_everybody()  # a driver that was killed may not have come to it
        if shm.mlock:
            epochs = (epoch for stream in tables.streams for epoch in stream.epochs.values())
            adopted_maps = (mapped for epoch in epochs for mapped in epoch.memory.maps)
            authority = tables.authority
            segments = [client.control.map for client in tables.clients if client.control is not None]
            self._report_unlocked(lock_memory(authority.map, *segments, *adopted_maps), now_ns)
            tables.clients.locks_memory = True
        tables.authority.note_instance()
        failpoint("start.noted")
        found = f"adopted {len(tables.clients)} clients, {len(tables.leases)} leases" if adopted else "new"
        self._log(f"driver of instance {self.instance!r} serves: pid {os.getpid()}, {found}")
        self._notifier.send(f"READY=1\nMAINPID={os.getpid()}")

    def _open_door(self, modes: Modes) -> None:
        gid = NO_GROUP if modes.gid is None else modes.gid
        self._door = Door(self.tables.authority, gid, self.sleeper)
        self._connections = Connections(
            self.tables,
            self._door,
            self._notes,
            budget=self._config.policies.limits.attaches_per_tick,
            ring=self._hear,
            look_for_deaths=self._lease_watch.look_for_deaths,
            log=self._log,
        )

    def _furnish(self) -> None:
        """Writes again what has to stand in the runtime folder beside the lock."""
        if callable(self._token):
            self._token(self.tables.authority.lock.folder)
        self.tables.authority.note_instance()

    def tick(self) -> int:
        """One duty cycle; how many requests, completions and timers it handled."""
        now_ns = self._clock()
        authority = self.tables.authority
        self._excuse(now_ns)
        self._last_tick_ns = now_ns
        self._work = 0
        self._rest.end()
        authority.store("heartbeat_ns", now_ns)
        authority.count(lib.SHMD_COUNTER_TICKS)
        try:
            self.sleeper.arm(now_ns)
            self._woken = self.sleeper.look()
            self._lifecycle.dispatch(Event.TICK, now_ns)
            self._poll(now_ns)
            self._obey(now_ns)
            self._finish_draining(now_ns)
        except Exception as error:  # the loop outlives its defects; tools show them
            self._note_defect("tick", error, now_ns)
        took_ns = self._overrun_ns = self._clock() - now_ns
        if self._lifecycle.may_serve and self._health.tick_took(took_ns, TICK_ALLOWED_NS, now_ns):
            authority.count(lib.SHMD_COUNTER_TICK_OVERRUNS)
            lib.shmd_counter_max(authority.base, lib.SHMD_COUNTER_TICK_LATE_MAX_NS, took_ns)
        return self._work

    def _excuse(self, now_ns: int) -> None:
        """Puts off the deadlines of clients by the driver's lateness: a tick that came late, or took long."""
        due_ns = self._timers.next_deadline_ns() or now_ns
        late_ns = max(now_ns - due_ns, self._overrun_ns)
        if now_ns - self._last_tick_ns >= self._gap_ns:
            late_ns = now_ns - self._last_tick_ns  # whatever was due: a suspended machine suspends clients
        if late_ns >= TICK_ALLOWED_NS:
            self._lease_watch.excuse(late_ns, now_ns)

    def next_deadline_ns(self) -> int:
        """When the next tick is due, if nobody rings before."""
        now_ns = self._clock()
        if self._ring.has_waiting or self._orders or self._damage.is_new:
            return now_ns
        due_ns = self._timers.next_deadline_ns() or now_ns + ASLEEP_MAX_NS
        if self._memory.pending:
            due_ns = min(due_ns, now_ns + POLL_NS)
        return min(due_ns, self.sleeper.arm_due_ns or due_ns)

    def run(self, *, catches_signals: bool = False) -> None:
        """Ticks until stopped, asleep in between; then closes.

        ``catches_signals``: a signal ends its sleep, so Python's handler runs at once. In the main thread.
        """
        try:
            with signals_end_sleep(self.sleeper) if catches_signals else nullcontext():
                while self._goes_on():
                    self.tick()
                    if self._goes_on():
                        self._sleep()
        finally:
            self.close()

    def request_shutdown(self, mode: ShutdownMode | str = ShutdownMode.END, reason: str = "") -> None:
        """Asks for the end, from any thread or a signal handler; ``END`` while draining means now."""
        self._orders.append(_Order(ShutdownMode(mode), reason or "asked by its process"))
        self.wake()

    def wake(self) -> None:
        """Ends the loop's sleep, or keeps the next one from beginning: a tick comes. From any thread."""
        sleeper = self._sleeper  # else there is no sleep yet, or none any more
        if sleeper is not None:
            sleeper.wake()

    def close(self, *, is_refused: bool = False) -> None:
        """Lets go of all resources. Unless the driver was shut down, its segments stay, as after a crash.

        ``is_refused``: it does not serve, so what was made for its lock goes, too.
        """
        if self._tables is None:
            return
        tables, self._tables = self._tables, None
        self._memory.close()
        for completion in self._memory.completions():
            completion.abandon()
        if self._door is not None:
            self._door.close()
            self._door = self._connections = None
        lock = tables.authority.lock
        with ExitStack() as undo:
            if self._sleeper is not None:
                undo.callback(self._sleeper.close)
            undo.callback(tables.close)
            if is_refused:
                lock.withdraw()

    # -- orders (RequestDesk's Orders)

    @property
    def is_draining(self) -> bool:
        """Whether it ends for good already."""
        return self.state is State.DRAINING

    def set_maintenance(self, on: bool, reason: str) -> None:
        """Refuse new attaches, or admit them again."""
        self._lifecycle.dispatch(Event.SUSPEND if on else Event.RESUME, self._last_tick_ns, reason=reason)

    def announce(self) -> str:
        """Announces every stream; a summary for a person."""
        self.tables.announce_all()
        return f"{self.state.value}: {self.tables.summary()}"

    # -- what clients do

    def _hear(self, client: Client) -> None:
        """A client has rung: what it says of its leases, then what it asks for."""
        self.tables.tenure.hear(client, self._last_tick_ns)
        self._ring.ring(client)

    def _expel(self, client: Client, text: str, now_ns: int) -> None:
        self._log(self.tables.tenure.expel(client, text, now_ns))

    # -- hooks of the lifecycle

    def on_tick(self, now_ns: int) -> None:
        """Deaths that were noticed since the last one; what else is there the loop polls, see ``_poll``."""
        if any(each.kind == lib.SHMD_SLEEPER_DEATH for each in self._woken):
            self._lease_watch.look_for_deaths(now_ns)
        if self._damage.is_new and self._damage.end_damaged(now_ns):
            self.is_lost = True

    def on_attach(self, now_ns: int, request: Any) -> None:
        """The state admits: policy decides."""
        self._desk.guarded(request, self._admission.attach, now_ns)

    def on_reject(self, now_ns: int, request: Any, reason: Reason, text: str) -> None:
        """The state refuses."""
        del now_ns
        self._desk.refuse(request, Code.REJECTED, reason, text)

    def on_keepalive(self, now_ns: int, client: Any) -> None:
        """A stalled client beats again."""
        del now_ns
        self.tables.tenure.client_recovered(client)

    def on_detach(self, now_ns: int, request: Any) -> None:
        """Detach or Goodbye."""
        goodbye = request.kind == lib.SHMD_REQUEST_GOODBYE
        self._desk.guarded(request, self._desk.goodbye if goodbye else self._desk.detach, now_ns)

    def on_expiry(self, now_ns: int, lease: Any) -> None:
        """What a lease check found to be over, unless it has ended meanwhile."""
        self._lease_watch.expire(lease, now_ns)

    def on_announce(self, now_ns: int) -> None:
        """Streams in turn, for whoever missed something; and what should not change under a driver."""
        self._announce_from = self.tables.announce(self._announce_from, ANNOUNCED_MAX)
        self._lease_watch.look_for_deaths(now_ns)
        self._health.check_memory()
        self._health.check_events(now_ns)
        is_lost = self._damage.check_lock(now_ns, for_group=self._config.shm.group is not None)
        is_lost |= not self.connections.check(now_ns)
        self._health.check_lock(is_lost=is_lost)
        self._damage.check_files(now_ns)

    def on_lease_check(self, now_ns: int) -> None:
        """Deaths, heartbeats, confirmations; then streams."""
        self._lease_watch.check(now_ns)
        self._stream_watch.check(now_ns)
        self._health.check_clients(now_ns)
        self._health.check_events(now_ns)
        self._rest.checked()

    def on_reasons_changed(self, now_ns: int, reasons: frozenset[str]) -> None:
        """Shown in the authority as bits, in the order of DegradedBy."""
        del now_ns
        bits = sum(1 << bit for bit, reason in enumerate(DegradedBy) if reason.value in reasons)
        self.tables.authority.store("degraded", bits)
        self._log(f"degraded by: {', '.join(sorted(reasons)) or 'nothing any more'}")

    def on_lifecycle_changed(self, now_ns: int, old: State, new: State) -> None:
        """State, then event. Of a handover clients are told nothing: for them the driver is just away."""
        del now_ns
        if self._lifecycle.shutdown_reason and self._lifecycle.shutdown_mode is ShutdownMode.HANDOVER:
            return
        if old is State.INIT and self._inheritance is not None:
            return  # what the predecessor published stands until it is repeated, a moment from now
        code = self._lifecycle.lifecycle_code
        self.tables.authority.store("lifecycle", code)
        snapshot = f"; {self.tables.counters_text()}" if new is State.DRAINING else ""
        self.tables.events.lifecycle_changed(code, f"{old.value} -> {new.value}{snapshot}")
        self._log(f"lifecycle: {old.value} -> {new.value}")

    def on_enter_running(self, now_ns: int) -> None:
        """Arms the timers."""
        policies = self._config.policies
        self._timers.add("lease_check", policies.lease_check_interval_ms * MILLISECOND_NS).start(now_ns)
        self._timers.add("announce", policies.announce_interval_ms * MILLISECOND_NS).start(now_ns)
        self._timers.add("shutdown", policies.shutdown_timeout_ms * MILLISECOND_NS)
        if self._notifier.watchdog_ns:
            self._timers.add("watchdog", self._notifier.watchdog_ns).start(now_ns)
        if self._inheritance is not None:
            self._lifecycle.dispatch(self._inheritance.event, now_ns, reason=self._inheritance.reason)

    def on_enter_maintenance(self, now_ns: int, reason: str) -> None:
        """Nothing but a line in the log: the state itself refuses."""
        del now_ns
        self._log(f"maintenance: {reason}")

    def on_enter_draining(self, now_ns: int, reason: str, mode: ShutdownMode) -> None:
        """Final announce, counters, the shutdown's deadline."""
        self._notifier.send("STOPPING=1")
        timer = self._timers["shutdown"]
        timer.start(now_ns)
        if self._inheritance is not None and self._inheritance.deadline_ns:
            # Across restarts, too: within the timeout of the first of them, and never later than our own.
            timer.start_at(min(self._inheritance.deadline_ns, now_ns + timer.interval_ns))
        authority = self.tables.authority
        failpoint("drain.began")
        authority.store("shutdown_mode", _mode_code(mode))
        if mode is ShutdownMode.END:
            authority.store("shutdown_deadline_ns", timer.deadline_ns or 0)
            failpoint("drain.armed")
            self.tables.announce_all()
        self._log(f"draining ({mode.value}): {reason}; {self.tables.counters_text()}")

    def on_enter_stopped(self, now_ns: int, reason: str, mode: ShutdownMode) -> None:
        """The last words; then, at the end for good, seals and removes everything."""
        tables = self.tables
        self._timers.stop_all()
        failpoint("stop.began")
        tables.events.driver_shutdown(_mode_code(mode), Reason.SHUTDOWN, reason)
        if mode is ShutdownMode.END:
            tables.tenure.seal_all(Reason.SHUTDOWN, f"the driver was shut down: {reason}", now_ns)
            failpoint("stop.leases_ended")
            tables.authority.store("exit_kind", lib.SHMD_EXIT_CLEAN)
            failpoint("stop.exit")
            authority = tables.authority
            names = *tables.streams.segment_names(), *tables.clients.segment_names()
            for text in authority.tell_links(*names):
                self._log(text)
            tables.streams.unlink_all()
            tables.clients.unlink_all()
            failpoint("stop.control_unlinked")
            authority.unlink()
            failpoint("stop.authority_unlinked")
            authority.lock.remove()
        else:
            tables.authority.store("exit_kind", lib.SHMD_EXIT_HANDOVER)
            failpoint("handover.exit")
        tables.authority.wake_everybody()
        self._log(f"stopped ({mode.value}): {reason}")

    # -- inner

    def _goes_on(self) -> bool:
        return self._lifecycle.may_serve and not self.is_lost

    def _sleep(self) -> None:
        """Until somebody wakes it or something is due: a lease check that would find nothing is not."""
        now_ns, due_ns = self._clock(), self.next_deadline_ns()
        try:
            if due_ns > now_ns and self._may_rest:
                self._rest_until_woken(now_ns)
            elif due_ns > now_ns:
                self.sleeper.wait(None, now_ns, due_ns)
        except Exception as error:  # as in a tick
            self._note_defect("sleep", error, now_ns)

    def _rest_until_woken(self, now_ns: int) -> None:
        check = self._timers["lease_check"]
        until_ns = self._timers.next_deadline_ns(but=check) or 2**64 - 1
        self._rest.begin(check, self._last_tick_ns)
        self.sleeper.wait(self._rest.native, now_ns, self._rest.until_ns(until_ns))
        self._last_tick_ns = self._rest.looked(check)

    def _note_defect(self, where: str, error: Exception, now_ns: int) -> None:
        text = f"{error!r}{remedy(error)}"
        self.tables.authority.log_error(f"{where}: {text}", now_ns)
        self._log(f"error in a {where}: {text}")

    @property
    def _may_rest(self) -> bool:
        """Whether there is nothing that only ticks see to: work at hand, a state that time alone changes."""
        return (
            self._config.policies.tickless_idle
            and self.state is State.HEALTHY
            and not (self._orders or self._memory.pending)
            and not self._ring.has_waiting
            and self.sleeper.arm_due_ns is None
            and self._health.has_seen_all_events
            and self.connections.is_quiet
            and self._rest.is_possible
        )

    def _assemble(self, tables: Tables, modes: Modes, segment_bytes_max: int) -> None:
        limits = self._config.policies.limits
        self._notes = Work(tables)
        self._admission = Admission(
            self._config, tables, self._memory, self._notes, modes=modes, segment_bytes_max=segment_bytes_max
        )
        token = self._token(tables.authority.lock.folder) if callable(self._token) else self._token
        authentication = Authentication(
            tables.authority, token, lambda text: tables.authority.log_error(text, self._last_tick_ns)
        )
        self._desk = RequestDesk(tables, self._admission, authentication, self, self._log)
        self._ring = ControlRings(
            tables.authority,
            tables.clients,
            budget=limits.attaches_per_tick,
            refuse=self._desk.refuse,
            expel=self._expel,
        )
        self._rest = Rest(self._config, tables, gap_ns=self._gap_ns)
        tables.clients.wake_at_deaths(self.sleeper)
        self._lease_watch = LeaseWatch(
            self._config, tables, self._lifecycle.dispatch, self._log, self._ring.ring
        )
        self._stream_watch = StreamWatch(self._config, tables)
        self._damage = DamageWatch(tables, self._stream_watch, self._log, self._furnish)
        self._health = HealthWatch(tables.authority, tables.clients, self._set_degraded)

    def _poll(self, now_ns: int) -> None:
        """Requests, memory, timers. Each becomes an event that is complete before the next one is asked for:
        so a request's slot is freed only when its consequences are in the tables.
        """
        self._work += self.connections.take(now_ns, self._woken)
        for request in self._ring.take(now_ns):
            self._work += 1
            with self._notes.serving(request):
                self._serve(request, now_ns)
            self._finish_memory(now_ns)  # a small one's is there, and is granted before the slot is free
        self._finish_memory(now_ns)
        for timer in self._timers.due(now_ns):
            self._work += 1
            if timer.name == "lease_check":
                self._lifecycle.dispatch(Event.LEASE_CHECK_DUE, now_ns)
            elif timer.name == "announce":
                self._lifecycle.dispatch(Event.ANNOUNCE_DUE, now_ns)
            elif timer.name == "shutdown":
                # After all else of this tick: an expiry that a lease check finds must not come once stopped.
                self._orders.append(_Order(ShutdownMode.END, "policies.shutdown_timeout_ms is over"))
            elif timer.name == "watchdog":
                self._notifier.send("WATCHDOG=1")

    def _serve(self, request: Request, now_ns: int) -> None:
        if request.kind == lib.SHMD_REQUEST_ATTACH:
            self._lifecycle.dispatch(Event.ATTACH_REQUESTED, now_ns, subject=request)
        elif refusal := self._notes.refusal(request):
            self._desk.refuse(request, Code.REJECTED, Reason.DRIVER_DIED, refusal)
        elif request.kind in (lib.SHMD_REQUEST_DETACH, lib.SHMD_REQUEST_GOODBYE):
            self._lifecycle.dispatch(Event.DETACH, now_ns, subject=request)
        else:
            shutdown = request.kind == lib.SHMD_REQUEST_SHUTDOWN
            self._desk.guarded(request, self._desk.shutdown if shutdown else self._desk.admin, now_ns)

    def _finish_memory(self, now_ns: int) -> None:
        for completion in self._memory.completions():
            self._work += 1
            try:
                request = self._admission.request_of(completion)
                if request is not None:
                    with self._notes.serving(request):
                        self._desk.guarded(request, partial(self._finish_attach, completion), now_ns)
            finally:
                self._admission.abandon_waiting(completion)

    def _finish_attach(self, completion: Completion, request: Request, now_ns: int) -> None:
        for text in completion.job.passed_over if isinstance(completion.job, Provision) else ():
            self.tables.authority.log_error(text, now_ns)
            self._log(text)
        self._admission.finish(completion, now_ns, self._lifecycle.attach_refusal)
        if completion.result is not None and completion.result.unlocked:
            self._report_unlocked(f"stream {request.stream!r}: {completion.result.unlocked}", now_ns)

    def _obey(self, now_ns: int) -> None:
        while self._orders:
            order = self._orders[0]
            if order.mode is ShutdownMode.HANDOVER and (self._admission.pending or self._ring.has_waiting):
                # What is pending is answered first; but who floods the ring cannot keep an end away.
                ends = [order for order in self._orders if order.mode is ShutdownMode.END]
                if not ends:
                    return
                order = ends[0]
            self._orders.remove(order)
            again = self.state is State.DRAINING and order.mode is ShutdownMode.END
            event = Event.SHUTDOWN_TIMEOUT if again else Event.SHUTDOWN_REQUESTED
            self._lifecycle.dispatch(event, now_ns, reason=order.reason, mode=order.mode)

    def _finish_draining(self, now_ns: int) -> None:
        if self.state is State.DRAINING and self._is_drained():
            self._lifecycle.dispatch(Event.DRAINED, now_ns)

    def _is_drained(self) -> bool:
        if self._lifecycle.shutdown_mode is ShutdownMode.HANDOVER:
            return self._admission.pending == 0
        return self._config.policies.drain_until_empty and len(self.tables.leases) == 0

    def _report_unlocked(self, problem: str, now_ns: int) -> None:
        """Says what shm.mlock could not lock. Among the errors it is one, counted, whatever the segments."""
        if problem:
            self.tables.authority.log_error("shm.mlock: not all segments are locked in memory", now_ns)
            self.tables.events.error(problem)
            self._log(problem)

    def _set_degraded(self, reason: str, on: bool) -> None:
        if on != (reason in self._lifecycle.reasons):
            self._lifecycle.dispatch(
                Event.DEGRADE if on else Event.RECOVER, self._last_tick_ns, reason=reason
            )


def _mode_code(mode: ShutdownMode) -> int:
    return int(lib.SHMD_SHUTDOWN_HANDOVER if mode is ShutdownMode.HANDOVER else lib.SHMD_SHUTDOWN_END)
