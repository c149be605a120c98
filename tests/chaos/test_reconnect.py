"""reconnect=True between real processes: a client that slept past its lease, a driver that starts afresh."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

import shmdriver
from shmdriver.errors import Reason
from tests.chaos.stage import PATIENCE_S, ROOT, Stage, wait_until
from tests.chaos.test_liveness import SHORT

READ = """
import json, sys, shmdriver
with shmdriver.connect(sys.argv[1], name="reader", reconnect=True, timeout=60) as client:
    consumer = client.consumer("s", follow=True)
    print(json.dumps({"attached": True}), flush=True)
    expected, gaps, told = 0, 0, 0
    while True:
        message = consumer.read(timeout=60)
        number = int(bytes(message))
        assert number >= expected, (number, expected)
        gaps += number - expected
        expected = number + 1
        again = consumer.reattachments
        if number % 500 == 0 or len(again) > told:
            told = len(again)
            figures = {"next": expected, "gaps": gaps, "lost": consumer.lost}
            print(json.dumps({**figures, "again": [list(entry) for entry in again]}), flush=True)
"""
WRITE = """
import json, sys, shmdriver
with shmdriver.connect(sys.argv[1], name="writer", reconnect=True, timeout=60) as client:
    producer = client.producer("s", slots=1024, max_message=32)
    print(json.dumps({"attached": True}), flush=True)
    number, told = 0, 0
    while True:
        producer.publish(b"%d" % number, timeout=60)
        number += 1
        again = producer.reattachments
        if len(again) > told:
            told = len(again)
            print(json.dumps({"next": number, "again": [list(entry) for entry in again]}), flush=True)
"""


class Talker:
    """A process that prints JSON, line by line."""

    def __init__(self, script: str, instance: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, instance], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self._said: SimpleQueue[dict[str, Any]] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.wait_for(lambda said: "attached" in said)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(json.loads(line))

    def wait_for(self, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next thing said that is it."""
        while True:
            said = self._said.get(timeout=PATIENCE_S)
            if is_it(said):
                return said

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def talk() -> Iterator[Callable[[str, str], Talker]]:
    made: list[Talker] = []

    def make(script: str, instance: str) -> Talker:
        made.append(Talker(script, instance))
        return made[-1]

    yield make
    for talker in made:
        talker.close()


def expire(stage: Stage, talker: Talker) -> None:
    """Stops a client until its lease is over, and lets it go on."""
    talker.process.send_signal(signal.SIGSTOP)
    pid = talker.process.pid
    wait_until(lambda: not any(lease.pid == pid for lease in stage.leases()), "its lease to expire")
    talker.process.send_signal(signal.SIGCONT)


def test_consumer_that_slept_past_its_lease_goes_on_where_it_was(
    make_stage: Callable[..., Stage], talk: Callable[[str, str], Talker]
) -> None:
    stage = make_stage(SHORT)
    reader = talk(READ, stage.instance)
    with shmdriver.connect(stage.instance) as client:
        producer = client.producer("s", slots=4096, max_message=32)
        for number in range(1001):
            producer.publish(b"%d" % number)
        reader.wait_for(lambda said: said.get("next") == 1001)
        expire(stage, reader)
        for number in range(1001, 2001):
            producer.publish(b"%d" % number)
        end = reader.wait_for(lambda said: said.get("next") == 2001)
        assert (end["gaps"], end["lost"]) == (0, 0)
        assert end["again"] == [[Reason.EXPIRED, client.boot_id, 1, 1001, 1, 1001, 0]]
        reader.process.send_signal(signal.SIGSTOP)
        pid = reader.process.pid
        wait_until(lambda: not any(lease.pid == pid for lease in stage.leases()), "its lease to expire")
        for number in range(2001, 10_001):
            producer.publish(b"%d" % number)  # overwrites what it had not read
        reader.process.send_signal(signal.SIGCONT)
        end = reader.wait_for(lambda said: said.get("next") == 10_001)
        assert end["gaps"] == end["lost"] == sum(entry[6] for entry in end["again"])
        assert end["lost"] == 8000 - 4096


def test_producer_that_slept_past_its_lease_goes_on_in_a_new_epoch(
    make_stage: Callable[..., Stage], talk: Callable[[str, str], Talker]
) -> None:
    stage = make_stage(SHORT)
    reader = talk(READ, stage.instance)
    writer = talk(WRITE, stage.instance)
    reader.wait_for(lambda said: said.get("next", 0) > 1000)
    expire(stage, writer)
    told = writer.wait_for(lambda said: "again" in said)
    ((reason, _, old_epoch, old_seq, epoch, _, lost),) = told["again"]
    assert (reason, old_epoch, epoch) == (Reason.EXPIRED, 1, 2)
    assert lost in (0, 1), "one at most was being committed when it was sealed"
    end = reader.wait_for(lambda said: said.get("next", 0) > old_seq + 2000)
    assert end["gaps"] == lost
    assert end["again"] == [], "the reader followed, as always"


@pytest.mark.fault(12, how="kill -9, and --fresh under load, twice")
def test_fresh_driver_under_load_is_gone_over_to_with_the_gap_told(
    stage: Stage, talk: Callable[[str, str], Talker]
) -> None:
    reader = talk(READ, stage.instance)
    writer = talk(WRITE, stage.instance)
    reader.wait_for(lambda said: said.get("next", 0) > 2000)
    for turn in (1, 2):
        assert stage.driver is not None
        stage.driver.kill()
        stage.start_driver(**{"driver.boot": "fresh"})
        wrote = writer.wait_for(lambda said, turn=turn: len(said.get("again", ())) == turn)  # type: ignore[misc]
        read = reader.wait_for(
            lambda said, turn=turn, wrote=wrote: (  # type: ignore[misc]
                len(said.get("again", ())) == turn and said["next"] > wrote["next"] + 2000
            )
        )
        assert {entry[0] for entry in [*wrote["again"], *read["again"]]} == {Reason.SUPERSEDED}
        assert len({entry[1] for entry in read["again"]}) == turn, "another boot each time"
        lost = sum(entry[6] for entry in wrote["again"]) + read["lost"]
        assert read["gaps"] == lost
