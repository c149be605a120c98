"""Who is connected: client records, and the proof of their death.

A record goes FREE -> ALIVE <-> STALLED. From each of these two it becomes FREE when the client says
Goodbye or is proved dead, and GONE when it was silent past its deadline without such a proof, or was
expelled. A record that is GONE becomes FREE once nothing is set aside for its client any more (tenure.py).

A look at a client's process says alive, dead or unknown. Unknown counts as alive. A client whose look
failed because no descriptor was left is looked at again later. Whose Hello it is identity.py says.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Collection, Iterator
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import (
    Authority,
    clear_record,
    is_rewritten,
    publish_word,
    record_state,
    room_advice,
)
from shmdriver.driver.client_segment import ClientSegment
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.identity import (
    Client,
    contradiction,
    describe,
    digest_of,
    has_fired,
    is_of,
    look_at_client,
    look_of,
    name_process,
)
from shmdriver.driver.rejection import Rejection
from shmdriver.driver.shm import ShmSpaceError, lock_memory, unlink_segment
from shmdriver.driver.sleeper import Sleeper
from shmdriver.driver.undo import UndoneOnError
from shmdriver.errors import Code, LayoutMismatch, Reason, ShmDriverError
from shmdriver.liveness import Look, Verdict
from shmdriver.os_errors import errno_hint

__all__ = ["Client", "ClientTable", "describe"]


class ClientTable:
    """The clients of one instance."""

    def __init__(self, authority: Authority, *, limit: int) -> None:
        self._authority = authority
        self._limit = min(limit, authority.sizes.clients)
        self._by_id: dict[int, Client] = {}
        self._by_nonce: dict[int, Client] = {}
        self._by_pidfd: dict[int, Client] = {}
        self._unproved: dict[int, Client] = {}  # no descriptor was left for them: looked at again later
        self._dead: dict[int, Client] = {}  # proved without a pidfd, by such a later look
        self._poll = select.poll()
        self._free = list(range(authority.sizes.clients - 1, -1, -1))
        self.watches = ffi.new("shmd_client_watch_t[]", authority.sizes.clients)
        self._sleeper: Sleeper | None = None  # is woken by deaths, when there is one
        self.locks_memory = False  # of new control segments
        self.on_gone: Callable[[Client], None] = lambda _client: None  # told who has expired, died or left

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def has_room(self) -> bool:
        """Whether one more fits."""
        return len(self._by_id) < self._limit

    @property
    def is_short_of_descriptors(self) -> bool:
        """Whether some client has to be looked at again, because no descriptor was left for its pidfd."""
        return bool(self._unproved)

    def wake_at_deaths(self, sleeper: Sleeper) -> None:
        """Each pidfd wakes that sleeper from now on, those to come, too."""
        self._sleeper = sleeper
        for client in self:
            self._let_wake(client)

    def of_hello(self, nonce: int) -> Client | None:
        """The client that a Hello with this nonce made."""
        return self._by_nonce.get(nonce)

    def by_id(self, client_id: int) -> Client | None:
        """The client with this id, alive or gone."""
        return self._by_id.get(client_id)

    def by_index(self, index: int) -> Client | None:
        """The client of a record that this driver itself named."""
        return self._by_id.get(int(self._authority.client(index).client_id))

    def sender(self, client_id: int) -> Client:
        """The client that a request claims to come from. Raises Rejection."""
        client = self._by_id.get(client_id)
        if client is None:
            raise Rejection(
                Reason.UNKNOWN_CLIENT,
                f"this driver knows no client {client_id}: connect again",
                Code.INVALID_PARAMS,
            )
        if client.state == lib.SHMD_CLIENT_GONE:
            raise Rejection(
                Reason.UNKNOWN_CLIENT,
                f"client {client_id} was silent for longer than policies.lease_timeout_ms and has expired, "
                "or was expelled (its events say so): connect again",
            )
        return client

    def returning(self, hello: Any, peer: Any) -> Client | None:
        """The client that says Hello again, or whose welcome was lost; None: a new one. Raises Rejection.

        ``hello`` (``shmd_hello_t *``, private copy) and ``peer`` (``shmd_peer_t *``): what it says, and who
        has connected.
        """
        client_id = int(hello.client_id)
        client = self._by_id.get(client_id) if client_id else self._by_nonce.get(int(hello.nonce))
        if client_id and int(hello.boot_id) != self._authority.boot_id:
            raise Rejection(
                Reason.UNKNOWN_CLIENT,
                f"client {client_id} was registered before this driver began afresh: connect again",
            )
        if client_id:
            self.sender(client_id)
        elif client is None or client.state == lib.SHMD_CLIENT_GONE:
            return None
        assert client is not None
        wrong = contradiction(client.record, client.process, client.label, hello, peer)
        if wrong:
            self._authority.count(lib.SHMD_COUNTER_REQUESTS_CORRUPT)
            raise Rejection(
                Reason.NOT_OWNER,
                f"this Hello names client {client.client_id}, but {wrong}: nothing was changed. Connect "
                "again, as a new client",
                Code.INVALID_PARAMS,
            )
        return client

    def former_images(self, hello: Any, peer: Any) -> list[Client]:
        """The clients of an earlier program of the process that says Hello: they are gone."""
        image = int(hello.image)
        return [
            client
            for client in self
            if image
            and int(client.record.image) not in (0, image)
            and is_of(client.record, client.process, peer)
        ]

    def renew(self, client: Client, hello: Any, peer: Any, now_ns: int) -> None:
        """A client has said Hello again: it keeps its record. Takes the peer's pidfd when it had none."""
        record, process = client.record, peer.process
        if peer.pidfd_error == errno.ESRCH and is_of(record, client.process, peer):
            self._dead[client.client_id] = client  # it has ended since
        if int(record.pid) == 0 or int(record.pid_namespace) != int(process.pid_namespace):
            name_process(record, process)
        client.process = client.process or int(peer.pidfd_inode)
        if client.pidfd < 0:
            self._take_pidfd(client, peer)
            self._watch(client, look_of(peer, client.pidfd), now_ns)
        self.seen(client, now_ns)
        lib.shmd_word_store(ffi.addressof(record, "serial"), hello.serial)

    def admit(self, hello: Any, peer: Any, now_ns: int) -> Client:
        """A new client, as ``returning`` found. The peer's pidfd is its own from now on. Raises Rejection.

        ``hello`` (``shmd_hello_t *``, private copy), ``peer`` (``shmd_peer_t *``).
        """
        if not self.has_room or not self._free:
            raise Rejection(
                Reason.LIMIT,
                f"{len(self._by_id)} of {self._limit} clients are connected: "
                + room_advice(
                    "policies.limits.clients",
                    self._limit,
                    self._authority.sizes.clients,
                    self._authority.instance,
                ),
            )
        if peer.pidfd_error == errno.ESRCH:
            raise Rejection(Reason.UNKNOWN_CLIENT, "the process that connected has ended")
        record = self._authority.client(self._free[-1])
        client = Client(record, self._free[-1])
        # Data, then state: a record that was filled and not published is free for a successor.
        clear_record(record)
        with UndoneOnError() as undo:
            self._free.pop()
            undo.callback(self.remove, client)
            self._fill(client, hello, peer, now_ns)
            self._enter(client)
            client.control = self._make_control(record, now_ns)
            self._begin_watch(client, now_ns)
            self._take_pidfd(client, peer)
            self._watch(client, look_of(peer, client.pidfd), now_ns)
            failpoint("client.filled")
            publish_word(record, lib.SHMD_CLIENT_ALIVE, reuse=True)
            failpoint("client.published")
        return client

    def _fill(self, client: Client, hello: Any, peer: Any, now_ns: int) -> None:
        record, process = client.record, peer.process
        record.client_id = self._authority.take_id("next_client_id")
        record.serial, record.nonce, record.image = hello.serial, hello.nonce, hello.image
        record.pid, record.start_time = process.pid, process.start_time
        record.pid_namespace, record.time_namespace = process.pid_namespace, process.time_namespace
        record.uid, record.gid = peer.uid, peer.gid
        record.secret_sha256 = digest_of(hello)
        record.attached_ns = record.seen_ns = now_ns
        record.index = client.index
        ffi.memmove(record.name, hello.name, ffi.sizeof(record.name))

    def _make_control(self, record: Any, now_ns: int) -> ClientSegment:
        try:
            made = ClientSegment.create(self._authority, record, now_ns)
            if self.locks_memory and lock_memory(made.map):
                self._authority.log_error("shm.mlock: not all segments are locked in memory", now_ns)
            return made
        except ShmSpaceError as error:
            size = int(lib.shmd_client_ring_footprint())
            raise Rejection(
                Reason.NO_MEMORY,
                f"no memory for the control segment of client {len(self._by_id) + 1} ({size} bytes each; "
                f"{self._limit} clients need {self._limit * size}): {error}",
            ) from error

    @staticmethod
    def _take_pidfd(client: Client, peer: Any) -> None:
        client.pidfd, client.process, peer.pidfd = int(peer.pidfd), int(peer.pidfd_inode), -1

    def load(self, now_ns: int) -> tuple[list[Client], dict[Client, str]]:
        """Takes over what the tables show.

        Returns the clients that turned out to be dead meanwhile, and those whose control segments are lost:
        why.
        """
        dead, lost = [], {}
        self._free.clear()
        for index in range(self._authority.sizes.clients - 1, -1, -1):
            record = self._authority.client(index)
            if record_state(record) == lib.SHMD_CLIENT_FREE:
                self._free.append(index)
                continue
            client = Client(record, index)
            record.connected = 0  # to the driver before
            if is_rewritten(record):  # killed while it named the process anew: the next Hello names it
                record.pid = 0
                publish_word(record, record_state(record), reuse=True)
            self._enter(client)
            try:
                client.control = ClientSegment.open(self._authority, record)
            except LayoutMismatch as error:
                lost[client] = str(error)
            self._begin_watch(client, now_ns)  # all start afresh: the silence was the driver's, not theirs
            look = self._look_at(client)
            self._watch(client, look, now_ns)
            if look.verdict is Verdict.DEAD:
                dead.append(client)
            if client.state == lib.SHMD_CLIENT_STALLED:
                publish_word(record, lib.SHMD_CLIENT_ALIVE)
        return dead, lost

    def deaths(self) -> list[Client]:
        """Clients whose processes are proved dead since they were last asked for."""
        dead = list(self._dead.values())
        if self._by_pidfd:
            dead += [self._by_pidfd[fd] for fd in self._fired() if fd in self._by_pidfd]
        return dead

    def _fired(self) -> list[int]:
        try:
            return [fd for fd, _ in self._poll.poll(0)]
        except OSError:  # RLIMIT_NOFILE was lowered below their number: poll takes no more than that at once
            return [fd for fd in self._by_pidfd if has_fired(fd)]

    def look_again(self, now_ns: int) -> None:
        """Looks at clients for which no descriptor was left, as long as there are some now."""
        for client in list(self._unproved.values()):
            look = look_at_client(client.record)
            if look.is_passing:
                if look.pidfd >= 0:
                    os.close(look.pidfd)
                return
            self._watch(client, look, now_ns)
            if look.verdict is Verdict.DEAD:
                self._dead[client.client_id] = client

    def mark(self, client: Client, state: int) -> None:
        """ALIVE, STALLED or GONE."""
        publish_word(client.record, state)
        if state == lib.SHMD_CLIENT_GONE:
            self.on_gone(client)

    def remove(self, client: Client) -> None:
        """The client left, or is proved dead: its record and heartbeat line are free again."""
        publish_word(client.record, lib.SHMD_CLIENT_FREE)
        failpoint("client.removed")
        self._drop_watch(client)
        if client.control is not None:
            client.control.remove()
            client.control = None
        failpoint("client.segment_removed")
        self._by_id.pop(client.client_id, None)
        if self._by_nonce.get(int(client.record.nonce)) is client:  # or of one that has said Hello anew
            del self._by_nonce[int(client.record.nonce)]
        self._unproved.pop(client.client_id, None)
        self._dead.pop(client.client_id, None)
        self._forget_pidfd(client)
        self._free.append(client.index)
        self.on_gone(client)

    def excuse(self, late_ns: int, now_ns: int) -> None:
        """The driver was late: so much of each client's silence does not count."""
        for client in self._by_id.values():
            watch = self.watches[client.index]
            seen_ns = int(watch.seen_ns)
            watch.seen_ns = max(seen_ns, min(seen_ns + late_ns, now_ns))
            if client.activity is not None and client.activity[0] == seen_ns:  # it is silent since, still
                client.activity = int(watch.seen_ns), client.activity[1]

    def await_beats(self, until_ns: int) -> None:
        """No silence counts before ``until_ns``: by the former interval clients may sleep until then."""
        for client in self._by_id.values():
            self.watches[client.index].seen_ns = until_ns

    def seen(self, client: Client, now_ns: int) -> None:
        """A sign of life other than its heartbeat."""
        watch = self.watches[client.index]
        watch.seen_ns = max(int(watch.seen_ns), now_ns)

    def close(self) -> None:
        """Closes the pidfds and unmaps the control segments; names and records stay."""
        self._sleeper = None
        for client in self:
            self._forget_pidfd(client)
            if client.control is not None:
                self._drop_watch(client)
                client.control.close()
                client.control = None

    def segment_names(self) -> list[str]:
        """The names of all control segments."""
        return [client.control.name for client in self if client.control is not None]

    def unlink_all(self) -> None:
        """At the very end: no name is left."""
        for name in self.segment_names():
            unlink_segment(name)

    def damaged(self, addresses: Collection[int]) -> list[Client]:
        """The clients whose control segments are mapped at these addresses."""
        return [c for c in self if c.control is not None and c.control.address in addresses]

    def _drop_watch(self, client: Client) -> None:
        watch = self.watches[client.index]
        watch.client_id, watch.control = 0, ffi.NULL

    def _enter(self, client: Client) -> None:
        self._by_id[client.client_id] = client
        self._by_nonce[int(client.record.nonce)] = client

    def _begin_watch(self, client: Client, now_ns: int) -> None:
        watch = self.watches[client.index]
        watch.client_id, watch.seen_ns = client.client_id, now_ns
        if client.control is not None:
            watch.control = client.control.control
            watch.beat = lib.shmd_word_load(ffi.addressof(watch.control.heartbeat, "beat"))

    @staticmethod
    def _look_at(client: Client) -> Look:
        """Looks at a client of which no pidfd is known yet; that belongs to the client at once."""
        look = look_at_client(client.record)
        client.pidfd = look.pidfd
        return look

    def _watch(self, client: Client, look: Look, now_ns: int) -> None:
        if client.pidfd != look.pidfd:
            self._forget_pidfd(client)
            client.pidfd = look.pidfd
        client.record.provable = int(look.pidfd >= 0)
        self._unproved.pop(client.client_id, None)
        if look.is_passing:
            self._unproved[client.client_id] = client
            self._authority.log_error(
                "no descriptor is left for a client's pidfd, so its death shows by its silence only: "
                f"{errno_hint(errno.EMFILE)}, or lower policies.limits.clients",
                now_ns,
            )
        if look.pidfd >= 0:
            self._poll.register(look.pidfd, select.POLLIN)
            self._by_pidfd[look.pidfd] = client
            self._let_wake(client)

    def _let_wake(self, client: Client) -> None:
        if self._sleeper is not None and client.pidfd >= 0:
            try:
                self._sleeper.add(client.pidfd, lib.SHMD_SLEEPER_DEATH, client.client_id)
            except ShmDriverError:
                pass  # a limit of the kernel's (fs.epoll.max_user_watches): found at a lease check

    def _forget_pidfd(self, client: Client) -> None:
        if client.pidfd >= 0:
            if self._by_pidfd.pop(client.pidfd, None) is not None:
                self._poll.unregister(client.pidfd)
            if self._sleeper is not None:
                self._sleeper.remove(client.pidfd)
            os.close(client.pidfd)
            client.pidfd = -1
