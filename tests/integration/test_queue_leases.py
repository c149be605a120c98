"""A getter whose lease ends between the fetch of an object and its copy unpickles no other one's bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import pytest

import shmdriver
from shmdriver.client.attach import acquire
from shmdriver.client.outlet import _Lane
from tests.chaos.stage import wait_until
from tests.integration.test_client_reconnect import (
    PATIENCE_S,
    Instance,
    client,
    instance,
    lease_of,
    revoke,
)

__all__ = ["client", "instance"]

OBJECT_BYTES = 10_000
QUEUE: dict[str, Any] = {"max_bytes": 1 << 16}
ROUNDS = 20  # more objects than the arena has room for


@contextmanager
def before(code: CodeType, act: Callable[[], object]) -> Iterator[None]:
    """Calls ``act`` when this thread enters a function with this code, once."""
    acts = [act]

    def trace(frame: FrameType, _event: str, _argument: Any) -> None:
        if frame.f_code is code and acts:
            acts.pop()()

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)
    assert not acts


def thing(number: int) -> bytes:
    return bytes([number]) * OBJECT_BYTES


def revoke_all(instance: Instance, queue: Any) -> None:
    for lane in queue._outlet._array:
        revoke(instance, lease_of(lane.consumer))
    revoke(instance, lease_of(queue._outlet.getter))


@pytest.mark.fault(52, how="a getter is revoked and replaced while it copies")
@pytest.mark.parametrize("reconnect", [False, True])
def test_a_getter_that_was_replaced_hands_out_no_other_objects_bytes(instance, client, reconnect):
    kept = client.queue("q", **QUEUE)
    kept.put(thing(0))
    with (
        shmdriver.connect(instance.name, reconnect=reconnect) as first,
        shmdriver.connect(instance.name, reconnect=True) as second,
    ):
        old, new = first.queue("q", **QUEUE), second.queue("q", **QUEUE)
        assert old.get(timeout=PATIENCE_S) == thing(0)
        kept.put(thing(1))  # its getter is there: it lies in shared memory as long as that reads it

        def replace() -> None:
            revoke_all(instance, old)
            for number in range(2, ROUNDS):
                kept.put(thing(number), timeout=PATIENCE_S)
                assert new.get(timeout=PATIENCE_S) == thing(number)

        with (
            before(_Lane.payload_of.__code__, replace),
            pytest.raises(shmdriver.AttachRejected if reconnect else shmdriver.ObjectsLost),
        ):
            old.get(timeout=PATIENCE_S)


@pytest.mark.fault(52, how="a getter is revoked while it copies")
@pytest.mark.parametrize("reconnect", [False, True])
def test_a_getter_that_was_revoked_says_which_objects_it_does_not_hand_out(instance, client, reconnect):
    kept = client.queue("q", **QUEUE)
    kept.put(thing(0))
    with shmdriver.connect(instance.name, reconnect=reconnect) as first:
        queue = first.queue("q", **QUEUE)
        assert queue.get(timeout=PATIENCE_S) == thing(0)
        kept.put(thing(1))
        kept.put(thing(2))
        with (
            before(_Lane.payload_of.__code__, lambda: revoke_all(instance, queue)),
            pytest.raises(shmdriver.ObjectsLost) as told,
        ):
            queue.get(timeout=PATIENCE_S)
        if reconnect:
            assert told.value.lost == 1
            assert queue.get(timeout=PATIENCE_S) == thing(2)
            kept.put(3)
            assert queue.get(timeout=PATIENCE_S) == 3
        else:
            assert told.value.lost == 2
            with pytest.raises(shmdriver.LeaseRevoked):
                queue.get(timeout=PATIENCE_S)


@pytest.mark.fault(46, how="a handle is closed by another thread while it is attached anew")
@pytest.mark.parametrize("role", ["consumer", "producer"])
def test_a_handle_that_is_closed_while_it_is_attached_anew_stays_closed(instance, client, role, monkeypatch):
    handle: Any = client.consumer("s") if role == "consumer" else client.producer("s")
    revoke(instance, lease_of(handle))

    def close_and_acquire(*arguments: Any, **options: Any) -> Any:
        handle.close()
        return acquire(*arguments, **options)

    monkeypatch.setattr("shmdriver.client.reattach.acquire", close_and_acquire)
    with pytest.raises(shmdriver.HandleClosed):
        while True:
            handle._comeback.come_back(handle, 0, 0)
    assert handle.closed
    wait_until(lambda: not client.leases(), "the lease that was made in vain to end", PATIENCE_S)
