"""A program with an embedded driver is killed, and with it the peer that ran there: nobody waits for ever.

Nobody adopts what an embedded driver leaves. What was committed is read first; then every wait ends with an
error. The same holds for handles whose driver was killed and whose segments were removed.
"""

from __future__ import annotations

import asyncio
import os
import select
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver._native import lib
from shmdriver.driver.collect import collect
from shmdriver.errors import DriverUnavailable
from tests.segments import path_of, plantable

PATIENCE_S = 60
DEAD = r"embedded driver of instance \S+ \(in pid \d+\) is dead"
# It runs the driver, and the peer: a producer of "in", and a consumer of "out" that never reads.
PROGRAM = """
import sys, numpy, shmdriver
with shmdriver.embedded() as client:
    kind = numpy.dtype("<i8") if sys.argv[1] == "records" else None
    into = client.producer("in", dtype=kind)
    held = client.consumer("out")
    print(client.instance, flush=True)
    sys.stdin.readline()
    into.publish(b"the last one" if kind is None else numpy.arange(1, dtype=kind))
    print("published", flush=True)
    sys.stdin.read()
"""
DRIVER = """
import sys
from shmdriver.driver.config import Config
from shmdriver.driver.process import run_driver
sys.exit(run_driver(Config.load(overrides={"driver.instance": sys.argv[1]})))
"""


