"""Timers are events: what reaches the lifecycle, when, and in which order, under a clock that tests move."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from shmdriver._native import lib
from shmdriver.driver.lifecycle import DegradedBy, Event, ShutdownMode, State
from tests.driver_rig import MS, SECOND, Rig


class Recorder:
    """Every event that a driver's lifecycle is given, as (milliseconds since the recorder began, event)."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._began_ns = rig.clock.now_ns
        self.events: list[tuple[float, Event]] = []
        self.attach()

    def attach(self) -> None:
        """Listens to the rig's present driver."""
        lifecycle = self._rig.driver._lifecycle
        fire = lifecycle._fire

        def record(occurrence: Any) -> None:
            self.events.append(((occurrence.now_ns - self._began_ns) / MS, occurrence.event))
            fire(occurrence)

        lifecycle._fire = record  # type: ignore[method-assign]

    def of(self, *events: Event) -> list[tuple[float, Event]]:
        return [found for found in self.events if found[1] in events]

    def due(self) -> list[tuple[float, Event]]:
        """What timers raised."""
        return self.of(Event.LEASE_CHECK_DUE, Event.ANNOUNCE_DUE, Event.SHUTDOWN_TIMEOUT)

    def forget(self) -> None:
        self.events.clear()


def test_exact_sequence_of_the_first_second(rig: Rig) -> None:
    recorder = Recorder(rig)
    rig.tick(1000, step_ms=100)
    ticks = [(float(ms), Event.TICK) for ms in range(0, 1001, 100)]
    checks = [(float(ms), Event.LEASE_CHECK_DUE) for ms in range(100, 1001, 100)]
    expected = [ticks[0]]
    for tick, check in zip(ticks[1:], checks, strict=True):
        expected += [tick, check]
    assert recorder.events == [*expected, (1000.0, Event.ANNOUNCE_DUE)]


def test_what_is_due_follows_its_tick_and_carries_its_time(rig: Rig) -> None:
    recorder = Recorder(rig)
    rig.clock.advance_ms(1003)
    rig.driver.tick()
    assert recorder.events == [
        (1003.0, Event.TICK),
        (1003.0, Event.LEASE_CHECK_DUE),
        (1003.0, Event.ANNOUNCE_DUE),
    ]


def test_late_tick_catches_up_once(rig: Rig) -> None:
    recorder = Recorder(rig)
    rig.clock.advance_ms(10_050)  # 100 lease checks and 10 announces late
    rig.driver.tick()
    assert recorder.due() == [(10_050.0, Event.LEASE_CHECK_DUE), (10_050.0, Event.ANNOUNCE_DUE)]
    recorder.forget()
    rig.driver.tick()
    assert recorder.due() == []
    rig.clock.advance_ms(50)  # back on the grid
    rig.driver.tick()
    assert recorder.due() == [(10_100.0, Event.LEASE_CHECK_DUE)]


def test_late_tick_announces_every_stream_once(rig: Rig) -> None:
    client = rig.client()
    client.produce()
    before = len(rig.events_of(lib.SHMD_EVENT_STREAM_ANNOUNCE))
    rig.clock.advance_ms(7300)
    rig.driver.tick()
    assert len(rig.events_of(lib.SHMD_EVENT_STREAM_ANNOUNCE)) == before + 1


@pytest.mark.parametrize("step_ms", [7, 33, 99.9])
def test_no_drift_whatever_the_ticks_are(rig: Rig, step_ms: float) -> None:
    recorder = Recorder(rig)
    rig.tick(60_000, step_ms=step_ms)
    checks = recorder.of(Event.LEASE_CHECK_DUE)
    announces = recorder.of(Event.ANNOUNCE_DUE)
    assert (len(checks), len(announces)) == (600, 60)
    for number, (ms, _) in enumerate(checks, 1):
        assert 0 <= ms - 100 * number < step_ms
    for number, (ms, _) in enumerate(announces, 1):
        assert 0 <= ms - 1000 * number < step_ms


def test_between_deadlines_the_driver_asks_to_sleep_until_the_next(rig: Rig) -> None:
    begin_ns = rig.clock.now_ns
    rig.clock.advance_ms(130)
    rig.driver.tick()
    assert rig.driver.next_deadline_ns() == begin_ns + 200 * MS


