"""Faults of single processes among many: races, stalls, laps, pokes, signals, and what is left of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.stage import Stage, Zygote, moves_on, received, wait_until
from tests.chaos.visitors import usage

SMALL = {"slots": 256}
RESIDENT_GROWTH_KIB = 4096  # of a driver or client in any number of rounds: allocators keep some pages


# ---- drivers


@pytest.mark.fault(14)
def test_one_of_a_hundred_drivers_lives(
    zygote: Zygote, tmp_path: Path, instance_name: str, fault_cycles: Callable[[int], None]
) -> None:
    with Stage(instance_name, tmp_path, zygote) as stage:
        settings = {"driver.instance": instance_name}
        racers = [stage.actor("driver", settings=settings, hold=True) for _ in range(100)]
        for racer in racers:
            racer.say("go")
        wait_until(lambda: sum(racer.alive for racer in racers) == 1, "99 of 100 drivers to leave")
        (winner,) = [racer for racer in racers if racer.alive]
        wait_until(lambda: " serves: " in winner.log_text(), "the one that is left to serve")
        for racer in racers:
            if racer is not winner:
                assert racer.join() == 3
                assert f"pid {winner.pid}" in racer.log_text()
        stage.producer("s", 1, count=1).wait_for("closed")
        winner.send_signal(signal.SIGTERM)
        assert winner.join() == 0
        assert stage.segments() == []
    fault_cycles(len(racers))


def adopt_over_and_over(stage: Stage, kills: int) -> None:
    """kill -9 of the driver at any time under load; nothing is lost, nothing is noticed."""
    consumer = stage.consumer("s")
    lossy = stage.consumer("s", options={"delivery": "lossy"})
    producer = stage.producer("s", 1, options=SMALL, how="mixed", rest_s=0.001, listen_every=32)
    leases = {lease.lease_id for lease in stage.leases()}
    for adoptions in range(1, kills + 1):
        driver = stage.driver
        assert driver is not None
        moves_on(consumer, 20)
        stage.dismiss(driver)  # kill -9
        stage.start_driver()
        assert {lease.lease_id for lease in stage.leases()} == leases
        assert stage.driver_status().adoptions == adoptions
    moves_on(lossy, 20)
    producer.say("stop")
    sent = producer.wait_for("closed")["closed"]
    end = consumer.wait_for("error")
    assert (end["error"], end["lost"], end["received"]) == ("EndOfStream", 0, sent)
    assert consumer.words("failure") == lossy.words("failure") == []


@pytest.mark.fault(12, how="kill -9 under load, the next driver adopts")
def test_driver_killed_over_and_over_loses_nothing(stage: Stage, fault_cycles: Callable[[int], None]) -> None:
    adopt_over_and_over(stage, 15)
    fault_cycles(15)


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.fault(12, how="kill -9 under load, the next driver adopts")
def test_driver_killed_a_thousand_times_loses_nothing(
    stage: Stage, fault_cycles: Callable[[int], None]
) -> None:
    adopt_over_and_over(stage, 1000)
    fault_cycles(1000)


@pytest.mark.fault(16, how="failpoint stop in a tick")
def test_stalled_driver_delays_no_message_and_says_that_it_was_late(
    striking: Zygote, tmp_path: Path, instance_name: str
) -> None:
    with Stage(instance_name, tmp_path, striking) as stage:
        driver = stage.start_driver(failpoint="gate.taken:2:stop")  # in the second consumer's attach
        consumer = stage.consumer("s")
        producer = stage.producer("s", 1, options=SMALL)
        moves_on(consumer)
        newcomer = stage.consumer("s", attached=False)
        wait_until(lambda: driver.is_stopped, "the driver to be stopped in an attach")
        moves_on(consumer, 5000)  # takes longer than a tick may
        threading.Event().wait(0.1)  # the stall itself
        driver.go_on()
        newcomer.wait_for("attached")
        wait_until(lambda: stage.counters()["tick_overruns"] >= 1, "the overrun to be counted")
        wait_until(lambda: "degraded by: tick" in driver.log_text(), "the driver to be degraded")
        producer.say("stop")
        assert consumer.wait_for("error")["error"] == "EndOfStream"
        assert consumer.words("failure") == newcomer.words("failure") == []


@pytest.mark.fault(16, how="kill -9 of clients with hundreds of leases")
def test_hundreds_of_deaths_at_once_delay_no_message(
    make_stage: Callable[..., Stage], fault_cycles: Callable[[int], None]
) -> None:
    stage = make_stage({"policies.grace_ms": 0})
    consumer = stage.consumer("s")
    producer = stage.producer("s", 1, options=SMALL)
    mine = {lease.lease_id for lease in stage.leases()}
    hoards = [stage.actor("hoard", stream=f"h{number}", streams=40) for number in range(3)]
    leases = sum(hoard.wait_for("attached")["attached"] for hoard in hoards)
    assert len(stage.leases()) == len(mine) + leases
    for hoard in hoards:
        hoard.send_signal(signal.SIGKILL)
    moves_on(consumer, 3000)
    wait_until(lambda: {lease.lease_id for lease in stage.leases()} == mine, "all leases of the dead to end")
    # The authority, data and gates; the control segments of the two that live.
    wait_until(lambda: len(stage.segments()) == 5, "all epochs of the dead to go")
    moves_on(consumer, 1000)
    producer.say("stop")
    assert consumer.wait_for("error")["error"] == "EndOfStream"
    assert consumer.words("failure") == []
    fault_cycles(leases)


# ---- consumers


@pytest.mark.fault(9, how="ring of 8 slots, slow lossy consumers in other processes")
def test_lapped_consumers_count_what_they_lost_exactly(stage: Stage) -> None:
    slow = [
        stage.consumer("s", options={"delivery": "lossy"}, rest_s=0.001, rest_every=every)
        for every in (1, 3, 16)
    ]
    sent = 30_000
    producer = stage.producer("s", 1, count=sent, options={"slots": 8}, ready=2000)
    producer.wait_for("closed")
    for consumer in slow:
        end = consumer.wait_for("error")
        assert end["error"] == "EndOfStream"
        assert consumer.words("failure") == []
        assert end["lost"] > 0
        assert end["received"] + end["lost"] == sent


@pytest.mark.fault(11)
def test_a_poke_into_a_view_ends_that_process_alone(stage: Stage) -> None:
    victim = stage.actor("poke", stream="s")
    victim.wait_for("attached")
    other = stage.consumer("s")
    producer = stage.producer("s", 1, size=9000, options=SMALL)
    assert "read-only" in victim.wait_for("refused")["refused"]
    assert victim.join() == -signal.SIGSEGV
    moves_on(other, 1000)
    assert other.words("failure") == []
    producer.say("stop")
    assert other.wait_for("error")["error"] == "EndOfStream"


# ---- signals


@pytest.mark.fault(38)
def test_signals_at_a_kilohertz_interrupt_nothing(stage: Stage, zygote: Zygote) -> None:
    assert stage.driver is not None
    stage.dismiss(stage.driver)
    driver = stage.actor("driver", settings={"driver.instance": stage.instance}, signals_hz=1000)
    wait_until(lambda: " serves: " in driver.log_text(), "the driver to serve")
    consumers = [
        stage.consumer("s", attached=False, signals_hz=1000, options={"delivery": delivery, "wait": "sleep"})
        for delivery in ("reliable", "reliable", "lossy")
    ]
    for consumer in consumers:
        consumer.wait_for("attached")
    producer = stage.producer("s", 1, count=20_000, options={"slots": 32}, how="mixed", signals_hz=1000)
    closed = producer.wait_for("closed")["closed"]
    for consumer in consumers:
        end = consumer.wait_for("error")
        assert end["error"] == "EndOfStream"
        assert consumer.words("failure") == []
        assert end["received"] + end["lost"] == closed
    assert consumers[0].words("error")[0]["lost"] == 0


# ---- what is left


def nothing_grows(stage: Stage, rounds: int, kills: int) -> None:
    """Attaches and detaches, then kills: what the driver and a client hold is as before."""
    driver = stage.driver
    assert driver is not None
    visitor = stage.actor("visit", stream="v", rounds=rounds)
    visitor.wait_for("warm")
    wait_until(lambda: not stage.leases(), "the visitor to be gone between two rounds")
    before, segments = usage(driver.pid), len(stage.segments())
    visitor.say("go")
    report = visitor.wait_for("after", timeout_s=900)
    visitor.join()
    after = report["after"]
    assert after.pop("resident_kib") - report["before"].pop("resident_kib") <= RESIDENT_GROWTH_KIB
    assert after == report["before"]
    for writer in range(1, kills + 1):
        victims = (stage.consumer("s", attached=False), stage.producer("s", writer, options=SMALL))
        if writer % 8 == 0:
            received(victims[0], 10, writer)
        stage.dismiss(*victims)  # kill -9, the consumer perhaps in its attach

    def now() -> dict[str, int]:
        return usage(driver.pid)

    wait_until(lambda: not stage.leases(), "the dead to be reaped")
    wait_until(
        lambda: len(stage.segments()) <= segments, f"segments as before ({segments}): {stage.segments()}"
    )
    # Less than before is right, too: what the visitor's last round left may have gone since.
    kinds = [name for name in before if name != "resident_kib"]
    wait_until(lambda: all(now()[name] <= before[name] for name in kinds), f"as before {before}: {now()}")
    grown = {name: now()[name] - before[name] for name in before}
    print(f"{rounds * 2} attaches, {kills * 2} kills: the driver grew by {grown}")
    assert grown["resident_kib"] <= RESIDENT_GROWTH_KIB


@pytest.mark.fault(20, how="attach, detach, kill -9; resources counted")
def test_nothing_grows(make_stage: Callable[..., Stage], fault_cycles: Callable[[int], None]) -> None:
    nothing_grows(make_stage({"policies.grace_ms": 0, "policies.lease_check_interval_ms": 20}), 100, 10)
    fault_cycles(220)


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.fault(20, how="10,000 attaches and detaches, 1,000 kill -9; resources counted")
def test_nothing_grows_in_ten_thousand_attaches_and_a_thousand_kills(
    make_stage: Callable[..., Stage], fault_cycles: Callable[[int], None]
) -> None:
    nothing_grows(make_stage({"policies.grace_ms": 0, "policies.lease_check_interval_ms": 20}), 5000, 500)
    fault_cycles(11_000)
