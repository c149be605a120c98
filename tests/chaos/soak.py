"""`make soak MINUTES=60`: load with random kills and stops of everybody, under stress-ng where there is one.

Figures every minute, a table at the end, exit code 1 when anything was torn, repeated, reordered or lost, or
when something grew. `--seed` repeats the acts (not their timing).
"""

from __future__ import annotations

import argparse
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.chaos.lanes import DEFECTS, ProducerLane, Tally
from tests.chaos.payload import Board
from tests.chaos.plan import Place, Scene
from tests.chaos.stage import Actor, Stage, Zygote
from tests.chaos.visitors import usage

STREAMS = 3
PAUSE_S = (0.02, 0.25)  # between two acts
STOP_S = (0.05, 1.0)  # well below the lease's deadline
ANYWHERE = Place("kill -9 anywhere", Scene.PRODUCER)
STOPPED = Place("SIGSTOP, SIGCONT anywhere", Scene.PRODUCER)
LOAD = ("--cpu", "2", "--cpu-load", "60", "--switch", "2", "--vm", "1", "--vm-bytes", "64M", "--iomix", "1")


class SoakLane(ProducerLane):
    """A stream whose producer is killed, stopped and replaced; a third consumer that may be killed."""

    def __init__(self, stage: Stage, stream: str, tally: Tally, rng: random.Random) -> None:
        super().__init__(stage, stream, tally, rng, first=1 + 1_000_000 * int(stream[1:]))
        self.last = ANYWHERE
        self.producer = self._producer()
        self.mortal = self._mortal()
        self.ended = 0  # messages of producers that are gone

    def _producer(self) -> Actor:
        how = {"how": "mixed", "rest_s": 0.001, "listen_every": 64, "patient": True}
        options = {"slots": 1024}
        actor = self.stage.producer(self.stream, self.writer, attached=False, options=options, **how)
        self.writer += 1
        return actor

    def _mortal(self) -> Actor:
        delivery = self.rng.choice(("reliable", "lossy", "latest"))
        return self.stage.consumer(
            self.stream,
            attached=False,
            name="mortal",
            patient=True,
            options={"follow": True, "delivery": delivery},
        )

    @property
    def received(self) -> int:
        """Messages that were published, by the boards."""
        return self.ended + self.producer.board[Board.SENT]

    def kill_producer(self) -> None:
        self._bury(self.producer)
        self.tally.done(ANYWHERE)
        self.producer = self._producer()

    def _bury(self, producer: Actor) -> None:
        producer.kill()
        sent = producer.board[Board.SENT]
        self.ended += sent
        self._killed[self.writer - 1] = (ANYWHERE, sent, sent + 1)
        self.stage.dismiss(producer)

    def kill_consumer(self) -> None:
        self.stage.dismiss(self.mortal)
        self.tally.done(ANYWHERE)
        self.mortal = self._mortal()

    def someone(self) -> Actor:
        return self.rng.choice((self.producer, self.mortal, self.reliable, self.lossy))

    def end(self) -> None:
        """Kills the producer, ends with a clean one, and makes the account."""
        self._bury(self.producer)
        last = self.stage.producer(self.stream, self.writer, count=10, options={"slots": 64})
        last.wait_for("closed")
        self.finish(self.writer, 9)
        self.account()

    def revive(self) -> None:
        """A producer whose attach failed while a driver was away says so and ends: the next one comes."""
        if not self.producer.alive:
            said = self.producer.listen()
            assert self.producer.join() == 0, self.producer.log_text()
            assert said, self.producer.log_text()
            self._bury(self.producer)
            self.producer = self._producer()