class Program:
    def __init__(self, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.instance = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def publish_and_die(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self._line() == "published"
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def running(kind: str = "bytes") -> Iterator[Program]:
    program = Program(kind)
    try:
        yield program
    finally:
        program.kill()
        collect(program.instance)


def read(consumer: shmdriver.Consumer) -> None:
    while True:
        consumer.read()


def read_until_a_timeout(consumer: shmdriver.Consumer) -> None:
    while True:
        consumer.read(timeout=60)


def iterate(consumer: shmdriver.Consumer) -> None:
    for _ in consumer:
        pass


def wait_then_read(consumer: shmdriver.Consumer) -> None:
    while True:
        (ready,) = shmdriver.wait([consumer])
        ready.read(timeout=0)


def read_when_its_fd_is_readable(consumer: shmdriver.Consumer) -> None:
    while True:
        select.select([consumer.fileno()], [], [])
        consumer.read(timeout=0)


def read_in_a_loop(consumer: shmdriver.Consumer) -> None:
    async def main() -> None:
        while True:
            await consumer.aread()

    asyncio.run(main())


def wait_in_c(consumer: shmdriver.Consumer) -> None:
    while True:
        assert lib.shmd_wait(consumer._handle, 2**64 - 1) == 1
        consumer.read(timeout=0)


WAYS = [
    read,
    read_until_a_timeout,
    iterate,
    wait_then_read,
    read_when_its_fd_is_readable,
    read_in_a_loop,
    wait_in_c,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.fault(51, how="kill -9 of the program that has the embedded driver and the producer")
def test_reader_gets_what_was_committed_and_then_an_error(way: Callable[[shmdriver.Consumer], None]) -> None:
    with (
        running() as program,
        shmdriver.connect(program.instance) as plain,
        shmdriver.connect(program.instance, reconnect=True) as patient,
    ):
        consumers = [client.consumer("in") for client in (plain, patient)]
        program.publish_and_die()
        for consumer in consumers:
            with pytest.raises(DriverUnavailable, match=DEAD):
                way(consumer)
            assert consumer._info().consumed == 1
            with pytest.raises(DriverUnavailable):
                consumer.read()


@pytest.mark.fault(51, how="kill -9 of the program that has the embedded driver and the producer")
def test_reader_of_batches_gets_what_was_committed_and_then_an_error() -> None:
    with running("records") as program, shmdriver.connect(program.instance) as client:
        consumer = client.consumer("in", dtype=np.dtype("<i8"))
        program.publish_and_die()
        assert consumer.read_batch().tolist() == [0]
        with pytest.raises(DriverUnavailable, match=DEAD):
            consumer.read_batch()


@pytest.mark.fault(51, how="kill -9 of the program that has the embedded driver, no producer yet")
def test_reader_of_a_stream_without_a_producer_gets_an_error() -> None:
    with running() as program, shmdriver.connect(program.instance) as client:
        consumer = client.consumer("nobody")
        program.kill()
        with pytest.raises(DriverUnavailable):
            consumer.read()


def publish(producer: shmdriver.Producer) -> None:
    while True:
        producer.publish(b"x" * 100)


def publish_until_a_timeout(producer: shmdriver.Producer) -> None:
    while True:
        producer.publish(b"x" * 100, timeout=60)


def claim(producer: shmdriver.Producer) -> None:
    while True:
        with producer.claim(100):
            pass


def try_again_and_again(producer: shmdriver.Producer) -> None:
    while True:
        producer.try_publish(b"x" * 100)


def publish_in_c(producer: shmdriver.Producer) -> None:
    code = 0
    while code == 0:
        code = lib.shmd_publish_wait(producer._handle, b"x" * 100, 100, 0, 2**64 - 1)
    assert code == lib.SHMD_E_DRIVER_UNAVAILABLE
    producer.publish(b"x")


@pytest.mark.parametrize(
    "way", [publish, publish_until_a_timeout, claim, try_again_and_again, publish_in_c],
    ids=lambda way: way.__name__,
)  # fmt: skip
@pytest.mark.fault(51, how="kill -9 of the program that has the embedded driver and the consumer")
def test_writer_that_waits_for_room_gets_an_error(way: Callable[[shmdriver.Producer], None]) -> None:
    with running() as program, shmdriver.connect(program.instance) as client:
        producer = client.producer("out", slots=4)
        program.kill()
        with pytest.raises(DriverUnavailable, match=DEAD):
            way(producer)


@contextmanager
def serving(instance: str, runtime: Path) -> Iterator[subprocess.Popen[str]]:
    """A driver in a process of its own. What it leaves is removed at the end."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, instance], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
    )  # fmt: skip
    try:
        assert driver.stderr is not None
        assert any(" serves: " in line for line in driver.stderr)
        yield driver
    finally:
        driver.kill()
        driver.wait()
        collect(instance)


@pytest.mark.fault(51, how="kill -9 of a driver, its segments removed")
def test_handles_notice_that_their_driver_was_killed_and_its_segments_removed(
    instance_name: str, tmp_path: Path
) -> None:
    with serving(instance_name, tmp_path) as driver, shmdriver.connect(instance_name) as client:
        producer, reader = client.producer("s", slots=4), client.consumer("t")
        holds = client.consumer("s")
        driver.kill()
        driver.wait()
        collect(instance_name)
        for wait in (lambda: publish(producer), lambda: read(reader), lambda: read(holds)):
            with pytest.raises(DriverUnavailable, match="segments were removed"):
                wait()
        assert holds._info().consumed == producer._info().seq > 0, "what was committed is read first"


@contextmanager
def another_layout(instance: str) -> Iterator[None]:
    """An authority of another layout version bears the instance's name."""
    path = plantable(instance, "authority")
    magic = int(lib.shmd_magic(lib.SHMD_SEGMENT_AUTHORITY))
    path.write_bytes(struct.pack("<QIIQ", magic, 99, 1, 8192).ljust(8192, b"\0"))
    try:
        yield
    finally:
        path.unlink()


@pytest.mark.parametrize("successor", [nullcontext, another_layout])
def test_getter_notices_that_its_segments_were_removed_although_a_stranger_shows_a_sign_of_life(
    instance_name: str, tmp_path: Path, successor: Any
) -> None:
    """As a child of the driver may. Only what stands under the name by now tells that they were removed."""
    with serving(instance_name, tmp_path) as driver, shmdriver.connect(instance_name) as client:
        queue = client.queue("q")
        with pytest.raises(Empty):
            queue.get(timeout=0)
        with path_of(instance_name, "authority").open("rb") as authority:
            driver.kill()
            driver.wait()
            collect(instance_name)
            assert lib.shmd_life_show(authority.fileno()) == 0
            with successor(instance_name), pytest.raises(DriverUnavailable, match="segments were removed"):
                queue.get(timeout=PATIENCE_S)


def test_program_that_stays_alive_ends_nobodys_wait() -> None:
    with running() as program, shmdriver.connect(program.instance) as client:
        consumer: Any = client.consumer("in")
        assert consumer.read(timeout=2.5) is None, "two looks found a living driver"
        program.publish_and_die()
        assert bytes(consumer.read()) == b"the last one"
