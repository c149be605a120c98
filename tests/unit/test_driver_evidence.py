"""What ends a lease and what does not: garbage in what others can write, and the driver's own lateness.

A heartbeat or a confirmation that a stranger wrote over ends nothing while the lease's own memory moves. A
tick that came late, or took long, is charged to nobody.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shmdriver._native import ffi, lib
from shmdriver.driver.leases import LeaseTable
from tests.driver_rig import MS, Rig

CHECK_MS = 100
TIMEOUT_MS = 3000
LONG_MS = 5 * TIMEOUT_MS


@pytest.fixture
def rig(instance_name: str) -> Iterator[Rig]:
    rig = Rig(
        instance_name,
        policies__lease_timeout_ms=TIMEOUT_MS,
        policies__lease_check_interval_ms=CHECK_MS,
        policies__heartbeat_interval_ms=200,
        profiles__default__slow_consumer="evict",
        profiles__default__evict_after_ms=1000,
    )
    yield rig
    rig.close()


def overwrite_lines(rig: Rig, chance: random.Random) -> None:
    """Random bytes over all heartbeats, and over all notes of leases: the same ones each time."""
    for client in rig.requesters:
        for part in ("heartbeat", "leases"):
            place = ffi.addressof(client.control, part)
            ffi.memmove(place, chance.randbytes(ffi.sizeof(place[0])), ffi.sizeof(place[0]))


def reads(rig: Rig, epoch: SimpleNamespace, gate: int) -> None:
    """As the C consumer notes it in its gate's line."""
    with rig.epoch_memory(epoch) as memory:
        memory.gate(gate).consumed += 1
        memory.gate(gate).last_read_ns = rig.clock.now_ns