class Soak:
    """One instance under load for some minutes."""

    def __init__(self, stage: Stage, rng: random.Random) -> None:
        self.stage, self.rng, self.tally = stage, rng, Tally()
        self.lanes = [SoakLane(stage, f"s{number}", self.tally, rng) for number in range(STREAMS)]
        self.acts: Counter[str] = Counter()
        self._pause = threading.Event()
        self._began = time.monotonic()
        self._minute = (self._began, 0)

    def run(self, minutes: float) -> int:
        """The exit code."""
        end = self._began + minutes * 60
        next_minute = self._began + 60
        while time.monotonic() < end:
            self._act()
            for lane in self.lanes:
                lane.revive()
                lane.watch()
            if time.monotonic() >= next_minute:
                self._report()
                next_minute += 60
            self._pause.wait(self.rng.uniform(*PAUSE_S))
        for lane in self.lanes:
            lane.end()
        self._report()
        return self._verdict()

    def _act(self) -> None:
        lane = self.rng.choice(self.lanes)
        act = self.rng.choices(("producer", "consumer", "driver", "stop", "stop driver"), (4, 3, 2, 3, 1))[0]
        self.acts[act] += 1
        if act == "producer":
            lane.kill_producer()
        elif act == "consumer":
            lane.kill_consumer()
        elif act == "driver":
            self._restart()
        else:
            driver = self.stage.driver
            assert driver is not None
            victim = driver if act == "stop driver" else lane.someone()
            if victim.alive:
                victim.stop()
                self._pause.wait(self.rng.uniform(*STOP_S))
                victim.go_on()
                self.tally.done(STOPPED, "stops")

    def _restart(self) -> None:
        driver = self.stage.driver
        assert driver is not None
        self.stage.dismiss(driver)
        self._pause.wait(self.rng.uniform(0, 0.2))
        self.stage.start_driver()
        self.tally.done(ANYWHERE)

    def _report(self) -> None:
        driver = self.stage.driver
        assert driver is not None
        now, messages = time.monotonic(), sum(lane.received for lane in self.lanes)
        rate = (messages - self._minute[1]) / max(now - self._minute[0], 1e-9)
        self._minute = (now, messages)
        holds = usage(driver.pid)
        print(
            f"{(now - self._began) / 60:6.1f} min  {messages:>12,} messages  {rate:>9,.0f}/s  "
            f"{self.tally.total('kills'):>6,} kills  {self.tally.total('stops'):>5,} stops  "
            f"{sum(self.tally.total(defect) for defect in DEFECTS)} defects  "
            f"driver: {holds['resident_kib'] // 1024} MiB {holds['files']} files {holds['threads']} threads  "
            f"{len(self.stage.segments())} segments",
            flush=True,
        )

    def _verdict(self) -> int:
        print(self.tally.table())
        print("acts: " + ", ".join(f"{count} {act}" for act, count in sorted(self.acts.items())))
        for text in self.tally.texts[:50]:
            print(text)
        return int(bool(self.tally.texts))


def start_load(seconds: float) -> subprocess.Popen[bytes] | None:
    """stress-ng for that long, if it is installed."""
    if shutil.which("stress-ng") is None:
        print("stress-ng is not installed (apt-get install stress-ng): the load is this test's own")
        return None
    command = ["stress-ng", "--quiet", "--timeout", f"{int(seconds)}s", *LOAD]
    print(" ".join(command), flush=True)
    return subprocess.Popen(command)


def main() -> int:
    """0: nothing was wrong; 1: something was, and it says what."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    instance = f"soak-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory() as folder:
        runtime = Path(folder) / "runtime"
        runtime.mkdir(mode=0o700)
        zygote = Zygote(runtime)
        load = start_load(options.minutes * 60)
        try:
            with Stage(instance, Path(folder), zygote) as stage:
                stage.start_driver()
                code = Soak(stage, random.Random(options.seed)).run(options.minutes)
        finally:
            if load is not None:
                load.terminate()
                load.wait()
            zygote.close()
    left = [path.name for path in Path("/dev/shm").glob(f"shmd.{instance}.*")]
    if left:
        print(f"left behind: {left}")
    print("failed" if code or left else "passed", flush=True)
    return int(bool(code or left))


if __name__ == "__main__":
    sys.exit(main())
