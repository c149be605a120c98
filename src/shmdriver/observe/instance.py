"""A read-only view of one instance: its driver, clients, leases, streams, events, errors, counters.

    with Instance("default") as instance:
        print(instance.driver().explanation)
        for stream in instance.streams():
            print(stream.name, stream.state, stream.current and stream.current.head)

Needs no driver: it maps the segments read-only and copies the driver's records out of them (each
copy is consistent; a record that is being rewritten is left out, never waited for). It writes
nothing, anywhere, and takes no lock: where the driver's process cannot be looked at, the kernel is asked
whether anybody shows the driver's sign of life, a lock of the authority's file.
"""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shmdriver._native import ffi, lib
from shmdriver.errors import DriverUnavailable, LayoutMismatch, ShmDriverError
from shmdriver.hints import command
from shmdriver.liveness import driver_of, look_at_driver
from shmdriver.names import instance_problem, nearest
from shmdriver.observe import names
from shmdriver.observe.authorities import chosen, passed_over
from shmdriver.observe.driver_status import HUNG_AFTER_NS, advice_for, judge
from shmdriver.observe.epochs import EpochSegments, epoch_status, live_consumers, text
from shmdriver.observe.names import word
from shmdriver.observe.objects import SHM_FOLDER, default_instance, others_hint
from shmdriver.observe.process import ProcessStatus, process_of_client, process_status
from shmdriver.observe.records import (
    ClientStatus,
    DriverStatus,
    EpochStatus,
    ErrorRecord,
    EventRecord,
    LeaseStatus,
    StreamStatus,
)
from shmdriver.observe.segment import Segment
from shmdriver.observe.tables import COPY_ATTEMPTS, copied, indexes_in, lease_status
from shmdriver.os_errors import last_error
from shmdriver.trust import ANY_OWNER, owner_text, owner_uid, user_name

_OPEN_ATTEMPTS = 8
_READABLE_EPOCHS = {"open", "sealing", "sealed"}
_CLIENTS = {"alive", "stalled"}


