"""Restarts: what a killed driver leaves is adopted, whichever store was its last; shutdown, handover."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shmdriver._native import ffi, lib
from shmdriver.driver import authority, epochs, events, leases, streams
from shmdriver.driver.lifecycle import ShutdownMode
from shmdriver.driver.segment_names import new_name
from shmdriver.driver.shm import Modes, create_segment
from shmdriver.driver.tables import Tables
from shmdriver.driver.tenure import Tenure
from shmdriver.errors import Reason, ShmDriverError
from tests.driver_rig import Requester, Rig, View

FOLLOW: dict[str, Any] = {"flags": lib.SHMD_ATTACH_CREATE | lib.SHMD_ATTACH_FOLLOW}
STORES = ("shmd_word_store", "shmd_word_store_seq_cst", "shmd_record_rewrite", "shmd_event_publish",
          "shmd_authority_changed", "shmd_epoch_join", "shmd_epoch_leave", "shmd_epoch_seal")  # fmt: skip


def segments(rig: Rig) -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(f"shmd.{rig.instance}.")}


def test_adoption_keeps_leases_epochs_and_masks(rig: Rig) -> None:
    client = rig.client()
    producer, consumer = client.produce(), client.consume(**FOLLOW)
    rig.publish(producer, 9)
    boot_id = rig.view.authority.header.boot_id
    rig.restart()
    assert rig.view.authority.header.boot_id == boot_id
    assert rig.view.authority.adoptions == 1
    assert rig.epoch_state(producer) == lib.SHMD_EPOCH_OPEN
    assert rig.epoch(producer).hot.gate_mask == 1 << consumer.gate
    rig.tick(200)
    assert rig.lease_state(producer) == rig.lease_state(consumer) == lib.SHMD_LEASE_ACTIVE
    assert client.produce("other").code == lib.SHMD_CODE_OK
    client.detach(producer)
    assert rig.epoch(producer).hot.sealed_seq == 9


def test_adopting_driver_gives_everybody_a_fresh_start(rig: Rig) -> None:
    client = rig.client()
    answer = client.consume()
    rig.tick(5000)
    rig.crash()
    rig.clock.advance_ms(60_000)
    rig.start()
    rig.tick(1000)
    assert rig.lease_state(answer) == lib.SHMD_LEASE_ACTIVE
    rig.tick(10_000)
    assert rig.lease_state(answer) == lib.SHMD_LEASE_EXPIRED


def test_orphan_segments_are_removed_and_named_ones_kept(rig: Rig) -> None:
    producer = rig.client().produce()
    before = segments(rig)
    for kind in ("control", "data", "gates"):
        os.close(create_segment(new_name(rig.instance, kind), 4096, Modes()))
    rig.restart()
    assert rig.epoch_state(producer) == lib.SHMD_EPOCH_OPEN
    assert segments(rig) == before


def lose_data_segments(rig: Rig) -> None:
    for name in segments(rig):
        if name.endswith(".data"):
            (Path("/dev/shm") / name).unlink()


@pytest.mark.fault(19, how="rm of an epoch's segments between two drivers")
def test_lost_segments_of_an_epoch_end_it_without_harm(rig: Rig) -> None:
    client = rig.client()
    parts = [client.consume(), client.consume(delivery=lib.SHMD_DELIVERY_LOSSY), client.produce()]
    bystander = client.consume("t")
    lose_data_segments(rig)
    rig.restart()
    assert "is lost" in " ".join(rig.logged)
    for answer in parts:
        assert rig.lease(answer).end_reason == Reason.TRUNCATED
    assert rig.lease_state(bystander) == lib.SHMD_LEASE_ATTACHED
    assert client.produce().code == lib.SHMD_CODE_OK


def test_superseding_driver_that_is_killed_leaves_no_lost_epoch_open(rig: Rig, monkeypatch) -> None:
    producer = rig.client().produce()
    rig.crash()
    with monkeypatch.context() as patch:
        patch.setattr(Tenure, "seal_all", die)
        with pytest.raises(Killed):
            rig.start(driver__boot="fresh")
    lose_data_segments(rig)
    record = rig.epoch(producer)
    rig.start(driver__boot="fresh")
    assert int(record.hot.state) & 0xFF == lib.SHMD_EPOCH_FREE
    assert rig.lease(producer).end_reason == Reason.SUPERSEDED


def test_limits_in_configuration_may_change_between_drivers(rig: Rig) -> None:
    client = rig.client()
    client.consume("a")
    rig.crash()
    rig.start(policies__limits__leases=1, policies__lease_timeout_ms=5000)
    assert client.consume("b").reason == Reason.LIMIT
    assert rig.view.authority.lease_timeout_ns == 5_000_000_000
    assert "lease_timeout_ms = 5000" in ffi.string(lib.shmd_authority_config(rig.view.authority)).decode()


# ---- shutdown


def test_shutdown_waits_for_leases_then_removes_everything(rig: Rig) -> None:
    client = rig.client()
    answer = client.consume()
    rig.driver.request_shutdown(ShutdownMode.END, "test")
    rig.tick(100)
    assert rig.driver.state.value == "draining"
    assert client.consume("t").reason == Reason.DRAINING
    client.detach(answer)
    rig.tick(100)
    assert rig.driver.state.value == "stopped"
    assert segments(rig) == set()
    assert rig.view.authority.exit_kind == lib.SHMD_EXIT_CLEAN


def test_shutdown_deadline_revokes_and_seals(rig: Rig) -> None:
    client = rig.client()
    producer = client.produce()
    client.consume()
    rig.publish(producer, 4)
    rig.driver.request_shutdown(ShutdownMode.END, "test")
    rig.tick()
    assert rig.view.authority.shutdown_deadline_ns == rig.clock.now_ns + 5_000_000_000
    client.beat()
    rig.tick(5200)
    assert rig.driver.state.value == "stopped"
    assert rig.lease_state(producer) == lib.SHMD_LEASE_REVOKED
    assert rig.lease(producer).end_reason == Reason.SHUTDOWN
    assert segments(rig) == set()
    kinds = [event.kind for event in rig.events]
    assert kinds.count(lib.SHMD_EVENT_DRIVER_SHUTDOWN) == 1


def test_second_request_stops_at_once(rig: Rig) -> None:
    rig.client().consume()
    rig.driver.request_shutdown()
    rig.tick()
    rig.driver.request_shutdown()
    rig.tick()
    assert rig.driver.state.value == "stopped"


def test_handover_leaves_everything_to_the_next_driver(rig: Rig) -> None:
    client = rig.client()
    producer = client.produce()
    correlation = client.send(client.attach_request("s", lib.SHMD_ROLE_CONSUMER))
    rig.driver.request_shutdown(ShutdownMode.HANDOVER)
    rig.tick()
    assert rig.answer(correlation).code == lib.SHMD_CODE_OK
    assert rig.driver.state.value == "stopped"
    assert rig.view.authority.exit_kind == lib.SHMD_EXIT_HANDOVER
    assert rig.view.authority.lifecycle == lib.SHMD_LIFECYCLE_HEALTHY
    rig.restart()
    assert rig.view.authority.exit_kind == lib.SHMD_EXIT_NONE
    assert rig.epoch_state(producer) == lib.SHMD_EPOCH_OPEN
    assert client.detach(producer).state == lib.SHMD_LEASE_DETACHED


def test_fresh_start_supersedes_and_seals_the_old_boot(rig: Rig) -> None:
    client = rig.client()
    producer, _ = client.produce(), client.consume()
    rig.publish(producer, 3)
    rig.crash()
    old = rig.view
    rig.start(driver__boot="fresh")
    rig.view = View(rig.instance)
    assert old.authority.exit_kind == lib.SHMD_EXIT_SUPERSEDED
    assert rig.view.authority.header.boot_id != old.authority.header.boot_id
    record = lib.shmd_authority_lease(old.authority, producer.lease_index)
    assert record.end_reason == Reason.SUPERSEDED
    epoch = lib.shmd_authority_stream(old.authority, producer.stream_index).epochs[0]
    assert (epoch.hot.state & 0xFF, epoch.hot.sealed_seq) == (lib.SHMD_EPOCH_SEALED, 3)
    assert len(segments(rig)) == 1
    assert rig.client().produce().code == lib.SHMD_CODE_OK
    old.close()


def test_fresh_start_that_fails_leaves_no_mapping_of_the_old_boot(rig: Rig, monkeypatch) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(f"shmd.{rig.instance}.")

    def fail(*_: object) -> None:
        raise ShmDriverError("no memory for the tables")

    rig.crash()
    before = mapped()
    with monkeypatch.context() as patch:
        patch.setattr(Tables, "of", fail)
        with pytest.raises(ShmDriverError, match="no memory for the tables"):
            rig.start(driver__boot="fresh")
        assert mapped() == before


def test_clean_exit_that_was_not_finished_is_finished_by_the_next_start(rig: Rig, monkeypatch) -> None:
    rig.client().produce()
    monkeypatch.setattr(authority.Authority, "unlink", lambda self: None)
    rig.driver.request_shutdown()
    rig.driver.request_shutdown()
    rig.tick()
    monkeypatch.undo()
    old = rig.view
    rig.restart()
    rig.view = View(rig.instance)
    assert rig.view.authority.header.boot_id != old.authority.header.boot_id
    old.close()


# ---- killed between any two stores


class Killed(BaseException):
    """The process ends here."""


def die(*_: object) -> None:
    raise Killed


class StoreCounter:
    """The native library, which kills the driver before its n-th store into a table."""

    def __init__(self, limit: int) -> None:
        self.stores = 0
        self.limit = limit

    def __getattr__(self, name: str) -> Any:
        native = getattr(lib, name)
        if name not in STORES:
            return native

        def counted(*args: Any) -> Any:
            if self.stores == self.limit:
                raise Killed
            self.stores += 1
            return native(*args)

        return counted

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (authority, epochs, events, leases, streams):
            if hasattr(module, "lib"):
                monkeypatch.setattr(module, "lib", self)


def lost_epoch(rig: Rig, *, sealed: bool) -> tuple[list[SimpleNamespace], list[SimpleNamespace]]:
    """A dead driver, and a stream whose data is lost: who has read nothing of it, and who has drained it."""
    client = rig.client()
    parts = [client.consume(), client.consume(delivery=lib.SHMD_DELIVERY_LOSSY), client.consume(**FOLLOW)]
    drained = [client.consume(**FOLLOW)] if sealed else []
    producer = client.produce()
    rig.publish(producer, 3)
    if sealed:
        client.detach(producer)
        rig.leave(drained[0], 1)
    else:
        parts.append(producer)
    rig.crash()
    lose_data_segments(rig)
    return parts, drained


@pytest.mark.parametrize(
    "point", ["stream.forgotten", "stream.numbered", "stream.filled", "stream.published"]
)
def test_epochs_go_on_although_the_driver_is_killed_while_it_gives_a_record_to_another_stream(
    instance_name: str, monkeypatch, point: str
) -> None:
    rig = Rig(instance_name, policies__limits__streams=1)
    try:
        client = rig.client()
        client.detach(client.produce("old"))
        with monkeypatch.context() as patch:
            patch.setattr(streams, "failpoint", lambda name: die() if name == point else None)
            with pytest.raises(Killed):
                client.produce("new")
        rig.restart()
        assert client.produce("new").epoch == 2
    finally:
        rig.close()


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.fault(19, how="rm of an epoch's segments, and the adopting driver killed before its n-th store")
def test_whichever_store_was_the_last_of_an_adoption_all_readers_of_a_lost_epoch_are_told_once(
    make_instance_name, sealed: bool
) -> None:
    limit = kills = 0
    while kills == limit:
        rig, patch = Rig(make_instance_name()), pytest.MonkeyPatch()
        try:
            parts, drained = lost_epoch(rig, sealed=sealed)
            StoreCounter(limit).install(patch)
            try:
                rig.start()
            except Killed:
                kills += 1
                patch.undo()
                rig.start()
            patch.undo()
            for answer in parts:
                assert rig.lease(answer).end_reason == Reason.TRUNCATED, f"killed before store {limit}"
            for answer in drained:
                assert rig.lease(answer).end_reason == Reason.NONE, f"killed before store {limit}"
            revoked = [event.lease_id for event in rig.events_of(lib.SHMD_EVENT_LEASE_REVOKED)]
            assert len(revoked) == len(set(revoked)), f"killed before store {limit}"
            assert rig.epoch(parts[0], 1) is None
            check(rig)
        finally:
            patch.undo()
            rig.close()
        limit += 1
    assert kills > 10


class Scenario:
    """A stream's life, each step repeated by its client until it is answered, or asked anew."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rig = rig
        self.monkeypatch = monkeypatch
        self.kills = 0

    def ask(self, client: Requester, raw: Any) -> SimpleNamespace:
        while True:
            correlation = client.send(raw)
            if self.survive(self.rig.tick):
                answer = self.rig.answer(correlation)
                if answer.reason != Reason.DRIVER_DIED:
                    return answer
                raw.correlation_id = correlation + 1

    def connect(self, client: Requester) -> None:
        while True:
            client.say(client.hello_message())
            answer = client.hear() if self.survive(self.rig.tick) else None
            if answer is not None and answer.code == lib.SHMD_CODE_OK:
                client.client_id, client.index = answer.client_id, answer.client_index
                self.rig.requesters.append(client)
                return
            if answer is not None:
                assert answer.reason == Reason.DRIVER_DIED, answer.text
                client.nonce += 1  # as one that connects anew

    def survive(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except Killed:
            self.kills += 1
            self.monkeypatch.undo()
            self.rig.restart()
            check(self.rig)
            return False
        return True

    def attach(self, client: Requester, role: int, **fields: Any) -> SimpleNamespace:
        answer = self.ask(client, client.attach_request("s", role, **fields))
        assert answer.code == lib.SHMD_CODE_OK, answer.text
        client.confirm(answer)
        return answer

    def detach(self, client: Requester, answer: SimpleNamespace) -> None:
        found = self.ask(client, client.detach_request(answer))
        assert found.code == lib.SHMD_CODE_OK, found.text

    def run(self) -> list[SimpleNamespace]:
        rig = self.rig
        first, second = Requester(rig), Requester(rig)
        for client in (first, second):
            self.connect(client)
        early = self.attach(second, lib.SHMD_ROLE_CONSUMER, **FOLLOW)
        one = self.attach(first, lib.SHMD_ROLE_PRODUCER)
        rig.publish(one, 5)
        late = self.attach(second, lib.SHMD_ROLE_CONSUMER)
        self.detach(first, one)
        two = self.attach(first, lib.SHMD_ROLE_PRODUCER)
        rig.publish(two, 2)
        self.detach(second, late)
        rig.leave(early, one.epoch)
        for _ in range(12):
            first.beat()
            second.beat()
            self.survive(lambda: rig.tick(1000, step_ms=500))
        return [early, one, late, two]


def check(rig: Rig) -> None:
    """What must hold whenever a driver serves."""
    tables = rig.driver.tables
    live = {lease.lease_id: lease for lease in tables.leases}
    for lease in live.values():
        assert tables.clients.by_id(lease.client_id) is not None
    named = set()
    for stream in tables.streams:
        gates = 0
        for lease in stream.consumers:
            assert not gates >> lease.gate & 1, "two consumers share a gate"
            gates |= 1 << lease.gate
            assert int(lease.record.first_epoch) <= int(stream.record.epoch_count)
        assert int(stream.record.gates_used) & gates == gates
        opened = [epoch for epoch in stream.in_order if epoch.is_open]
        assert len(opened) <= 1
        assert int(stream.record.producer_lease_id) == (opened[0].record.producer_lease_id if opened else 0)
        producers = [lease.lease_id for lease in stream.leases.values() if lease.is_producer]
        assert producers == [epoch.record.producer_lease_id for epoch in opened]
        for epoch in stream.in_order:
            assert epoch.is_open or epoch.is_sealed
            assert epoch.number <= int(stream.record.epoch_count)
            wired, gated = int(epoch.hot.wired_mask), int(epoch.hot.gate_mask)
            assert wired & ~gates == 0
            assert gated & ~wired == 0
            named |= {
                ffi.string(epoch.record.data_name).decode()[1:],
                ffi.string(epoch.record.gates_name).decode()[1:],
            }
        for lease in stream.consumers:
            for epoch in opened:
                if lease.follows or int(lease.record.first_epoch) == epoch.number:
                    assert epoch.is_wired(lease.gate)
    found = {name for name in segments(rig) if name.endswith((".data", ".gates"))}
    assert found == named


def count_stores(instance: str) -> int:
    rig, patch = Rig(instance), pytest.MonkeyPatch()
    counter = StoreCounter(1 << 30)
    counter.install(patch)
    try:
        Scenario(rig, patch).run()
        check(rig)
    finally:
        patch.undo()
        rig.close()
    return counter.stores


@pytest.mark.fault(13, how="killed before the n-th store, every n")
def test_killed_before_any_store_the_driver_is_adopted_and_nothing_is_lost(make_instance_name) -> None:
    total = count_stores(make_instance_name())
    assert total > 100
    for limit in range(total):
        patch = pytest.MonkeyPatch()
        rig = Rig(make_instance_name())
        StoreCounter(limit).install(patch)
        scenario = Scenario(rig, patch)
        try:
            early, one, late, two = scenario.run()
            check(rig)
            where = f"killed before store {limit} of {total}"
            assert scenario.kills == 1, where
            assert (one.epoch, two.epoch) == (1, 2), where
            assert (late.epoch, late.start_seq) == (1, 5), where
            assert rig.lease(early).first_epoch == 1, where
            assert rig.epoch_state(two) == lib.SHMD_EPOCH_OPEN, where
            assert rig.epoch(two).hot.gate_mask == 1 << early.gate, where
            assert rig.lease_state(two) == rig.lease_state(early) == lib.SHMD_LEASE_ACTIVE, where
            assert rig.epoch(two, 1) is None, where
            assert len(rig.driver.tables.clients) == 2, where
        finally:
            patch.undo()
            rig.close()
