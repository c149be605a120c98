"""Victims one after the other on one stream, and witnesses whose account has to be right at the end.

A lane has two witnesses for its whole life: a reliable and a lossy consumer that follow. What they see of
every writer is compared with what its board says that it published.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from random import Random
from typing import Any, ClassVar

from tests.chaos.payload import Board
from tests.chaos.plan import Fate, Place
from tests.chaos.stage import Actor, OutOfTime, Stage, received

STRIKES_S = 20.0
DEFECTS = ("torn", "duplicated", "reordered", "lost")


class Tally:
    """What was done at every failpoint, and what went wrong there; for several lanes at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.rows: dict[str, dict[str, Any]] = {}
        self.texts: list[str] = []

    def _row(self, place: Place) -> dict[str, Any]:
        fresh = {"who": str(place.scene), "kills": 0, "stops": 0, **dict.fromkeys(DEFECTS, 0)}
        return self.rows.setdefault(place.label, fresh)

    def done(self, place: Place, what: str = "kills") -> None:
        with self._lock:
            self._row(place)[what] += 1

    def defect(self, place: Place, kind: str, text: str) -> None:
        with self._lock:
            self._row(place)[kind] += 1
            self.texts.append(f"{place.label}: {kind}: {text}")

    def total(self, key: str) -> int:
        return sum(int(row[key]) for row in self.rows.values())

    def table(self) -> str:
        """For a terminal."""
        columns = ("kills", "stops", *DEFECTS)
        lines = [f"{'failpoint':<44}" + "".join(f"{name:>11}" for name in columns)]
        for label, row in sorted(self.rows.items()):
            lines.append(f"{label:<44}" + "".join(f"{row[name]:>11,}" for name in columns))
        lines.append(f"{'all':<44}" + "".join(f"{self.total(name):>11,}" for name in columns))
        return "\n".join(lines)


def struck(victim: Actor, place: Place) -> int:
    """Awaits that a victim ends; its exit code. OutOfTime says which failpoint it never came to."""
    try:
        return victim.join(STRIKES_S)
    except OutOfTime as error:
        raise OutOfTime(f"{place.label} was not reached\n{victim.heard[-3:]} {error}") from error


class Lane:
    """Two witnesses of one stream."""

    SETTINGS: ClassVar[dict[str, int]] = {}

    def __init__(self, stage: Stage, stream: str, tally: Tally, rng: Random) -> None:
        self.stage, self.stream, self.tally, self.rng = stage, stream, tally, rng
        # The reliable one rests now and then, so that producers find their ring full.
        self.reliable = stage.consumer(
            stream, name="reliable", options={"follow": True}, rest_s=0.0005, rest_every=128
        )
        self.lossy = stage.consumer(stream, name="lossy", options={"follow": True, "delivery": "lossy"})
        self.last: Place | None = None
        self._told = {self.reliable: 0, self.lossy: 0}

    def place_of(self, writer: int) -> Place | None:
        """Where a writer's victim was killed."""
        del writer
        return self.last

    def watch(self) -> None:
        """Takes what the witnesses say; their failures go to where the writer was killed."""
        for witness in (self.reliable, self.lossy):
            if not witness.alive:
                raise AssertionError(f"{witness} died: {witness.listen()[-3:]} {witness.log_text()}")
            failures = witness.words("failure")
            for words in failures[self._told[witness] :]:
                place = self.place_of(words["by"]) or self.last
                assert place is not None
                self.tally.defect(place, words["failure"], f"{words['text']} ({witness.role})")
            self._told[witness] = len(failures)

    def run_of(self, witness: Actor) -> dict[int, dict[str, int]]:
        """What a witness saw, by writer; a writer that came twice is a defect of the later one."""
        runs: dict[int, dict[str, int]] = {}
        before = 0
        for words in witness.words("writer"):
            writer = words["writer"]
            if writer <= before and (place := self.place_of(writer) or self.last):
                self.tally.defect(place, "reordered", f"writer {writer} came after {before}")
            before = max(before, writer)
            runs.setdefault(writer, words)
        return runs

    def finish(self, last_writer: int, last_number: int) -> None:
        """Lets the reliable witness read up to a last message, and ends both."""
        received(self.reliable, last_number, last_writer)
        for witness in (self.reliable, self.lossy):
            witness.say("stop")
            witness.wait_for("closed")
            witness.join()
        for witness in (self.reliable, self.lossy):
            failures = witness.words("failure")
            for words in failures[self._told[witness] :]:
                place = self.place_of(words["by"]) or self.last
                assert place is not None
                self.tally.defect(place, words["failure"], words["text"])


