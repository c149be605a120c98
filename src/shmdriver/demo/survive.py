"""Part 4: what survives. One live line of records; one process after the other is killed or frozen."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

from shmdriver import Client, hints
from shmdriver._native import lib
from shmdriver.demo.processes import DriverProcess, Worker
from shmdriver.demo.rate_line import RateLine, consume, produce
from shmdriver.demo.stage import DemoFailed, Row, Stage
from shmdriver.observe import Instance, diagnose

__all__ = ["Survive"]

_STREAM = "live"
_PATIENCE_S = 10.0


class Survive:
    """The processes of this part, and the acts, one after the other."""

    def __init__(self, stage: Stage, driver: DriverProcess) -> None:
        self._stage = stage
        self._driver = driver
        self._consumer: Worker | None = None
        self._producers: list[Worker] = []
        self._line: RateLine
        self._status: Any = None
        self._sealed: dict[int, int] = {}  # where the epochs of killed producers ended
        self._baseline = 0.0

    def run(self) -> None:
        """All acts but the last. DemoFailed when one does not show what it is there for."""
        with self._stage.screen.live("starting") as self._status:
            self._start()
            self._kill_driver()
            self._restart_driver()
            self._kill_producer()
            self._freeze_consumer()

    def finish(self) -> None:
        """The last act: the producer ends cleanly, the consumer has everything."""
        with self._stage.screen.live("counting") as self._status:
            self._account()

    def stay(self) -> None:
        """Keeps the line running until Ctrl-C."""
        screen, instance = self._stage.screen, self._driver.instance
        screen.heading("Running until Ctrl-C. In another terminal:")
        for command in ("stat --watch", f"why {_STREAM}", f"tail {_STREAM}"):
            screen.line(f"shmdriver {command} -i {instance}", "$")
        try:
            with screen.live("running") as self._status:
                while True:
                    self._line.watch(3600, self._status, "Ctrl-C ends")
        except KeyboardInterrupt:
            pass

    def end(self) -> None:
        """No process of this part is left, whatever happened."""
        for worker in (*self._producers, self._consumer):
            if worker is not None:
                worker.end()

    # ---- the acts

    def _start(self) -> None:
        self._consumer = Worker("consumer", consume, self._client("consumer"), _STREAM)
        self._line = RateLine(self._stage.screen, self._consumer)
        self._until(lambda: self._line.consumer.latest is not None, 20, "the consumer attaches")
        self._new_producer()
        self._watch(0.4, "warming up")
        self._baseline = self._watch(1.5, "driver, producer and consumer run")
        self._say(
            f"running: {self._baseline:,.0f} records/s, every number checked "
            f"(driver {self._driver.pid}, producer {self._producers[-1].pid}, consumer {self._consumer.pid})"
        )

    def _kill_driver(self) -> None:
        pid = self._driver.pid
        self._driver.kill()
        rate = self._watch_flow(2.0, f"driver {pid} was killed with -9")
        change = 100 * (rate / self._baseline - 1) if self._baseline else 0.0
        self._say(
            f"kill -9 driver {pid}: {rate:,.0f} records/s while there is no driver ({change:+.1f} %)",
            good=rate > self._baseline / 2,
        )

    def _restart_driver(self) -> None:
        started_s = time.monotonic()
        self._driver.start()
        seconds = time.monotonic() - started_s
        with Instance(self._driver.instance) as instance:
            status = instance.driver()
            leases = sum(lease.live for lease in instance.leases())
        rate = self._watch_flow(1.0, f"driver {self._driver.pid} has adopted")
        self._say(
            f"driver started again: pid {self._driver.pid} adopted {leases} leases in {seconds:.2f} s, "
            f"{rate:,.0f} records/s",
            good=status.adoptions == 1 and leases == 2 and rate > self._baseline / 2,
        )

    def _kill_producer(self) -> None:
        victim = self._producers[-1]
        epoch = max(self._line.counts)
        victim.signal(signal.SIGKILL)
        victim.process.join()
        died_s = time.monotonic()
        head = self._epoch_field(epoch, "head")
        self._until(lambda: self._note_seal(epoch), 10, f"producer {victim.pid} was killed with -9: sealing")
        sealed_s = time.monotonic() - died_s
        sealed = self._sealed[epoch]
        drained = self._wait_drained(epoch, sealed)
        self._say(
            f"kill -9 producer {victim.pid}: dead, proved and sealed in {1e3 * sealed_s:.0f} ms; "
            f"the consumer has {drained:,} of {sealed:,} committed records",
            good=drained == sealed >= head,
        )
        before = self._line.total
        started_s = time.monotonic()
        self._new_producer()
        self._until(lambda: self._line.total > before, 20, "a new producer starts")
        self._say(
            f"new producer {self._producers[-1].pid}: the same consumer goes on with epoch "
            f"{max(self._line.counts)}, {time.monotonic() - started_s:.2f} s after its process was started"
        )

    def _freeze_consumer(self) -> None:
        consumer = self._line.consumer
        self._watch(0.7, "running again")
        consumer.signal(signal.SIGSTOP)
        try:
            with Instance(self._driver.instance) as instance:
                found = diagnose(instance, _STREAM)

                def blamed() -> bool:
                    nonlocal found
                    found = diagnose(instance, _STREAM)
                    return found.culprit is not None and found.blocked_for_ns > 500_000_000

                self._until(blamed, 10, f"consumer {consumer.pid} is frozen")
            assert found.culprit is not None
            look = hints.command("why", _STREAM, instance=self._driver.instance)
            self._say(
                f"freeze consumer {consumer.pid} (SIGSTOP); {look}:",
                good=found.culprit.pid == consumer.pid,
            )
            command = f", {found.culprit.process.command}"  # our spawned processes' says nothing
            for text in (found.summary, *found.details[:1], *(f"→ {advice}" for advice in found.advice[:1])):
                self._stage.screen.line(f"    {text.replace(command, '')}")
        finally:
            consumer.signal(signal.SIGCONT)
        before = self._line.total
        self._until(lambda: self._line.total > before, 10, "thawed")
        self._watch(0.3, "thawed")
        rate = self._watch_flow(1.0, "thawed")
        self._say(f"thaw it (SIGCONT): {rate:,.0f} records/s again", good=rate > self._baseline / 2)

    def _account(self) -> None:
        producer, consumer = self._producers[-1], self._line.consumer
        producer.ask_to_stop()
        self._until(lambda: self._is_finished(producer), 10, "the producer ends cleanly")
        epoch = max(self._line.counts)
        published = {**self._sealed, epoch: int(producer.result())}
        if sum(published.values()) != self._line.total:
            self._wait_drained(epoch, published[epoch])
        consumer.ask_to_stop()
        self._until(lambda: self._is_finished(consumer), 10, "the consumer ends")
        got = consumer.result()
        missing = sum(abs(count - got["counts"].get(number, 0)) for number, count in published.items())
        lost = missing + got["lost"] + got["wrong"]
        self._say(
            f"lost {lost}: of {sum(published.values()):,} committed records in {len(published)} epochs "
            f"{sum(got['counts'].values()):,} arrived, each once, in order",
            good=lost == 0,
        )
        self._stage.rows.append(Row("survive: kills, a freeze", "M/s", self._baseline / 1e6, lost=lost))

    # ---- inside

    def _new_producer(self) -> None:
        name = f"producer-{len(self._producers) + 1}"
        self._producers.append(Worker(name, produce, self._client(name), _STREAM, self._stage.quotes))

    def _client(self, name: str) -> Client:
        return Client(self._driver.instance, name=name)

    def _watch(self, seconds: float, text: str) -> float:
        return self._line.watch(max(0.4, self._stage.seconds(2 * seconds) / 2), self._status, text)

    def _watch_flow(self, seconds: float, text: str) -> float:
        """Watches again while the rate is less than half of the first one: others may use the cores."""
        until_s = time.monotonic() + _PATIENCE_S
        while (rate := self._watch(seconds, text)) <= self._baseline / 2 and time.monotonic() < until_s:
            pass
        return rate

    def _until(self, done: Callable[[], bool], seconds: float, text: str) -> None:
        if self._producers:
            self._line.wait_for(done, seconds, self._status, text)
            return
        deadline_s = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline_s:
                raise DemoFailed(f"{text}: not within {seconds:.0f} s")
            self._line.consumer.connection.poll(0.05)
            self._line.consumer.receive()

    def _say(self, text: str, *, good: bool = True) -> None:
        self._stage.screen.line(text, "✓" if good else "✗")
        if not good:
            raise DemoFailed(text)

    def _epoch_field(self, number: int, name: str) -> int:
        with Instance(self._driver.instance) as instance:
            for epoch in instance.stream(_STREAM).epochs:
                if epoch.epoch == number:
                    return int(getattr(epoch, name))
        return -1

    def _note_seal(self, number: int) -> bool:
        """Whether the epoch is sealed. From the driver's news, because a drained epoch is soon gone."""
        with Instance(self._driver.instance) as instance:
            for event in instance.events():
                if (event.kind, event.stream, event.epoch) == (
                    "stream_announce",
                    _STREAM,
                    number,
                ) and event.state == lib.SHMD_EPOCH_SEALED:
                    self._sealed[number] = event.value
        return number in self._sealed

    def _wait_drained(self, epoch: int, count: int) -> int:
        self._until(lambda: self._line.counts.get(epoch, 0) >= count, 10, f"draining up to {count:,}")
        return self._line.counts[epoch]

    @staticmethod
    def _is_finished(worker: Worker) -> bool:
        worker.receive()
        return worker.finished
