"""kill -9 and SIGSTOP of real processes while data flows.

What was committed is delivered, messages flow on without a driver, a process that wakes after its lease has
ended writes where nobody reads, and nothing of a stopped process is given to another.

Every message has its writer's number, its own number and a checksum; each consumer's process checks all
three. A producer's board says how many publishes have returned: so many at least were committed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver.errors import DriverUnavailable, Reason
from tests.chaos.payload import Board
from tests.chaos.stage import ROOT, Actor, Stage, moves_on, received, wait_until

SMALL = {"slots": 256}
SHORT_LEASES = {
    "policies.lease_timeout_ms": 1200,
    "policies.heartbeat_interval_ms": 100,
    "policies.lease_check_interval_ms": 20,
}


def all_committed(consumer: Actor, producer: Actor, writer: int) -> None:
    """A reliable consumer has a killed producer's every committed message, and at most one more."""
    run = next(words for words in consumer.words("writer") if words["writer"] == writer)
    sent = producer.board[Board.SENT]
    assert run["first"] == 0
    assert sent <= run["next"] <= sent + 1, f"{sent} publishes had returned, {run['next']} messages came"
    assert consumer.words("failure") == []


def test_killed_producer_is_drained_then_producer_lost_then_the_next_is_followed(stage: Stage) -> None:
    stays = stage.consumer("s")
    follows = stage.consumer("s", options={"follow": True})
    lossy = stage.consumer("s", options={"follow": True, "delivery": "lossy"})
    first = stage.producer("s", 1, options=SMALL, how="mixed")
    received(stays, 3000, 1)
    first.kill()
    end = stays.wait_for("error")
    assert (end["error"], end["reason"]) == ("ProducerLost", Reason.DIED)
    assert end["sealed_seq"] in (None, stays.words("writer")[0]["next"])
    second = stage.producer("s", 2, options=SMALL)
    received(follows, 3000, 2)
    received(lossy, 3000, 2)
    second.kill()
    stage.producer("s", 3, options=SMALL)
    received(follows, 100, 3)
    for consumer in (stays, follows):
        all_committed(consumer, first, 1)
    all_committed(follows, second, 2)
    assert lossy.words("failure") == []


@pytest.mark.fault(7)
def test_killed_consumer_at_a_full_ring_frees_its_producer_on_proof_of_death(stage: Stage) -> None:
    holder = stage.consumer("s", hold=True)
    other = stage.consumer("s")
    producer = stage.producer("s", 1, options=SMALL)
    wait_until(lambda: producer.board[Board.SENT] == 256, "the ring to be full")
    with shmdriver.connect(stage.instance) as client:
        (stream,) = client.streams()
        assert stream.epochs[-1].blocked is not None
    holder.kill()
    moves_on(other, 2000)
    assert other.words("failure") == []


@pytest.mark.fault(12)
def test_rate_goes_on_without_a_driver_and_the_next_one_adopts(stage: Stage) -> None:
    consumer = stage.consumer("s")
    lossy = stage.consumer("s", options={"delivery": "lossy"})
    producer = stage.producer("s", 1, options=SMALL, how="mixed")
    with shmdriver.connect(stage.instance) as client:
        before = {lease.lease_id for lease in stage.leases()}
        for adoptions in range(1, 4):
            assert stage.driver is not None
            moves_on(consumer)
            stage.driver.kill()
            moves_on(consumer, 3000)
            moves_on(lossy, 1)
            with pytest.raises(DriverUnavailable):
                client.producer("other", attach_timeout=0.2)
            stage.start_driver()
            moves_on(consumer)
            client.producer("other").close()
            assert {lease.lease_id for lease in stage.leases()} == before
            assert stage.driver_status().adoptions == adoptions
    producer.say("stop")
    producer.wait_for("closed")
    assert consumer.wait_for("error")["error"] == "EndOfStream"
    all_committed(consumer, producer, 1)
    assert consumer.words("error")[0]["lost"] == 0


@pytest.mark.fault(7, how="kill -9 of both at a full ring")
def test_consumer_killed_while_the_driver_is_away_is_reaped_by_the_next(stage: Stage) -> None:
    holder = stage.consumer("s", hold=True)
    other = stage.consumer("s")
    producer = stage.producer("s", 1, options=SMALL, timeout=60)
    wait_until(lambda: producer.board[Board.SENT] == 256, "the ring to be full")
    assert stage.driver is not None
    stage.driver.kill()
    holder.kill()
    received(other, 255, 1)  # all there is: the dead one's gate stays while nobody can prove its death
    assert producer.board[Board.SENT] == 256
    stage.start_driver()
    moves_on(other, 2000)
    assert other.words("failure") == []


def test_producer_and_driver_killed_together_are_drained_by_the_next_driver(stage: Stage) -> None:
    consumer = stage.consumer("s")
    producer = stage.producer("s", 1, options=SMALL)
    received(consumer, 2000, 1)
    assert stage.driver is not None
    stage.driver.kill()
    moves_on(consumer)
    producer.kill()
    stage.start_driver()
    assert consumer.wait_for("error")["reason"] == Reason.DIED
    all_committed(consumer, producer, 1)


@pytest.mark.fault(6)
def test_producer_killed_and_replaced_at_once_is_reaped_first(stage: Stage) -> None:
    consumer = stage.consumer("s", options={"follow": True})
    producers = [stage.producer("s", 1, options=SMALL)]
    for writer in range(2, 8):
        received(consumer, 200, writer - 1)
        producers[-1].kill()
        producers.append(stage.producer("s", writer, options=SMALL))  # attaches in one try, or raises
    received(consumer, 200, 7)
    for writer in range(1, 7):
        all_committed(consumer, producers[writer - 1], writer)


