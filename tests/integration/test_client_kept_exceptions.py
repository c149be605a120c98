"""Exceptions that a program keeps keep no handle, message or buffer; collecting them crashes nothing.

A handle stands in one list only, and no frame of a test refers to it. So it dies with the list, unless an
exception refers to it. The collector is off: reference counts alone have to be enough.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver.client.tensor import FLAG
from tests.integration.test_client_close import until
from tests.integration.test_client_reconnect import (  # the fixtures by name
    Instance,
    instance,
    lease_of,
    revoke,
)

__all__ = ["instance"]

TICK = np.dtype([("n", "<i8")])
SOON: Any = "soon"
LARGE = 1 << 20  # more than any producer here takes
PLACED = 6000  # bytes of a message that lies in the arena, and is handed out in place


@pytest.fixture
def client(instance: Instance) -> Iterator[shmdriver.Client]:
    with shmdriver.connect(instance.name) as client:
        gc.collect()
        gc.disable()
        try:
            yield client
        finally:
            gc.enable()


class Bad:
    """An integer that is none."""

    def __index__(self) -> int:
        raise ZeroDivisionError("of the program")


def failure_of(call: Callable[[list[Any]], object], held: list[Any]) -> BaseException:
    """What ``call`` raises with what is in ``held``; no frame of its traceback refers to that by itself."""
    try:
        call(held)
    except BaseException as error:
        return error
    pytest.fail("nothing was raised")


def fill(out: Any) -> bool:
    while out.try_publish(b"x" * 64):
        pass
    return True


def drain(held: list[Any]) -> None:
    """Reads to the end of the stream, and raises what that is."""
    while True:
        held[0].read()


PUBLISHING: dict[str, Callable[[list[Any]], object]] = {
    "bytes": lambda held: held[0].publish(bytes(LARGE)),
    "bytearray": lambda held: held[0].publish(bytearray(LARGE)),
    "memoryview": lambda held: held[0].publish(memoryview(bytes(LARGE))),
    "every other byte": lambda held: held[0].publish(memoryview(bytes(2 * LARGE))[::2]),
    "try": lambda held: held[0].try_publish(bytearray(LARGE)),
    "array": lambda held: held[0].publish_array(np.zeros(LARGE)),
    "every other column": lambda held: held[0].publish_array(np.zeros((LARGE, 4))[:, ::2]),
    "claim": lambda held: held[0].claim(LARGE),
    "claimed array": lambda held: held[0].claim_array(LARGE),
    "objects": lambda held: held[0].publish_array(np.array([None])),
    "text": lambda held: held[0].publish("text"),
    "type": lambda held: held[0].publish(b"x", -1),
    "type of the program": lambda held: held[0].publish(b"x", Bad()),
    "type of a claim": lambda held: held[0].claim(8, type=Bad()),
    "type of an array": lambda held: held[0].publish_array(np.zeros(1), type=Bad()),
    "length": lambda held: held[0].claim(-1),
    "shape": lambda held: held[0].claim_array(-1),
    "full": lambda held: fill(held[0]) and held[0].publish(bytearray(64), timeout=0),
    "full for an array": lambda held: fill(held[0]) and held[0].publish_array(np.zeros(8), timeout=0),
    "full for a claim": lambda held: fill(held[0]) and held[0].claim(64, timeout=0),
    "full for a claimed array": lambda held: fill(held[0]) and held[0].claim_array(64, timeout=0),
    "claim open": lambda held: publish_beside(held),
    "raise in a claim": lambda held: raise_within(held[0].claim(8)),
    "raise in a claimed array": lambda held: raise_within(held[0].claim_array(8)),
    "pickle": lambda held: held[0].__reduce__(),
    "wait": lambda held: held[0].wait_for_consumers(timeout=object()),
}


def publish_beside(held: list[Any]) -> None:
    held.append(held[0].claim(8))
    held[0].publish(bytearray(8))


def raise_within(claim: Any) -> None:
    with claim:
        del claim
        raise KeyError


@pytest.mark.fault(54, how="each failing call of a producer, its exception kept")
@pytest.mark.parametrize("what", PUBLISHING)
def test_kept_exception_keeps_no_producer_and_its_stream_ends_as_aborted(client, what):
    reader = client.consumer("s")
    held: list[Any] = [client.producer("s", slots=16, max_message=8192)]
    handle = weakref.ref(held[0])
    kept = failure_of(PUBLISHING[what], held)
    held.clear()
    assert handle() is None, kept
    with pytest.raises(shmdriver.ProducerLost):
        drain([reader])
    client.producer("s").close()  # the stream is free


RECORDS: dict[str, Callable[[list[Any]], object]] = {
    "dtype": lambda held: held[0].publish(np.zeros(3, "<f4")),
    "bytes": lambda held: held[0].publish(b"123"),
    "type": lambda held: held[0].publish(np.zeros(3, TICK), type=1),
    "full": lambda held: held[0].publish(np.zeros(1000, TICK), timeout=0),
    "objects": lambda held: held[0].publish([object()]),
}


@pytest.mark.fault(54, how="each failing call of a producer of records, its exception kept")
@pytest.mark.parametrize("what", RECORDS)
def test_kept_exception_keeps_no_producer_of_records(client, what):
    reader = client.consumer("s", dtype=TICK)
    held: list[Any] = [client.producer("s", slots=16, dtype=TICK)]
    handle = weakref.ref(held[0])
    kept = failure_of(RECORDS[what], held)
    held.clear()
    assert handle() is None, kept
    with pytest.raises(shmdriver.ProducerLost):
        drain([reader])


@pytest.mark.fault(54, how="a revoked producer's exception is kept")
def test_kept_exception_of_a_revoked_producer_keeps_no_buffer_of_the_program(client, instance):
    held = [client.producer("s")]
    handle = weakref.ref(held[0])
    revoke(instance, lease_of(held[0]))
    data = bytearray(8)
    kept = failure_of(lambda held: held[0].publish(data), held)
    assert isinstance(kept, shmdriver.LeaseRevoked)
    data.append(1)  # BufferError, if anybody had it still
    held.clear()
    assert handle() is None


READING: dict[str, Callable[[list[Any]], object]] = {
    "timeout": lambda held: held[0].read() and held[0].read() and held[0].read(timeout="soon"),
    "not a number": lambda held: held[0].read() and held[0].read() and held[0].read(timeout=float("nan")),
    "limit": lambda held: held[0].read_batch(limit=0),
    "no records": lambda held: held[0].read_batch(),
    "batches": lambda held: next(held[0].batches()),
    "limit of batches": lambda held: held[0].batches(limit=0),
    "wait": lambda held: shmdriver.wait(held, SOON),
    "pickle": lambda held: held[0].__reduce__(),
    "aread_batch": lambda held: asyncio.run(held[0].aread_batch()),
    "limit of abatches": lambda held: held[0].abatches(limit=0),
}
ENDED: dict[str, Callable[[list[Any]], object]] = {
    "read": lambda held: drain(held),
    "iteration": lambda held: [0 for _ in held[0]] and next(held[0]),
    "read at once": lambda held: drain(held) if held[0].read(timeout=0) else None,
    "aread": lambda held: asyncio.run(read_to_the_end(held)),
    "async for": lambda held: asyncio.run(look_over(held)),
}


async def read_to_the_end(held: list[Any]) -> None:
    while True:
        await held[0].aread()


async def look_over(held: list[Any]) -> None:
    async for _ in held[0]:
        pass
    await anext(held[0].__aiter__())


@pytest.mark.fault(54, how="each failing call of a consumer, its exception kept")
@pytest.mark.parametrize("what", READING)
def test_kept_exception_keeps_no_consumer(client, what):
    held: list[Any] = [client.consumer("s")]
    handle = weakref.ref(held[0])
    out = client.producer("s", slots=16, max_message=8192)
    out.publish(bytes(PLACED))
    out.publish(b"small")
    kept = failure_of(READING[what], held)
    held.clear()
    assert handle() is None, kept
    until(lambda: [lease.role for lease in client.leases() if lease.live] == ["producer"])
    out.close()


@pytest.mark.fault(54, how="each way to read past the end, its exception kept")
@pytest.mark.parametrize("what", ENDED)
def test_kept_exception_at_the_end_keeps_no_consumer(client, what):
    held: list[Any] = [client.consumer("s")]
    handle = weakref.ref(held[0])
    with client.producer("s", slots=16, max_message=8192) as out:
        out.publish(bytes(PLACED))
        out.publish(b"small")
    kept = failure_of(ENDED[what], held)
    held.clear()
    assert handle() is None, kept
    until(lambda: not any(lease.live for lease in client.leases()))


ATTACHING: dict[str, Callable[[list[Any]], object]] = {
    "name": lambda held: held[0].producer(""),
    "argument": lambda held: held[0].consumer("s", delivery="sometimes"),
    "memory": lambda held: held[0].producer("s", slots=1 << 26, slot_bytes=65536),
    "schema": lambda held: held[0].consumer("records", dtype="f8"),
    "taken": lambda held: held[0].producer("records"),
    "queue": lambda held: held[0].queue("q" * 1000),
}


@pytest.mark.fault(54, how="each failing call of a client, its exception kept")
@pytest.mark.parametrize("what", ATTACHING)
def test_kept_exception_keeps_no_client_and_no_lease(client, what):
    with client.producer("records", dtype=TICK) as out:
        held: list[Any] = [shmdriver.connect(client.instance)]
        handle = weakref.ref(held[0])
        kept = failure_of(ATTACHING[what], held)
        held.clear()
        assert handle() is None, kept
        until(lambda: [lease.stream for lease in client.leases() if lease.live] == [out.stream])


@pytest.mark.fault(54, how="a reader whose own views fill the ring")
def test_kept_exception_of_a_full_ring_keeps_no_message(client):
    reader = client.consumer("s")
    out = client.producer("s", slots=4, max_message=8192)
    held: list[Any] = []
    while out.try_publish(bytes(PLACED)):
        held.append(reader.read(timeout=0))
    kept = failure_of(lambda _: reader.read(timeout=60), [])
    assert isinstance(kept, shmdriver.ViewsHeld)
    held.clear()
    assert reader.held == 0
    reader.release()
    assert out.try_publish(b"room again") == 1


MESSAGE: dict[str, Callable[[list[Any]], object]] = {
    "array of bytes": lambda held: held[0].array,
    "array of garbage": lambda held: held[1].array,
    "meta of garbage": lambda held: held[1].meta,
    "order": lambda held: held[0] < 3,
    "type": lambda held: held[0].data.cast("x"),
}


@pytest.mark.fault(54, how="each failing use of a message, its exception kept")
@pytest.mark.parametrize("what", MESSAGE)
def test_kept_exception_keeps_no_message_and_its_place_is_free(client, what):
    reader = client.consumer("s")
    out = client.producer("s", slots=4, max_message=8192)
    out.publish(bytes(PLACED))
    out._publish_array(bytes(64), bytes(PLACED), FLAG, 0, None)
    held: list[Any] = [reader.read(), reader.read()]
    assert reader.held == 2
    kept = failure_of(MESSAGE[what], held)
    held.clear()
    assert reader.held == 0, kept


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.fault(54, 49, how="a handler that raises at random points; all its exceptions are kept")
def test_kept_exceptions_of_a_handler_keep_no_handle_and_no_message(client):
    class Alarm(Exception):
        pass

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise Alarm

    held: list[Any] = [
        client.producer("s", slots=64, max_message=8192),
        client.consumer("s"),
        client.producer("r", slots=64, dtype=TICK),
        client.consumer("r", dtype=TICK),
    ]
    handles = [weakref.ref(handle) for handle in held]
    calls: list[Callable[[], object]] = [
        lambda: held[0].publish(bytearray(100), timeout=0),
        lambda: held[0].publish_array(np.zeros(1000, "u1")[::2], timeout=0),
        lambda: held[1].read(timeout=0),
        lambda: held[1].read(timeout=0),
        lambda: held[2].publish(np.zeros(3, TICK), timeout=0),
        lambda: held[3].read_batch(timeout=0),
        lambda: held[0].seq,
        lambda: held[1].lag,
        lambda: shmdriver.wait([held[1], held[3]], timeout=0),
        lambda: repr(held[0]),
    ]
    kept: list[BaseException] = []
    before = signal.signal(signal.SIGALRM, handle)
    try:
        while sum(isinstance(error, Alarm) for error in kept) < 500:
            for call in calls:
                try:
                    # Again and again: what a handler raises within a finaliser goes nowhere.
                    signal.setitimer(signal.ITIMER_REAL, 20e-6 + 1e-6 * (len(kept) % 50), 0.01)
                    while True:
                        call()
                except (Alarm, shmdriver.BackPressured) as error:
                    kept.append(error)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:  # in the moment between the handlers
        pass
    finally:
        signal.signal(signal.SIGALRM, before)
    held.clear()
    assert [handle() for handle in handles] == [None] * 4
    until(lambda: not any(lease.live for lease in client.leases()))


CRASH = textwrap.dedent("""
    import array, gc, sys
    import numpy as np
    import shmdriver

    kept = []
    with shmdriver.embedded() as client:
        reader = client.consumer("s")
        out = client.producer("s", slots=16, max_message=8192)
        size = 1 << 20
        many = [bytearray(size), memoryview(bytes(size)), array.array("d", [0] * size), np.zeros(size)]
        for turn in range(20):
            for data in many:
                for call in (out.publish, out.try_publish, lambda data: out.publish_array(np.asarray(data))):
                    try:
                        call(data)
                    except shmdriver.MessageTooLarge as error:
                        kept.append(error)
            place = out.claim(8)
            try:
                out.publish(bytearray(8))
            except shmdriver.ClaimError as error:
                kept.append(error)
            place.abort()
            while out.try_publish(bytearray(8)):
                pass
            try:
                out.publish(memoryview(bytes(8)), timeout=0)
            except shmdriver.BackPressured as error:
                kept.append(error)
            for error in kept:
                error.itself = error  # the collector's, from now on
            kept.clear()
            gc.collect()
            while reader.read(timeout=0) is not None:
                pass
            reader.release()
    print("collected")
