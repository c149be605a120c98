"""A driver under a fake clock, and clients made by hand: what the driver's tests stand on.

The requester connects by the driver's own socket, and writes the bytes of its Hello and of its control
segment itself, so that a test can also write wrong ones.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.collect import collect
from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver
from shmdriver.driver.memory import InlineMemory
from shmdriver.driver.shm import SegmentMap, open_segment
from tests.segments import path_of, segment_name

MS = 1_000_000
SECOND = 1000 * MS
EVENT_FIELDS = [name for name, _ in ffi.typeof("shmd_event_t").fields]


class FakeClock:
    """Monotonic nanoseconds that only move when told to."""

    def __init__(self, now_ns: int = 1_000 * SECOND) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance_ms(self, milliseconds: float) -> None:
        self.now_ns += int(milliseconds * MS)


def rests(driver: Driver, now_ns: int) -> bool:
    """Whether the driver's loop would sleep on at that time, because C has looked and found nothing."""
    check = driver._timers["lease_check"]
    deaths = driver.tables.clients.deaths()  # which end the sleep by themselves
    if not driver._may_rest or deaths:
        return False
    driver._rest.begin(check, driver._last_tick_ns)
    if driver._rest.until_ns(driver._timers.next_deadline_ns(but=check) or now_ns) <= now_ns:
        return False
    found = bool(lib.shmd_driver_rests(driver._rest.native, now_ns))
    driver._last_tick_ns = driver._rest.looked(check)
    return found


def start_time_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def time_namespace() -> int:
    own = ffi.new("shmd_process_t *")
    lib.shmd_process_self(own)
    return int(own.time_namespace)


def hash_of(data: bytes, seed: int = 0) -> int:
    return int(lib.shmd_hash(data, len(data), seed))


class View:
    """The authority of an instance as a client or a tool maps it; outlives drivers."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._maps: list[SegmentMap] = []
        self.authority = self._map(writable=False)
        self._cursor = ffi.new("uint64_t *", self.authority.event_head)

    def close(self) -> None:
        for mapped in self._maps:
            mapped.close()

    def writable_authority(self) -> Any:
        """The authority as a driver maps it, to put into it what another driver would have."""
        return self._map(writable=True)

    def _map(self, *, writable: bool) -> Any:
        fd, size = open_segment(segment_name(path_of(self._instance, "authority")), writable=writable)
        mapped = SegmentMap.of(fd, size, writable=writable)
        os.close(fd)
        self._maps.append(mapped)
        return mapped.view("shmd_authority_t *")

    def events(self) -> list[SimpleNamespace]:
        """What was published since the last call."""
        found = []
        out = ffi.new("shmd_event_t *")
        while lib.shmd_event_poll(self.authority, self._cursor, out, ffi.NULL) == 1:
            values = {name: getattr(out, name) for name in EVENT_FIELDS}
            for text in ("stream", "text"):
                values[text] = ffi.string(values[text]).decode()
            found.append(SimpleNamespace(**values))
        return found


CONNECTS = """
import socket, sys
for fd in sys.argv[2:]:
    input()
    socket.socket(fileno=int(fd)).connect(sys.argv[1])
    print(flush=True)
