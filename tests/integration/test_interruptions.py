"""An exception at any step of any public call: nothing is left without an owner, and everything goes on.

A signal handler that raises does that to users. `make stress` raises at each step of each scene, many times;
`make test` at some of them.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import queue as standard
import secrets
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver._native import lib
from shmdriver.observe import Instance
from tests.chaos.stage import wait_until
from tests.interruption import NEVER, run_until, run_until_signal, seconds_of

PATIENCE_S = 60.0
TICK = np.dtype([("n", "<i8"), ("px", "<f8")])
SHM = Path("/dev/shm")
SMALL: dict[str, Any] = {"slots": 8, "max_message": 64}
LARGE: dict[str, Any] = {"slots": 8, "max_message": 100_000}


class Stage:
    """A driver in a process of its own, a client with long-lived handles, and what there is besides them."""

    def __init__(self, instance: str) -> None:
        gc.collect()  # what earlier tests left: a client in a cycle keeps its descriptor until then
        self.instance = instance
        self._driver = subprocess.Popen(
            [sys.executable, "-m", "shmdriver", "run", "--instance", instance], stderr=subprocess.DEVNULL
        )
        self.client = shmdriver.connect(instance, reconnect=True, timeout=PATIENCE_S)
        self.consumer = self.client.consumer("kept")
        self.producer = self.client.producer("kept", **LARGE)
        self.reader = self.client.consumer("records", dtype=TICK)
        self.writer = self.client.producer("records", dtype=TICK, slots=64)
        with self.client.consumer("kept") as watched:
            watched.fileno()  # starts the thread that feeds fds, which stays
        del watched
        self.records = np.zeros(4, TICK)
        self.probes = 0
        self.view = Instance(instance)
        self.before = self.state()

    def end(self) -> None:
        self.view.close()
        self.client.close()
        self._driver.send_signal(signal.SIGTERM)
        assert self._driver.wait(PATIENCE_S) == 0

    def state(self) -> dict[str, Any]:
        """What there is now. (Segments of a stream that has ended stay for a while, for late readers.)"""
        leases = self.view.leases()
        return {
            "leases": sorted(lease.lease_id for lease in leases),
            "clients": sorted(client.client_id for client in self.view.clients()),
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "threads": len(list(Path("/proc/self/task").iterdir())),
            "segments": len(embedded_segments()),
        }

    def check(self, where: str) -> None:
        """What an interrupted scene has left goes, and what was there before is usable."""
        try:
            wait_until(self._is_as_before, "what was interrupted to go", PATIENCE_S)
        except AssertionError:
            assert self.state() == self.before, where
        try:
            self.probe()
        except BaseException as error:
            raise AssertionError(f"after an interruption at {where}: {error!r}") from error

    def _is_as_before(self) -> bool:
        """Whether nothing has come. What an earlier test dropped may still go."""
        now = self.state()
        counts = ("descriptors", "threads", "segments")
        if any(now[kind] > self.before[kind] for kind in counts):
            return False
        self.before |= {kind: now[kind] for kind in counts}
        return now == self.before

    def probe(self) -> None:
        """One message and one record go through the handles that were there before."""
        self.probes += 1
        text = b"probe %d" % self.probes
        self.consumer.release()
        while not self.producer.try_publish(text):
            drain(self.consumer)
        while (message := self.consumer.read(timeout=PATIENCE_S)) is None or bytes(message) != text:
            pass
        drain(self.reader)
        self.records["n"] = self.probes
        self.writer.publish(self.records[:1], timeout=PATIENCE_S)
        while (batch := self.reader.read_batch(timeout=PATIENCE_S)) is None or batch["n"][-1] != self.probes:
            pass


def drain(consumer: shmdriver.Consumer) -> None:
    if consumer.dtype is None:
        while consumer.read(timeout=0) is not None:
            pass
    else:
        while consumer.read_batch(timeout=0) is not None:
            pass


def embedded_segments() -> list[str]:
    own = f"shmd.embedded-{os.getpid()}-"
    return sorted(entry.name for entry in SHM.iterdir() if entry.name.startswith(own))


# ---- scenes: what a program does. Each makes what it needs and drops it.


def connects(stage: Stage) -> None:
    client = shmdriver.connect(stage.instance, timeout=PATIENCE_S)
    client.close()


def connects_and_drops(stage: Stage) -> None:
    shmdriver.connect(stage.instance, timeout=PATIENCE_S)


def connects_in_a_block(stage: Stage) -> None:
    with shmdriver.connect(stage.instance, timeout=PATIENCE_S) as client:
        client.producer("own", **SMALL)
        client.consumer("own")


def unpickles_a_client(stage: Stage) -> None:
    client = pickle.loads(pickle.dumps(stage.client))
    client.consumer("own")


def attaches_a_producer(stage: Stage) -> None:
    with stage.client.producer("own", **SMALL) as producer:
        producer.publish(b"x")


def drops_a_producer(stage: Stage) -> None:
    stage.client.producer("own", **SMALL).publish(b"x")


def aborts_a_producer(stage: Stage) -> None:
    stage.client.producer("own", **SMALL).abort()


def attaches_a_consumer(stage: Stage) -> None:
    with stage.client.consumer("own", shard=(0, 2)) as consumer:
        consumer.read(timeout=0)


def drops_consumers(stage: Stage) -> None:
    stage.client.consumer("kept", delivery="lossy").read(timeout=0)
    stage.client.consumer("kept", delivery="latest").read(timeout=0)


def attaches_for_records(stage: Stage) -> None:
    producer = stage.client.producer("own", dtype=TICK)
    consumer = stage.client.consumer("own", dtype=TICK)
    producer.publish(stage.records)
    consumer.read_batch(timeout=0)


def publishes(stage: Stage) -> None:
    for data in (b"x", bytearray(b"xy"), memoryview(b"xyz"), bytes(50_000)):
        stage.producer.publish(data)
        stage.producer.try_publish(data)
        drain(stage.consumer)


def publishes_too_much(stage: Stage) -> None:
    too_much = stage.producer.max_message + 1
    for data in (bytes(too_much), bytearray(too_much)):
        with pytest.raises(shmdriver.MessageTooLarge):
            stage.producer.publish(data)


def meets_back_pressure(stage: Stage) -> None:
    while stage.producer.try_publish(b"x"):
        pass
    try:
        stage.producer.publish(bytearray(b"x"), timeout=0.001)
    except shmdriver.BackPressured:
        pass


def claims(stage: Stage) -> None:
    claim = stage.producer.claim(8)
    claim.view[:] = b"12345678"
    claim.commit()
    stage.producer.claim(50_000).abort()
    with stage.producer.claim(8) as claim:
        claim.view[0] = 1


def claims_without_room(stage: Stage) -> None:
    while stage.producer.try_publish(b"x"):
        pass
    try:
        stage.producer.claim(8, timeout=0.001)
    except shmdriver.BackPressured:
        pass


def drops_a_claim(stage: Stage) -> None:
    stage.producer.claim(8)


def claims_an_array(stage: Stage) -> None:
    with stage.producer.claim_array((4, 4), "f4") as array:
        array[:] = 1
    claim = stage.producer.claim_array(8)
    claim.abort()
    drain(stage.consumer)


def publishes_arrays(stage: Stage) -> None:
    stage.producer.publish_array(np.arange(4.0), meta=b"m")
    stage.producer.publish_array(np.arange(16.0).reshape(4, 4)[:, ::2])
    array = stage.consumer.read().array
    assert array.ndim


def publishes_records(stage: Stage) -> None:
    stage.writer.publish(stage.records)
    stage.writer.try_publish(stage.records)
    stage.reader.read_batch(timeout=0)


def reads(stage: Stage) -> None:
    for data in (b"x", b"y", bytes(50_000), b"z"):
        stage.producer.publish(data)
    held = [stage.consumer.read(), stage.consumer.read()]
    assert held[0].valid()
    for message in stage.consumer:
        if bytes(message.data[:1]) == b"z":
            break
    assert stage.consumer.lag == 0
    assert repr(stage.consumer)


def reads_batches(stage: Stage) -> None:
    stage.writer.publish(stage.records)
    for batch in stage.reader.batches(limit=2):
        assert len(batch)
        break
    stage.reader.read_batch(limit=2)
    stage.reader.release()


def waits(stage: Stage) -> None:
    stage.producer.publish(b"x")
    assert shmdriver.wait([stage.consumer, stage.reader], timeout=PATIENCE_S)
    stage.producer.wait_for_consumers(1, timeout=0)


def selects(stage: Stage) -> None:
    consumer = stage.client.consumer("kept")
    with selectors.DefaultSelector() as selector:
        selector.register(consumer, selectors.EVENT_READ)
        while not stage.producer.try_publish(b"x"):
            drain(stage.consumer)
        selector.select(PATIENCE_S)
        consumer.read(timeout=0)
        selector.unregister(consumer)


def reads_in_a_loop(stage: Stage) -> None:
    async def read() -> None:
        with stage.client.consumer("kept") as consumer:
            stage.producer.try_publish(b"x")
            await consumer.aread(timeout=0.001)

    asyncio.run(read())


def looks_around(stage: Stage) -> None:
    assert stage.client.streams()
    assert stage.client.leases()
    assert stage.client.driver_alive
    assert stage.client.client_id


def listens(stage: Stage) -> None:
    client = shmdriver.connect(stage.instance, timeout=PATIENCE_S)
    try:
        client.on_event(print)()
    finally:
        client.close()


def embeds(stage: Stage) -> None:
    with shmdriver.embedded() as client:
        client.producer("own", **SMALL).publish(b"x")


def attaches_again(stage: Stage) -> None:
    """Both ends do what they do after a revocation; the driver knows nothing of that."""
    with (
        stage.client.consumer("again", follow=True) as consumer,
        stage.client.producer("again", **SMALL) as producer,
    ):
        producer._recover(lib.SHMD_E_REVOKED, 1, 0)
        producer.publish(b"x")
        consumer._recover(lib.SHMD_E_REVOKED, 0)
        while not consumer.reattachments:
            consumer.read(timeout=0.01)
        assert producer.reattachments


def puts_and_gets(stage: Stage) -> None:
    queue = stage.client.queue("own")
    queue.put(b"x")
    queue.put_nowait(stage.records)
    assert queue.qsize() >= 1
    queue.get(timeout=PATIENCE_S)
    queue.get_nowait()
    assert queue.empty()
    queue.close()


def fills_a_queue(stage: Stage) -> None:
    queue = stage.client.queue("own", 1)
    queue.put(b"x")
    try:
        queue.put(b"y", timeout=0.001)
    except standard.Full:
        pass
    assert queue.full()
    queue.get()
    try:
        queue.get(timeout=0.001)
    except standard.Empty:
        pass


def pickles_a_queue(stage: Stage) -> None:
    held = stage.client.queue("own")
    queue = pickle.loads(pickle.dumps(held))
    queue.put(b"x")
    held.get(timeout=PATIENCE_S)
    queue.close()


SCENES: dict[str, Callable[[Stage], None]] = {
    scene.__name__: scene
    for scene in (
        connects, connects_and_drops, connects_in_a_block, unpickles_a_client,
        attaches_a_producer, drops_a_producer, aborts_a_producer, attaches_a_consumer, drops_consumers,
        attaches_for_records, publishes, publishes_too_much, meets_back_pressure, claims, claims_without_room,
        drops_a_claim, claims_an_array, publishes_arrays, publishes_records, reads, reads_batches, waits,
        selects, reads_in_a_loop, listens, looks_around, embeds, attaches_again,
        puts_and_gets, fills_a_queue, pickles_a_queue,
    )
}  # fmt: skip

# asyncio itself loses a descriptor when a handler raises while it makes a loop (in socket.socketpair()).
SIGNALLED = [scene for scene in SCENES.values() if scene is not reads_in_a_loop]

# Scenes of many steps, or slow ones. Each run begins at a random step.
STRIDES = {"looks_around": 2, "embeds": 4}


@pytest.fixture
def stage(instance_name: str) -> Iterator[Stage]:
    stage = Stage(instance_name)
    yield stage
    stage.end()


def interrupt(stage: Stage, scene: Callable[[Stage], None], stride: int) -> int:
    """An exception at each ``stride``-th step of a scene, from a random one on; how many there were."""

    def act() -> None:
        scene(stage)

    drain(stage.consumer)
    act()  # late imports, caches
    drain(stage.consumer)
    steps = run_until(act, NEVER)
    stage.check(f"{scene.__name__}, not interrupted")
    assert steps.count, f"{scene.__name__} has no step"
    injected, at = 0, 1 + secrets.randbelow(min(stride, steps.count))
    while True:
        drain(stage.consumer)
        drain(stage.reader)
        steps = run_until(act, at)
        if not steps.where:
            return injected
        injected += 1
        stage.check(f"{scene.__name__}: {steps.where}")
        at += stride


def signal_often(stage: Stage, scene: Callable[[Stage], None], times: int) -> int:
    """A handler that raises, so many times at random moments of a scene; how often it ran."""

    def act() -> None:
        scene(stage)

    drain(stage.consumer)
    act()
    drain(stage.consumer)
    took_s = seconds_of(act)
    gc.collect()
    came = 0
    for _ in range(times):
        drain(stage.consumer)
        drain(stage.reader)
        came += run_until_signal(act, took_s)
        stage.check(f"{scene.__name__}: a signal")
    return came


@pytest.mark.timeout(900)
@pytest.mark.fault(49, 38, how="signals at random moments of each public call, whose handler raises")
def test_signal_handlers_that_raise_leave_nothing_without_an_owner(stage: Stage, fault_cycles) -> None:
    fault_cycles(sum(signal_often(stage, scene, times=2) for scene in SIGNALLED))


@pytest.mark.stress
@pytest.mark.timeout(7200)
@pytest.mark.fault(
    49, 38, how="thousands of signals at random moments of each public call, whose handler raises"
)
def test_thousands_of_signal_handlers_that_raise_leave_nothing(stage: Stage, fault_cycles) -> None:
    came = sum(signal_often(stage, scene, times=100) for scene in SIGNALLED)
    print(f"  {came:6} handlers raised, each followed by: 0 {', 0 '.join(stage.before)}; all usable")
    fault_cycles(came)


@pytest.mark.timeout(900)
@pytest.mark.fault(49, how="an exception at some of the lines and returns of each public call")
def test_an_exception_anywhere_leaves_nothing_without_an_owner(stage: Stage, fault_cycles) -> None:
    injected = sum(interrupt(stage, scene, stride=61) for scene in SCENES.values())
    assert injected > len(SCENES)
    fault_cycles(injected)


@pytest.mark.stress
@pytest.mark.timeout(7200)
@pytest.mark.fault(49, how="ten thousand exceptions at the lines and returns of each public call")
def test_ten_thousand_exceptions_leave_nothing_without_an_owner(stage: Stage, fault_cycles) -> None:
    counts: dict[str, int] = dict.fromkeys(SCENES, 0)
    while sum(counts.values()) < 10_000:
        for name, scene in SCENES.items():
            counts[name] += interrupt(stage, scene, STRIDES.get(name, 1))
    for name, count in counts.items():
        print(f"  {count:6} exceptions in {name}")
    stage.check("the end")
    print(f"  {sum(counts.values()):6} in all, each followed by: 0 {', 0 '.join(stage.before)}; all usable")
    fault_cycles(sum(counts.values()))
