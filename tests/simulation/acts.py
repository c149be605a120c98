"""What clients, operators and fate do. Every act is one method; a seed chooses how often each may happen."""

from __future__ import annotations

from typing import Any

from shmdriver._native import lib
from shmdriver.driver.lifecycle import ShutdownMode, State
from shmdriver.errors import Reason
from tests.simulation.actors import CREATE, FOLLOW, Consumer, Process, Producer
from tests.simulation.kernel import MS
from tests.simulation.model import demand
from tests.simulation.world import CHECK_MS, SIZES, STREAMS, World

WEIGHTS = {
    "pass_time": 30, "arrive": 8, "produce": 9, "consume": 12, "publish": 30, "poll": 30, "detach": 5, "goodbye": 2,
    "die": 4, "die_publishing": 2, "stop": 3, "resume": 4, "fall_silent": 1, "read_inbox": 4, "ask_again": 5,
    "give_up": 3, "claim": 3, "finish_claim": 4, "interrupt_send": 2, "resume_send": 2, "flood": 1, "garbage": 2,
    "forge": 2, "lie": 1, "kill_driver": 3, "arm_line": 5, "arm_call": 3, "restart": 12, "hand_over": 2, "end": 1,
    "fresh": 1, "maintain": 1, "revoke": 1, "slow_tick": 1, "jump": 1,
}  # fmt: skip
ALWAYS = frozenset(("pass_time", "arrive", "produce", "consume", "publish", "poll", "restart", "resume", "read_inbox"))


