"""The driver killed and started again, over and over, while messages and attaches go on: nothing is lost."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable

import pytest

from tests.chaos.payload import Board
from tests.chaos.stage import Actor, Stage, moves_on, wait_until

SEED = 20261124
SMALL = {"slots": 256}


class Load:
    """Clients that stay attached over all restarts, and one that comes and goes."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.reliable = stage.consumer("s")
        self.follower = stage.consumer("s", options={"follow": True})
        self.lossy = stage.consumer("s", options={"delivery": "lossy"})
        self.producer = stage.producer("s", 1, options=SMALL, how="mixed")
        self.waiting = stage.consumer("no-producer")
        self.churn = stage.actor("come_and_go", stream="churn")
        self.churn.wait_for("attached")
        clients = {actor.pid for actor in stage.actors} - {self.churn.pid}
        self.leases = {lease.lease_id for lease in stage.leases() if lease.pid in clients}
        assert len(self.leases) == 5

    def check(self) -> None:
        """Nobody has ended or complained, and the leases are those of the beginning."""
        actors = (self.reliable, self.follower, self.lossy, self.producer, self.waiting, self.churn)
        for actor in actors:
            assert actor.alive, (actor, actor.listen(), actor.log_text())
            assert actor.words("failure") == []
        missing = self.leases - {lease.lease_id for lease in self.stage.leases()}
        assert not missing, f"leases {missing} of {self.leases} are lost"

    def end(self) -> dict[str, int]:
        """Ends everybody in good order; what they had done."""
        rounds = self._close(self.churn)
        assert (rounds["lost"], rounds["reattached"]) == (0, 0)
        sent = self._close(self.producer)["closed"]
        assert self.reliable.wait_for("error")["error"] == "EndOfStream"
        for consumer in (self.reliable, self.follower):
            if consumer is self.follower:
                wait_until(lambda: self.follower.board[Board.RECEIVED] == sent, "the follower to have all")
                assert self._close(consumer)["lost"] == 0
            (run,) = consumer.words("writer")
            assert (run["first"], run["next"]) == (0, sent)
        self._close(self.waiting)
        return {"messages": sent, "attach rounds": rounds["closed"]}

    @staticmethod
    def _close(actor: Actor) -> dict[str, int]:
        actor.say("stop")
        return actor.wait_for("closed")


def restart_over_and_over(stage: Stage, cycles: int, *, how: int = signal.SIGKILL) -> dict[str, float]:
    """That many ends of the driver and starts of the next, some of them killed before they serve."""
    load = Load(stage)
    chance = random.Random(SEED)
    pause = threading.Event()
    adopted = stage.driver_status().adoptions
    serving, away_s = 0, 0.0
    began = time.monotonic()
    for cycle in range(cycles):
        driver = stage.driver
        assert driver is not None
        pause.wait(chance.uniform(0, 0.02))  # any moment of a driver's life
        driver.send_signal(how)
        assert driver.join() == (-signal.SIGKILL if how == signal.SIGKILL else 0), driver.log_text()
        stage.dismiss(driver)
        ended = time.monotonic()
        moves_on(load.reliable, 1)
        if how == signal.SIGKILL and chance.random() < 0.2:
            early = stage.actor("driver", settings=stage.settings)
            pause.wait(chance.uniform(0, 0.01))  # in the middle of its start
            stage.dismiss(early)
        stage.start_driver()
        away_s += time.monotonic() - ended
        serving += 1
        if cycle % 10 == 0 or cycle == cycles - 1:
            moves_on(load.lossy, 1)
            load.check()
    done = load.end()
    assert stage.driver_status().adoptions - adopted >= serving
    took_s = time.monotonic() - began
    driver = stage.driver
    assert driver is not None
    driver.send_signal(signal.SIGTERM)
    assert driver.join() == 0
    assert stage.segments() == []
    return {**done, "cycles": cycles, "ms a cycle": took_s / cycles * 1e3, "ms away": away_s / cycles * 1e3}


@pytest.mark.fault(12, 13, how="kill -9 at any moment, also in the middle of its start, under load")
def test_killed_and_started_again_fifteen_times_nothing_is_lost(
    stage: Stage, fault_cycles: Callable[[int], None]
) -> None:
    restart_over_and_over(stage, 15)
    fault_cycles(15)


@pytest.mark.fault(12, 13, how="kill -9 at any moment, also in the middle of its start, under load")
@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_killed_and_started_again_a_thousand_times_nothing_is_lost(
    stage: Stage, fault_cycles: Callable[[int], None]
) -> None:
    figures = restart_over_and_over(stage, 1000)
    print("\n" + ", ".join(f"{name}: {value:,.0f}" for name, value in figures.items()))
    fault_cycles(1000)


@pytest.mark.fault(12, how="hand over, start again, under load")
def test_handed_over_ten_times_nobody_notices(stage: Stage, fault_cycles: Callable[[int], None]) -> None:
    restart_over_and_over(stage, 10, how=signal.SIGUSR1)
    fault_cycles(10)
