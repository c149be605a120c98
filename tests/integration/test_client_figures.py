"""What a handle has counted stays readable: after its close, its revocation, its stream's end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import shmdriver
from tests.integration.test_client_reconnect import (  # the fixtures by name
    Instance,
    instance,
    lease_of,
    revoke,
)

__all__ = ["instance"]

TICK = np.dtype([("n", "<i8")])
PRODUCERS = ("seq", "max_message", "epoch", "slots", "blocked_total_ns", "reattachments", "stream")
CONSUMERS = (
    "lost", "lost_ranges", "skipped", "lag", "epoch", "held", "buffered", "reattachments", "dtype",
    "delivery", "shard", "stream",
)  # fmt: skip


@pytest.fixture
def client(instance: Instance) -> Iterator[shmdriver.Client]:
    with shmdriver.connect(instance.name) as client:
        yield client


def figures(handle: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(handle, name) for name in names}


ENDS: dict[str, Callable[[Any], object]] = {
    "close": lambda handle: handle.close(),
    "with": lambda handle: handle.__exit__(None, None, None),
    "close, twice": lambda handle: (handle.close(), handle.close()),
}


@pytest.mark.parametrize("how", [*ENDS, "abort"])
def test_figures_of_a_producer_stay_readable_after_its_close(client, how):
    reader = client.consumer("s")
    out = client.producer("s", slots=8, max_message=5000)
    while out.try_publish(b"x"):
        pass
    with pytest.raises(shmdriver.BackPressured):
        out.publish(b"x", timeout=0.001)
    reader.read()
    reader.release()
    out.publish(b"x")
    before = figures(out, PRODUCERS)
    assert before["seq"] == 33
    assert before["blocked_total_ns"] > 0
    {**ENDS, "abort": lambda out: out.abort()}[how](out)
    assert out.closed
    assert figures(out, PRODUCERS) == before
    assert out.consumers == 0
    with pytest.raises(shmdriver.HandleClosed):
        out.publish(b"x")


@pytest.mark.parametrize("delivery", ["reliable", "lossy", "latest"])
@pytest.mark.parametrize("how", ENDS)
def test_figures_of_a_consumer_stay_readable_after_its_close(client, how, delivery):
    reader = client.consumer("s", delivery=delivery, dtype=TICK)
    out = client.producer("s", slots=8, dtype=TICK)
    for _ in range(5):
        out.try_publish(np.zeros(100, TICK))
        if delivery == "reliable":
            break
    reader.read()
    out.try_publish(np.zeros(3, TICK))
    assert reader.lag > 0  # a reader of the latest passes over what it looks at
    before = figures(reader, CONSUMERS)
    assert before["lost"] + before["skipped"] + before["lag"] > 0
    waiting = before.pop("buffered")
    ENDS[how](reader)
    assert reader.closed
    after = figures(reader, CONSUMERS)
    assert after.pop("buffered") == 0, waiting
    assert after == before
    with pytest.raises(shmdriver.HandleClosed):
        reader.read(timeout=0)


@pytest.mark.parametrize("how", ["end", "lost", "revoked"])
def test_figures_stay_readable_after_an_end_that_nobody_asked_for(client, instance, how):
    reader = client.consumer("s", delivery="lossy")
    out = client.producer("s", slots=8)
    for _ in range(100):
        out.publish(b"x")
    count = 0
    while reader.read(timeout=0) is not None:
        count += 1
    before = figures(reader, CONSUMERS)
    assert before["lost"] == 100 - count
    if how == "revoked":
        revoke(instance, lease_of(reader))
        revoke(instance, lease_of(out))
    else:
        {"end": out.close, "lost": out.abort}[how]()
    with pytest.raises((shmdriver.EndOfStream, shmdriver.ProducerLost, shmdriver.LeaseRevoked)):
        reader.read()
    assert figures(reader, CONSUMERS[:3]) == {name: before[name] for name in CONSUMERS[:3]}
    if how == "revoked":
        with pytest.raises(shmdriver.LeaseRevoked):
            out.publish(b"x")
    assert out.seq == 100
    reader.close()
    out.close()
    assert figures(reader, CONSUMERS[:3]) == {name: before[name] for name in CONSUMERS[:3]}
    assert out.seq == 100


def test_figures_are_those_of_all_tenures_after_the_close(instance):
    with shmdriver.connect(instance.name, reconnect=True) as client:
        reader = client.consumer("s", delivery="lossy", dtype=TICK)
        out = client.producer("s", slots=8, dtype=TICK)
        for _ in range(100):
            out.publish(np.zeros(1, TICK))
        while reader.read(timeout=0) is not None:
            pass
        lost = reader.lost
        revoke(instance, lease_of(reader))
        out.publish(np.zeros(1, TICK))
        while not reader.reattachments:
            reader.read(timeout=0.01)
        before = figures(reader, CONSUMERS)
        assert before["lost"] >= lost > 0
        reader.close()
        assert figures(reader, CONSUMERS) == before
        out.close()
        assert out.seq == 101