input()
"""


class Visitor:
    """A process that connects to the driver's socket when it is told to, and then waits to be killed.

    The test holds the same sockets, and says on them what it likes: the kernel names that process.
    """

    def __init__(self, rig: Rig, *, sockets: int = 1, prefix: tuple[str, ...] = (), **options: Any) -> None:
        self.sockets = [new_socket() for _ in range(sockets)]
        fds = [str(found.fileno()) for found in self.sockets]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", CONNECTS, rig.address(os.getpid()), *fds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[found.fileno() for found in self.sockets],
            **options,
        )
        self._unused = list(self.sockets)

    def connect(self) -> socket.socket:
        """Its next socket, connected by that process."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"\n", "it could not connect"
        return self._unused.pop(0)

    @property
    def can_connect(self) -> bool:
        """Whether it lives, and has a socket left."""
        return self.process.poll() is None and bool(self._unused)

    def kill(self) -> None:
        """Killed and reaped; its sockets stay open here."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for found in (self.process.stdin, self.process.stdout, *self.sockets):
            assert found is not None
            found.close()


def new_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Requester:
    """A client made by hand. Nothing waits: the rig ticks, and answers are looked up by correlation id.

    ``visitor``: the process that connects for it; None: this one.
    """

    def __init__(self, rig: Rig, *, visitor: Visitor | None = None) -> None:
        self.rig = rig
        self.visitor = visitor
        self.nonce = secrets.randbits(64)
        self.secret = secrets.token_bytes(lib.SHMD_SECRET_BYTES)
        self.serial = 0
        self.client_id = 0
        self.index = 0
        self.socket = new_socket()
        self.map: SegmentMap | None = None  # its control segment
        self._beat = 0

    @property
    def pid(self) -> int:
        return os.getpid() if self.visitor is None else self.visitor.process.pid

    @property
    def who(self) -> int:
        return self.index + 1

    def connect(self) -> socket.socket:
        """A new connection in place of the one that it had."""
        self.socket.close()
        if self.visitor is not None:
            self.socket = self.visitor.connect()
        else:
            self.socket = new_socket()
            self.socket.connect(self.rig.address())
        self.rig.sockets.append(self.socket)
        self.socket.setblocking(False)
        return self.socket

    def hello_message(self, **fields: Any) -> Any:
        """``shmd_hello_t *``: the next Hello of this client, with the fields of a former one."""
        self.serial += 1
        hello = ffi.new("shmd_hello_t *")
        lib.shmd_hello_begin(hello, self.rig.instance.encode())
        hello.start_time = start_time_of(self.pid)
        former = {"client_id": self.client_id, "boot_id": self.rig.boot_id} if self.client_id else {}
        values = {"nonce": self.nonce, "secret": self.secret, "serial": self.serial, "name": b"requester"}
        for name, value in {**values, **former, **fields}.items():
            setattr(hello, name, value)
        return hello

    def say(self, hello: Any) -> None:
        """Says it on a new connection; nobody ticks."""
        self.connect().send(ffi.buffer(hello))

    @property
    def control(self) -> Any:
        """``shmd_control_t *``."""
        assert self.map is not None, "it has not been welcome"
        return self.map.view("shmd_control_t *")

    def hear(self) -> SimpleNamespace | None:
        """The welcome, with how many descriptors came with it; None: the connection was closed instead."""
        data, fds, flags, _ = socket.recv_fds(
            self.socket, ffi.sizeof("shmd_welcome_t") + 1, 8, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        )
        if len(fds) == 2 and self.map is None:
            self.map = SegmentMap.of(fds[1], os.fstat(fds[1]).st_size, writable=True)
            self.rig.maps.append(self.map)
        for fd in fds:
            os.close(fd)
        if not data:
            return None
        assert (len(data), flags & socket.MSG_CTRUNC) == (ffi.sizeof("shmd_welcome_t"), 0)
        welcome = ffi.from_buffer("shmd_welcome_t *", data)
        names = [name for name, _ in ffi.typeof("shmd_welcome_t").fields if name not in ("text", "pad")]
        values = {name: int(getattr(welcome, name)) for name in names}
        return SimpleNamespace(**values, text=ffi.string(welcome.text).decode(), descriptors=len(fds))

    def hello(self, **fields: Any) -> SimpleNamespace:
        """Says Hello, ticks, and is welcome or refused."""
        self.say(self.hello_message(**fields))
        self.rig.tick()
        answer = self.hear()
        assert answer is not None, "the driver closed the connection"
        if answer.code == lib.SHMD_CODE_OK:
            self.client_id, self.index = answer.client_id, answer.client_index
            self.rig.requesters.append(self)
        return answer

    def comes_back(self) -> None:
        """Says Hello again to the driver that is there, if its process can; nobody ticks."""
        if self.visitor is None or self.visitor.can_connect:
            self.say(self.hello_message())

    def request(self, kind: int, **fields: Any) -> Any:
        raw = ffi.new("shmd_request_t *")
        raw.kind, raw.layout_version = kind, lib.SHMD_LAYOUT_VERSION
        raw.correlation_id = secrets.randbits(63) | 1
        raw.client_id = self.client_id
        raw.deadline_ns = self.rig.clock.now_ns + 5 * SECOND
        raw.arena_bytes = 2**64 - 1
        for name, value in fields.items():
            setattr(raw, name, value)
        return raw

    def put(self, raw: Any, *, checksum: int = 0) -> None:
        """Writes it into its ring; ``checksum`` is added to the right one. Nobody is told."""
        control = self.control
        position = raw.position = int(control.tail)
        cursor = int(lib.shmd_authority_client(self.rig.view.authority, self.index).control_cursor)
        assert position - cursor < lib.SHMD_CLIENT_REQUESTS, "its ring is full"
        seed = hash_of(self.nonce.to_bytes(8, "little"), (self.who << 32) ^ position)
        raw.checksum = hash_of(bytes(ffi.buffer(raw))[8:], seed) + checksum & 2**64 - 1
        slot = ffi.addressof(control.requests, position % lib.SHMD_CLIENT_REQUESTS)
        ffi.memmove(slot, raw, ffi.sizeof("shmd_request_t"))
        control.tail = position + 1

    def ring(self) -> None:
        """Rings the driver; one that is gone hears nothing."""
        try:
            self.socket.send(b"\0", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def send(self, raw: Any) -> int:
        """Asks for it; the correlation id."""
        self.put(raw)
        self.ring()
        return int(raw.correlation_id)

    def ask(self, raw: Any) -> SimpleNamespace:
        """Sends, ticks, and returns the answer."""
        correlation = self.send(raw)
        self.rig.tick()
        return self.rig.answer(correlation)

    def attach_request(self, stream: str, role: int, **fields: Any) -> Any:
        consumer = {
            "delivery": lib.SHMD_DELIVERY_RELIABLE,
            "start": lib.SHMD_START_NEWEST,
            "wait": lib.SHMD_WAIT_ADAPTIVE,
        }
        schema = fields.pop("schema", b"")
        return self.request(
            lib.SHMD_REQUEST_ATTACH,
            **{
                "stream": stream.encode(),
                "role": role,
                "flags": lib.SHMD_ATTACH_CREATE,
                "schema": schema,
                "schema_bytes": len(schema),
                **(consumer if role == lib.SHMD_ROLE_CONSUMER else {}),
                **fields,
            },
        )

    def consume(self, stream: str = "s", *, confirm: bool = True, **fields: Any) -> SimpleNamespace:
        answer = self.ask(self.attach_request(stream, lib.SHMD_ROLE_CONSUMER, **fields))
        if confirm and answer.code == lib.SHMD_CODE_OK:
            self.confirm(answer)
        return answer

    def produce(self, stream: str = "s", *, confirm: bool = True, **fields: Any) -> SimpleNamespace:
        answer = self.ask(self.attach_request(stream, lib.SHMD_ROLE_PRODUCER, **fields))
        if confirm and answer.code == lib.SHMD_CODE_OK:
            self.confirm(answer)
        return answer

    def confirm(self, answer: SimpleNamespace) -> None:
        self.control.leases[answer.entry].confirmed = answer.lease_id

    def leave(self, answer: SimpleNamespace, how: int = lib.SHMD_ENTRY_DETACHED) -> None:
        """Notes that it uses this lease no more, as it does when it waits for no answer."""
        self.control.leases[answer.entry].detached = answer.lease_id << 8 | how
        self.ring()

    def detach(self, answer: SimpleNamespace, *, aborted: bool = False) -> SimpleNamespace:
        return self.ask(self.detach_request(answer, flags=lib.SHMD_DETACH_ABORTED if aborted else 0))

    def detach_request(self, answer: SimpleNamespace, **fields: Any) -> Any:
        fields = {
            "lease_id": answer.lease_id,
            "stream": answer.stream.encode(),
            "role": self.rig.lease(answer).role,
            **fields,
        }
        return self.request(lib.SHMD_REQUEST_DETACH, **fields)

    def goodbye(self) -> None:
        self.send(self.request(lib.SHMD_REQUEST_GOODBYE))
        self.rig.tick()

    def beat(self) -> None:
        self._beat += 1
        self.control.heartbeat.beat = self._beat


class Rig:
    """One instance: config, fake clock, driver (one after another), a view of its segments."""

    def __init__(self, instance: str, **overrides: Any) -> None:
        self.instance = instance
        self.clock = FakeClock()
        self.token: bytes | None = b"token of the rig, long enough"
        base = {
            "profiles.default.slots": 64,
            "profiles.default.arena": 65536,
            "policies.lease_check_interval_ms": 100,  # the grid that tests count in
            "policies.announce_interval_ms": 1000,
        }
        self.overrides = base | {key.replace("__", "."): value for key, value in overrides.items()}
        self.logged: list[str] = []
        self._seen: list[SimpleNamespace] = []
        self.sockets: list[socket.socket] = []
        self.maps: list[SegmentMap] = []
        self.requesters: list[Requester] = []
        self._visitors: list[Visitor] = []
        self.driver: Driver
        self.view: View
        self.start()
        self.view = View(instance)

    def make_driver(self, **overrides: Any) -> Driver:
        """A driver of this instance that is not started."""
        values = {**self.overrides, "driver.instance": self.instance}
        values |= {key.replace("__", "."): value for key, value in overrides.items()}
        config = Config.load(env={}, overrides=values)
        return Driver(
            config, clock=self.clock, memory=InlineMemory(), log=self.logged.append, token=self.token
        )

    def start(self, *, alone: bool = False, **overrides: Any) -> Driver:
        """``alone``: nobody comes back to it. Else all clients of this rig say Hello, which a tick hears."""
        self.driver = self.make_driver(**overrides)
        self.driver.start()
        for requester in [] if alone else self.requesters:
            requester.comes_back()
        return self.driver

    def crash(self) -> None:
        """As kill -9 leaves it: nothing sealed, nothing unlinked, the lock free."""
        self.driver.close()

    def restart(self) -> Driver:
        self.crash()
        return self.start()

    def tick(self, milliseconds: float = 0, *, step_ms: float = 50) -> None:
        """Ticks now, then on through that much time, as the loop would."""
        self.driver.tick()
        end_ns = self.clock.now_ns + int(milliseconds * MS)
        while self.clock.now_ns < end_ns and self.driver.state.value != "stopped":
            self.clock.advance_ms(min(step_ms, (end_ns - self.clock.now_ns) / MS))
            self.driver.tick()

    @property
    def boot_id(self) -> int:
        return int(self.view.authority.header.boot_id)

    @property
    def folder(self) -> Path:
        """The instance's runtime folder."""
        return Path(ffi.string(self.view.authority.folder).decode())

    def address(self, pid: int | None = None) -> str:
        """The driver's socket, by its folder's descriptor. ``pid``: that of this process, for another one."""
        folder = self.driver.tables.authority.lock.folder
        return f"/proc/{pid or 'self'}/fd/{folder.fd}/socket"

    def visitor(self, **options: Any) -> Visitor:
        """A process of its own; it ends with the rig."""
        self._visitors.append(Visitor(self, **options))
        return self._visitors[-1]

    def client(
        self, *, visitor: Visitor | None = None, is_elsewhere: bool = False, **fields: Any
    ) -> Requester:
        """A client. ``is_elsewhere``: the driver could see neither its number nor its pidfd."""
        requester = Requester(self, visitor=visitor)
        answer = requester.hello(**fields)
        assert answer.code == lib.SHMD_CODE_OK, answer.text
        if is_elsewhere:
            client = self.driver.tables.clients.by_id(requester.client_id)
            assert client is not None
            client.record.pid = client.record.start_time = client.record.provable = client.process = 0
            self.driver.tables.clients._forget_pidfd(client)
        return requester

    @property
    def events(self) -> list[SimpleNamespace]:
        self._seen += self.view.events()
        return self._seen

    def answer(self, correlation: int) -> SimpleNamespace:
        found = [event for event in self.events if event.correlation_id == correlation]
        assert found, f"no answer to {correlation}; events: {[event.kind for event in self._seen]}"
        return found[-1]

    def events_of(self, kind: int) -> list[SimpleNamespace]:
        return [event for event in self.events if event.kind == kind]

    # -- tables

    def lease(self, answer: SimpleNamespace) -> Any:
        return lib.shmd_authority_lease(self.view.authority, answer.lease_index)

    def lease_state(self, answer: SimpleNamespace) -> int:
        record = self.lease(answer)
        return int(record.word) & 0xFF if record.lease_id == answer.lease_id else lib.SHMD_LEASE_FREE

    def control_path(self, client: Requester) -> Path:
        """The file of a client's control segment."""
        record = lib.shmd_authority_client(self.view.authority, client.index)
        return Path("/dev/shm" + ffi.string(record.control_name).decode())

    def client_state(self, client: Requester) -> int:
        return int(lib.shmd_authority_client(self.view.authority, client.index).word) & 0xFF

    def stream_record(self, answer: SimpleNamespace) -> Any:
        return lib.shmd_authority_stream(self.view.authority, answer.stream_index)

    def epoch(self, answer: SimpleNamespace, number: int | None = None) -> Any:
        """The record of an epoch: of the answer's own, or of that number; None when it is gone."""
        number = answer.epoch if number is None else number
        for record in self.stream_record(answer).epochs:
            if int(record.hot.state) >> 8 == number and int(record.hot.state) & 0xFF:
                return record
        return None

    def epoch_state(self, answer: SimpleNamespace, number: int | None = None) -> int:
        record = self.epoch(answer, number)
        return lib.SHMD_EPOCH_FREE if record is None else int(record.hot.state) & 0xFF

    def counter(self, name: str) -> int:
        return int(lib.shmd_counter_get(self.view.authority, getattr(lib, f"SHMD_COUNTER_{name}")))

    @contextmanager
    def epoch_memory(self, answer: SimpleNamespace, number: int | None = None) -> Iterator[SimpleNamespace]:
        """An epoch's data and gates, both writable: the test plays producer and consumers."""
        record = self.epoch(answer, number)
        maps = []
        for name, size in ((record.data_name, record.data_bytes), (record.gates_name, record.gates_bytes)):
            fd, found = open_segment(ffi.string(name).decode(), writable=True)
            assert found == size
            maps.append(SegmentMap.of(fd, found, writable=True))
            os.close(fd)
        try:
            yield SimpleNamespace(
                data=maps[0].view("shmd_data_t *"),
                gates=maps[1].view("shmd_gates_t *"),
                gate=lambda index: lib.shmd_gates_gate(maps[1].view("shmd_gates_t *"), index),
                slot=lambda seq: ffi.cast(
                    "shmd_slot_t *",
                    maps[0].view("unsigned char *")
                    + maps[0].view("shmd_data_t *").ring_offset
                    + seq % record.slots * record.slot_bytes,
                ),
            )
        finally:
            for mapped in maps:
                mapped.close()

    def publish(self, answer: SimpleNamespace, count: int, *, store_head: bool = True) -> None:
        """Commits messages without payload, as the C producer does."""
        with self.epoch_memory(answer) as memory:
            head = int(memory.data.head)
            while (memory.slot(head).commit) == head << 1 | 1:
                head += 1
            for seq in range(head, head + count):
                memory.slot(seq).commit = seq << 1 | 1
            if store_head:
                memory.data.head = head + count

    def leave(self, answer: SimpleNamespace, number: int) -> None:
        """A consumer's `left` mark in an epoch."""
        with self.epoch_memory(answer, number) as memory:
            memory.gate(answer.gate).left = answer.lease_id

    def close(self) -> None:
        """Whatever state it is in, nothing stays."""
        for visitor in self._visitors:
            visitor.close()
        for connection in self.sockets:
            connection.close()
        for mapped in self.maps:
            mapped.close()
        self.view.close()
        self.driver.close()
        collect(self.instance)  # raises if something still drives it
