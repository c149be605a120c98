"""What happens. Every act is one method; a seed chooses how often each may happen, and what in it."""

from __future__ import annotations

from typing import Any

from shmdriver._native import lib
from tests.simulation.actors import CREATE, Process
from tests.simulation.faults import Faults
from tests.simulation.handles import FOLLOW, Consumer, Producer
from tests.simulation.kernel import MS, Task
from tests.simulation.world import SIZES, STREAMS, World

WEIGHTS = {
    "arrive": 5,
    "join": 1,
    "replace": 2,
    "late_hello": 4,
    "hang_up": 2,
    "greet_again": 2,
    "replay": 2,
    "impersonate": 4,
    "crowd": 1,
    "produce": 12,
    "consume": 16,
    "publish": 40,
    "poll": 40,
    "detach": 6,
    "goodbye": 2,
    "die": 4,
    "die_publishing": 3,
    "die_asking": 2,
    "stop": 4,
    "resume": 8,
    "fall_silent": 2,
    "read_inbox": 6,
    "ask_again": 4,
    "give_up": 3,
    "claim": 3,
    "finish_claim": 5,
    "interrupt_send": 3,
    "resume_send": 5,
    "flood": 1,
    "garbage": 2,
    "ruin": 1,
    "truncate": 1,
    "forget": 2,
    "forge": 3,
    "lie": 2,
    "kill_driver": 3,
    "arm": 8,
    "restart": 30,
    "hand_over": 1,
    "end": 1,
    "fresh": 1,
    "maintain": 2,
    "revoke": 3,
    "slow_tick": 1,
    "jump": 1,
    "veil": 3,
    "run_short": 2,
    "wait": 6,
}
ALWAYS = frozenset(("arrive", "produce", "consume", "publish", "poll", "restart", "resume", "read_inbox"))
TRIES = 12


