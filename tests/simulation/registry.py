"""What must hold of clients and their connections: who is who."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from shmdriver._native import lib
from tests.simulation.kernel import NAMESPACES, Kernel
from tests.simulation.rules import demand, is_alive, key_of
from tests.simulation.tables import Snapshot, View, phase

if TYPE_CHECKING:
    from tests.simulation.actors import Process
    from tests.simulation.door import Connection, Network


class Registry:
    """The clients of one boot: what was seen of their records and of their connections."""

    def __init__(self, view: View, kernel: Kernel) -> None:
        self.view = view
        self.kernel = kernel
        self.processes: list[Process] = []
        self.now = view.snapshot()
        self._max_client_id = 0
        self._of_line: dict[int, tuple[int, Process | None]] = {}
        self._serials: dict[int, int] = {}  # by client id
        self._keys: set[tuple[int, bytes]] = set()  # of all that were seen,
        self._former_keys: set[tuple[int, bytes]] = set()  # and before the last look

    def owner_at(self, index: int) -> Process | None:
        """Whose record that is, or was last."""
        return self._of_line.get(index, (0, None))[1]

    def scan_clients(self, now: Snapshot) -> None:
        self._former_keys = set(self._keys)
        self._keys |= {key_of(record) for record in now.clients if phase(record)}
        keys = Counter(key_of(record) for record in now.clients if is_alive(record))
        demand(max(keys.values(), default=0) <= 1, "a client has one record", keys)
        for record in sorted(now.clients, key=lambda record: int(record.client_id)):
            if phase(record) == lib.SHMD_CLIENT_FREE:
                continue
            before = self._of_line.get(record.index)
            if before is None or before[0] != record.client_id:
                self._new_client(record)
            owner = self._of_line[record.index][1]
            serial = self._serials.get(record.client_id, 0)
            demand(record.serial >= serial, "an older Hello is not heeded", record.client_id, record.serial)
            self._serials[record.client_id] = record.serial
            if owner is not None:
                task = owner.task
                who = "a record says who its client is"
                demand((record.uid, record.image) == (task.uid, owner.session.image), who, owner, record)
                numbers = [0, *(task.pid_in(namespace) for namespace in NAMESPACES)]
                demand(record.pid in numbers, who, owner, record.pid)
                demand(record.serial in owner.session.said, "only a client's own Hello is heeded", owner)

    def _new_client(self, record: Any) -> None:
        owner = next((p for p in self.processes if p.session.key == key_of(record)), None)
        demand(record.client_id > self._max_client_id, "client ids are never reused", record.client_id)
        self._max_client_id = record.client_id
        self._of_line[record.index] = (record.client_id, owner)

    def record_of(self, key: tuple[int, bytes]) -> Any:
        """What the tables showed last of the client with this nonce and secret; the one alive, if any."""
        found = [record for record in self.now.clients if phase(record) and key_of(record) == key]
        return max(found, key=is_alive, default=None)

    def knows(self, nonce: int) -> bool:
        """Whether a client with this nonce stands in the tables now."""
        return any(phase(record) and record.nonce == nonce for record in self.view.snapshot().clients)

    def is_hidden(self, record: Any) -> bool:
        """Whether the present driver has no means to prove this client's death."""
        return not record.provable and key_of(record) in self.kernel.blind_to

    def welcomed(self, process: Process, connection: Connection) -> None:
        """A client has read its welcome: whoever its process was before has nothing any more."""
        record = self.record_of(process.session.key)
        known = record is None or record.client_id == process.client_id
        demand(known, "a welcome names the client's own record", process)
        image = process.session.image
        former = [p for p in self.processes if p.task is process.task and 0 != p.session.image != image != 0]
        keys = {p.session.key for p in former}
        for found in self.now.clients:
            if phase(found) and key_of(found) in keys and found.pid and found.start_time:
                is_same = connection.began_in == found.pid_namespace
                demand(not is_same, "a Hello of a process's next program ends the former", found.client_id)

    def check_connections(self, network: Network) -> None:
        """Between two ticks: each is a living client's, by its newest Hello, or has yet to say one."""
        alive = {key_of(record): record for record in self.now.clients if is_alive(record)}
        kept = {connection.key: connection for connection in network.kept}
        demand(len(kept) == len(network.kept), "a client has one connection", sorted(kept))
        for key, connection in kept.items():
            record = alive.get(key)
            demand(record, "who expires, leaves or dies is disconnected", key[0])
            serial = int(connection.hello.serial)
            demand(serial == getattr(record, "serial", 0), "a connection is that of the newest Hello", record)
        for record in filter(phase, self.now.clients):
            has = is_alive(record) and key_of(record) in kept
            demand(record.connected == has, "a record says whether its client is connected", record.client_id)
        for connection in network.known:
            record = alive.get(connection.key)
            is_newest = record is not None and record.serial == connection.hello.serial
            stays = connection.is_kept or not (connection.is_open and is_newest)
            demand(stays, "a living client's connection stays open", connection.key)
        network.known = network.kept
        in_time = {connection.key for connection in network.welcomed if not connection.is_too_late}
        for connection in network.welcomed:
            is_new = connection.key not in self._former_keys | in_time
            demand(not (is_new and connection.is_too_late), "who has ended is not admitted", connection.key)
        network.welcomed.clear()
        for connection in network.served:
            heard = connection.is_kept or connection.hello is None
            demand(heard, "a connection whose Hello was refused is closed", connection.task.pid)
