"""Polled timers, with a number for a clock."""

from __future__ import annotations

import random

import pytest

from shmdriver.driver.timers import PolledTimer, Timers


def test_a_new_timer_is_never_due() -> None:
    timer = PolledTimer("t", 100)
    assert (timer.running, timer.deadline_ns, timer.due(1 << 62)) == (False, None, False)


def test_due_at_its_deadline_and_once() -> None:
    timer = PolledTimer("t", 100)
    timer.start(1000)
    assert [now for now in range(1000, 1450, 25) if timer.due(now)] == [1100, 1200, 1300, 1400]


def test_a_late_tick_fires_once_and_stays_on_the_grid() -> None:
    timer = PolledTimer("t", 100)
    timer.start(0)
    assert timer.due(570)
    assert (timer.late_ns, timer.missed, timer.deadline_ns) == (470, 4, 600)
    assert not timer.due(599)
    assert timer.due(600)
    assert (timer.late_ns, timer.missed) == (0, 4)


def test_a_tick_exactly_on_a_later_deadline_uses_it_up() -> None:
    timer = PolledTimer("t", 100)
    timer.start(0)
    assert timer.due(300)
    assert (timer.deadline_ns, timer.missed) == (400, 2)


def test_no_drift_over_a_million_late_ticks() -> None:
    timer = PolledTimer("t", 1_000_000)
    timer.start(5)
    chance = random.Random(1)
    now_ns, fired = 5, 0
    while now_ns < 10**11:
        now_ns += chance.randrange(1, 900_000)
        fired += timer.due(now_ns)
    assert timer.deadline_ns is not None
    assert (timer.deadline_ns - 5) % 1_000_000 == 0
    assert fired + timer.missed == (now_ns - 5) // 1_000_000


def test_stop_and_start_afresh() -> None:
    timer = PolledTimer("t", 100)
    timer.start(0)
    timer.stop()
    assert not timer.due(1000)
    timer.start(1030)
    assert (timer.deadline_ns, timer.due(1129), timer.due(1130)) == (1130, False, True)


@pytest.mark.parametrize("interval_ns", [0, -1])
def test_interval_must_be_positive(interval_ns: int) -> None:
    with pytest.raises(ValueError, match=r"timer 'x': interval .* expected more than 0"):
        PolledTimer("x", interval_ns)


def test_next_deadline_is_the_earliest_of_those_that_run() -> None:
    timers = Timers()
    assert timers.next_deadline_ns() is None
    slow, fast, _idle = timers.add("slow", 1000), timers.add("fast", 100), timers.add("idle", 1)
    slow.start(0)
    fast.start(0)
    assert timers.next_deadline_ns() == 100
    fast.stop()
    assert timers.next_deadline_ns() == 1000
    timers.stop_all()
    assert timers.next_deadline_ns() is None


def test_due_timers_come_in_their_order_and_each_is_asked_at_its_turn() -> None:
    timers = Timers()
    for name in ("a", "b", "c"):
        timers.add(name, 10).start(0)
    seen = []
    for timer in timers.due(25):
        seen.append(timer.name)
        if timer.name == "a":
            timers["b"].stop()
    assert seen == ["a", "c"]
    assert list(timers.due(25)) == []


def test_names_are_unique() -> None:
    timers = Timers()
    timer = timers.add("a", 10)
    assert timers["a"] is timer
    with pytest.raises(ValueError, match="'a' exists already"):
        timers.add("a", 20)
    with pytest.raises(KeyError):
        timers["b"]