class Instance:
    """The segments of the instance ``name`` (None: the default one), mapped read-only.

    ``owner``: the user whose driver is meant, by name or number. None: this user's own, else one of root or
    of the system. Raises DriverUnavailable when there is no such instance, LayoutMismatch when its segments
    are of another version, ConfigError for an owner that is no user, ShmDriverError when drivers of several
    users have that name, or when that cannot be told. Usable from one thread at a time.
    """

    def __init__(self, name: str | None = None, owner: str | int | None = None) -> None:
        self.name = name or default_instance()
        problem = instance_problem(self.name)
        if problem:
            raise ShmDriverError(problem)
        self._named = owner_uid(owner_text(owner))
        self._epochs: dict[str, EpochSegments] = {}
        self._segment: Segment | None = None
        self._open()

    def _open(self) -> None:
        segment = self._find_segment()
        if lib.shmd_authority_check(segment.base, segment.bytes) < 0:
            problem = LayoutMismatch(last_error(), segment=segment.name)
            segment.close()
            raise problem
        self._segment = segment
        self._authority = ffi.cast("shmd_authority_t *", segment.base)
        self.boot_id = int(self._authority.header.boot_id)
        self.owner = segment.owner

    def _find_segment(self) -> Segment:
        for _ in range(_OPEN_ATTEMPTS):  # each: a driver that begins anew has removed what was found
            found = chosen(self.name, self._named)
            if found is None:
                break
            try:
                return Segment(found.name, lib.SHMD_SEGMENT_AUTHORITY, owner=found.owner)
            except DriverUnavailable:
                continue
        raise self._no_driver()

    def _no_driver(self) -> DriverUnavailable:
        told = passed_over()
        whose = "" if self._named == ANY_OWNER else f" of {user_name(self._named)}"
        others, start = others_hint(self.name, self._named), command("run", instance=self.name)
        text = f"no driver{whose} runs as instance {self.name!r}{others}; start one: {start}"
        if told:
            text = f"no driver{whose} of instance {self.name!r} that this process can use: {told}{others}"
        return DriverUnavailable(text, instance=self.name)

    @property
    def path(self) -> Path:
        """Where the authority segment stands."""
        self._mapped()
        assert self._segment is not None
        return SHM_FOLDER / self._segment.name.removeprefix("/")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap everything."""
        for segments in self._epochs.values():
            segments.close()
        self._epochs.clear()
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.close()

    def reopen_if_replaced(self) -> bool:
        """Follow a driver that started afresh: True when the instance has other segments now.

        Raises DriverUnavailable when the instance is gone, ShmDriverError when that cannot be told.
        """
        found = chosen(self.name, self._named)
        if self._segment is not None and found is not None and found.inode == self._segment.inode:
            return False
        self.close()
        self._open()
        return True

    def _mapped(self) -> Any:
        if self._segment is None:
            raise ShmDriverError(f"this view of instance {self.name!r} was closed")
        return self._authority

    # ---- the driver --------------------------------------------------------------------------

    def driver(self) -> DriverStatus:
        """The driver's process, heartbeat and lifecycle."""
        authority, now_ns = self._mapped(), int(lib.shmd_now_ns())
        process = self._driver_process()
        lifecycle = word(names.LIFECYCLES, int(authority.lifecycle))
        exit_kind = word(names.EXIT_KINDS, int(authority.exit_kind))
        age_ns = max(0, now_ns - int(authority.heartbeat_ns))
        interval_ns = int(authority.heartbeat_interval_ns)
        status, explanation = judge(
            process, exit_kind, lifecycle, age_ns, max(HUNG_AFTER_NS, 3 * interval_ns)
        )
        return DriverStatus(
            instance=self.name,
            status=status,
            explanation=explanation,
            advice=advice_for(status, self.name, process),
            boot_id=self.boot_id,
            lifecycle=lifecycle,
            degraded=names.words_of_bits(names.DEGRADED_BY, int(authority.degraded)),
            exit_kind=exit_kind,
            process=process,
            heartbeat_age_ns=age_ns,
            uptime_ns=max(0, now_ns - int(authority.started_ns)),
            adoptions=int(authority.adoptions),
            shutdown_mode=word(names.SHUTDOWN_MODES, int(authority.shutdown_mode)),
            shutdown_deadline_ns=int(authority.shutdown_deadline_ns),
            last_nonce=int(authority.last_nonce),
            heartbeat_interval_ns=interval_ns,
            lease_timeout_ns=int(authority.lease_timeout_ns),
        )

    def _driver_process(self) -> ProcessStatus:
        process = process_status(*driver_of(self._mapped()))
        if not process.unknown or self._segment is None:
            return process
        try:
            with FileIO(self.path) as file:
                is_same = os.fstat(file.fileno()).st_ino == self._segment.inode
                look = look_at_driver(self._authority, file.fileno()) if is_same else None
        except OSError:
            return process
        is_gone = look is not None and look.evidence == lib.SHMD_EVIDENCE_NO_LIFE
        return ProcessStatus(process.pid, "gone") if is_gone else process

    def wait(self, timeout_s: float) -> None:
        """Sleep until the driver publishes an event, at most ``timeout_s`` seconds."""
        word = ffi.addressof(self._mapped(), "event_word")
        lib.shmd_futex_wait(word, lib.shmd_futex_load(word), int(timeout_s * 1e9))

    # ---- clients and leases ------------------------------------------------------------------

    def clients(self, *, gone: bool = False) -> tuple[ClientStatus, ...]:
        """The connected clients; with ``gone`` also those whose record is still kept."""
        authority, now_ns = self._mapped(), int(lib.shmd_now_ns())
        copy = ffi.new("shmd_client_record_t *")
        found = []
        wanted = names.numbers(names.CLIENT_STATES, _CLIENTS | ({"gone"} if gone else set()))
        for index in indexes_in(authority, lib.SHMD_TABLE_CLIENTS, wanted):
            if not copied(copy, lib.shmd_authority_client(authority, index)):
                continue
            found.append(
                ClientStatus(
                    index=index,
                    client_id=int(copy.client_id),
                    name=text(copy.name),
                    pid=int(copy.pid),
                    state=word(names.CLIENT_STATES, int(copy.word) & 0xFF),
                    process=process_of_client(copy),
                    attached_ns=int(copy.attached_ns),
                    seen_age_ns=max(0, now_ns - int(copy.seen_ns)),
                    provable=bool(copy.provable),
                )
            )
        return tuple(found)

    def leases(self, *, ended: bool = False) -> tuple[LeaseStatus, ...]:
        """The live leases in order of their ids; with ``ended`` also those that the table still remembers."""
        authority = self._mapped()
        clients = {client.client_id: client for client in self.clients(gone=True)}
        streams: dict[int, str] = {}
        copy = ffi.new("shmd_lease_record_t *")
        found = []
        states = set(names.LEASE_STATES.values()) - {"free"} if ended else names.LIVE_LEASES
        for index in indexes_in(authority, lib.SHMD_TABLE_LEASES, names.numbers(names.LEASE_STATES, states)):
            if copied(copy, lib.shmd_authority_lease(authority, index)):
                stream_index = int(copy.stream_index)
                if stream_index not in streams:
                    streams[stream_index] = self._stream_name(stream_index)
                found.append(
                    lease_status(copy, index, streams[stream_index], clients.get(int(copy.client_id)))
                )
        return tuple(sorted(found, key=lambda lease: lease.lease_id))

    def _stream_name(self, index: int) -> str:
        authority = self._mapped()
        if index >= int(authority.stream_max):
            return ""
        copy = ffi.new("shmd_stream_record_t *")
        return text(copy.name) if copied(copy, lib.shmd_authority_stream(authority, index)) else ""

    # ---- streams -----------------------------------------------------------------------------

    def streams(self) -> tuple[StreamStatus, ...]:
        """All streams of the directory, by name, each with its epochs and who holds what in them."""
        authority = self._mapped()
        by_stream: dict[int, list[LeaseStatus]] = {}
        for lease in self.leases():
            by_stream.setdefault(lease.stream_index, []).append(lease)
        copy = ffi.new("shmd_stream_record_t *")
        found: list[StreamStatus] = []
        used: set[str] = set()
        for index in indexes_in(authority, lib.SHMD_TABLE_STREAMS, {lib.SHMD_RECORD_USED}):
            record = lib.shmd_authority_stream(authority, index)
            if not copied(copy, record):
                continue
            leases = tuple(
                lease for lease in by_stream.get(index, ()) if lease.stream_id == int(copy.stream_id)
            )
            status = self._stream_status(copy, record, index, leases)
            used.update(epoch.data_name for epoch in status.epochs)
            found.append(status)
        for name in self._epochs.keys() - used:
            self._epochs.pop(name).close()
        return tuple(sorted(found, key=lambda stream: stream.name))

    def stream(self, name: str) -> StreamStatus:
        """One stream. Raises ShmDriverError with the nearest known name when there is none of that name."""
        streams = {stream.name: stream for stream in self.streams()}
        if name in streams:
            return streams[name]
        near = nearest(name, streams)
        known = ", ".join(streams) or "none yet"
        hint = f"did you mean {near!r}?" if near else f"known streams: {known}"
        raise ShmDriverError(f"instance {self.name!r} has no stream {name!r}; {hint}")

    def _stream_status(
        self, copy: Any, record: Any, index: int, leases: tuple[LeaseStatus, ...]
    ) -> StreamStatus:
        producer = next((lease for lease in leases if lease.role == "producer"), None)
        epochs = [
            status
            for number in range(int(lib.SHMD_EPOCH_RECORDS))
            if (status := self._epoch_status(copy, record, number, leases)) is not None
        ]
        return StreamStatus(
            name=text(copy.name),
            index=index,
            stream_id=int(copy.stream_id),
            schema=text(copy.schema) if copy.schema_bytes else "",
            max_consumers=int(copy.max_consumers),
            created_ns=int(copy.created_ns),
            epoch_count=int(copy.epoch_count),
            producer=producer,
            consumers=tuple(lease for lease in leases if lease.role == "consumer"),
            epochs=tuple(sorted(epochs, key=lambda epoch: epoch.epoch)),
        )

    def _epoch_status(
        self, copy: Any, record: Any, number: int, leases: tuple[LeaseStatus, ...]
    ) -> EpochStatus | None:
        epoch = ffi.new("shmd_epoch_record_t *")
        is_whole = any(
            lib.shmd_epoch_copy(epoch, ffi.addressof(record.epochs[number])) for _ in range(COPY_ATTEMPTS)
        )
        if not is_whole or word(names.EPOCH_STATES, int(epoch.hot.state) & 0xFF) not in _READABLE_EPOCHS:
            return None
        segments, problem = self._epoch_segments(epoch, int(copy.stream_id))
        return epoch_status(epoch, segments, problem, live_consumers(leases), int(lib.shmd_now_ns()))

    def _epoch_segments(self, record: Any, stream_id: int) -> tuple[EpochSegments | None, str]:
        name = text(record.data_name)
        segments = self._epochs.get(name)
        if segments is not None:
            return segments, ""
        try:
            segments = EpochSegments(record, self.owner, self.boot_id, stream_id, int(record.epoch))
        except ShmDriverError as error:
            return None, str(error)
        self._epochs[name] = segments
        return segments, ""

    # ---- events, errors, counters, configuration ---------------------------------------------

    def events(self, *, after: int | None = None) -> tuple[EventRecord, ...]:
        """What the event ring still holds, oldest first; with ``after`` only events of a higher seq."""
        authority, now_ns = self._mapped(), int(lib.shmd_now_ns())
        head, slots = (
            int(lib.shmd_word_load(ffi.addressof(authority, "event_head"))),
            int(authority.event_slots),
        )
        cursor, lost = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        cursor[0] = max(0, head - slots + 1, -1 if after is None else after + 1)
        event = ffi.new("shmd_event_t *")
        found: list[EventRecord] = []
        while len(found) < slots and lib.shmd_event_poll(authority, cursor, event, lost) == 1:
            found.append(
                EventRecord(
                    seq=int(cursor[0]) - 1,
                    kind=word(names.EVENT_KINDS, int(event.kind)),
                    code=word(names.CODES, int(event.code)),
                    reason=word(names.REASONS, int(event.reason)),
                    stream=text(event.stream),
                    text=text(event.text),
                    client_id=int(event.client_id),
                    lease_id=int(event.lease_id),
                    epoch=int(event.epoch),
                    state=int(event.state),
                    value=int(event.value),
                    age_ns=max(0, now_ns - int(event.time_ns)),
                )
            )
        return tuple(found)

    def errors(self) -> tuple[ErrorRecord, ...]:
        """The driver's distinct errors, newest first."""
        authority, now_ns = self._mapped(), int(lib.shmd_now_ns())
        found = []
        for index in range(int(authority.error_max)):
            record = lib.shmd_authority_error(authority, index)
            count = int(lib.shmd_word_load(ffi.addressof(record, "count")))
            if not count:
                break  # they are used in order, and never given back
            first_ns, last_ns = int(record.first_ns), int(record.last_ns)
            found.append(ErrorRecord(text(record.text), count, now_ns - first_ns, now_ns - last_ns))
        return tuple(sorted(found, key=lambda error: error.last_age_ns))

    def counters(self) -> dict[str, int]:
        """The driver's counters by name."""
        authority = self._mapped()
        return {
            name: int(lib.shmd_counter_get(authority, index))
            for index, name in names.COUNTERS.items()
            if index < int(authority.counter_max)
        }

    def config_text(self) -> str:
        """The driver's effective configuration, as TOML. A last line ``# cut...`` says that there is more."""
        authority = self._mapped()
        raw: bytes = ffi.string(lib.shmd_authority_config(authority), int(authority.config_bytes))
        return raw.decode("utf-8", "replace")