def test_draining_goes_on_checking_and_announcing_until_its_timeout(rig: Rig) -> None:
    client = rig.client()
    client.produce()
    recorder = Recorder(rig)
    rig.driver.request_shutdown(ShutdownMode.END, "a test")
    while rig.driver.state is not State.STOPPED:
        client.beat()
        rig.tick(500, step_ms=100)
    found = [event for event in recorder.events if event[1] is not Event.TICK]
    expected: list[tuple[float, Event]] = [(0.0, Event.SHUTDOWN_REQUESTED)]
    for ms in range(100, 5001, 100):
        expected.append((float(ms), Event.LEASE_CHECK_DUE))
        if ms % 1000 == 0:
            expected.append((float(ms), Event.ANNOUNCE_DUE))
    assert found == [*expected, (5000.0, Event.SHUTDOWN_TIMEOUT)]
    assert rig.driver.state is State.STOPPED
    assert recorder.events[-1] == (5000.0, Event.SHUTDOWN_TIMEOUT)  # not one tick after the end


@pytest.mark.parametrize("step_ms", [7, 50, 333])
def test_shutdown_ends_within_its_timeout_and_one_tick(instance_name: str, step_ms: float) -> None:
    rig = Rig(instance_name, policies__shutdown_timeout_ms=2000)
    try:
        client = rig.client()
        client.produce()
        began_ns = rig.clock.now_ns
        rig.driver.request_shutdown(ShutdownMode.END, "a test")
        while rig.driver.state is not State.STOPPED:
            rig.driver.tick()
            client.beat()
            rig.clock.advance_ms(step_ms)
            assert rig.clock.now_ns - began_ns < 10 * SECOND
        assert rig.clock.now_ns - began_ns <= 2000 * MS + 2 * step_ms * MS
    finally:
        rig.close()


def test_drained_comes_in_the_tick_of_the_last_detach(rig: Rig) -> None:
    client = rig.client()
    producer, consumer = client.produce(), client.consume("other")
    recorder = Recorder(rig)
    rig.driver.request_shutdown(ShutdownMode.END, "a test")
    rig.driver.tick()
    client.detach(producer)
    assert rig.driver.state is State.DRAINING
    rig.clock.advance_ms(30)
    client.detach(consumer)
    assert recorder.events == [
        (0.0, Event.TICK),
        (0.0, Event.SHUTDOWN_REQUESTED),
        (0.0, Event.TICK),
        (0.0, Event.DETACH),
        (30.0, Event.TICK),
        (30.0, Event.DETACH),
        (30.0, Event.DRAINED),
    ]


def test_with_nobody_attached_request_and_end_share_a_tick(rig: Rig) -> None:
    recorder = Recorder(rig)
    rig.driver.request_shutdown(ShutdownMode.END, "a test")
    rig.driver.tick()
    assert [event for _, event in recorder.events] == [Event.TICK, Event.SHUTDOWN_REQUESTED, Event.DRAINED]
    assert rig.driver.state is State.STOPPED


def test_without_drain_until_empty_only_the_timeout_ends_it(instance_name: str) -> None:
    rig = Rig(instance_name, policies__drain_until_empty=False, policies__shutdown_timeout_ms=500)
    try:
        recorder = Recorder(rig)
        rig.driver.request_shutdown(ShutdownMode.END, "a test")
        rig.tick(1000, step_ms=100)
        assert recorder.of(Event.DRAINED) == []
        assert recorder.events[-1] == (500.0, Event.SHUTDOWN_TIMEOUT)
    finally:
        rig.close()


def test_expiry_is_an_event_of_the_check_that_found_it(rig: Rig) -> None:
    client = rig.client(is_elsewhere=True)  # of another PID namespace: its heartbeat is all there is
    client.consume()
    recorder = Recorder(rig)
    rig.tick(11_000, step_ms=100)
    found = recorder.of(Event.EXPIRY)
    assert len(found) == 1
    ms, _ = found[0]
    place = recorder.events.index(found[0])
    before = [event for event in recorder.events[:place] if event[1] is Event.LEASE_CHECK_DUE]
    assert before[-1][0] == ms
    assert 10_000 <= ms <= 10_200


def test_keepalive_is_an_event_only_when_a_stalled_client_beats_again(rig: Rig) -> None:
    client = rig.client(is_elsewhere=True)
    client.consume()
    recorder = Recorder(rig)
    for _ in range(10):
        client.beat()
        rig.tick(200)
    assert recorder.of(Event.KEEPALIVE) == []
    rig.tick(3000)
    assert rig.client_state(client) == lib.SHMD_CLIENT_STALLED
    client.beat()
    rig.tick(200)
    assert len(recorder.of(Event.KEEPALIVE)) == 1
    assert rig.client_state(client) == lib.SHMD_CLIENT_ALIVE


