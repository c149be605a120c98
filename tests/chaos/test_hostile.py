"""Clients that keep to nothing, while the driver serves others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

import shmdriver
from tests.chaos.payload import Board
from tests.chaos.stage import Stage, moves_on, wait_until

SMALL = {"slots": 256, "max_message": 16 << 10}


def rest_of(stage: Stage, seed: int, rounds: int) -> None:
    """One hostile client for a while; its victims, and the driver, as they should be afterwards."""
    driver = stage.driver
    assert driver is not None
    reliable = stage.consumer("good")
    lossy = stage.consumer("good", options={"delivery": "lossy"})
    producer = stage.producer("good", 1, options=SMALL, how="mixed")
    moves_on(reliable)
    hostile = stage.actor("hostile", stream="good", seed=seed)
    hostile.wait_for("attached")
    for _ in range(rounds):
        moves_on(reliable, 2000)
        moves_on(lossy, 1)
        with (
            contextlib.suppress(shmdriver.ShmDriverError),
            shmdriver.connect(stage.instance, timeout=1) as client,
        ):
            read_what_comes(client)
    hostile.say("stop")
    hostile.wait_for("closed")
    wait_until(lambda: "is expelled" in driver.log_text(), "the hostile client to be expelled")
    hostile.kill()
    moves_on(reliable, 2000)
    assert driver.alive, driver.log_text()
    assert "Traceback" not in driver.log_text()
    counters = stage.counters()
    assert counters["requests_corrupt"] > 0
    assert counters["bad_gates"] == 1
    with shmdriver.connect(stage.instance) as client:  # and newcomers are served as ever
        out = client.producer("after")
        consumer = client.consumer("after")
        out.publish(b"calm")
        message = consumer.read(timeout=60)
        assert message is not None
        assert bytes(message) == b"calm"
    producer.say("stop")
    producer.wait_for("closed")
    assert reliable.wait_for("error")["error"] == "EndOfStream"
    assert reliable.board[Board.RECEIVED] == producer.board[Board.SENT]
    assert reliable.words("failure") == []
    assert lossy.words("failure") == []


def read_what_comes(client: shmdriver.Client) -> None:
    """A consumer of the noise itself: whatever it is handed, it is not harmed."""
    for delivery in ("lossy", "latest", "reliable"):
        with client.consumer("bad", delivery=delivery, create=False, attach_timeout=0.5) as consumer:
            for _ in range(50):
                message = consumer.read(timeout=0.001)
                if message is not None:
                    bytes(message)


@pytest.mark.fault(23, how="garbage in every byte a client can write, for seconds")
@pytest.mark.fault(24, how="requests flipped while they are read")
@pytest.mark.fault(26, how="garbage in a gate of a stream in use")
def test_client_that_writes_garbage_everywhere_harms_nobody(stage: Stage) -> None:
    rest_of(stage, seed=1, rounds=5)


@pytest.mark.stress
@pytest.mark.timeout(1200)
@pytest.mark.fault(23, 24, how="garbage everywhere, a new hostile client again and again")
def test_garbage_for_minutes_harms_nobody(make_stage: Callable[..., Stage], fault_cycles) -> None:
    cycles = 20
    for seed in range(2, 2 + cycles):
        with make_stage() as stage:
            rest_of(stage, seed=seed, rounds=20)
    fault_cycles(cycles)