@pytest.mark.fault(8)
def test_stopped_consumer_is_named_by_back_pressure_and_goes_on(stage: Stage) -> None:
    consumer = stage.consumer("s", name="sluggard")
    producer = stage.producer("s", 1, options=SMALL, timeout=0.3, linger=True)
    received(consumer, 500, 1)
    consumer.stop()
    pressed = producer.wait_for("error")
    assert pressed["error"] == "BackPressured"
    assert (pressed["consumer"], pressed["pid"]) == ("sluggard", consumer.pid)
    assert "sluggard" in pressed["text"]
    consumer.go_on()
    received(consumer, producer.board[Board.SENT] - 1, 1)
    assert consumer.words("failure") == []


@pytest.mark.fault(8, how="SIGSTOP, policy evict")
def test_stopped_consumer_is_evicted_where_the_policy_says_so(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage({"profiles.default.evict_after_ms": 200})
    consumer = stage.consumer("s")
    other = stage.consumer("s")
    producer = stage.producer("s", 1, options={**SMALL, "slow_consumer": "evict"})
    received(consumer, 500, 1)
    consumer.stop()
    wait_until(lambda: stage.counters()["evictions"] == 1, "the eviction")
    moves_on(other, 2000)
    consumer.go_on()
    end = consumer.wait_for("error")
    assert (end["error"], end["reason"]) == ("LeaseRevoked", Reason.EVICTED)
    assert consumer.words("failure") == []
    assert other.words("failure") == []
    assert producer.alive


@pytest.mark.fault(5, how="SIGSTOP anywhere")
def test_zombie_producer_writes_nothing_into_the_next_epoch(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(SHORT_LEASES)
    stays = stage.consumer("s")
    follows = stage.consumer("s", options={"follow": True})
    zombie = stage.producer("s", 1, options=SMALL, how="mixed")
    received(follows, 2000, 1)
    zombie.stop()
    assert stays.wait_for("error")["reason"] == Reason.EXPIRED
    second = stage.producer("s", 2, options=SMALL)
    received(follows, 1000, 2)
    zombie.go_on()
    woken = zombie.wait_for("error")
    assert (woken["error"], woken["reason"]) == ("LeaseRevoked", Reason.EXPIRED)
    run = next(words for words in follows.words("writer") if words["writer"] == 1)
    assert woken["sealed_seq"] == run["next"]
    moves_on(follows, 2000)
    second.say("stop")
    second.wait_for("closed")
    third = stage.producer("s", 3, options=SMALL)
    received(follows, 10, 3)
    assert [words["writer"] for words in follows.words("writer")] == [1, 2]
    assert follows.words("failure") == []
    assert third.alive


@pytest.mark.fault(5, how="SIGSTOP anywhere, its stream's record is another stream's meanwhile")
def test_zombie_producer_whose_streams_record_another_stream_has_is_told_so(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage({**SHORT_LEASES, "policies.limits.streams": 1})
    zombie = stage.producer("s", 1, options=SMALL, how="mixed")
    wait_until(lambda: zombie.board[Board.SENT] > 100, "its first messages")
    zombie.stop()
    wait_until(lambda: not stage.leases(), "its lease to expire")
    stage.producer("t", 2, options=SMALL)
    zombie.go_on()
    woken = zombie.wait_for("error")
    assert (woken["error"], woken["reason"]) == ("LeaseRevoked", Reason.EXPIRED)
    # It may have been stopped after its look at the epoch, or after its commit: that is one message.
    assert abs(woken["sealed_seq"] - zombie.board[Board.SENT]) <= 1


@pytest.mark.parametrize("how", ["gc", "driver"])
@pytest.mark.fault(20)
def test_after_everybody_is_killed_nothing_is_left(stage: Stage, how: str) -> None:
    consumer = stage.consumer("s", options={"follow": True})
    stage.consumer("s", options={"delivery": "lossy"})
    producer = stage.producer("s", 1, options=SMALL)
    received(consumer, 500, 1)
    producer.kill()
    stage.producer("s", 2, options=SMALL)
    received(consumer, 500, 2)
    for actor in stage.actors:
        actor.kill()
    assert len(stage.segments()) >= 4
    if how == "gc":
        command = [sys.executable, "-m", "shmdriver", "gc", "--instance", stage.instance]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
        assert done.returncode == 0, done.stderr
    else:
        driver = stage.start_driver()
        wait_until(lambda: not stage.leases(), "the dead to be reaped")
        driver.send_signal(signal.SIGTERM)
        assert driver.join() == 0, driver.log_text()
    assert stage.segments() == []


@pytest.mark.fault(20, how="kill -9, resources of the driver counted")
def test_killed_processes_leave_no_growth_in_the_driver(stage: Stage) -> None:
    assert stage.driver is not None

    def used() -> dict[str, Any]:
        pid = stage.driver.pid if stage.driver else 0
        return {
            "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
            "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
            "segments": len(stage.segments()),
        }

    def round_of_kills(writer: int) -> None:
        consumer = stage.consumer("s")
        producer = stage.producer("s", writer, options=SMALL)
        received(consumer, 10, writer)
        stage.dismiss(producer, consumer)
        wait_until(lambda: not stage.leases(), "the dead to be reaped")

    round_of_kills(1)
    before = used()  # what the first round leaves may still go
    for writer in range(2, 12):
        round_of_kills(writer)
    wait_until(
        lambda: all(now <= before[kind] for kind, now in used().items()),
        f"resources as before ({before}, now {used()})",
    )
