"""Attaches: who gets a lease, on what, and how it is wired. The policy behind ``Lifecycle``'s "admit".

A consumer's attach is done in one go. A producer's waits for its epoch's memory, which a helper thread
may be making; :meth:`Admission.finish` goes on when it is there. Both answer only after the tables
show the lease: data, state, event. A repeated request gets the same answer.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from shmdriver._native import lib
from shmdriver.driver.authority import Authority, text_of
from shmdriver.driver.clients import Client, describe
from shmdriver.driver.config import Config
from shmdriver.driver.control import Request
from shmdriver.driver.epochs import Epoch
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.geometry import Geometry, derive_geometry
from shmdriver.driver.leases import Lease
from shmdriver.driver.limits import MOUNT, SMALLER, shortage
from shmdriver.driver.memory import Completion, EpochMemory, InlineMemory, Provision, Unmap
from shmdriver.driver.rejection import Rejection
from shmdriver.driver.schema import check_consumer_schema, check_producer_schema
from shmdriver.driver.shm import Modes, ShmSpaceError, unlink_segment
from shmdriver.driver.streams import Stream
from shmdriver.driver.tables import Tables
from shmdriver.driver.undo import UndoneOnError
from shmdriver.driver.work import Work
from shmdriver.errors import Code, Reason
from shmdriver.names import nearest
from shmdriver.os_errors import remedy

__all__ = ["Admission"]

MILLISECOND_NS = 1_000_000
CONFIRM_GRACE_NS = 1_000_000_000  # to map what was granted at the last moment
SLOW_CONSUMER = {"block": lib.SHMD_SLOW_BLOCK, "evict": lib.SHMD_SLOW_EVICT, "refuse": lib.SHMD_SLOW_REFUSE}


@dataclass(slots=True)
class _Waiting:
    """A producer's attach whose memory is being made."""

    request: Request
    client: Client
    stream: Stream
    slot: int
    size: int
    cancelled: bool = False


