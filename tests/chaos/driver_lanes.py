"""The driver as the victim: under load, at a handover, at an end, at a first start, when it starts afresh."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from functools import partial
from random import Random
from typing import Any, ClassVar

from tests.chaos.lanes import Lane, Tally, struck
from tests.chaos.payload import Board
from tests.chaos.plan import Place, Scene
from tests.chaos.stage import Actor, Stage, received, wait_until
from tests.segments import runtime_folder_of

LOAD = 1  # the writer whose messages flow all the time
CHURNERS = 2
STREAMS = 7  # so few that new names push idle streams out


def _is_past(actor: Actor, number: int) -> bool:
    return actor.board[Board.SENT] > number


class DriverLane(Lane):
    """Drivers that die one after the other, each adopting from the one before, while messages flow.

    Nothing that was attached may notice: the load's leases and messages go on, and what comes and goes
    (`crowd.churn`) passes every edge of the tables.
    """

    SETTINGS: ClassVar[dict[str, int]] = {
        "policies.limits.streams": STREAMS, "policies.grace_ms": 0, "policies.lease_check_interval_ms": 20,
    }  # fmt: skip

    def __init__(self, stage: Stage, stream: str, tally: Tally, rng: Random) -> None:
        super().__init__(stage, stream, tally, rng)
        self._load = stage.producer(stream, LOAD, options={"slots": 1024}, rest_s=0.002, listen_every=16)
        self._churners = [self._churner(f"churn{number}") for number in range(CHURNERS)]
        self._turn = 0

    def _churner(self, name: str) -> Actor:
        token = runtime_folder_of(self.stage.instance, self.stage.zygote.runtime) / "token"
        arguments: dict[str, Any] = {"name": name, "turn": self.rng.randrange(60), "token": str(token)}
        return self.stage.actor("churn", **arguments)

    def run(self, places: Iterable[Place]) -> None:
        """One dead driver a place; then one that stays, and the account."""
        leases = self._load_leases()
        for place in places:
            self.last = place
            before = self.reliable.board[Board.RECEIVED]
            self._strike(place)
            received(self.reliable, before, LOAD)  # messages flow while there is no driver
            self.watch()
            for churner in self._churners:
                churner.listen()
                assert churner.alive, f"{place.label}: {churner.log_text()[-2000:]}"
        self.stage.start_driver()
        assert self._load_leases() == leases
        for churner in self._churners:
            turns = churner.board[Board.SENT]
            wait_until(partial(_is_past, churner, turns), f"{churner} to be served again")
            churner.say("stop")
            churner.wait_for("closed")
        self._load.say("stop")
        self._load.wait_for("closed")
        sent = self._load.board[Board.SENT]
        self.finish(LOAD, sent - 1)
        run = self.run_of(self.reliable)[LOAD]
        if (run["first"], run["next"]) != (0, sent) and self.last:
            self.tally.defect(self.last, "lost", f"{sent} were committed, {run} came")

    def _load_leases(self) -> set[int]:
        names = ("reliable", "lossy", f"producer-{LOAD}")
        return {lease.lease_id for lease in self.stage.leases() if lease.client_name in names}

    def _strike(self, place: Place) -> None:
        assert self.stage.driver is not None
        self.stage.driver.kill()  # the first one; the others are dead
        self.stage.dismiss(self.stage.driver)
        driver = self.stage.start_driver(failpoint=place.spec(self.rng), **place.options)
        if place.scene is Scene.HANDOVER and driver.alive:
            driver.send_signal(signal.SIGUSR1)
        if self._turn % 3 == 2:  # and clients that die without a word, in the middle of anything
            victim = self._churners.pop(0)
            self._churners.append(self._churner(f"churn{self._turn}"))
            self.stage.dismiss(victim)
        self._turn += 1
        code = struck(driver, place)
        assert code == -signal.SIGKILL, f"{place.label}: exit code {code}: {driver.log_text()[-2000:]}"
        self.tally.done(place)


class EndsLane:
    """Drivers that die at a beginning or an end of their instance; a pair of clients in between."""

    COUNT = 30
    SETTINGS: ClassVar[dict[str, int]] = {"policies.shutdown_timeout_ms": 20}

    def __init__(self, stage: Stage, stream: str, tally: Tally, rng: Random) -> None:
        self.stage, self.tally, self.rng = stage, tally, rng
        self._pair = stage.actor("pair", stream=stream, writer=1, count=self.COUNT)
        self._rounds = 0
        self._place: Place | None = None

    def run(self, places: Iterable[Place]) -> None:
        """One dead driver a place; nothing of the instance is left at the end."""
        strikes = {
            Scene.SHUTDOWN: self._at_shutdown, Scene.CREATION: self._at_creation, Scene.FRESH: self._at_fresh,
        }  # fmt: skip
        for place in places:
            self._place = place
            self._publish()
            strikes[place.scene](place)
            self.tally.done(place)
        self._end_cleanly()
        self._pair.say("stop")
        self._pair.join()

    def _publish(self) -> None:
        """The pair attaches and publishes a round, against whatever driver serves."""
        self._pair.say("publish")
        self._rounds += 1
        self._await("published")

    def _drain(self) -> None:
        """What was published comes, once and in order, whatever became of the driver."""
        self._pair.say("drain")
        words = self._await("drained")
        for witness in ("reliable", "lossy"):
            if words[witness] and self._place:
                kind, _, text = words[witness].partition(": ")
                self.tally.defect(self._place, kind, f"{text} ({witness})")

    def _await(self, key: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            assert self._pair.alive, f"{self._pair} died: {self._pair.log_text()}"
            self._keep_served()
            found = self._pair.words(key)
            return found[-1] if len(found) == self._rounds else None

        place = self._place.label if self._place else "the start"
        return wait_until(look, f"the pair to have {key} at {place}: {self._driver_log()}") or {}

    def _driver_log(self) -> str:
        return self.stage.driver.log_text()[-1500:] if self.stage.driver else ""

    def _killed(self, driver: Actor, place: Place) -> None:
        code = struck(driver, place)
        assert code == -signal.SIGKILL, f"{place.label}: exit code {code}: {driver.log_text()[-2000:]}"
        self.stage.dismiss(driver)

    def _start(self) -> None:
        """A driver that serves, or that first of all ends what the one before it was ending."""
        self.stage.start_driver(failpoint="none:1:kill")
        self._keep_served()

    def _keep_served(self) -> None:
        driver = self.stage.driver
        if driver is not None and not driver.alive:
            assert driver.join() == 0, driver.log_text()
            self.stage.dismiss(driver)
            self.stage.start_driver(failpoint="none:1:kill")

    def _end_cleanly(self) -> None:
        driver = self.stage.driver
        assert driver is not None
        driver.send_signal(signal.SIGTERM)
        assert driver.join() == 0, driver.log_text()
        self.stage.dismiss(driver)
        left = self.stage.segments()
        assert left == [], f"after {self._place.label if self._place else 'the start'}: {left}"

    def _at_shutdown(self, place: Place) -> None:
        """The driver of the round is replaced by one that will die; that one is told to stop."""
        assert self.stage.driver is not None
        self.stage.driver.kill()
        self.stage.dismiss(self.stage.driver)
        driver = self.stage.start_driver(failpoint=place.spec(self.rng))
        driver.send_signal(signal.SIGTERM)
        self._killed(driver, place)
        self._start()
        self._drain()

    def _at_creation(self, place: Place) -> None:
        self._drain()
        self._end_cleanly()
        self._killed(self.stage.start_driver(failpoint=place.spec(self.rng)), place)
        self.stage.start_driver()

    def _at_fresh(self, place: Place) -> None:
        assert self.stage.driver is not None
        self.stage.driver.kill()
        self.stage.dismiss(self.stage.driver)
        fresh = {"driver.boot": "fresh"}
        self._killed(self.stage.start_driver(failpoint=place.spec(self.rng), **fresh), place)
        self.stage.start_driver(**fresh)
        self._drain()