def goes_on_among_garbage(rig: Rig, step: Any, milliseconds: int) -> None:
    for _ in range(milliseconds // CHECK_MS):
        overwrite_lines(rig, random.Random(47))  # always the same: no heartbeat is seen to change
        step()
        rig.tick(CHECK_MS)


@pytest.mark.fault(47, how="random bytes over heartbeats and confirmations right after the attach")
def test_producer_that_publishes_is_neither_unconfirmed_nor_expired(rig: Rig) -> None:
    producer = rig.client().produce(confirm=False)
    goes_on_among_garbage(rig, lambda: rig.publish(producer, 1), LONG_MS)
    assert rig.lease_state(producer) == lib.SHMD_LEASE_ACTIVE
    assert rig.epoch_state(producer) == lib.SHMD_EPOCH_OPEN


@pytest.mark.fault(47, how="random bytes over heartbeats and confirmations right after the attach")
def test_consumer_that_reads_is_neither_unconfirmed_nor_expired(rig: Rig) -> None:
    writer, reader = rig.client(), rig.client()
    producer = writer.produce()
    consumer = reader.consume(confirm=False)

    def step() -> None:
        rig.publish(producer, 1)
        reads(rig, producer, consumer.gate)

    goes_on_among_garbage(rig, step, LONG_MS)
    assert rig.lease_state(consumer) == lib.SHMD_LEASE_ACTIVE
    assert rig.client_state(reader) != lib.SHMD_CLIENT_GONE


def goes_on_in_c(rig: Rig, epoch: SimpleNamespace, gate: int, *, is_reliable: bool) -> None:
    """As a C consumer reads while messages keep coming: its place moves, and its gate with it."""
    with rig.epoch_memory(epoch) as memory:
        memory.gate(gate).cursor += 1
        memory.gate(gate).position += int(is_reliable)


@pytest.mark.fault(64, how="a reader in C that never comes to an idle turn")
@pytest.mark.parametrize("is_reliable", [True, False])
def test_consumer_whose_place_moves_is_neither_unconfirmed_nor_expired(rig: Rig, is_reliable: bool) -> None:
    writer, reader = rig.client(), rig.client()
    producer = writer.produce()
    delivery = lib.SHMD_DELIVERY_RELIABLE if is_reliable else lib.SHMD_DELIVERY_LOSSY
    consumer = reader.consume(confirm=False, delivery=delivery)

    def step() -> None:
        rig.publish(producer, 1)
        goes_on_in_c(rig, producer, consumer.gate, is_reliable=is_reliable)

    goes_on_among_garbage(rig, step, LONG_MS)
    assert rig.lease_state(consumer) == lib.SHMD_LEASE_ACTIVE
    assert rig.client_state(reader) != lib.SHMD_CLIENT_GONE


def test_next_epoch_is_no_sign_that_its_silent_consumer_lives(rig: Rig) -> None:
    writer, reader = rig.client(), rig.client()
    consumer = reader.consume(flags=lib.SHMD_ATTACH_CREATE | lib.SHMD_ATTACH_FOLLOW)
    for _ in range(TIMEOUT_MS // CHECK_MS + 8):  # each check finds another epoch
        producer = writer.produce()
        writer.beat()
        rig.tick(CHECK_MS)
        writer.detach(producer)
        if rig.lease_state(consumer) == lib.SHMD_LEASE_EXPIRED:
            return
        rig.leave(consumer, producer.epoch)
    pytest.fail("the consumer has neither beaten nor read, and has not expired")


@pytest.mark.fault(47, how="random bytes over heartbeats of a client that stands still")
def test_client_that_neither_beats_nor_moves_expires_all_the_same(rig: Rig) -> None:
    client = rig.client()
    producer = client.produce()
    rig.publish(producer, 3)
    rig.tick(TIMEOUT_MS + 4 * CHECK_MS)
    assert rig.client_state(client) == lib.SHMD_CLIENT_GONE
    assert rig.lease_state(producer) == lib.SHMD_LEASE_EXPIRED


def test_attach_that_nobody_confirms_and_nobody_uses_ends(rig: Rig) -> None:
    client = rig.client()
    producer = client.produce(confirm=False)
    for _ in range(LONG_MS // CHECK_MS):
        client.beat()
        rig.tick(CHECK_MS)
    assert rig.lease_state(producer) == lib.SHMD_LEASE_DETACHED


# ---- the driver's own lateness


@pytest.mark.fault(51, how="a tick that stands still right after it has granted a lease")
@pytest.mark.parametrize("milliseconds", [60, 1500, LONG_MS])
def test_attach_is_not_unconfirmed_because_the_tick_that_granted_it_took_long(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, milliseconds: int
) -> None:
    client = rig.client()
    publish = LeaseTable.publish

    def and_stand_still(table: LeaseTable, lease: Any) -> None:
        publish(table, lease)
        rig.clock.advance_ms(milliseconds)

    monkeypatch.setattr(LeaseTable, "publish", and_stand_still)
    consumer = client.consume(confirm=False, deadline_ns=rig.clock.now_ns + 10 * MS)
    monkeypatch.undo()
    rig.tick(CHECK_MS)
    assert rig.lease_state(consumer) == lib.SHMD_LEASE_ATTACHED
    client.confirm(consumer)
    client.beat()
    rig.tick(CHECK_MS)
    assert rig.lease_state(consumer) == lib.SHMD_LEASE_ACTIVE


def stand_still(rig: Rig, milliseconds: int) -> None:
    """No tick for so long, whatever was due."""
    rig.clock.advance_ms(milliseconds)
    rig.driver.tick()


@pytest.mark.fault(51, how="ticks that come late, each by less than a second")
def test_silence_is_not_counted_while_the_driver_is_late(rig: Rig) -> None:
    client = rig.client()
    consumer = client.consume()
    client.beat()
    rig.tick(CHECK_MS)
    for _ in range(TIMEOUT_MS // 900 + 2):  # more than the timeout in all, of which hardly anything counts
        stand_still(rig, 900)
    assert rig.lease_state(consumer) == lib.SHMD_LEASE_ACTIVE
    rig.tick(TIMEOUT_MS + 4 * CHECK_MS)
    assert rig.lease_state(consumer) == lib.SHMD_LEASE_EXPIRED, "what the driver sees in time counts"


@pytest.mark.fault(51, how="lease checks that always come late")
def test_silent_client_expires_although_each_check_comes_late(rig: Rig) -> None:
    client = rig.client()
    client.consume()
    for _ in range(20 * TIMEOUT_MS // CHECK_MS):
        stand_still(rig, CHECK_MS + 60)
        if rig.client_state(client) not in (lib.SHMD_CLIENT_ALIVE, lib.SHMD_CLIENT_STALLED):
            return
    pytest.fail("it is silent, and does not expire")


@pytest.mark.fault(51, how="ticks that come late, each by less than a second")
def test_consumer_is_not_evicted_for_the_drivers_lateness(rig: Rig) -> None:
    writer, reader = rig.client(), rig.client()
    producer, consumer = writer.produce(), reader.consume()
    rig.publish(producer, 64)
    with rig.epoch_memory(producer) as memory:
        memory.data.blocked_since_ns = rig.clock.now_ns
        memory.data.blocked_gate = consumer.gate + 1
    beats = [writer.beat, reader.beat]

    def tick(milliseconds: int) -> None:
        for beat in beats:
            beat()
        stand_still(rig, milliseconds)

    tick(CHECK_MS)
    for _ in range(3):
        tick(900)
    assert rig.lease_state(consumer) == lib.SHMD_LEASE_ACTIVE
    for _ in range(1200 // CHECK_MS):
        tick(CHECK_MS)
    assert rig.lease_state(consumer) == lib.SHMD_LEASE_REVOKED