class Admission:
    """Decides attach requests for one instance."""

    def __init__(
        self,
        config: Config,
        tables: Tables,
        memory: InlineMemory,
        work: Work,
        *,
        modes: Modes,
        segment_bytes_max: int,
    ) -> None:
        self._config = config
        self._authority = tables.authority
        self._clients = tables.clients
        self._leases = tables.leases
        self._streams = tables.streams
        self._tenure = tables.tenure
        self._events = tables.events
        self._memory = memory
        self._work = work
        self._modes = modes
        self._segment_bytes_max = segment_bytes_max
        self._waiting: dict[int, _Waiting] = {}  # by correlation id

    @property
    def pending(self) -> int:
        """Attaches that wait for memory."""
        return len(self._waiting)

    def attach(self, request: Request, now_ns: int) -> None:
        """Grants a lease and answers, or raises Rejection. The dead are reaped before anybody is refused."""
        if refusal := self._work.refusal(request):
            raise Rejection(Reason.DRIVER_DIED, refusal)
        if self._replay(request):
            return
        client = self._clients.sender(request.client_id)
        try:
            self._decide(request, client, now_ns)
        except Rejection:
            if self._tenure.reap_dead(now_ns) == 0:
                raise
            self._decide(request, self._clients.sender(request.client_id), now_ns)  # was it among them?

    def cancel(self, correlation_id: int, client_id: int) -> bool:
        """The client gave up on an attach that waits for memory; False when there is none."""
        waiting = self._waiting.get(correlation_id)
        if waiting is None or waiting.client.client_id != client_id:
            return False
        waiting.cancelled = True
        return True

    def finish(self, completion: Completion, now_ns: int, refusal: tuple[Reason, str] | None) -> None:
        """Goes on with an attach whose memory is there, or failed. Raises Rejection, for :meth:`request_of`.

        ``refusal``: why the driver admits nobody any more, None while it does.
        """
        with UndoneOnError() as undo:
            undo.callback(self._abandon, completion)
            self._finish(undo, completion, now_ns, refusal)

    def _finish(
        self, undo: ExitStack, completion: Completion, now_ns: int, refusal: tuple[Reason, str] | None
    ) -> None:
        job = completion.job
        if not isinstance(job, Provision):
            return
        waiting: _Waiting = job.subject
        del self._waiting[waiting.request.correlation_id]
        waiting.stream.provisioning = None
        if completion.result is None:
            raise _memory_rejection(completion.error, self._authority, now_ns)
        gone = waiting.cancelled or self._clients.by_id(waiting.client.client_id) is not waiting.client
        if refusal is not None:
            raise Rejection(*refusal)
        if gone or waiting.request.deadline_ns < now_ns:
            raise Rejection(Reason.UNCONFIRMED, "its client gave up before the memory was there")
        self._grant(undo, waiting, job, completion.result, now_ns)

    def abandon_waiting(self, completion: Completion) -> None:
        """Gives up an attach that still waits for this memory: something failed before :meth:`finish`."""
        request = self.request_of(completion)
        if request is not None and request.correlation_id in self._waiting:
            self._abandon(completion)

    def _abandon(self, completion: Completion) -> None:
        """Nobody gets that memory: the attach is refused, and nothing of it stays."""
        job = completion.job
        if isinstance(job, Provision):
            self._give_up(job.subject)
            if completion.result is not None:  # else the names are none of ours
                unlink_segment(job.data_name)
                unlink_segment(job.gates_name)
                self._memory.submit(Unmap(completion.result))

    @staticmethod
    def request_of(completion: Completion) -> Request | None:
        """The attach that a completion belongs to."""
        return completion.job.subject.request if isinstance(completion.job, Provision) else None

    # -- both roles

    def _replay(self, request: Request) -> bool:
        if request.correlation_id in self._waiting:
            return True  # the answer comes with the memory
        lease = self._leases.by_correlation(request.correlation_id)
        if lease is not None:
            if lease.client_id != request.client_id:
                raise Rejection(Reason.NOT_OWNER, "that correlation id belongs to another client's attach")
            self._events.attach_response(lease.record, self._streams.of(lease).name)
            return True
        ended = self._leases.end_of_attach(request.correlation_id)
        if ended is not None:
            raise Rejection(ended, f"the lease that this attach got has ended ({ended.words}): attach again")
        return False

    def _decide(self, request: Request, client: Client, now_ns: int) -> None:
        stream = self._stream(request, now_ns)
        if request.raw.role == lib.SHMD_ROLE_PRODUCER:
            self._provision(request, client, stream, now_ns)
        else:
            self._attach_consumer(request, client, stream, now_ns)

    def _stream(self, request: Request, now_ns: int) -> Stream:
        name = request.stream
        stream = self._streams.find(name)
        if stream is not None:
            return stream
        configured = name in self._config.streams
        if not configured and not request.raw.flags & lib.SHMD_ATTACH_CREATE:
            near = nearest(name, [*self._streams.names, *self._config.streams])
            hint = f"; nearest: {near!r}" if near else ""
            raise Rejection(
                Reason.UNKNOWN_STREAM,
                f"there is no stream {name!r}{hint} (create=True waits for its producer)",
            )
        if not configured and not self._config.policies.allow_dynamic_streams:
            raise Rejection(
                Reason.UNKNOWN_STREAM,
                f"stream {name!r} is not configured, and policies.allow_dynamic_streams is off: add "
                f"streams.{name}",
            )
        if not self._streams.has_room:
            self._tenure.give_up_ended(now_ns)
        return self._streams.create(
            name,
            max_consumers=self._config.profile_of(name).max_consumers,
            schema=self._config.schema_of(name) or "",
            now_ns=now_ns,
        )

    def _fill(self, request: Request, client: Client, stream: Stream, now_ns: int) -> Lease:
        latest_ns = now_ns + self._config.policies.lease_timeout_ms * MILLISECOND_NS
        deadline_ns = min(max(request.deadline_ns, now_ns) + CONFIRM_GRACE_NS, latest_ns)
        return self._leases.fill(request.raw, client, stream.record, now_ns, deadline_ns=deadline_ns)

    def _publish(self, lease: Lease, stream: Stream) -> None:
        self._leases.publish(lease)
        stream.leases[lease.lease_id] = lease
        self._authority.count(lib.SHMD_COUNTER_ATTACHES)

    def _withdraw(self, lease: Lease, stream: Stream) -> None:
        """A lease that was about to be granted, and is not: nobody was told of it."""
        stream.leases.pop(lease.lease_id, None)
        self._leases.withdraw(lease)

    # -- producers

    def _provision(self, request: Request, client: Client, stream: Stream, now_ns: int) -> None:
        self._check_exclusive(stream)
        gate_count = stream.fit_gates(self._config.profile_of(stream.name).max_consumers)
        demanded = self._config.schema_of(stream.name)
        check_producer_schema(stream, _schema_of(request), demanded, self._owner)
        self._check_consumers(request, stream)
        if not self._leases.has_room:  # this raises with the numbers
            self._leases.fill(request.raw, client, stream.record, now_ns, deadline_ns=0)
        geometry = derive_geometry(
            request.raw,
            self._config.profile_of(stream.name),
            gate_count=gate_count,
            stream_bytes_max=self._config.policies.limits.stream_bytes,
        )
        slot = self._free_slot(stream, now_ns)
        has_room = self._make_room(stream, geometry, now_ns)
        number = stream.next_epoch
        waiting = _Waiting(request, client, stream, slot, geometry.data_bytes + geometry.gates_bytes)
        job = Provision(
            self._authority.instance,
            geometry=geometry,
            boot_id=self._authority.boot_id,
            stream_id=stream.stream_id,
            epoch=number,
            now_ns=now_ns,
            schema=_schema_of(request),
            modes=self._modes,
            subject=waiting,
            noted=self._work.making(request, waiting.size),
            follows_unmaps=not has_room,
        )
        with UndoneOnError() as undo:
            undo.callback(self._give_up, waiting)
            stream.provisioning = waiting
            self._waiting[request.correlation_id] = waiting
            self._memory.submit(job)

    def _give_up(self, waiting: _Waiting) -> None:
        """An attach that waits for no memory any more."""
        self._waiting.pop(waiting.request.correlation_id, None)
        waiting.stream.provisioning = None

    @property
    def _provisioning_bytes(self) -> int:
        return sum(waiting.size for waiting in self._waiting.values())

    def _grant(
        self, undo: ExitStack, waiting: _Waiting, job: Provision, memory: EpochMemory, now_ns: int
    ) -> None:
        stream, client = waiting.stream, waiting.client
        # Data: nobody reads any of this yet. Killed here: an orphan segment, which adoption unlinks.
        lease = self._fill(waiting.request, client, stream, now_ns)
        lease.record.epoch, lease.record.record = job.epoch, waiting.slot
        undo.callback(stream.withdraw_epoch, waiting.slot, job.epoch)
        undo.callback(self._withdraw, lease, stream)
        stream.set_schema(job.schema)
        epoch = stream.fill_epoch(waiting.slot, job, memory, lease_id=lease.lease_id, pid=client.pid)
        # State, the lease first. Killed between the two: adoption undoes the lease, the attach is repeated.
        self._publish(lease, stream)
        stream.publish_epoch(epoch)
        failpoint("attach.granted")
        undo.callback(setattr, self._streams, "segment_bytes", self._streams.segment_bytes)
        self._streams.add_epoch_bytes(memory.size)
        self._authority.count(lib.SHMD_COUNTER_EPOCHS_OPENED)
        self._authority.count(lib.SHMD_COUNTER_SEGMENTS_CREATED, 2)
        # Event. Killed before it: the repeated attach is answered from the tables.
        self._events.attach_response(lease.record, stream.name)
        self._events.stream_changed(stream.record, epoch.record)

    def _check_exclusive(self, stream: Stream) -> None:
        producer = stream.producer
        if producer is not None:
            owner = self._owner(producer)
            raise Rejection(
                Reason.PRODUCER_EXISTS,
                f"stream {stream.name!r} has a producer already: {owner}, lease {producer.lease_id}; "
                "a stream has one",
            )
        if stream.provisioning is not None:
            raise Rejection(
                Reason.PRODUCER_EXISTS,
                f"stream {stream.name!r} is just getting another producer; a stream has one",
            )

    def _check_consumers(self, request: Request, stream: Stream) -> None:
        limit = int(stream.record.max_consumers)
        if int(request.raw.min_consumers) > limit:
            raise Rejection(
                Reason.LIMIT,
                f"min_consumers={int(request.raw.min_consumers)}, but stream {stream.name!r} admits "
                f"{limit} consumers (profile's max_consumers)",
                Code.INVALID_PARAMS,
            )
        reliable = [lease for lease in stream.consumers if lease.is_reliable]
        if reliable and self._slow_consumer(stream, int(request.raw.slow_consumer)) == lib.SHMD_SLOW_REFUSE:
            owner = self._owner(reliable[0])
            raise Rejection(
                Reason.REFUSED_RELIABLE,
                f"slow_consumer='refuse', but stream {stream.name!r} has {len(reliable)} reliable consumers "
                f"already, the first is {owner}: attach them with delivery='lossy'",
            )

    def _free_slot(self, stream: Stream, now_ns: int) -> int:
        slot = stream.free_slot()
        if slot is not None:
            return slot
        for epoch in stream.in_order:
            if self._tenure.may_retire(stream, epoch, now_ns, needed=True):
                self._streams.retire(stream, epoch)
                return epoch.slot
        holders = {
            self._owner(lease)
            for epoch in stream.in_order
            for lease in stream.holders(epoch, reliable_only=True)
        }
        raise Rejection(
            Reason.UNDRAINED,
            f"stream {stream.name!r} has {len(stream.epochs)} epochs that are not drained, which is all it "
            f"keeps; waiting for {', '.join(sorted(holders)) or 'nobody'}: let them read on, or close them",
        )

    def _make_room(self, stream: Stream, geometry: Geometry, now_ns: int) -> bool:
        """Gives up ended epochs at need. False: memory that is being unmapped may be enough, or not.

        Raises Rejection.
        """
        need = geometry.data_bytes + geometry.gates_bytes

        def found() -> str:
            return self._past_budget(need) or shortage(
                need, largest=geometry.data_bytes, pending=self._provisioning_bytes
            )

        text = found()
        if text and self._tenure.retire_needed(now_ns):
            text = found()
        if not text:
            return True
        if self._memory.is_unmapping and not (self._past_budget(need) or self._clients.deaths()):
            return False
        raise Rejection(Reason.NO_MEMORY, f"stream {stream.name!r} needs {need} bytes, and {text}")

    def _past_budget(self, need: int) -> str:
        used, most = self._streams.segment_bytes + self._provisioning_bytes, self._segment_bytes_max
        if used + need <= most:
            return ""
        what = "shm.max_bytes"
        if not self._config.shm.max_bytes:
            what = f"half of what {MOUNT} had free when the driver started: shm.max_bytes is not set"
        return (
            f"{used} of {most} bytes are in use ({what}): set shm.max_bytes higher, make {MOUNT} larger "
            f"(containers: --shm-size), or {SMALLER}"
        )

    # -- consumers

    def _attach_consumer(self, request: Request, client: Client, stream: Stream, now_ns: int) -> None:
        configured = self._config.schema_of(stream.name) is not None
        check_consumer_schema(stream, _schema_of(request), self._owner, configured=configured)
        if request.raw.delivery == lib.SHMD_DELIVERY_RELIABLE:
            producer = stream.producer
            asked = int(producer.record.slow_consumer) if producer else lib.SHMD_SLOW_DEFAULT
            if self._slow_consumer(stream, asked) == lib.SHMD_SLOW_REFUSE:
                raise Rejection(
                    Reason.REFUSED_RELIABLE,
                    f"stream {stream.name!r} admits no reliable consumers (slow_consumer='refuse'): attach "
                    "with delivery='lossy' or 'latest'",
                )
        with UndoneOnError() as undo:  # each step's undoing stands here before the step
            undo.callback(stream.note_gates)
            lease = self._fill(request, client, stream, now_ns)
            epoch = self._first_epoch(lease, stream, now_ns)
            gate = stream.take_gate(epoch)
            lease.record.gate = gate
            # Data: gate and masks. Killed before the lease is published: adoption clears bits without one.
            undo.callback(stream.unwire, gate)
            if epoch is not None:  # else it is wired into the first epoch to come, at its first message
                self._wire(lease, stream, epoch)
            failpoint("attach.joined")
            undo.callback(self._withdraw, lease, stream)
            self._publish(lease, stream)
            self._events.attach_response(lease.record, stream.name)

    def _first_epoch(self, lease: Lease, stream: Stream, now_ns: int) -> Epoch | None:
        """The epoch in use that a new consumer begins with."""
        epoch = stream.open_epoch
        if epoch is None and lease.record.start == lib.SHMD_START_OLDEST:
            grace_ns = self._config.policies.grace_ms * MILLISECOND_NS
            ended = [e for e in stream.in_order if e.ended_cleanly and now_ns - e.sealed_ns < grace_ns]
            ended = [e for e in ended if lease.schema in (None, e.schema)]
            epoch = ended[-1] if ended else None
        return epoch

    def _wire(self, lease: Lease, stream: Stream, epoch: Epoch) -> None:
        oldest = bool(lease.record.start == lib.SHMD_START_OLDEST)
        peers = [peer for peer in stream.holders(epoch, reliable_only=True) if lease.shares_with(peer)]
        start, joined = epoch.join(lease, oldest=oldest, peers=peers)
        if lease.record.delivery == lib.SHMD_DELIVERY_LATEST:
            start = max(joined - 1, 0)  # the newest message there is
        lease.record.first_epoch, lease.record.record = epoch.number, epoch.slot
        lease.record.start_seq, lease.record.joined_seq = start, joined

    def _owner(self, lease: Lease) -> str:
        return describe(self._clients.by_id(lease.client_id))

    def _slow_consumer(self, stream: Stream, asked: int) -> int:
        return asked or SLOW_CONSUMER[self._config.profile_of(stream.name).slow_consumer]


def _schema_of(request: Request) -> str:
    return text_of(request.raw.schema) if request.raw.schema_bytes else ""


def _memory_rejection(error: Exception | None, authority: Authority, now_ns: int) -> Rejection:
    if isinstance(error, ShmSpaceError):
        return Rejection(Reason.NO_MEMORY, str(error))
    hint = "" if error is None else remedy(error)
    authority.log_error(f"making an epoch's segments: {error!r}{hint}", now_ns)
    return Rejection(
        Reason.NONE, f"the driver could not make the stream's segments: {error}{hint}", Code.INTERNAL_ERROR
    )
