"""Work grows with the numbers of streams, leases and clients, never with the product of two of them.

It is counted, not timed.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shmdriver import names
from shmdriver._native import lib
from shmdriver.cli.stat_tables import clients_table
from shmdriver.client import directory
from shmdriver.driver.authority import Authority, publish_word
from shmdriver.driver.leases import Lease
from shmdriver.driver.shm import is_whole
from shmdriver.errors import Reason
from shmdriver.observe import Instance
from tests.driver_rig import Rig, Visitor

STREAMS = 16
CLIENTS = 60
FEW = 4  # so often may a row be read, whatever else there is


def count_reads(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> Counter[Any]:
    """How often each row is asked for from now on, by index; of a property, by record."""
    found: Counter[Any] = Counter()
    real = vars(owner)[name]

    def counted(self: Any, *index: int) -> Any:
        found[index or self.lease_id] += 1
        return real.__get__(self) if isinstance(real, property) else real(self, *index)

    monkeypatch.setattr(owner, name, property(counted) if isinstance(real, property) else counted)
    return found


@pytest.mark.fault(56, how="an adoption of streams, of which some have lost their producers")
def test_adoption_reads_each_row_a_few_times_however_many_streams_there_are(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = rig.client()
    producers = [client.produce(f"s{number}") for number in range(STREAMS)]
    consumers = [client.consume(f"s{number}") for number in range(STREAMS)]
    for answer in producers[::2]:  # their driver is killed before it seals
        record = rig.driver.tables.authority.lease(answer.lease_index)
        record.end_reason = Reason.CLOSED
        publish_word(record, lib.SHMD_LEASE_DETACHED)
    for answer in consumers[::4]:
        lease = rig.driver.tables.leases.live(answer.lease_id)
        assert lease is not None
        rig.driver.tables.tenure.revoke(lease, Reason.REVOKED, "test", rig.clock.now_ns)
    rig.crash()
    tables = {name: count_reads(monkeypatch, Authority, name) for name in ("lease", "client", "stream")}
    rig.start()
    reads = {name: max(found.values()) for name, found in tables.items()}
    assert max(reads.values()) <= FEW, reads
    assert len(rig.driver.tables.leases) == 2 * STREAMS - STREAMS // 2 - STREAMS // 4
    ends = [rig.epoch(answer).end_reason for answer in producers]
    assert ends == [Reason.CLOSED, 0] * (STREAMS // 2)
    used = [int(rig.stream_record(answer).gates_used) for answer in producers]
    assert used == [
        1 << answer.gate for answer in consumers
    ]  # also those of revoked ones: they are not free yet


def test_an_announce_looks_once_at_each_file(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    client = rig.client()
    for number in range(STREAMS):
        client.produce(f"s{number}")
    looks: Counter[str] = Counter()

    def counted(name: str, mapped: Any) -> bool | None:
        looks[name] += 1
        return is_whole(name, mapped)

    monkeypatch.setattr("shmdriver.driver.memory.is_whole", counted)
    rig.driver.on_announce(rig.clock.now_ns)
    assert len(looks) == 2 * STREAMS
    assert set(looks.values()) == {1}


def many_clients(rig: Rig) -> Visitor:
    """All of one process."""
    visitor = rig.visitor(sockets=CLIENTS)
    for number in range(CLIENTS):
        client = rig.client(visitor=visitor)
        client.consume(f"s{number % STREAMS}")
        client.beat()
    return visitor


@pytest.mark.fault(56, how="all clients die at once")
def test_ends_of_many_clients_read_each_lease_a_few_times(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = many_clients(rig)
    rig.tick(200)
    assert len(rig.driver.tables.leases) == CLIENTS
    reads = count_reads(monkeypatch, Lease, "client_id")
    visitor.kill()
    rig.tick(200)
    assert len(rig.driver.tables.clients) == len(rig.driver.tables.leases) == 0
    assert max(reads.values()) <= FEW, reads.most_common(1)


@pytest.mark.fault(56, how="all clients fall silent at once")
def test_silence_of_many_clients_reads_each_lease_a_few_times_a_check(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_clients(rig)
    rig.tick(200)
    reads = count_reads(monkeypatch, Lease, "client_id")
    checks = 20
    rig.tick(100 * checks, step_ms=100)
    states = {client.state for client in rig.driver.tables.clients}
    assert states == {lib.SHMD_CLIENT_STALLED}
    assert max(reads.values(), default=0) <= FEW * checks, reads.most_common(1)


def test_the_leases_of_one_client_are_its_own_whatever_ends(rig: Rig) -> None:
    """The indexes of the lease table agree with its records."""
    first, second = rig.client(), rig.client()
    for stream in ("a", "b"):
        rig.client().produce(stream)
    kept, revoked = first.consume("a"), first.consume("b")
    other = second.consume("a")
    leases = rig.driver.tables.leases
    lease = leases.live(revoked.lease_id)
    assert lease is not None
    correlation_id = int(lease.record.correlation_id)
    rig.driver.tables.tenure.revoke(lease, Reason.REVOKED, "test", rig.clock.now_ns)
    for _ in range(2):
        own = [lease.lease_id for lease in leases.of_client(first.client_id)]
        assert own == [kept.lease_id]
        held = leases.quarantined_of_client(first.client_id)
        assert [lease.lease_id for lease in held] == [revoked.lease_id]
        assert leases.by_correlation(correlation_id) is None
        assert leases.quarantined_by_correlation(correlation_id) is held[0]
        assert [lease.lease_id for lease in leases.of_client(second.client_id)] == [other.lease_id]
        leases = rig.restart().tables.leases
    first.goodbye()
    assert leases.of_client(first.client_id) == leases.quarantined_of_client(first.client_id) == []
    assert leases.quarantined_by_correlation(correlation_id) is None
    assert [lease.lease_id for lease in leases.of_client(second.client_id)] == [other.lease_id]


@pytest.mark.fault(56, how="misspelled names among thousands of streams")
def test_hint_at_a_misspelled_name_compares_few_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    real = difflib.SequenceMatcher.set_seq1

    def counted(matcher: Any, name: str) -> None:
        compared.append(name)
        real(matcher, name)

    monkeypatch.setattr(difflib.SequenceMatcher, "set_seq1", counted)
    many = [f"{kind}-{number}" for number in range(1000) for kind in ("quotes", "trades", "orders")]
    assert names.nearest("Trade-77", many) == "trades-77"
    assert len(compared) <= names.COMPARED_MAX + 1


def test_stat_clients_reads_each_lease_once() -> None:
    reads: Counter[int] = Counter()

    class Row:
        live, quarantined = True, False

        def __init__(self, number: int) -> None:
            self._number = number

        @property
        def client_id(self) -> int:
            reads[self._number] += 1
            return self._number % CLIENTS

    process = SimpleNamespace(state="running", command="")
    clients = [
        SimpleNamespace(
            client_id=number, name="", pid=1, process=process, state="alive", seen_age_ns=0, provable=True
        )
        for number in range(CLIENTS)
    ]
    leases = [Row(number) for number in range(2 * CLIENTS)]
    instance = SimpleNamespace(leases=lambda ended: leases, clients=lambda gone: clients)
    table = clients_table(cast("Instance", instance))
    assert [row[7] for row in table.rows] == ["2"] * CLIENTS
    assert set(reads.values()) == {1}


def test_whom_a_producer_waits_for_is_found_without_a_copy_of_all_leases(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = rig.client()
    for number in range(STREAMS):
        client.consume(f"s{number}")
    wanted = client.consume("wanted")
    copies: Counter[str] = Counter()
    real: Callable[[str, Any], Any] = directory._copy

    def counted(kind: str, record: Any) -> Any:
        copies[kind] += 1
        return real(kind, record)

    monkeypatch.setattr(directory, "_copy", counted)
    found = directory.holder_of_gate(rig.view.authority, wanted.stream_index, wanted.gate)
    assert found is not None
    assert found.name == "requester"
    assert copies["shmd_lease_record_t *"] == 1