class Acts:
    """Performs acts on a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng
        # Every seed leaves some acts out and makes some frequent, so that seeds differ in kind.
        self.weights = {
            name: weight * (1 if name in ALWAYS else self.rng.choice((0, 1, 1, 4))) for name, weight in WEIGHTS.items()
        }

    @property
    def now_ns(self) -> int:
        return self.world.clock.now_ns

    def perform(self, steps: int) -> None:
        names, weights = list(self.weights), list(self.weights.values())
        for name in self.rng.choices(names, weights, k=steps):
            getattr(self, name)()
            if self.rng.random() < 0.5:
                self.world.tick(self.rng.choice((0, 1, 10, 50)))

    def _process(self) -> Process | None:
        return self.world.pick(lambda p: p.awake and p.connected)

    def _handle(self, kind: str) -> Any:
        process = self.world.pick(lambda p: p.awake and bool(getattr(p, kind)))
        return self.rng.choice(getattr(process, kind)) if process else None

    # -- time and processes

    def pass_time(self) -> None:
        self.world.tick(self.rng.choice((1, 10, 60, 110, 110, 250, 500)))

    def jump(self) -> None:
        """The machine, or the driver, was suspended."""
        self.world.note("time jumps")
        self.world.tick(self.rng.choice((1500, 5000, 60_000)))

    def slow_tick(self) -> None:
        self.world.clock.slow_ns = self.rng.choice((60, 200)) * MS
        self.world.tick(1)

    def arrive(self) -> None:
        world = self.world
        if len([p for p in world.boot.processes if not p.gone]) >= 10:
            return
        process = Process(world.boot, world.kernel.spawn(), self.rng, self.now_ns)
        world.boot.processes.append(process)
        world.note(f"{process} says hello: {process.ask(process.hello(self.now_ns))}")

    def die(self) -> None:
        process = self.world.pick(lambda p: p.task.alive and not p.left)
        if process:
            self.world.note(f"{process} dies")
            process.die(self.now_ns)

    def die_publishing(self) -> None:
        """Between commit and head, or in the middle of a message."""
        producer = self._handle("producers")
        if producer is None:
            return
        process = producer.process
        if producer.claimed or self.rng.random() < 0.5:
            if not producer.claimed:
                producer.claim(self.rng.choice(SIZES))
            self.world.note(f"{process} dies in the middle of a message")
        else:
            self.world.note(f"{process} dies {producer.publish_headless(self.rng.randint(1, 70))} commits past its head")
        process.die(self.now_ns)

    def stop(self) -> None:
        process = self._process()
        if process:
            self.world.note(f"{process} is stopped")
            process.stopped = True

    def resume(self) -> None:
        process = self.world.pick(lambda p: p.stopped and p.task.alive)
        if process:
            self.world.note(f"{process} goes on")
            process.stopped = process.beats_not = False

    def fall_silent(self) -> None:
        """Its heartbeat stops, all else goes on."""
        process = self._process()
        if process:
            self.world.note(f"{process} falls silent")
            process.beats_not = True

    def read_inbox(self) -> None:
        process = self.world.pick(lambda p: p.awake and bool(p.inbox))
        while process and process.inbox:
            self.world._receive(process, process.inbox.pop(0))

    # -- attaching

    def _attach(self, role: int, **fields: Any) -> None:
        process = self._process()
        if process is None:
            return
        flags = fields.pop("flags", 0) | (CREATE if self.rng.random() < 0.9 else 0)
        raw = process.request(lib.SHMD_REQUEST_ATTACH, self.now_ns, role=role, stream=self.rng.choice(STREAMS),
                              flags=flags, **fields)  # fmt: skip
        sent = process.ask(raw)
        if not sent and self.rng.random() < 0.5:
            del process.pending[int(raw.correlation_id)]
        what = "produce" if role == lib.SHMD_ROLE_PRODUCER else f"consume ({fields['delivery']}, flags {flags})"
        self.world.note(f"{process} asks to {what} {raw.stream[0]!r}: {sent}")

    def produce(self) -> None:
        choice = self.rng.choice
        self._attach(lib.SHMD_ROLE_PRODUCER, slow_consumer=choice((0, 0, 0, 1, 2, 3)), min_consumers=choice((0, 0, 0, 1)),
                     slots=choice((0, 0, 128)), flags=choice((0, 0, int(lib.SHMD_ATTACH_NO_WAKEUPS))))  # fmt: skip

    def consume(self) -> None:
        choice = self.rng.choice
        reliable, lossy, latest = lib.SHMD_DELIVERY_RELIABLE, lib.SHMD_DELIVERY_LOSSY, lib.SHMD_DELIVERY_LATEST
        self._attach(lib.SHMD_ROLE_CONSUMER, delivery=choice((reliable, reliable, reliable, lossy, latest)),
                     start=choice((lib.SHMD_START_NEWEST, lib.SHMD_START_OLDEST)),
                     wait=choice((lib.SHMD_WAIT_ADAPTIVE, lib.SHMD_WAIT_SPIN, lib.SHMD_WAIT_SLEEP)),
                     flags=choice((0, FOLLOW)))  # fmt: skip

    def ask_again(self) -> None:
        process = self.world.pick(lambda p: p.awake and bool(p.pending))
        if process:
            raw = self.rng.choice(list(process.pending.values()))
            self.world.note(f"{process} asks again: {process.send(raw)}")

    def give_up(self) -> None:
        process = self.world.pick(lambda p: p.awake and p.connected and bool(p.pending))
        attaches = [raw for raw in process.pending.values() if raw.kind == lib.SHMD_REQUEST_ATTACH] if process else []
        if not process or not attaches:
            return
        attach = self.rng.choice(attaches)
        correlation = int(attach.correlation_id)
        raw = process.request(lib.SHMD_REQUEST_DETACH, self.now_ns, role=attach.role, target_correlation_id=correlation)
        raw.stream = attach.stream
        sent = process.send(raw)
        self.world.note(f"{process} gives up: {sent}")
        if sent:
            del process.pending[correlation]
            self.world.boot.given_up.add(correlation)
            for model in self.world.boot.leases.values():
                if model.record.correlation_id == correlation:
                    model.done = True

    def detach(self) -> None:
        handle = self._handle(self.rng.choice(("producers", "consumers")))
        if handle is not None:
            self._detach(handle, aborted=self.rng.random() < 0.3)

    def _detach(self, handle: Producer | Consumer, *, aborted: bool) -> None:
        process, record = handle.process, handle.model.record
        stream = next(s for s in self.world.boot.now.streams if s.stream_id == record.stream_id)
        raw = process.request(lib.SHMD_REQUEST_DETACH, self.now_ns, role=record.role, lease_id=record.lease_id,
                              stream=stream.name.rstrip(b"\0"), flags=lib.SHMD_DETACH_ABORTED * aborted)  # fmt: skip
        sent = process.send(raw)
        self.world.note(f"{process} detaches {handle.model}: {sent}")
        if sent:
            handle.model.done = True
            process.forget(handle)
            if int(raw.deadline_ns) - self.now_ns > 1000 * MS:
                process.pending[int(raw.correlation_id)] = raw

    def goodbye(self) -> None:
        process = self._process()
        if process and process.send(process.request(lib.SHMD_REQUEST_GOODBYE, self.now_ns)):
            self.world.note(f"{process} says goodbye")
            self._left(process)

    def _left(self, process: Process) -> None:
        for model in self.world.boot.leases.values():
            if model.owner is process:
                model.done = True
        process.left = True
        process.drop()

    # -- data

    def publish(self) -> None:
        producer = self._handle("producers")
        if producer is None or producer.over or producer.claimed:
            return
        done, rc = producer.publish(self.rng.choice(SIZES), self.rng.choice((1, 5, 30, 100)), self.rng.random() < 0.3)
        self.world.note(f"{producer.model} publishes {done} -> {producer.epoch.committed} ({rc})")

    def poll(self) -> None:
        consumer = self._handle("consumers")
        if consumer is None or consumer.over:
            return
        count, rc = consumer.poll(self.rng.choice((1, 10, 256)), self.rng.random() < 0.5)
        self.world.note(f"{consumer.model} reads {count} -> epoch {consumer.epoch} seq {consumer.next} ({rc})")

    def claim(self) -> None:
        producer = self._handle("producers")
        if producer is not None and not producer.over and not producer.claimed:
            self.world.note(f"{producer.model} claims: {producer.claim(self.rng.choice(SIZES))}")

    def finish_claim(self) -> None:
        process = self.world.pick(lambda p: p.awake and any(q.claimed for q in p.producers))
        if process:
            producer = next(q for q in process.producers if q.claimed)
            commit = self.rng.random() < 0.7
            self.world.note(f"{producer.model} ends its claim, commit {commit}: {producer.finish_claim(commit)}")

    # -- malice

    def interrupt_send(self) -> None:
        """Stopped or killed between the claim of a control slot and the commit."""
        process = self._process()
        if process is None or process.claims:
            return
        raw = process.request(lib.SHMD_REQUEST_ATTACH, self.now_ns, role=lib.SHMD_ROLE_CONSUMER, stream=b"a",
                              delivery=lib.SHMD_DELIVERY_LOSSY, start=lib.SHMD_START_NEWEST, wait=lib.SHMD_WAIT_SPIN,
                              flags=CREATE)  # fmt: skip
        if process.claim(raw):
            self.world.note(f"{process} is interrupted while it sends")
            process.pending[int(raw.correlation_id)] = raw
            if self.rng.random() < 0.4:
                process.die(self.now_ns)
            else:
                process.stopped = True

    def resume_send(self) -> None:
        process = self.world.pick(lambda p: p.awake and bool(p.claims))
        if process:
            self.world.note(f"{process} goes on sending: {process.commit_claims()}")

    def flood(self) -> None:
        process = self._process()
        if process is None:
            return
        sent = 0
        for _ in range(self.rng.choice((20, 80))):
            raw = process.request(lib.SHMD_REQUEST_ATTACH, self.now_ns, role=lib.SHMD_ROLE_CONSUMER, stream=b"none",
                                  delivery=1, start=1, wait=1)  # fmt: skip
            sent += process.send(raw)
        self.world.note(f"{process} floods: {sent}")

    def garbage(self) -> None:
        process = self._process()
        if process is None or process.claims:
            return
        raw = process.request(self.rng.choice((1, 2, 5, 6, 77)), self.now_ns)
        if process.claim(raw):
            for name in ("role", "delivery", "start", "flags", "slots", "schema_bytes", "pid", "admin", "layout_version"):
                if self.rng.random() < 0.5:
                    setattr(raw, name, self.rng.choice((0, 1, 2, 2**31 - 1)))
            raw.stream, raw.start_time = self.rng.randbytes(60).replace(b"\0", b"a"), self.rng.getrandbits(64)
            wrong = self.rng.choice((0, 1))
            self.world.note(f"{process} sends garbage: {process.commit_claims(wrong)}")

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

    # -- the driver

    def kill_driver(self) -> None:
        world = self.world
        if world.driver is not None:
            world.kernel.killed = True
            world.kernel.where = "rest"
            world._killed()

    def arm_line(self) -> None:
        if not self.world.kernel.armed:
            self.world.kernel.arm(lines=int(2 ** self.rng.uniform(0, 11)))

    def arm_call(self) -> None:
        if not self.world.kernel.armed:
            self.world.kernel.arm(calls=int(2 ** self.rng.uniform(0, 6)))

    def restart(self) -> None:
        if self.world.driver is None:
            self.world.start(fresh=self.rng.random() < 0.1 * (self.weights["fresh"] > 0))

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
            world.boot.ending = Reason.SHUTDOWN
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
            raw = process.request(lib.SHMD_REQUEST_ADMIN, self.now_ns, admin=lib.SHMD_ADMIN_REVOKE, lease_id=model.lease_id)
            self.world.sign(process, raw)
            if process.send(raw):
                model.revoke_asked = True
                self.world.note(f"{process} has {model} revoked")


def epilogue(world: World) -> None:
    """Faults are over: everything is delivered, everybody goes, and nothing stays."""
    acts = Acts(world)
    world.kernel.arm()
    world.note("epilogue")
    _serve(world)
    for _ in range(12):
        for process in world.boot.processes:
            process.stopped = process.beats_not = False
            if process.awake:
                process.commit_claims()
                for raw in list(process.pending.values()):
                    process.send(raw)
                while process.inbox:
                    world._receive(process, process.inbox.pop(0))
                for consumer in [c for c in process.consumers if not c.over]:
                    world._drain(consumer)
        world.tick(CHECK_MS)
        _serve(world)
    for process in [p for p in world.boot.processes if p.task.alive and not p.left]:
        said = process.connected and world.rng.random() < 0.5 and process.send(
            process.request(lib.SHMD_REQUEST_GOODBYE, world.clock.now_ns, deadline_ns=2**63))  # fmt: skip
        if said:
            acts._left(process)
        else:
            process.die(world.clock.now_ns)
    for _ in range(4):
        world.tick(2 * CHECK_MS)
        _serve(world)
    boot = world.boot
    live = [record.lease_id for record in boot.now.leases if record.is_live]
    demand(not live, "when everybody is gone, no lease is live", live)
    clients = [record.client_id for record in boot.now.clients if record.word & 0xFF]
    demand(not clients, "when everybody is gone, no client is left", clients)
    held = [record.lease_id for record in boot.now.leases if record.word & 0xFF and record.quarantined]
    demand(not held, "when everybody is gone, nothing is quarantined", held)
    boot.ending = Reason.SHUTDOWN
    driver = world.driver
    assert driver is not None
    driver.request_shutdown(ShutdownMode.END, "epilogue")
    for _ in range(3):
        if world.driver is not None:
            world.tick(800)
    demand(world.driver is None, "a shutdown ends within its timeout and one tick")


def _serve(world: World) -> None:
    while world.driver is None or world.driver.state is State.STOPPED:
        world.start()