def test_stalled_clients_degrade_once_and_recover_once(rig: Rig) -> None:
    client = rig.client(is_elsewhere=True)
    client.consume()
    recorder = Recorder(rig)
    rig.tick(4000)
    assert rig.driver.state.value == State.DEGRADED
    assert rig.driver._lifecycle.reasons == {DegradedBy.STALLED_CLIENTS}
    for _ in range(20):
        client.beat()
        rig.tick(200)
    assert rig.driver.state.value == State.HEALTHY
    counts = Counter(event for _, event in recorder.events)
    assert (counts[Event.DEGRADE], counts[Event.RECOVER]) == (1, 1)


def test_tick_overrun_is_an_event_after_its_tick_and_is_held(rig: Rig, monkeypatch) -> None:
    recorder = Recorder(rig)
    monkeypatch.setattr(rig.driver._health, "check_memory", lambda: rig.clock.advance_ms(60))
    rig.clock.advance_ms(1000)
    rig.driver.tick()
    assert [event for _, event in recorder.events][-1] is Event.DEGRADE
    assert rig.driver.state.value == State.DEGRADED
    monkeypatch.undo()
    rig.tick(9000)
    assert rig.driver.state.value == State.DEGRADED  # hysteresis
    rig.tick(2000)
    assert rig.driver.state.value == State.HEALTHY
    assert len(recorder.of(Event.RECOVER)) == 1


def test_timers_start_on_a_new_grid_after_an_adoption(rig: Rig) -> None:
    rig.tick(130)
    rig.crash()
    rig.clock.advance_ms(777)
    rig.start()
    recorder = Recorder(rig)
    rig.tick(1000, step_ms=10)
    assert recorder.of(Event.LEASE_CHECK_DUE)[0] == (100.0, Event.LEASE_CHECK_DUE)
    assert recorder.of(Event.ANNOUNCE_DUE) == [(1000.0, Event.ANNOUNCE_DUE)]


def test_nothing_is_due_once_stopped(rig: Rig) -> None:
    rig.driver.request_shutdown(ShutdownMode.END, "a test")
    rig.driver.tick()
    assert rig.driver._timers.next_deadline_ns() is None
    assert not any(timer.running for timer in rig.driver._timers)


def test_epoch_clean_up_rides_on_the_lease_check(rig: Rig) -> None:
    client = rig.client()
    producer = client.produce()
    client.detach(producer)
    for _ in range(49):
        client.beat()
        rig.tick(200, step_ms=100)
    assert rig.epoch_state(producer) == lib.SHMD_EPOCH_SEALED  # policies.grace_ms
    recorder = Recorder(rig)
    client.beat()
    rig.tick(300, step_ms=100)
    assert rig.epoch_state(producer) == lib.SHMD_EPOCH_FREE
    assert {event for _, event in recorder.events} <= {Event.TICK, Event.LEASE_CHECK_DUE, Event.ANNOUNCE_DUE}


def test_handover_has_no_wait_and_leaves_its_timers_stopped(rig: Rig) -> None:
    rig.client().produce()
    recorder = Recorder(rig)
    rig.driver.request_shutdown(ShutdownMode.HANDOVER, "a test")
    rig.driver.tick()
    assert [event for _, event in recorder.events] == [Event.TICK, Event.SHUTDOWN_REQUESTED, Event.DRAINED]
    assert rig.driver._timers.next_deadline_ns() is None


def test_an_end_does_not_wait_behind_a_handover_that_a_flood_holds_up(rig: Rig, monkeypatch) -> None:
    driver = rig.driver
    monkeypatch.setattr(type(driver._ring), "has_waiting", property(lambda _ring: True))
    driver.request_shutdown(ShutdownMode.HANDOVER, "upgrade")
    rig.tick(100)
    before = driver.state
    assert before is State.HEALTHY  # what is pending is answered first
    driver.request_shutdown(ShutdownMode.END, "SIGTERM")
    rig.tick(100)
    assert driver.state is State.STOPPED
    assert driver._lifecycle.shutdown_mode is ShutdownMode.END


def test_same_clock_and_requests_give_the_same_events(make_instance_name) -> None:
    def run() -> list[tuple[float, Event]]:
        rig = Rig(make_instance_name())
        try:
            client = rig.client(is_elsewhere=True)
            recorder = Recorder(rig)
            consumer = client.consume()
            rig.tick(5000, step_ms=37)
            client.beat()
            rig.tick(1000, step_ms=37)
            client.detach(consumer)
            rig.driver.request_shutdown(ShutdownMode.END, "a test")
            rig.tick(100)
            return recorder.events
        finally:
            rig.close()

    assert run() == run()
