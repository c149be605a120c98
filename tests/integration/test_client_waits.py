"""Waiting costs next to nothing: how often a thread that waits goes to sleep, and what ends its sleep."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterator

import pytest

import shmdriver
from shmdriver.client import link
from shmdriver.observe import Instance

WAIT_S = 0.9
ENDLESS_NS = 10**17
SLEEPS_MAX = 15  # 20, 40, 80 ms and so on, and what the interpreter adds; 50 and 450 when they did not grow
GUARD_S = 60
BIG = bytes(60_000)


@pytest.fixture
def client() -> Iterator[shmdriver.Client]:
    with shmdriver.embedded() as client:
        yield client


def sleeps_in(call: Callable[[], object]) -> int:
    """How often this thread gave its core away by itself meanwhile."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    call()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before


def is_asleep(client: shmdriver.Client) -> bool:
    with Instance(client.instance) as instance:
        gates = [gate for stream in instance.streams() for epoch in stream.epochs for gate in epoch.gates]
    return any(gate.sleeping for gate in gates)


def fill(out: shmdriver.Producer) -> None:
    while out.try_publish(b"x"):
        pass


def blocked(out: shmdriver.Producer) -> None:
    with pytest.raises(shmdriver.BackPressured):
        out.publish(b"x", timeout=WAIT_S)


@pytest.mark.fault(76, how="one thread of each kind in a wait, sleeps counted")
def test_thread_that_waits_hardly_ever_wakes_by_itself(client: shmdriver.Client) -> None:
    out = client.producer("s", max_message=16)
    consumer, other = client.consumer("s"), client.consumer("unproduced")
    waits: dict[str, Callable[[], object]] = {
        "read": lambda: consumer.read(timeout=WAIT_S),
        "read before there is a producer": lambda: other.read(timeout=WAIT_S),
        "wait": lambda: shmdriver.wait([consumer, other], WAIT_S),
        "wait_for_consumers": lambda: out.wait_for_consumers(2, WAIT_S),
    }
    found = {name: sleeps_in(wait) for name, wait in waits.items()}
    fill(out)
    found["publish"] = sleeps_in(lambda: blocked(out))
    assert {name: sleeps for name, sleeps in found.items() if sleeps > SLEEPS_MAX} == {}


@pytest.mark.fault(76, how="one thread of each kind in a wait, sleeps counted")
def test_reader_that_goes_on_waiting_keeps_its_long_sleeps(client: shmdriver.Client) -> None:
    with client.producer("s", max_message=16):  # a dropped one would end the stream
        consumer = client.consumer("s")
        assert consumer.read(timeout=WAIT_S) is None
        assert sleeps_in(lambda: consumer.read(timeout=WAIT_S / 2)) <= SLEEPS_MAX // 3


@pytest.mark.fault(76, how="views dropped by another thread beside a wait without an end")
@pytest.mark.parametrize("several", [False, True])
def test_view_that_another_thread_drops_frees_its_place_while_the_reader_waits(
    client: shmdriver.Client, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waiting reader told what it held before it slept; the producer's need wakes it, to tell anew."""
    monkeypatch.setattr(link, "FOREVER_SLICE_NS", ENDLESS_NS)
    out = client.producer("s", arena=128 * 1024, max_message=len(BIG))
    consumer, other = client.consumer("s"), client.consumer("other")

    def read() -> object:
        if several:
            assert shmdriver.wait([other, consumer], GUARD_S) == [consumer]
        return consumer.read(timeout=GUARD_S)

    held = []
    for _ in range(2):  # the arena is full
        out.publish(BIG)
        held.append(consumer.read())
    del held[1:]
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(read()), daemon=True)
    thread.start()
    while not is_asleep(client):
        threading.Event().wait(0.001)
    held.clear()
    out.publish(BIG, timeout=GUARD_S)
    thread.join(GUARD_S)
    assert len(got) == 1
    assert got[0] is not None


@pytest.mark.fault(76, how="no driver at all, sleeps counted")
def test_client_that_waits_for_a_driver_looks_ever_less_often(instance_name: str) -> None:
    def connect() -> None:
        with pytest.raises(shmdriver.DriverUnavailable):
            shmdriver.connect(instance_name, timeout=2 * WAIT_S, reconnect=True)

    assert sleeps_in(connect) < 2 * WAIT_S / 0.02 / 2  # each 20 ms before
