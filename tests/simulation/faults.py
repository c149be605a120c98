"""Malice, operators, fate: interrupted and forged requests, lies, and all that happens to the driver."""

from __future__ import annotations

import os
from typing import Any

from shmdriver._native import lib
from shmdriver.driver.lifecycle import ShutdownMode, State
from tests.simulation.actors import CREATE, Process
from tests.simulation.door import Connection
from tests.simulation.kernel import VEILS, Task, address
from tests.simulation.leftovers import SHM
from tests.simulation.rules import is_alive, key_of
from tests.simulation.tables import phase, text_in
from tests.simulation.world import World

ADMIN_FORGET = getattr(lib, "SHMD_ADMIN_FORGET", 5)


class Faults:
    """Performs them on a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng
        # Connections made, and Hellos on them not said yet, by programs that others have replaced.
        self.late: list[tuple[Connection, Any]] = []

    @property
    def now_ns(self) -> int:
        return self.world.clock.now_ns

    def _process(self) -> Process | None:
        return self.world.pick(lambda p: p.awake and p.connected)

    def _handle(self, kind: str) -> Any:
        process = self.world.pick(lambda p: p.awake and bool(getattr(p, kind)))
        return self.rng.choice(getattr(process, kind)) if process else None

    def _left(self, process: Process) -> None:
        for model in self.world.boot.leases.values():
            if model.owner is process:
                model.done = True
        process.left = True
        process.drop()
        if self.rng.random() < 0.8:
            process.session.hang_up()

    # -- malice

    def interrupt_send(self) -> None:
        """Stopped or killed in the middle of a request, of which the driver sees nothing."""
        process = self._process()
        if process is None or process.half_sent is not None:
            return
        raw = process.request(
            lib.SHMD_REQUEST_ATTACH,
            self.now_ns,
            role=lib.SHMD_ROLE_CONSUMER,
            stream=b"a",
            delivery=lib.SHMD_DELIVERY_LOSSY,
            start=lib.SHMD_START_NEWEST,
            wait=lib.SHMD_WAIT_SPIN,
            flags=CREATE,
        )
        process.send_half(raw)
        self.world.note(f"{process} is interrupted while it sends")
        process.pending[int(raw.correlation_id)] = raw
        if self.rng.random() < 0.4:
            process.die(self.now_ns)
        else:
            process.stopped = True

    def resume_send(self) -> None:
        process = self.world.pick(lambda p: p.awake and p.half_sent is not None)
        if process:
            self.world.note(f"{process} goes on sending: {process.finish_sending()}")

    def flood(self) -> None:
        process = self._process()
        if process is None:
            return
        sent = 0
        for _ in range(self.rng.choice((20, 80))):
            raw = process.request(
                lib.SHMD_REQUEST_ATTACH,
                self.now_ns,
                role=lib.SHMD_ROLE_CONSUMER,
                stream=b"none",
                delivery=1,
                start=1,
                wait=1,
            )
            sent += process.send(raw)
        self.world.note(f"{process} floods: {sent}")

    def garbage(self) -> None:
        process = self._process()
        if process is None or process.half_sent is not None:
            return
        raw = process.request(self.rng.choice((1, 2, 5, 6, 77)), self.now_ns)  # 1 was once a Hello
        names = ("role", "delivery", "start", "flags", "slots", "schema_bytes", "admin", "layout_version")
        for name in names:
            if self.rng.random() < 0.5:
                setattr(raw, name, self.rng.choice((0, 1, 2, 2**31 - 1)))
        raw.stream = self.rng.randbytes(60).replace(b"\0", b"a")
        wrong = self.rng.random() < 0.5
        send = process.native.sim_send_garbage if wrong else process.native.sim_send
        self.world.note(f"{process} sends garbage: {send(process.client, address(raw))}")
        process.session.ring()

    def ruin(self) -> None:
        """Its ring says that requests stand where none can be: it harms itself alone."""
        process = self._process()
        if process and not process.is_liar:
            process.is_liar = True
            process.native.sim_tail(process.client, self.rng.getrandbits(64))
            process.session.ring()
            self.world.note(f"{process} ruins its ring")

    def truncate(self) -> None:
        """Its control segment loses its pages."""
        process = self._process()
        if process and not process.is_liar:
            record = self.world.boot.record_of(process.session.key)
            path = SHM / text_in(record.control_name).lstrip("/") if record else SHM / "none"
            if path.exists():
                process.is_liar = True
                os.truncate(path, self.rng.choice((0, 4096)))
                self.world.note(f"{process} truncates its control segment")

    def forge(self) -> None:
        """Another's lease, another's identity, or a request without the token."""
        process = self._process()
        others = [m for m in self.world.boot.leases.values() if m.owner is not process]
        if process is None or not others:
            return
        model = self.rng.choice(others)
        record = model.record
        raw = process.request(lib.SHMD_REQUEST_DETACH, self.now_ns, role=record.role, stream=b"a")
        kind = self.rng.randrange(4)
        if kind == 0:
            raw.lease_id = record.lease_id
        elif kind == 1:
            raw.target_correlation_id = record.correlation_id
        elif kind == 2:
            raw.lease_id, raw.client_id = record.lease_id, record.client_id
        else:
            raw.kind, raw.admin, raw.nonce = lib.SHMD_REQUEST_SHUTDOWN, lib.SHMD_SHUTDOWN_END, 2**63
        self.world.note(f"{process} forges ({kind}) against {model}: {process.send(raw)}")

    def lie(self) -> None:
        """A gate that goes back, or far ahead."""
        consumer = self._handle("consumers")
        if consumer is not None and consumer.reliable and not consumer.over:
            position = self.rng.choice((0, 2**40, 2**63 + 5))
            if consumer.process.native.sim_lie(consumer.handle, position):
                consumer.model.liar = True
                self.world.note(f"{consumer.model} lies about its gate: {position}")

    def forget(self) -> None:
        """An administrator gives up a client that is gone, or one that is not: that is refused."""
        process, boot = self._process(), self.world.boot
        alive = {key_of(record): is_alive(record) for record in boot.now.clients if phase(record)}
        known = [p for p in boot.processes if p.session.key in alive]
        others = [
            p for p in known if not p.task.alive or (alive[p.session.key] and p.awake and not p.is_liar)
        ]
        if process and others:
            other = self.rng.choice(others)
            raw = process.request(
                lib.SHMD_REQUEST_ADMIN, self.now_ns, admin=ADMIN_FORGET, lease_id=other.client_id
            )
            self.world.sign(process, raw)
            self.world.note(f"{process} has {other} forgotten: {process.send(raw)}")

    # -- connections

    def hang_up(self) -> None:
        """A living client's connection ends, and that is all."""
        process = self.world.pick(lambda p: p.awake and p.session.connection is not None)
        if process:
            process.session.hang_up()
            self.world.note(f"{process} hangs up")

    def greet_again(self) -> None:
        """On a second connection, while the first one is open."""
        process = self._process()
        if process and not process.session.is_over:
            self.world.note(f"{process} {process.session.begin(self.now_ns)}, again")

    def replay(self) -> None:
        """An old Hello arrives late or twice, and is not heeded, unless no newer one was."""
        process = self._process()
        record = self.world.boot.record_of(process.session.key) if process else None
        if process and record:
            serial = self.rng.choice(sorted(process.session.said))
            hello = process.session.hello(serial)
            kind = "serial" if serial <= record.serial else ""
            self._connect(process.task, hello, process, kind, f"{process} repeats a hello")

    def impersonate(self) -> None:
        """A Hello that names another's record, with everything that it can know of it."""
        victim = self._process()
        other = self.world.pick(lambda p: p.awake and victim is not None and p.task is not victim.task)
        if victim is None or other is None:
            return
        fields: dict[str, Any] = {"secret": self.rng.randbytes(lib.SHMD_SECRET_BYTES)}
        task, kind = other.task, self.rng.choice(("secret", "nonce", "user", "process", "image"))
        if kind == "nonce":
            fields |= {"client_id": 0, "boot_id": 0, "image": task.image}
        elif kind != "secret":
            del fields["secret"]
        if kind == "image":
            task, fields["image"] = victim.task, victim.session.image + 1 & 2**64 - 1
        is_same_user = kind == "user" and task.uid == victim.task.uid
        if is_same_user or (kind == "process" and not self._is_seen(victim, task)):
            return
        hello = victim.session.hello(2**60 + self.now_ns, **fields)
        text = f"{other} says hello as {victim} (wrong {kind})"
        self._connect(task, hello, victim, kind, text)

    def _is_seen(self, victim: Process, task: Task) -> bool:
        """Whether the driver can tell this process from that of the client."""
        kernel = self.world.kernel
        record = self.world.boot.record_of(victim.session.key)
        return bool(
            record is not None
            and record.pid
            and record.pid_namespace == kernel.namespace
            and task.pid_in(kernel.namespace)
        )

    def crowd(self) -> None:
        """Connections that say nothing."""
        process = self._process()
        if process:
            network = self.world.kernel.network
            tries = [network.connect(process.task) for _ in range(self.rng.choice((2, 6, 12)))]
            made = [connection for connection in tries if not isinstance(connection, int)]
            for connection in made:
                if self.rng.random() < 0.3:
                    connection.close()
            self.world.note(f"{process} makes {len(made)} silent connections")

    def _connect(self, task: Task, hello: Any, victim: Process, kind: str, text: str) -> None:
        connection = self.world.kernel.network.connect(task)
        if not isinstance(connection, int):
            connection.send(hello)
            self.world.strangers.append((connection, victim, kind))
            self.world.note(text)

    # -- looks at processes

    def veil(self) -> None:
        """/proc hides a process, shows another namespace's, or shows it again."""
        process = self.world.pick(lambda p: p.is_there)
        if process:
            process.task.veil = self.rng.choice(VEILS)
            self.world.note(f"{process}: a look at it finds evidence {process.task.veil}")

    def run_short(self) -> None:
        """The driver has no descriptor left for another pidfd, or has some again."""
        kernel = self.world.kernel
        kernel.run_short(not kernel.is_short)
        self.world.note(f"descriptors are {'out' if kernel.is_short else 'back'}")

    # -- the driver

    def kill_driver(self) -> None:
        world = self.world
        if world.driver is not None:
            world.kernel.where = "rest"
            world._killed()

    def arm(self) -> None:
        """The driver will die at one of the next points."""
        if not self.world.kernel.points_left:
            points = int(2 ** self.rng.uniform(0, 8))
            self.world.note(f"the driver will be killed at its {points}. point from now")
            self.world.kernel.arm(points)

    def restart(self) -> None:
        if self.world.driver is None:
            self.world.start(fresh=self.rng.random() < 0.05)

    def fresh(self) -> None:
        self.kill_driver()
        self.world.start(fresh=True)

    def hand_over(self) -> None:
        self._shut_down(ShutdownMode.HANDOVER)

    def end(self) -> None:
        self._shut_down(ShutdownMode.END)

    def _shut_down(self, mode: ShutdownMode) -> None:
        world = self.world
        if world.driver is None:
            return
        if world.driver.state is State.DRAINING and self.rng.random() < 0.7:
            return
        if mode is ShutdownMode.END:
            world.boot.end_asked = True
        process = self._process()
        if process and self.rng.random() < 0.5:
            code = lib.SHMD_SHUTDOWN_END if mode is ShutdownMode.END else lib.SHMD_SHUTDOWN_HANDOVER
            raw = process.request(lib.SHMD_REQUEST_SHUTDOWN, self.now_ns, admin=code)
            world.sign(process, raw)
            world.note(f"{process} asks for shutdown ({mode.value}): {process.send(raw)}")
        else:
            world.note(f"shutdown ({mode.value})")
            world.driver.request_shutdown(mode, "simulated")

    def maintain(self) -> None:
        process = self._process()
        if process:
            on = self.rng.random() < 0.5
            code = lib.SHMD_ADMIN_MAINTENANCE_ON if on else lib.SHMD_ADMIN_MAINTENANCE_OFF
            raw = process.request(lib.SHMD_REQUEST_ADMIN, self.now_ns, admin=code)
            self.world.sign(process, raw)
            self.world.note(f"{process} asks for maintenance {on}: {process.send(raw)}")

    def revoke(self) -> None:
        process = self._process()
        live = [model for model in self.world.boot.leases.values() if model.live]
        if process and live:
            model = self.rng.choice(live)
            raw = process.request(
                lib.SHMD_REQUEST_ADMIN, self.now_ns, admin=lib.SHMD_ADMIN_REVOKE, lease_id=model.lease_id
            )
            self.world.sign(process, raw)
            if process.send(raw):
                model.revoke_asked = True
                self.world.note(f"{process} has {model} revoked")