class Acts(Faults):
    """Performs acts on a world."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        # Every seed leaves some acts out and makes some frequent, so that seeds differ in kind.
        self.weights = {
            name: weight * (1 if name in ALWAYS else self.rng.choice((0, 1, 1, 4)))
            for name, weight in WEIGHTS.items()
        }

    def perform(self, steps: int) -> None:
        """So many acts, each drawn among those that are possible, with ticks between them."""
        names, weights = list(self.weights), list(self.weights.values())
        trace, boot = self.world.trace, None
        for _ in range(steps):
            if self.world.driver is not None and boot is not self.world.boot:
                boot = self.world.boot
                self._populate()
            done = len(trace)
            for name in self.rng.choices(names, weights, k=TRIES):
                getattr(self, name)()
                if len(trace) > done:
                    break
            if self.rng.random() < 0.6:
                self.world.tick(self.rng.choice((0, 1, 1, 10, 50, 110)))

    def _populate(self) -> None:
        """A boot begins with a few clients, and streams between them."""
        for _ in range(self.rng.randint(2, 5)):
            self.arrive()
        self.world.tick(1)
        self.world.tick(1)
        for _ in range(self.rng.randint(3, 9)):
            (self.produce if self.rng.random() < 0.4 else self.consume)()
        self.world.tick(1)

    # -- time and processes

    def wait(self) -> None:
        milliseconds = self.rng.choice((250, 500, 1000))
        self.world.note(f"{milliseconds} ms pass")
        for _ in range(milliseconds // 125):
            self.world.tick(125)

    def jump(self) -> None:
        """The machine, or the driver, was suspended."""
        self.world.note("time jumps")
        self.world.tick(self.rng.choice((1500, 5000, 60_000)))

    def slow_tick(self) -> None:
        self.world.note("the next tick is slow")
        self.world.clock.slow_ns = self.rng.choice((60, 200)) * MS
        self.world.tick(1)

    def arrive(self) -> None:
        world = self.world
        if len([p for p in world.boot.processes if not p.gone]) >= 10:
            return
        self._come(world.kernel.spawn())

    def join(self) -> None:
        """Another client in a process that has one."""
        process = self.world.pick(lambda p: p.awake)
        if process:
            self._come(process.task)

    def replace(self) -> None:
        """A process runs another program, which may become a client, too."""
        process = self.world.pick(lambda p: p.awake)
        if process:
            self.world.note(f"{process} runs another program")
            if self.rng.random() < 0.5:
                self._leave_hello(process.task)
            process.exec()
            if self.rng.random() < 0.8:
                self._come(process.task)

    def _leave_hello(self, task: Task) -> None:
        """Another client in it has connected; a child says its Hello, perhaps when the next program runs."""
        connection = self.world.kernel.network.connect(task)
        if not isinstance(connection, int):
            process = Process(self.world.boot, task, self.rng, self.now_ns)
            self.world.boot.processes.append(process)
            process.session.said.add(self.now_ns - 1)
            self.late.append((connection, process.session.hello(self.now_ns - 1)))

    def late_hello(self) -> None:
        if self.late:
            connection, hello = self.late.pop(0)
            self.world.note(f"a hello of a program that was: {connection.send(hello)}")

    def _come(self, task: Task) -> None:
        world = self.world
        process = Process(world.boot, task, self.rng, self.now_ns)
        world.boot.processes.append(process)
        world.note(f"{process} {process.session.begin(self.now_ns)}")

    def die(self) -> None:
        process = self.world.pick(lambda p: p.is_there)
        if process:
            self.world.note(f"{process} dies")
            process.die(self.now_ns)

    def die_asking(self) -> None:
        """While the driver does something, perhaps what it has just asked for, twice."""
        process = self._process()
        if process is None:
            return
        stream = self.rng.choice(STREAMS)
        for _ in range(2):
            raw = process.request(
                lib.SHMD_REQUEST_ATTACH,
                self.now_ns,
                role=lib.SHMD_ROLE_PRODUCER,
                stream=stream,
                flags=CREATE,
            )
            process.ask(raw)
        points = int(2 ** self.rng.uniform(0, 8))
        self.world.note(f"{process} asks twice to produce {stream!r}, and will die in a tick")
        self.world.kernel.strike(points, lambda: self._struck(process))

    def _struck(self, process: Process) -> None:
        if process.is_there:
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
            self.world.note(
                f"{process} dies {producer.publish_headless(self.rng.randint(1, 70))} commits past its head"
            )
        process.die(self.now_ns)

    def stop(self) -> None:
        process = self._process()
        if process:
            self.world.note(f"{process} is stopped")
            process.stopped = True

    def resume(self) -> None:
        process = self.world.pick(lambda p: p.stopped and p.is_there)
        if process:
            self.world.note(f"{process} goes on")
            process.go_on(self.now_ns)

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
        raw = process.request(
            lib.SHMD_REQUEST_ATTACH,
            self.now_ns,
            role=role,
            stream=self.rng.choice(STREAMS),
            flags=flags,
            **fields,
        )
        sent = process.ask(raw)
        if not sent and self.rng.random() < 0.5:
            del process.pending[int(raw.correlation_id)]
        what = (
            "produce" if role == lib.SHMD_ROLE_PRODUCER else f"consume ({fields['delivery']}, flags {flags})"
        )
        self.world.note(f"{process} asks to {what} {raw.stream[0]!r}: {sent}")

    def produce(self) -> None:
        choice = self.rng.choice
        self._attach(
            lib.SHMD_ROLE_PRODUCER,
            slow_consumer=choice((0, 0, 0, 1, 2, 3)),
            min_consumers=choice((0, 0, 0, 1)),
            slots=choice((0, 0, 128)),
            flags=choice((0, 0, int(lib.SHMD_ATTACH_NO_WAKEUPS))),
        )

    def consume(self) -> None:
        choice = self.rng.choice
        reliable, lossy, latest = (
            lib.SHMD_DELIVERY_RELIABLE,
            lib.SHMD_DELIVERY_LOSSY,
            lib.SHMD_DELIVERY_LATEST,
        )
        self._attach(
            lib.SHMD_ROLE_CONSUMER,
            delivery=choice((reliable, reliable, reliable, lossy, latest)),
            start=choice((lib.SHMD_START_NEWEST, lib.SHMD_START_OLDEST)),
            wait=choice((lib.SHMD_WAIT_ADAPTIVE, lib.SHMD_WAIT_SPIN, lib.SHMD_WAIT_SLEEP)),
            flags=choice((0, FOLLOW)),
        )

    def ask_again(self) -> None:
        process = self.world.pick(lambda p: p.awake and bool(p.pending))
        if process:
            raw = self.rng.choice(list(process.pending.values()))
            self.world.note(f"{process} asks again: {process.send(raw)}")

    def give_up(self) -> None:
        process = self.world.pick(lambda p: p.awake and p.connected and bool(p.pending))
        attaches = (
            [raw for raw in process.pending.values() if raw.kind == lib.SHMD_REQUEST_ATTACH]
            if process
            else []
        )
        if not process or not attaches:
            return
        attach = self.rng.choice(attaches)
        correlation = int(attach.correlation_id)
        raw = process.request(
            lib.SHMD_REQUEST_DETACH, self.now_ns, role=attach.role, target_correlation_id=correlation
        )
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
        if self.rng.random() < 0.4:
            process.detach(handle.model, aborted=aborted, now_ns=self.now_ns)
            process.forget(handle)
            self.world.note(f"{process} notes the end of {handle.model}")
            return
        name = self.world.boot.stream_names[record.stream_id]
        raw = process.request(
            lib.SHMD_REQUEST_DETACH,
            self.now_ns,
            role=record.role,
            lease_id=record.lease_id,
            stream=name,
            flags=lib.SHMD_DETACH_ABORTED * aborted,
        )
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

    # -- data

    def publish(self) -> None:
        producer = self._handle("producers")
        if producer is None or producer.over or producer.claimed:
            return
        done, rc = producer.publish(
            self.rng.choice(SIZES), self.rng.choice((1, 5, 30, 100)), self.rng.random() < 0.3
        )
        self.world.note(f"{producer.model} publishes {done} -> {producer.epoch.committed} ({rc})")

    def poll(self) -> None:
        consumer = self._handle("consumers")
        if consumer is None or consumer.over:
            return
        count, rc = consumer.poll(self.rng.choice((1, 10, 256)), self.rng.random() < 0.5)
        self.world.note(
            f"{consumer.model} reads {count} -> epoch {consumer.epoch} seq {consumer.next} ({rc})"
        )

    def claim(self) -> None:
        producer = self._handle("producers")
        if producer is not None and not producer.over and not producer.claimed:
            self.world.note(f"{producer.model} claims: {producer.claim(self.rng.choice(SIZES))}")

    def finish_claim(self) -> None:
        process = self.world.pick(lambda p: p.awake and any(q.claimed for q in p.producers))
        if process:
            producer = next(q for q in process.producers if q.claimed)
            commit = self.rng.random() < 0.7
            self.world.note(
                f"{producer.model} ends its claim, commit {commit}: {producer.finish_claim(commit)}"
            )
