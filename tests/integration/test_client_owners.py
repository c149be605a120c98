"""Who owns what between two steps: threads that connect at once, finalisers that never wait, late closers."""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmdriver
from shmdriver.observe import Instance
from tests.chaos.stage import wait_until
from tests.chaos.zygote import NATIVE_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0


@pytest.fixture
def client() -> Iterator[shmdriver.Client]:
    with shmdriver.embedded() as client:
        yield client


def clients_of(instance: str) -> int:
    with Instance(instance) as view:
        return len(view.clients())


def at_once(threads: int, act: object) -> list[object]:
    """What ``act()`` returned or raised in each of so many threads that begin together."""
    barrier = threading.Barrier(threads)
    found: list[object] = []

    def run() -> None:
        barrier.wait(PATIENCE_S)
        try:
            found.append(act())  # type: ignore[operator]
        except Exception as error:
            found.append(error)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(PATIENCE_S)
    return found


@pytest.mark.fault(46, how="eight threads use an unpickled client at once")
def test_threads_that_use_a_new_client_at_once_make_one_connection(client, fault_cycles) -> None:
    for _ in range(20):
        copy = pickle.loads(pickle.dumps(client))
        ids = at_once(8, lambda copy=copy: copy.client_id)
        assert len(set(map(str, ids))) == 1, ids
        assert clients_of(client.instance) == 2
        copy.close()
        wait_until(lambda: clients_of(client.instance) == 1, "the closed client to be gone")
    fault_cycles(20)


def test_a_client_closed_while_threads_connect_it_keeps_no_connection(client) -> None:
    for turn in range(20):
        copy = pickle.loads(pickle.dumps(client))
        closes = iter([turn % 4])

        def use(copy=copy, closes=closes) -> object:
            return copy.close() if next(closes, None) is not None else copy.client_id

        for found in at_once(4, use):
            assert found is None or isinstance(found, int | shmdriver.HandleClosed), found
        wait_until(lambda: clients_of(client.instance) == 1, "the closed client to be gone")


@pytest.mark.fault(46, how="a handle is closed from another thread, while its own is inside")
def test_a_handle_closed_by_another_thread_says_that_it_is_closed(client, fault_cycles) -> None:
    for _ in range(30):
        producer = client.producer("s", slots=16, max_message=64)
        told: list[BaseException] = []
        begun = threading.Event()

        def publish(producer=producer, told=told, begun=begun) -> None:
            try:
                while True:
                    producer.publish(b"x")
                    begun.set()
            except Exception as raised:
                told.append(raised)

        thread = threading.Thread(target=publish)
        thread.start()
        assert begun.wait(PATIENCE_S)
        producer.close()
        thread.join(PATIENCE_S)
        assert [type(error) for error in told] == [shmdriver.HandleClosed]
    fault_cycles(30)


def test_a_dropped_embedded_driver_ends(client) -> None:
    before = set(threading.enumerate())
    block = shmdriver.embedded()
    instance = block.__enter__().instance
    assert instance != client.instance
    del block
    gc.collect()
    wait_until(lambda: set(threading.enumerate()) <= before, "the dropped driver's thread to end")
    assert not [entry.name for entry in Path("/dev/shm").iterdir() if instance in entry.name]


@pytest.mark.fault(50, how="cycles of all kinds, collected by gc in three threads, driver stopped")
def test_finalisers_enter_no_waiting_call(instance_name: str, failpoints: Path, fault_cycles) -> None:
    environment = {**os.environ, NATIVE_VARIABLE: str(failpoints), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.finalisers", instance_name],
        env=environment, cwd=ROOT, timeout=300, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"main": 0, "other": 0, "driver": 0}
    fault_cycles(64)


PLAIN = """
import gc, shmdriver
kept = []
with shmdriver.embedded() as client:
    for number in range(20):
        consumer = client.consumer(f"s{number}")
        producer = client.producer(f"s{number}", slots=8, max_message=64)
        try:
            producer.publish(bytearray(100) if number % 2 else b"x")
        except shmdriver.MessageTooLarge as error:
            error.producer = producer
        producer.publish(b"last")
        assert bytes(consumer.read())
        cycle = [consumer, producer]
        cycle.append(cycle)
        del consumer, producer, cycle
        gc.collect()
"""


def test_a_program_that_drops_its_handles_ends_with_its_embedded_driver() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], timeout=PATIENCE_S, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