""")


@pytest.mark.fault(54, how="exceptions in cycles, collected")
def test_exceptions_of_failed_publishes_are_collected_without_a_crash():
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "collected\n"), done.stderr


def test_what_user_code_raises_comes_out_as_it_is(client):
    """Neither swallowed nor evaluated again."""
    out = client.producer("s")
    asked: list[int] = []

    class Counts:
        def __index__(self) -> int:
            asked.append(1)
            raise KeyError("of the program")

    for call in (
        lambda: out.publish(b"x", Counts()),
        lambda: out.try_publish(b"x", Counts()),
        lambda: out.claim(Counts()),
        lambda: out.claim(8, type=Counts()),
        lambda: out.publish_array(np.zeros(3), type=Counts()),
        lambda: out.claim_array(3, type=Counts()),
    ):
        asked.clear()
        with pytest.raises(KeyError, match="of the program"):
            call()
        assert asked == [1]
    out.publish(b"x")
    assert out.seq == 1


def test_traceback_still_says_where(client):
    held = [client.producer("s", slots=16, max_message=8192)]
    error = failure_of(lambda held: held[0].publish(bytearray(LARGE)), held)
    names = []
    trace = error.__traceback__
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert names[:2] == ["failure_of", "<lambda>"]
    assert "_make_room" in names
