"""What an adopting driver takes over of its predecessor's lifecycle, whichever store was the last one."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmdriver._native import lib
from shmdriver.driver.lifecycle import ShutdownMode, State
from shmdriver.errors import Reason
from tests.driver_rig import MS, SECOND, Requester, Rig, View
from tests.unit.test_driver_adoption import Killed, StoreCounter

TIMEOUT_NS = 5 * SECOND


def segments(rig: Rig) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"shmd.{rig.instance}.*")]


def state_of(rig: Rig) -> State:
    return rig.driver.state


def suspend(rig: Rig) -> None:
    rig.driver.set_maintenance(True, "a test")
    assert state_of(rig) is State.MAINTENANCE


def begin_draining(rig: Rig) -> None:
    rig.driver.request_shutdown(ShutdownMode.END, "a test")
    rig.tick()
    assert state_of(rig) is State.DRAINING


def test_maintenance_outlives_the_driver_and_is_ended_in_its_successor(rig: Rig) -> None:
    client = rig.client()
    attached = client.consume()
    suspend(rig)
    for _ in range(3):
        rig.restart()
        assert state_of(rig) is State.MAINTENANCE
        assert rig.view.authority.lifecycle == lib.SHMD_LIFECYCLE_MAINTENANCE
        assert client.consume("t").reason == Reason.MAINTENANCE
    rig.tick(1000)
    assert rig.lease_state(attached) == lib.SHMD_LEASE_ACTIVE
    rig.driver.set_maintenance(False, "a test")
    assert client.consume("t").code == lib.SHMD_CODE_OK
    rig.restart()
    assert state_of(rig) is State.HEALTHY


def test_maintenance_outlives_a_handover(rig: Rig) -> None:
    suspend(rig)
    rig.driver.request_shutdown(ShutdownMode.HANDOVER)
    rig.tick()
    assert state_of(rig) is State.STOPPED
    rig.restart()
    assert state_of(rig) is State.MAINTENANCE


def test_draining_goes_on_in_the_successor_with_what_is_left_of_its_time(rig: Rig) -> None:
    client = rig.client()
    consumer = client.consume()
    deadline_ns = rig.clock.now_ns + TIMEOUT_NS
    begin_draining(rig)
    for _ in range(3):
        rig.clock.advance_ms(1000)
        rig.restart()
        assert state_of(rig) is State.DRAINING
        assert rig.view.authority.shutdown_deadline_ns == deadline_ns
        assert rig.view.authority.shutdown_mode == lib.SHMD_SHUTDOWN_END
        assert client.consume("t").reason == Reason.DRAINING
        client.beat()
    rig.tick((deadline_ns - rig.clock.now_ns) / MS - 50)
    assert state_of(rig) is State.DRAINING
    rig.tick(50)
    assert state_of(rig) is State.STOPPED
    assert rig.lease(consumer).end_reason == Reason.SHUTDOWN
    assert segments(rig) == []


def test_inherited_draining_ends_with_the_last_lease(rig: Rig) -> None:
    client = rig.client()
    consumer = client.consume()
    begin_draining(rig)
    rig.restart()
    client.detach(consumer)
    assert state_of(rig) is State.STOPPED
    assert segments(rig) == []


def test_draining_whose_time_ran_out_while_no_driver_lived_ends_in_the_first_tick(rig: Rig) -> None:
    rig.client().consume()
    begin_draining(rig)
    rig.crash()
    rig.clock.advance_ms(60_000)
    rig.start()
    rig.tick()
    assert state_of(rig) is State.STOPPED
    assert segments(rig) == []


def test_successor_with_a_shorter_timeout_keeps_its_own(rig: Rig) -> None:
    rig.client().consume()
    begin_draining(rig)
    rig.crash()
    rig.start(policies__shutdown_timeout_ms=1000)
    assert rig.view.authority.shutdown_deadline_ns == rig.clock.now_ns + SECOND


def test_fresh_start_inherits_nothing(rig: Rig) -> None:
    rig.client().consume()
    begin_draining(rig)
    rig.crash()
    old = rig.view
    rig.start(driver__boot="fresh")
    rig.view = View(rig.instance)
    old.close()
    assert state_of(rig) is State.HEALTHY
    assert rig.client().consume().code == lib.SHMD_CODE_OK


def test_killed_handover_is_adopted_as_if_nobody_had_asked(rig: Rig, monkeypatch) -> None:
    producer = rig.client().produce()
    monkeypatch.setattr(rig.driver, "on_enter_stopped", None)  # its last steps fail: as if killed before them
    rig.driver.request_shutdown(ShutdownMode.HANDOVER)
    rig.tick()
    rig.restart()
    assert state_of(rig) is State.HEALTHY
    assert rig.epoch_state(producer) == lib.SHMD_EPOCH_OPEN


def shut_down(rig: Rig) -> tuple[Requester, View]:
    """A life that ends by its deadline: one producer, one consumer, four messages."""
    client = rig.client()
    producer = client.produce()
    client.consume()
    rig.publish(producer, 4)
    rig.driver.request_shutdown(ShutdownMode.END, "a test")
    rig.tick()
    client.beat()
    rig.tick(5100)
    return client, rig.view


def count_stores(instance: str) -> tuple[int, int]:
    """Stores up to the order to shut down, and up to the end."""
    rig, patch = Rig(instance), pytest.MonkeyPatch()
    counter = StoreCounter(1 << 30)
    counter.install(patch)
    try:
        order = rig.driver.request_shutdown
        before: list[int] = []

        def note_and_order(mode: ShutdownMode, reason: str) -> None:
            before.append(counter.stores)
            order(mode, reason)

        patch.setattr(rig.driver, "request_shutdown", note_and_order)
        shut_down(rig)
        assert state_of(rig) is State.STOPPED
        return before[0], counter.stores
    finally:
        patch.undo()
        rig.close()


@pytest.mark.fault(13, how="killed before the n-th store, every n")
def test_killed_before_any_store_of_a_shutdown_its_successor_finds_the_old_state_or_the_new_one(
    make_instance_name,
) -> None:
    first, total = count_stores(make_instance_name())
    assert total - first > 20
    seen = set()
    for limit in range(first, total):
        patch = pytest.MonkeyPatch()
        rig = Rig(make_instance_name())
        StoreCounter(limit).install(patch)
        old = rig.view
        try:
            with pytest.raises(Killed):
                shut_down(rig)
            patch.undo()
            found = int(old.authority.lifecycle), int(old.authority.exit_kind)
            deadline_ns = int(old.authority.shutdown_deadline_ns) or rig.clock.now_ns + TIMEOUT_NS
            where = f"killed before store {limit} of {total}, lifecycle {found[0]}, exit {found[1]}"
            rig.restart()
            seen.add(found)
            if found[0] == lib.SHMD_LIFECYCLE_HEALTHY:
                assert state_of(rig) is State.HEALTHY, where
            elif found[0] == lib.SHMD_LIFECYCLE_DRAINING:
                assert state_of(rig) is State.DRAINING, where
                left_ms = max(0, deadline_ns - rig.clock.now_ns) / MS
                rig.tick(left_ms + 50)
                assert state_of(rig) is State.STOPPED, where
                assert segments(rig) == [], where
            else:
                rig.view = View(rig.instance)
                assert rig.view.authority.header.boot_id != old.authority.header.boot_id, where
                assert old.authority.exit_kind == lib.SHMD_EXIT_CLEAN, where
                assert state_of(rig) is State.HEALTHY, where
            if found[0] != lib.SHMD_LIFECYCLE_HEALTHY:  # whoever has it mapped can drain it
                epoch = lib.shmd_authority_stream(old.authority, 0).epochs[0]
                assert (epoch.hot.state & 0xFF, epoch.hot.sealed_seq) == (lib.SHMD_EPOCH_SEALED, 4), where
                assert epoch.hot.gate_mask == 1, where
        finally:
            patch.undo()
            if rig.view is not old:
                old.close()
            rig.close()
    assert {state for state, _ in seen} == {
        lib.SHMD_LIFECYCLE_HEALTHY,
        lib.SHMD_LIFECYCLE_DRAINING,
        lib.SHMD_LIFECYCLE_STOPPED,
    }


@pytest.mark.parametrize("kind", ["detach", "goodbye"])
@pytest.mark.fault(13, how="killed before the n-th store, every n")
def test_request_whose_driver_is_killed_while_it_serves_it_is_served_by_the_next(
    make_instance_name, kind: str
) -> None:
    kills = 0
    while True:
        patch = pytest.MonkeyPatch()
        rig = Rig(make_instance_name())
        try:
            client, other = rig.client(), rig.client()
            lease, earlier = client.produce(), other.consume("t")
            goodbye = client.request(lib.SHMD_REQUEST_GOODBYE)
            other.send(other.detach_request(earlier))
            client.send(client.detach_request(lease) if kind == "detach" else goodbye)  # and asks no more
            counter = StoreCounter(kills)
            counter.install(patch)
            try:
                rig.driver.tick()
            except Killed:
                kills += 1
            else:
                break
            patch.undo()
            rig.restart()
            rig.tick()
            for answer in (lease, earlier):
                assert rig.lease_state(answer) == lib.SHMD_LEASE_DETACHED, f"killed before store {kills}"
            assert rig.epoch_state(lease) in (lib.SHMD_EPOCH_SEALED, lib.SHMD_EPOCH_FREE)
        finally:
            patch.undo()
            rig.close()
    assert kills > 8
