"""One simulated instance and everything that may happen to it, drawn from one seed."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

from shmdriver.driver.authentication import sign_request
from shmdriver.driver.collect import collect
from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver
from shmdriver.driver.lifecycle import CODES, ShutdownMode, State
from shmdriver.driver.memory import InlineMemory
from shmdriver.errors import Code
from tests.driver_rig import rests
from tests.segments import runtime_folders
from tests.simulation.actors import Process
from tests.simulation.door import Connection
from tests.simulation.handles import Consumer, Producer
from tests.simulation.kernel import MS, Crash, Kernel, SlowMemory
from tests.simulation.leftovers import SHM, own_instance
from tests.simulation.model import Boot
from tests.simulation.probes import probed
from tests.simulation.rules import demand, is_alive, text_of
from tests.simulation.tables import View

TOKEN = b"the token of all simulations"
STREAMS = (b"a", b"b", b"c")
STEPS = 60
SIZES = (8, 8, 16, 40, 400, 2000)  # bytes of a message; inline up to 40
CHECK_MS = 100
INHERITED = (CODES[State.MAINTENANCE], CODES[State.DRAINING])


@cache
def config_of(variant: int, instance: str) -> Config:
    """A few configurations, small so that limits are met."""
    base = {
        "driver.instance": instance,
        "shm.max_bytes": 4 << 20,
        "policies.limits.clients": 8,
        "policies.limits.leases": 14,
        "policies.limits.streams": 3,
        "policies.limits.attaches_per_tick": 16,
        "policies.lease_timeout_ms": 2000,
        "policies.lease_check_interval_ms": CHECK_MS,
        "policies.heartbeat_interval_ms": 200,
        "policies.shutdown_timeout_ms": 1500,
        "policies.grace_ms": 1000,
        "profiles.default.slots": 64,
        "profiles.default.slot_bytes": 64,
        "profiles.default.arena": 8192,
        "profiles.default.max_consumers": 4,
    }
    base |= (
        {},
        {"profiles.default.slow_consumer": "evict", "profiles.default.evict_after_ms": 300},
        {"policies.grace_ms": 0, "profiles.default.wakeups": False},
        {"policies.drain_until_empty": False, "policies.limits.streams": 2},
    )[variant]
    return Config.load(env={}, overrides=base)


class World:
    """``World(seed).run()`` raises Violation when a rule is broken; ``trace`` says how it came to that."""

    def __init__(self, seed: int, steps: int = STEPS) -> None:
        self.seed, self.steps = seed, steps
        self.rng = Random(seed)
        self.kernel = Kernel(self.rng)
        self.clock = self.kernel.clock
        self.instance = own_instance(os.getpid())
        self.variant = self.rng.randrange(4)
        self.trace: list[str] = []
        self.driver: Driver | None = None
        self.logged: list[str] = []
        self.boot: Boot
        # Connections with a Hello out of turn, whose it seems to be, and why it is not to be heeded.
        self.strangers: list[tuple[Connection, Process, str]] = []
        names = ("crashes", "adoptions", "boots", "messages", "leases", "unread", "rests")
        self.counts = dict.fromkeys(names, 0)
        self.in_work: Any = None  # the request that the driver has served or granted last in this tick
        self.tick_ns = 0  # when the last tick began: a slow one ends later
        self._nonce = 1

    def note(self, text: str) -> None:
        self.trace.append(f"{self.clock.now_ns / MS:11.1f} ms  {text}")

    # -- the driver

    def start(self, *, fresh: bool = False) -> None:
        """Starts a driver, which may be killed on its way; adopts or begins a boot, by what it finds."""
        config = config_of(self.variant, self.instance)
        if self.seed // 8 % 4 == 0 and self.rng.random() < 0.2:
            self.kernel.move()
        if fresh:
            config = config.model_copy(update={"driver": config.driver.model_copy(update={"boot": "fresh"})})
        if hasattr(self, "boot"):
            self.boot.fresh_asked |= fresh
            self.boot.inherited = self.boot.lifecycle
        driver = Driver(
            config,
            clock=self.clock,
            memory=SlowMemory(self.rng) if self.seed % 2 else InlineMemory(),
            log=self.logged.append,
            token=TOKEN,
        )
        self.note(f"driver starts{' fresh' if fresh else ''}")
        try:
            driver.start()
        except Crash:
            self._killed()
            return
        self.driver = driver
        self._meet_boot()
        self.boot.driver_since_ns = self.clock.now_ns
        self.look()

    def _meet_boot(self) -> None:
        """Whether the driver adopted the boot that is known, or made a new one."""
        driver = self.driver
        assert driver is not None
        if hasattr(self, "boot") and driver.tables.authority.boot_id == self.boot.view.boot_id:
            self.counts["adoptions"] += 1
            same = CODES[driver.state] == self.boot.inherited or self.boot.inherited not in INHERITED
            demand(same, "maintenance and draining outlive a driver", self.boot.inherited, driver.state)
            return
        if hasattr(self, "boot"):
            self._leave_boot()
        self.counts["boots"] += 1
        self.boot = Boot(View(self.instance), self.kernel, 2000 * MS, CHECK_MS * MS)

    def _leave_boot(self) -> None:
        """Clients of a boot that is over drain what they have mapped, and go."""
        boot = self.boot
        demand(boot.ending, "a boot ends by shutdown or by a fresh start", int(boot.view.authority.exit_kind))
        boot.observe()
        boot.scan(self.clock.now_ns, settled=False)
        boot.settled = True
        for process in list(boot.processes):
            if process.awake:
                for consumer in process.consumers:
                    self._drain(consumer)
            process.close()
        self._count(boot)
        boot.view.close()

    def _count(self, boot: Boot) -> None:
        self.counts["messages"] += sum(epoch.committed for epoch in boot.epochs.values())
        self.counts["leases"] += len(boot.leases)
        self.counts["unread"] += boot.retired_unread

    def _drain(self, consumer: Consumer) -> None:
        while not consumer.over:
            count, rc = consumer.poll(256, False)
            if rc == 0 or (rc == 1 and count == 0):
                return

    def tick(self, milliseconds: float) -> None:
        """Time passes, hearts beat, the driver does one duty cycle (and may be killed in it)."""
        self.clock.now_ns += int(milliseconds * MS)
        self.tick_ns = self.clock.now_ns
        for process in self.boot.processes:
            process.beat(self.clock.now_ns)
            if process.awake and self.rng.random() < 0.8:
                self._step(process)
        if self.driver is None:
            return
        self.in_work = None
        rung = {c.key for c in self.kernel.network.kept if c.to_driver}
        unread = {p: p.unread for p in self.boot.processes if p.session.key in rung}
        try:
            gates_ns = int(self.driver._rest.native.gates_ns)
            if self._rests():
                self.counts["rests"] += 1
                if self.seed // 4 % 2 == 0 and not self.clock.slow_ns:
                    self._check_idle(gates_ns)
            else:
                self.driver.tick()
        except Crash:
            self._killed()
            return
        self.look()
        for process, count in unread.items():
            record = self.boot.record_of(process.session.key)
            is_read = count == 0 or process.unread < count or process.is_liar
            is_gone = record is None or not is_alive(record) or self.driver.state is State.STOPPED
            demand(is_read or is_gone, "who rings is served in the next tick", process, count)
        deadline_ns = int(self.boot.view.authority.shutdown_deadline_ns)
        if self.driver.state is State.STOPPED:
            self._stopped()
        elif self.driver.state is State.DRAINING and deadline_ns:
            demand(self.tick_ns < deadline_ns, "a shutdown ends within its timeout and one tick", deadline_ns)

    def _rests(self) -> bool:
        """Whether the driver's loop would sleep on: C has looked and found nothing. For half of the seeds."""
        assert self.driver is not None
        sleeper: Any = self.driver._sleeper
        return self.seed // 2 % 2 == 0 and not sleeper.has_news and rests(self.driver, self.tick_ns)

    def _check_idle(self, gates_ns: int) -> None:
        """What an idle check that found nothing has said: a tick with a lease check, now, finds nothing.

        ``gates_ns``: when idle checks had looked at gates before this one.
        """
        driver, boot = self.driver, self.boot
        assert driver is not None
        if any(model.noted_ns and model.owner and model.owner.stopped for model in boot.leases.values()):
            return  # it will ring once it goes on: only then an idle driver looks at its notes
        if any(process.is_liar for process in boot.processes):
            return  # pages that are missing where only a lease check looks
        watch, timer = driver._stream_watch, driver._timers["lease_check"]
        before, due_ns, checked_ns = boot.view.tables(), timer.deadline_ns, watch._gates_ns
        saw_gates = int(driver._rest.native.gates_ns) != gates_ns
        watch._gates_ns = 0 if saw_gates else self.tick_ns  # both look at gates now, or neither does
        timer.start_at(self.tick_ns)
        driver.tick()
        watch._gates_ns = checked_ns
        if due_ns is not None and driver.state is State.HEALTHY:
            timer.start_at(due_ns)
        changed = [name for name, found in boot.view.tables().items() if found != before[name]]
        demand(not changed, "an idle check that finds nothing is right", changed, self.logged)

    def _killed(self) -> None:
        self.note(f"driver killed at {self.kernel.where}")
        self.counts["crashes"] += 1
        self.driver = None
        self.kernel.bury()
        if hasattr(self, "boot"):
            if self.in_work is not None:
                self.boot.died_at(self.in_work)
                self.in_work = None
            self.boot.observe()
            self.boot.scan(self.clock.now_ns, settled=False)
            self.boot.driver_killed()

    def _stopped(self) -> None:
        """After a shutdown: what stays depends on its mode."""
        assert self.driver is not None
        mode = self.driver._lifecycle.shutdown_mode
        try:
            self.driver.close()
        except Crash:  # with memory jobs yet to finish
            self._killed()
            return
        self.driver = None
        left = self.kernel.closed()
        demand(not left, "a closed driver gives back its mappings", left)
        self.note(f"driver stopped ({mode})")
        if mode is ShutdownMode.END:
            demand(not self.segments(), "a shutdown leaves no segment", self.segments())
            folders = runtime_folders(lambda name: name == self.instance)
            demand(not folders, "a shutdown leaves no runtime folder", folders)
            self.boot.settled = True
        else:
            self.boot.settled = False

    def look(self) -> None:
        """Events, tables, segments, answers: after everything that the driver did."""
        boot, driver = self.boot, self.driver
        assert driver is not None
        events = boot.observe()
        over = driver.state is State.STOPPED
        boot.has_waiting = driver._ring.has_waiting or driver._damage.is_new  # a tick follows at once
        boot.scan(self.tick_ns, settled=not over)
        boot.note_answers(events)
        self._hear_strangers()
        for line in self.logged:
            demand("error in a tick" not in line, "a tick does not fail", line)
        self.logged.clear()
        if not over:
            boot.check_connections(self.kernel.network)
            expected = boot.expected_segments() | boot.view.names
            found = self.segments() - boot.optional_segments()
            demand(
                found == expected,
                "no segment leaks",
                f"too many {found - expected}, missing {expected - found}",
            )
        for event in events:
            correlation = int(event.correlation_id)
            if correlation:
                for process in boot.processes:
                    if correlation in process.pending:
                        self._deliver(process, event)

    def _deliver(self, process: Process, event: Any) -> None:
        chance = self.rng.random()
        if process.awake and chance < 0.85:
            self._receive(process, event)
        elif chance > 0.95:
            self.note(f"{process} misses an answer")
        else:
            process.inbox.append(event)

    def _receive(self, process: Process, event: Any) -> None:
        handles = len(process.producers) + len(process.consumers)
        self.note(f"{process} {process.receive(event)}")
        process.beat(self.clock.now_ns)
        made: list[Producer | Consumer] = [*process.producers, *process.consumers]
        if len(made) > handles and self.rng.random() < 0.95:
            process.confirm(max((handle.model for handle in made), key=lambda model: model.lease_id))

    def _step(self, process: Process) -> None:
        """Its connection goes on."""
        text = process.session.step(self.clock.now_ns)
        if text:
            self.note(f"{process} {text}")

    def _hear_strangers(self) -> None:
        """What the driver has answered to Hellos that are none of the client's."""
        for connection, victim, kind in self.strangers:
            for welcome, _ in connection.to_client:
                where = f"{victim}, wrong {kind}: {text_of(welcome)[:90]}"
                is_welcome = welcome.code == Code.OK and welcome.client_id == victim.client_id
                demand(not kind or not is_welcome, "only a client's own newest Hello is welcome", where)
            connection.to_client.clear()
        self.strangers = [found for found in self.strangers if found[0].is_served]

    def segments(self) -> set[str]:
        prefix = f"shmd.{self.instance}."
        names = os.listdir(SHM)  # noqa: PTH208 -- after every tick: a path object for each name costs more
        return {name for name in names if name.startswith(prefix)}

    # -- a whole run

    def run(self) -> None:
        from tests.simulation.acts import Acts
        from tests.simulation.epilogue import epilogue

        with self.kernel.installed(), probed(self):
            try:
                self.start()
                acts = Acts(self)
                acts.perform(self.steps)
                epilogue(self, acts)
                self._count(self.boot)
            finally:
                self._clean()

    def _clean(self) -> None:
        if hasattr(self, "boot"):
            for process in self.boot.processes:
                process.close()
            self.boot.view.close()
        self.driver = None
        self.kernel.bury()
        collect(self.instance)
        for name in self.segments():  # that are left half made: of no driver's form
            (SHM / name).unlink()

    def pick(self, wanted: Callable[[Process], bool]) -> Process | None:
        found = [process for process in self.boot.processes if wanted(process)]
        return self.rng.choice(found) if found else None

    def sign(self, process: Process, raw: Any) -> None:
        self._nonce += 1
        boot_id = int(self.boot.view.authority.header.boot_id)
        client_id = process.client_id
        sign_request(
            raw, TOKEN, instance=self.instance, boot_id=boot_id, client_id=client_id, nonce=self._nonce
        )
