"""Simulated processes: their connection to the driver, and what they ask it for."""

from __future__ import annotations

from random import Random
from typing import Any

from shmdriver._native import ffi as core
from shmdriver._native import lib
from shmdriver.errors import Code
from tests.simulation.handles import Consumer, Producer
from tests.simulation.kernel import Task, address
from tests.simulation.model import Boot, LeaseModel
from tests.simulation.native import ffi, load
from tests.simulation.rules import demand, text_of
from tests.simulation.sessions import Session

CREATE = int(lib.SHMD_ATTACH_CREATE)
_out = ffi.new("uintptr_t *")


class Process:
    """One client in a process: its connection, its pending requests, its handles.

    A process has one or several; ``is_replaced``: it has called exec since, so this one is no more.
    ``is_succeeded``: the program that it runs now has said Hello, so the driver can know.
    """

    def __init__(self, boot: Boot, task: Task, rng: Random, now_ns: int) -> None:
        self.boot, self.task, self.rng = boot, task, rng
        self.native = load()
        self.nonce = rng.getrandbits(64)
        self.client = self.native.sim_client_new(address(boot.view.authority), self.nonce)
        self._control: Any = None  # its control segment, mapped
        self.client_id = self.index = 0
        self.stopped = self.beats_not = self.left = self.is_replaced = self.is_succeeded = False
        self.is_liar = False  # nonsense stood in its control segment
        self.session = Session(self)
        self.died_ns = 0
        self.last_beat_ns = now_ns
        self.pending: dict[int, Any] = {}  # correlation id -> request
        self.inbox: list[Any] = []
        self.producers: list[Producer] = []
        self.consumers: list[Consumer] = []
        self.half_sent: Any = None  # a request in the middle of which it was stopped

    def __str__(self) -> str:
        return f"client {self.client_id} pid {self.task.pid % 1000}"

    @property
    def gone(self) -> bool:
        """It will not write any more, and the driver can know that."""
        return self.left or self.is_succeeded or not self.task.alive

    @property
    def is_there(self) -> bool:
        """Whether its program is in memory and has not left."""
        return self.task.alive and not self.left and not self.is_replaced

    @property
    def awake(self) -> bool:
        return self.is_there and not self.stopped

    @property
    def connected(self) -> bool:
        return self.client_id != 0

    def is_silent(self, client_id: int, since_ns: int) -> bool:
        """Whether it has not beaten since then: nor in a record of which it does not know."""
        return client_id != self.client_id or self.last_beat_ns <= since_ns

    def beat(self, now_ns: int) -> None:
        if self.awake and self.connected and not self.beats_not:
            self.native.sim_client_beat(self.client)
            self.last_beat_ns = now_ns

    def die(self, now_ns: int) -> None:
        """With all clients in its process. Now and then a child of it keeps a connection open."""
        self.task.die()
        for process in [p for p in self.boot.processes if p.task is self.task]:
            process.died_ns = now_ns
            process.drop()
            if self.rng.random() < 0.8:
                process.session.hang_up()

    def exec(self) -> None:
        """Another program in this process: every client in it is gone, and who has gone is not told."""
        self.task.image = self.rng.choice((0, *[self.rng.getrandbits(64)] * 7))
        for process in [p for p in self.boot.processes if p.task is self.task and not p.is_replaced]:
            process.is_replaced = True
            process.drop()
            if self.rng.random() < 0.8:
                process.session.hang_up()

    def drop(self) -> None:
        """As the kernel does it: unmapped, nobody told."""
        for producer in self.producers:
            self.native.sim_producer_drop(producer.handle)
        for consumer in self.consumers:
            self.native.sim_consumer_drop(consumer.handle)
        self.producers.clear()
        self.consumers.clear()
        self.pending.clear()
        self.inbox.clear()

    def close(self) -> None:
        self.drop()
        self.session.hang_up()
        client, self.client = self.client, 0
        if client:  # a second time when a rule was broken meanwhile
            self.native.sim_client_free(client)

    # -- requests

    def request(self, kind: int, now_ns: int, **fields: Any) -> Any:
        raw = core.new("shmd_request_t *")
        raw.kind, raw.layout_version = kind, lib.SHMD_LAYOUT_VERSION
        raw.correlation_id = self.rng.getrandbits(63) | 1
        raw.client_id = self.client_id
        raw.deadline_ns = now_ns + self.rng.choice((20, 1000, 5000)) * 1_000_000
        raw.arena_bytes = 2**64 - 1
        for name, value in fields.items():
            setattr(raw, name, value)
        return raw

    def join(self, client_id: int, index: int, control: Any) -> None:
        """It is welcome: uses its control segment, unless it has one."""
        if self.client_id:
            return
        self.client_id, self.index = client_id, index
        self._control = core.cast("shmd_control_t *", control)
        rc = self.native.sim_client_join(self.client, address(control), client_id, index)
        assert rc == 0, ffi.string(self.native.shmd_last_error())

    def send(self, raw: Any) -> bool:
        """False when its ring is full. Now and then it is stopped before it rings."""
        sent = self.connected and self.native.sim_send(self.client, address(raw)) == 0
        if sent:
            self._ring()
        return bool(sent)

    def _ring(self) -> None:
        if self.rng.random() < 0.9:
            self.session.ring()
        else:
            self.stopped = True

    def go_on(self, now_ns: int) -> None:
        """After a stop: it rings for what it had written."""
        if self.stopped:
            self.session.ring()
            for model in self.boot.leases.values():
                if model.owner is self and model.noted_ns:
                    model.noted_ns = now_ns
        self.stopped = self.beats_not = False

    def ask(self, raw: Any) -> bool:
        """A request that waits for its answer, and is sent again until then."""
        self.pending[int(raw.correlation_id)] = raw
        return self.send(raw)

    def send_half(self, raw: Any) -> None:
        """Is interrupted in the middle of it."""
        self.native.sim_send_half(self.client, address(raw))
        self.half_sent = raw

    @property
    def unread(self) -> int:
        """How many requests stand in its ring."""
        if self._control is None:
            return 0
        record = lib.shmd_authority_client(self.boot.view.authority, self.index)
        return (
            int(self._control.tail) - int(record.control_cursor) if record.client_id == self.client_id else 0
        )

    def finish_sending(self) -> bool:
        """Goes on with what it was interrupted in; whether there was room."""
        raw, self.half_sent = self.half_sent, None
        return raw is not None and self.send(raw)

    # -- answers

    def receive(self, event: Any) -> str:
        """Handles an answer; what came of it."""
        raw = self.pending.pop(int(event.correlation_id), None)
        if raw is None:
            return "stray answer"
        if event.code != Code.OK:
            return f"refused: {text_of(event)[:90]}"
        if event.kind != lib.SHMD_EVENT_ATTACH_RESPONSE:
            return "answered"
        return self._attached(event, raw)

    def _attached(self, event: Any, raw: Any) -> str:
        producer = raw.role == lib.SHMD_ROLE_PRODUCER
        if producer:
            rc = self.native.sim_produce(self.client, address(event), raw.min_consumers, _out)
        else:
            rc = self.native.sim_consume(self.client, address(event), raw.delivery, raw.wait, raw.flags, _out)
        model = self.boot.leases.get(int(event.lease_id))
        if rc != 0:
            epoch = self.boot.epochs.get((int(event.stream_id), int(event.epoch)))
            held = raw.role == lib.SHMD_ROLE_PRODUCER or raw.delivery == lib.SHMD_DELIVERY_RELIABLE
            over = model is None or not model.live or not self.boot.settled
            demand(
                over or (not held and (epoch is None or epoch.retired)),
                "what was granted can be mapped",
                model,
                rc,
                ffi.string(self.native.shmd_last_error()),
            )
            return f"lease {event.lease_id} cannot be mapped any more ({rc})"
        if model is None:  # ended before it was ever seen live
            (self.native.sim_producer_drop if producer else self.native.sim_consumer_drop)(_out[0])
            return f"lease {event.lease_id} ended at once"
        demand(event.entry == model.record.entry, "an answer names the lease's entry", model, event.entry)
        if producer:
            self.producers.append(Producer(self, int(_out[0]), model))
        else:
            self.consumers.append(Consumer(self, int(_out[0]), model, event))
        return f"{model}"

    def confirm(self, model: LeaseModel) -> None:
        """Notes that it has mapped the stream; the doorbell is not needed."""
        model.confirmed = True
        rc = self.native.sim_confirm(self.client, model.record.entry, model.lease_id)
        demand(rc == 0, "a lease has an entry in its client's segment", model, rc)

    def detach(self, model: LeaseModel, *, aborted: bool, now_ns: int) -> None:
        """Notes that it uses the lease no more; nothing is asked, and nothing is answered."""
        how = lib.SHMD_ENTRY_ABORTED if aborted else lib.SHMD_ENTRY_DETACHED
        rc = self.native.sim_detach(self.client, model.record.entry, model.lease_id, how)
        demand(rc == 0, "a lease has an entry in its client's segment", model, rc)
        model.done, model.noted_ns = True, now_ns
        self._ring()

    def forget(self, handle: Producer | Consumer) -> None:
        """Closes a handle without telling the driver."""
        if isinstance(handle, Producer):
            self.producers.remove(handle)
            self.native.sim_producer_drop(handle.handle)
        else:
            self.consumers.remove(handle)
            self.native.sim_consumer_drop(handle.handle)