class ProducerLane(Lane):
    """Producers that die, each on its way through one message."""

    def __init__(self, stage: Stage, stream: str, tally: Tally, rng: Random, *, first: int = 1) -> None:
        super().__init__(stage, stream, tally, rng)
        self.writer = first
        self._killed: dict[int, tuple[Place, int, int]] = {}

    def place_of(self, writer: int) -> Place | None:
        found = self._killed.get(writer)
        return found[0] if found else None

    def run(self, places: Iterable[Place]) -> None:
        """One victim a place; then a producer that ends cleanly, and the account."""
        for place in places:
            self.last = place
            self._strike(place)
            self.watch()
        end = self.stage.producer(self.stream, self.writer, count=10, options={"slots": 64})
        end.wait_for("closed")
        self.finish(self.writer, 9)
        self.stage.dismiss(end)
        self.account()

    def _strike(self, place: Place) -> None:
        said: list[dict[str, Any]] = []
        for _ in range(20):
            victim = self.stage.producer(
                self.stream, self.writer, attached=False, failpoint=place.spec(self.rng), **place.options
            )
            code = struck(victim, place)
            sent, said, log = victim.board[Board.SENT], victim.heard, victim.log_text()
            self.stage.dismiss(victim)
            low = sent + (place.fate is Fate.SEEN)
            self._killed[self.writer] = (place, low, sent + (place.fate is not Fate.UNSEEN))
            self.writer += 1
            if code == -signal.SIGKILL:
                self.tally.done(place)
                return
            # Not reached: it ended before, or its attach was refused because dead epochs are still read.
            assert code == 0, f"{place.label}: exit code {code}: {log}"
            self._killed[self.writer - 1] = (place, sent, sent)
            refused = [words for words in said if words.get("error") not in (None, "AttachRejected")]
            assert not refused, f"{place.label}: {refused}"
        raise AssertionError(f"{place.label} was not reached in 20 attempts; the last one said {said}")

    def account(self) -> None:
        """Every writer's run begins at 0 and ends where its board and its fate say."""
        runs = self.run_of(self.reliable)
        self.run_of(self.lossy)
        for writer, (place, low, high) in self._killed.items():
            run = runs.get(writer, {"first": 0, "next": 0})
            if run["first"] != 0 or run["next"] < low:
                self.tally.defect(place, "lost", f"writer {writer} committed {low}, {run} came")
            elif run["next"] > high:
                self.tally.defect(place, "torn", f"writer {writer} committed {high}, {run['next']} came")


class ConsumerLane(Lane):
    """Consumers that die while producers come and go; the others must not notice."""

    COUNT = 48

    def __init__(self, stage: Stage, stream: str, tally: Tally, rng: Random) -> None:
        super().__init__(stage, stream, tally, rng)
        self._cycle = stage.actor(
            "cycle", stream=stream, writer=1, count=self.COUNT, size=20, options={"slots": 16}, rest_s=0.001
        )

    def run(self, places: Iterable[Place]) -> None:
        """One victim a place; then the account."""
        for place in places:
            self.last = place
            victim = self.stage.consumer(
                self.stream, attached=False, name="victim", failpoint=place.spec(self.rng), **place.options
            )
            code = struck(victim, place)
            assert code == -signal.SIGKILL, f"{place.label}: {code}: {victim.heard} {victim.log_text()}"
            for words in victim.words("failure"):
                self.tally.defect(place, words["failure"], words["text"])
            self.tally.done(place)
            self.stage.dismiss(victim)
            self._cycle.listen()
            assert self._cycle.alive, self._cycle.log_text()
            self.watch()
        self._cycle.say("stop")
        end = self._cycle.wait_for("closed")["closed"]
        self.finish(end - 1, self.COUNT - 1)
        self.account(end)

    def account(self, end: int) -> None:
        """The reliable witness has every message of every writer."""
        assert self.last is not None
        runs = self.run_of(self.reliable)
        self.run_of(self.lossy)
        for writer in range(1, end):
            run = runs.get(writer, {"first": 0, "next": 0})
            if (run["first"], run["next"]) != (0, self.COUNT):
                self.tally.defect(self.last, "lost", f"writer {writer} committed {self.COUNT}, {run} came")
