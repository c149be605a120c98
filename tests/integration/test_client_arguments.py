"""Arguments: nothing is cut or taken for something else; a refusal names the argument and what it takes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver.client.link import FOREVER_SLICE_NS, NEVER, Deadline

KIND = np.dtype("<i8")


@pytest.fixture
def client(instance_name: str) -> Iterator[Any]:
    with shmdriver.embedded(instance_name) as client:
        yield client


@pytest.fixture
def held(client: Any) -> SimpleNamespace:
    """Handles whose calls have to wait: readers of an empty stream, producers of a full one, both queues."""
    full, records = client.producer("full", slots=2), client.producer("numbers", dtype=KIND)
    keeper = client.consumer("full")
    while full.try_publish(b"x"):
        pass
    empty, bounded = client.queue("empty"), client.queue("bounded", maxsize=1)
    bounded.put(1)
    return SimpleNamespace(
        client=client, full=full, keeper=keeper, records=records, reader=client.consumer("empty"),
        numbers=client.consumer("numbers"), empty=empty, bounded=bounded,
        connect=shmdriver.connect, make_queue=shmdriver.Queue,
    )  # fmt: skip


async def _awaited(make: Callable[[], Any]) -> Any:
    return await make()


WAITING_CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "read": lambda h, t: h.reader.read(timeout=t),
    "read_batch": lambda h, t: h.numbers.read_batch(timeout=t),
    "aread": lambda h, t: asyncio.run(_awaited(lambda: h.reader.aread(timeout=t))),
    "aread_batch": lambda h, t: asyncio.run(_awaited(lambda: h.numbers.aread_batch(timeout=t))),
    "wait": lambda h, t: shmdriver.wait([h.reader], t),
    "publish": lambda h, t: h.full.publish(b"x", timeout=t),
    "claim": lambda h, t: h.full.claim(1, timeout=t),
    "publish_array": lambda h, t: h.full.publish_array(np.zeros(2, "u1"), timeout=t),
    "publish_array of strides": lambda h, t: h.full.publish_array(np.zeros(4, "u1")[::2], timeout=t),
    "claim_array": lambda h, t: h.full.claim_array(2, timeout=t),
    "publish of records": lambda h, t: h.records.publish(np.zeros(1 << 22, KIND), timeout=t),
    "wait_for_consumers": lambda h, t: h.full.wait_for_consumers(9, timeout=t),
    "Queue.get": lambda h, t: h.empty.get(timeout=t),
    "Queue.put": lambda h, t: h.bounded.put(2, timeout=t),
    "connect": lambda h, t: shmdriver.connect(h.client.instance, timeout=t),
    "producer": lambda h, t: h.client.producer("new", attach_timeout=t),
    "consumer": lambda h, t: h.client.consumer("new", attach_timeout=t),
}  # fmt: skip


@pytest.mark.fault(69, how="'5' and nan for each timeout")
@pytest.mark.parametrize(
    ("timeout", "error", "text"),
    [
        ("5", TypeError, r"timeout='5': expected seconds, or None to wait for ever"),
        (math.nan, ValueError, r"timeout=nan: expected seconds"),
    ],
)
def test_what_is_no_timeout_is_refused_in_the_same_words_by_every_call(held, timeout, error, text):
    for name, call in WAITING_CALLS.items():
        with pytest.raises(error, match=text):
            pytest.fail(f"{name} returned {call(held, timeout)!r}")


@pytest.mark.parametrize("timeout", [None, math.inf, 1e12, pytest.param(10**400, id="huge"), 1e9])
def test_a_timeout_without_end_is_one(client: Any, timeout: Any) -> None:
    deadline = Deadline(timeout)
    assert (deadline.slice_ns(), deadline.rest_ns(), deadline.rest_s()) == (FOREVER_SLICE_NS, NEVER, math.inf)
    with (
        shmdriver.connect(client.instance, timeout=timeout) as other,
        other.producer("endless", attach_timeout=timeout),
        other.consumer("endless", attach_timeout=timeout),
    ):
        assert other.timeout is timeout


@pytest.mark.parametrize("timeout", [0, 0.0, -1, -math.inf, pytest.param(-(10**400), id="huge"), False])
def test_a_timeout_that_is_over_is_over(timeout: Any) -> None:
    deadline = Deadline(timeout)
    assert (deadline.slice_ns(), deadline.rest_ns()) == (0, 0)


@pytest.mark.parametrize("timeout", [3600, 3600.0, Decimal(3600), np.float32(3600), np.int64(3600)])
def test_numbers_of_all_kinds_are_timeouts(timeout: Any) -> None:
    assert 3590 < Deadline(timeout).rest_s() <= 3600


def test_a_claimed_shape_is_what_counts_as_one(client: Any) -> None:
    with client.producer("shapes", max_message=1 << 10) as out:
        for shape in (np.int64(5), 5, (5,), [np.uint8(5)], np.array([5]), np.array(5)):
            with out.claim_array(shape) as array:
                assert array.shape == (5,)


BAD_CALLS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "cut shape": (
        lambda h: h.full.claim_array((2.7, 3)), TypeError, r"shape=\(2\.7, 3\): expected an int, or a seq",
    ),
    "shape of text": (lambda h: h.full.claim_array("23"), TypeError, r"shape='23': expected"),
    "shape too large": (lambda h: h.full.claim_array((2**64,)), ValueError, r"extents are at least 0, and"),
    "negative shape": (lambda h: h.full.claim_array((-1,)), ValueError, r"extents are at least 0"),
    "order": (lambda h: h.full.claim_array(2, order="X"), ValueError, r"order='X': expected one of 'C', 'F"),
    "meta of text": (
        lambda h: h.full.claim_array(2, meta="abc"), TypeError, r"meta='abc': expected bytes .*encode",
    ),
    "meta of an int": (
        lambda h: h.full.publish_array(np.zeros(2), meta=5), TypeError, r"meta=5: expected bytes or",
    ),
    "slots": (lambda h: h.client.producer("n", slots=2.7), TypeError, r"slots=2\.7: expected an int from"),
    "max_message": (
        lambda h: h.client.producer("n", max_message="1"), TypeError, r"max_message='1': expected an int",
    ),
    "min_consumers": (
        lambda h: h.client.producer("n", min_consumers=1.5), TypeError, r"min_consumers=1\.5: expected",
    ),
    "shard": (lambda h: h.client.consumer("n", shard=(0.5, 4)), TypeError, r"shard=\(0\.5, 4\): expected"),
    "shard of text": (lambda h: h.client.consumer("n", shard="04"), TypeError, r"shard='04': expected"),
    "limit": (lambda h: h.numbers.read_batch(limit=2.5), TypeError, r"limit=2\.5: expected an int of"),
    "limit of 0": (lambda h: h.numbers.batches(limit=0), ValueError, r"limit of 0 records: expected 1"),
    "consumers": (lambda h: h.full.wait_for_consumers("2"), TypeError, r"n='2': expected an int"),
    "maxsize": (lambda h: h.client.queue("n", "5"), TypeError, r"maxsize='5': expected an int"),
    "maxsize cut": (lambda h: h.client.queue("n", 2.7), TypeError, r"maxsize=2\.7: expected an int"),
    "Queue": (lambda h: h.make_queue("5"), TypeError, r"maxsize='5': expected an int"),
    "max_bytes": (
        lambda h: h.client.queue("n", max_bytes=2**41), ValueError, r"max_bytes=2199023255552: expected",
    ),
    "stream": (lambda h: h.client.producer(5), shmdriver.AttachRejected, r"stream name 5: expected 1 to 63"),
    "stream of bytes": (
        lambda h: h.client.consumer(b"s"), shmdriver.AttachRejected, r"stream name b's': expected 1 to 63",
    ),
    "instance": (lambda h: h.connect(5), shmdriver.ConfigError, r"instance name 5: expected 1 to 41"),
    "name": (lambda h: h.connect(name=5), shmdriver.ConfigError, r"client name 5: expected text of 1"),
    "name of bytes": (
        lambda h: h.connect(name="\udcff"), shmdriver.ConfigError, r"client name '.udcff': expected",
    ),
    "callback": (lambda h: h.client.on_event("x"), TypeError, r"on_event\('x'\): expected a function"),
}  # fmt: skip


@pytest.mark.fault(69, how="odd values for each argument")
def test_a_refusal_names_the_argument_and_what_it_takes(held: Any) -> None:
    for what, (call, error, text) in BAD_CALLS.items():
        with pytest.raises(error, match=text):
            pytest.fail(f"{what}: {call(held)!r}")


def test_meta_is_any_buffer(client: Any) -> None:
    with client.producer("meta", slots=4) as out, client.consumer("meta") as into:
        for meta in (b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), np.zeros(4, "u1")):
            out.publish_array(np.zeros(2), meta=meta)
            with out.claim_array(2, meta=meta):
                pass
            assert [into.read(timeout=60).meta for _ in range(2)] == [bytes(meta)] * 2


def test_whole_numbers_of_numpy_are_whole_numbers(client: Any) -> None:
    with (
        client.producer("whole", dtype=KIND, slots=np.int32(8), min_consumers=np.uint8(0)) as out,
        client.consumer("whole", shard=(np.int64(0), np.int64(1))) as into,
    ):
        out.publish(np.arange(4, dtype=KIND))
        assert len(into.read_batch(limit=np.int64(3), timeout=60)) == 3


@pytest.mark.parametrize("length", [2**32 - 2, 2**32 - 100])
def test_the_largest_max_message_is_no_error_of_its_own(client: Any, length: int) -> None:
    """It is refused for the memory that it takes, by the driver, and the refusal says of how much."""
    with pytest.raises(shmdriver.AttachRejected, match=r"bytes"):
        client.producer("large", max_message=length, slots=1 << 20)


def test_a_message_that_no_stream_carries_is_to_be_split() -> None:
    error = shmdriver.MessageTooLarge(stream="s", length=5 << 30, limit=8 << 30)
    assert error.limit == 2**32 - 2
    assert "no message has more than 4294967294: publish it in parts" in str(error)
    assert "max_message=" not in str(error)
