"""When a driver sleeps on although a lease check is due, and what ends its rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

import shmdriver
from shmdriver._native import lib
from shmdriver.driver import clients
from shmdriver.driver.embedded import EmbeddedDriver
from shmdriver.driver.lifecycle import Event
from shmdriver.liveness import Look, Verdict
from tests.driver_rig import MS, Requester, Rig, rests

CHECK_MS = 100
CREATE, FOLLOW = lib.SHMD_ATTACH_CREATE, lib.SHMD_ATTACH_FOLLOW


@pytest.fixture
def rig(instance_name: str) -> Iterator[Rig]:
    rig = Rig(instance_name, policies__announce_interval_ms=60_000)
    yield rig
    rig.close()


def settled(rig: Rig) -> Requester:
    """A client with a producer and a reliable consumer, both confirmed; what that caused is over."""
    client = rig.client()
    client.produce(slow_consumer=lib.SHMD_SLOW_EVICT)
    client.consume()
    client.beat()
    rig.tick(2 * CHECK_MS)
    return client


def rests_later(rig: Rig) -> bool:
    """Whether it sleeps on until its next lease check is due, and rests then."""
    sleeper = rig.driver.sleeper
    rig.clock.advance_ms(CHECK_MS)
    sleeper.wait(None, rig.clock.now_ns, rig.clock.now_ns)
    return not sleeper._woken and rests(rig.driver, rig.clock.now_ns)


@pytest.mark.fault(74, how="a hundred idle checks of a healthy driver")
def test_healthy_driver_with_streams_rests_and_lives_for_all_to_see(rig: Rig) -> None:
    client = settled(rig)
    ticks, checks = rig.counter("TICKS"), rig.counter("IDLE_CHECKS")
    for _ in range(100):  # ten seconds: as long as a silent client has
        client.beat()
        assert rests_later(rig)
        assert rig.view.authority.heartbeat_ns == rig.clock.now_ns
    assert (rig.counter("TICKS"), rig.counter("IDLE_CHECKS")) == (ticks, checks + 100)
    rig.driver.tick()
    assert rig.client_state(client) == lib.SHMD_CLIENT_ALIVE


@pytest.mark.fault(74, how="a client that falls silent")
def test_rest_ends_when_a_client_has_been_silent_and_the_tick_shows_it(rig: Rig) -> None:
    client = settled(rig)
    client.beat()
    rested = 0
    while rests_later(rig):
        rested += 1
    assert (rested + 1) * CHECK_MS == 3 * 500 + CHECK_MS  # three heartbeats after the look that saw the beat
    rig.driver.tick()
    rig.tick(CHECK_MS)  # one more look: whether it reads or writes all the same
    assert rig.client_state(client) == lib.SHMD_CLIENT_STALLED
    assert not rests_later(rig)  # until it is gone or back


@pytest.mark.fault(74, how="tickless_idle switched off")
def test_without_tickless_idle_each_lease_check_is_a_tick(instance_name: str) -> None:
    rig = Rig(instance_name, policies__tickless_idle=False, policies__announce_interval_ms=60_000)
    try:
        settled(rig)
        assert not rests_later(rig)
        assert rig.counter("IDLE_CHECKS") == 0
    finally:
        rig.close()


def test_no_rest_while_a_client_is_to_be_looked_at_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    client = settled(rig)
    assert rests_later(rig)
    with monkeypatch.context() as patch:
        patch.setattr(
            clients, "look_at_client", lambda _: Look(Verdict.UNKNOWN, lib.SHMD_EVIDENCE_NO_DESCRIPTOR)
        )
        rig.crash()
        rig.start(alone=True)
        record = lib.shmd_authority_client(rig.view.writable_authority(), client.index)
        record.connected = 1  # as if only its process were not known
        rig.tick(2 * CHECK_MS)
        assert not rests_later(rig)
        assert not record.provable
    rig.tick(CHECK_MS)
    assert record.provable
    assert rests_later(rig)


@pytest.mark.fault(74, how="a client that has expired says at last that it is done")
def test_no_rest_while_a_client_that_has_expired_may_still_leave(rig: Rig) -> None:
    """Its connection was closed, so nothing rings."""
    expired, other = settled(rig), rig.client()
    for _ in range(12):
        other.beat()
        rig.tick(1000)
    assert rig.client_state(expired) == lib.SHMD_CLIENT_GONE
    other.beat()
    assert not rests_later(rig)
    for entry in range(2):
        lease_id = int(expired.control.leases[entry].confirmed)
        expired.control.leases[entry].detached = lease_id << 8 | lib.SHMD_ENTRY_DETACHED
    other.beat()
    rig.tick(2 * CHECK_MS)
    assert rests_later(rig)


def test_no_rest_while_a_client_of_the_driver_before_has_no_connection(rig: Rig) -> None:
    """Nothing rings for it, so a tick looks at what it says of its leases, and each tick again."""
    client = settled(rig)
    rig.crash()
    rig.start(alone=True)
    rig.tick(2 * CHECK_MS)
    client.beat()
    assert not rests_later(rig)
    client.hello()
    rig.tick(2 * CHECK_MS)
    client.beat()
    assert rests_later(rig)


def _request(rig: Rig, client: Requester) -> None:
    client.send(client.request(lib.SHMD_REQUEST_GOODBYE))


def _request_without_ringing(_rig: Rig, client: Requester) -> None:
    client.put(client.request(lib.SHMD_REQUEST_GOODBYE))


def _ring_without_a_request(_rig: Rig, client: Requester) -> None:
    client.ring()


def _spoil_tail(_rig: Rig, client: Requester) -> None:
    client.control.tail = 1 << 40


def _disconnect(_rig: Rig, client: Requester) -> None:
    client.socket.close()


def _say_hello(_rig: Rig, client: Requester) -> None:
    client.say(client.hello_message())


def _order(rig: Rig, _client: Requester) -> None:
    rig.driver.request_shutdown()


def _suspend(rig: Rig, _client: Requester) -> None:
    rig.driver.set_maintenance(on=True, reason="test")


def _degrade(rig: Rig, _client: Requester) -> None:
    rig.driver._lifecycle.dispatch(Event.DEGRADE, rig.clock.now_ns, reason="low_memory")


def _publish_event(rig: Rig, _client: Requester) -> None:
    rig.driver.tables.events.error("news")


def _tick_between_checks(rig: Rig, _client: Requester) -> None:
    rig.driver.tick()  # it may have changed what a check looks at


def _attach_unconfirmed(rig: Rig, client: Requester) -> None:
    client.consume(confirm=False)
    rig.tick(2 * CHECK_MS)


@pytest.mark.fault(74, how="each of what only a tick sees to, right before an idle check")
@pytest.mark.parametrize(
    "disturb",
    [
        _request, _request_without_ringing, _ring_without_a_request, _spoil_tail, _disconnect, _say_hello,
        _order, _suspend, _degrade, _publish_event,
        _tick_between_checks, _attach_unconfirmed,
    ],
)  # fmt: skip
def test_rest_ends_with_everything_that_only_a_tick_sees_to(
    rig: Rig, disturb: Callable[[Rig, Requester], None]
) -> None:
    client = settled(rig)
    assert rests_later(rig)
    disturb(rig, client)
    client.beat()
    assert not rests_later(rig)


@pytest.mark.fault(74, how="a gate moved past its ring")
def test_rest_ends_with_a_gate_that_is_impossible_and_the_tick_revokes(rig: Rig) -> None:
    client = settled(rig)
    consumer = client.consume()
    client.beat()
    rig.tick(600)  # gates are looked at twice a second
    with rig.epoch_memory(consumer) as memory:
        lib.shmd_gates_gate(memory.gates, consumer.gate).position = 1 << 40
        client.beat()
        found = [rests_later(rig) for _ in range(6)]
    assert not all(found)
    rig.driver.tick()
    rig.tick(600)
    assert rig.lease_state(consumer) == lib.SHMD_LEASE_REVOKED


@pytest.mark.fault(74, how="a producer that evicts is held back")
def test_rest_ends_when_a_producer_that_evicts_is_held_back(rig: Rig) -> None:
    client = settled(rig)
    consumer = client.consume()
    client.beat()
    rig.tick(600)
    assert rests_later(rig)
    with rig.epoch_memory(consumer) as memory:
        memory.data.blocked_gate = consumer.gate + 1
        client.beat()
        assert not rests_later(rig)
        rig.driver.tick()
        memory.data.blocked_gate = 0
        assert not rests_later(rig)  # the tick that forgets the wait
        rig.driver.tick()
        assert rests_later(rig)


@pytest.mark.fault(74, how="a consumer that leaves a sealed epoch, and the end of its grace")
def test_rest_beside_a_sealed_epoch_ends_when_a_consumer_leaves_it_and_when_its_grace_is_over(
    rig: Rig,
) -> None:
    client = settled(rig)
    producer = client.produce("drained")
    single, follower = client.consume("drained"), client.consume("drained", flags=CREATE | FOLLOW)
    client.detach(producer)
    client.beat()
    rig.tick(2 * CHECK_MS)
    assert rests_later(rig)
    rig.leave(single, producer.epoch)
    assert not rests_later(rig)
    client.beat()
    rig.tick(CHECK_MS)
    assert rig.lease_state(single) == lib.SHMD_LEASE_DETACHED
    assert rests_later(rig)
    rig.leave(follower, producer.epoch)
    assert not rests_later(rig)
    rig.tick(CHECK_MS)
    checks = 0
    while rests_later(rig):
        client.beat()
        checks += 1
    assert 90 < checks < 100  # of the ten seconds of grace
    rig.tick(CHECK_MS)
    assert rig.epoch(producer) is None
    assert rests_later(rig)


def test_long_gap_is_a_ticks_matter_and_nobody_is_blamed_for_it(rig: Rig) -> None:
    client = settled(rig)
    rig.clock.advance_ms(60_000)  # the driver was stopped
    assert not rests(rig.driver, rig.clock.now_ns)
    rig.driver.tick()
    assert rig.client_state(client) == lib.SHMD_CLIENT_ALIVE
    assert rests_later(rig)


def test_looks_keep_to_the_grid_of_lease_checks(rig: Rig) -> None:
    client = settled(rig)
    timer = rig.driver._timers["lease_check"]
    grid_ns = timer.deadline_ns
    assert grid_ns is not None
    for late_ms in (3, 250, 0):
        client.beat()
        rig.clock.advance_ms(CHECK_MS + late_ms)
        assert rests(rig.driver, rig.clock.now_ns)
        assert timer.deadline_ns is not None
        assert 0 < timer.deadline_ns - rig.clock.now_ns <= CHECK_MS * MS
        assert (timer.deadline_ns - grid_ns) % (CHECK_MS * MS) == 0


def test_rest_ends_at_once_when_the_driver_is_woken_or_something_is_due(rig: Rig) -> None:
    client = settled(rig)
    driver, now_ns, never_ns = rig.driver, rig.clock.now_ns, 2**64 - 1
    assert driver._may_rest
    driver._rest.begin(driver._timers["lease_check"], driver._last_tick_ns)
    driver._rest.native.check_due_ns = never_ns
    driver.sleeper.wait(driver._rest.native, now_ns, now_ns)
    assert driver.sleeper.look() == []
    for act, kind in ((driver.wake, lib.SHMD_SLEEPER_WAKE), (client.ring, lib.SHMD_SLEEPER_DOORBELL)):
        act()
        driver.sleeper.wait(driver._rest.native, now_ns, never_ns)
        assert [woken.kind for woken in driver.sleeper.look()] == [kind]


def test_resting_driver_is_woken_by_requests_and_by_orders_of_other_threads() -> None:
    driver = EmbeddedDriver()
    driver.start()
    try:
        with shmdriver.connect(driver.instance) as client:
            for number in range(3):
                client.producer(f"s{number}").close()
                client.consumer("waits").close()
        stopped = threading.Thread(target=driver.stop)
        stopped.start()
        stopped.join(60)
        assert not stopped.is_alive()
    finally:
        driver.stop()


@pytest.mark.parametrize("check_ms", [1000, 2500])
def test_rare_lease_checks_are_no_gap_in_which_nobodys_silence_counts(
    instance_name: str, check_ms: int
) -> None:
    rig = Rig(
        instance_name, policies__lease_check_interval_ms=check_ms, policies__announce_interval_ms=60_000
    )
    try:
        client = rig.client()
        for late_ms in range(15_000 // check_ms):  # a loop with nothing to do, a little late each time
            rig.clock.now_ns = rig.driver.next_deadline_ns() + late_ms * MS
            rig.driver.tick()
        assert (
            rig.client_state(client) == lib.SHMD_CLIENT_FREE
        )  # it has expired, and nothing is set aside for it
    finally:
        rig.close()
