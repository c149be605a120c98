"""Which schema records are read by: their own epoch's. And ends that come before any record."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver.client import Client, Consumer
from shmdriver.driver.config import Config
from shmdriver.driver.embedded import EmbeddedDriver
from shmdriver.errors import EndOfStream, LeaseRevoked, SchemaMismatch
from tests.chaos.stage import wait_until

INTEGERS = np.arange(1, 6, dtype="<i8")
FLOATS = np.linspace(0.5, 4.5, 5)
NARROW = np.arange(3, dtype="<i4")
PAIRS = np.array([(1, 2.5), (2, 3.5)], [("a", "<i8"), ("b", "<f8")])
PATIENCE_S = 60
SHORT = Config.load(env={}, overrides={"policies.shutdown_timeout_ms": 100})


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def produce(client: Client, *arrays: np.ndarray[Any, Any] | bytes, **options: Any) -> None:
    """An epoch for each, one after the other."""
    for array in arrays:
        dtype = array.dtype if isinstance(array, np.ndarray) else None
        with client.producer("s", dtype=dtype, **options) as out:
            out.publish(array)


def same(found: np.ndarray[Any, Any], sent: np.ndarray[Any, Any]) -> bool:
    return bool(found.dtype == sent.dtype) and bool(found.tolist() == sent.tolist())


def batch_of(reader: Consumer) -> Any:
    return reader.read_batch(timeout=PATIENCE_S)


def message_of(reader: Consumer) -> Any:
    return reader.read(timeout=PATIENCE_S)


def data_segment(client: Client) -> Path:
    (epoch,) = client.streams()[0].epochs
    return Path("/dev/shm") / epoch.data_name.lstrip("/")


def by_read_batch(reader: Consumer, count: int) -> list[np.ndarray[Any, Any]]:
    return [batch_of(reader) for _ in range(count)]


def by_batches(reader: Consumer, count: int) -> list[np.ndarray[Any, Any]]:
    batches = reader.batches()
    return [next(batches) for _ in range(count)]


def by_aread_batch(reader: Consumer, count: int) -> list[np.ndarray[Any, Any]]:
    async def read() -> list[np.ndarray[Any, Any]]:
        return [await reader.aread_batch() for _ in range(count)]

    return asyncio.run(read())


def by_abatches(reader: Consumer, count: int) -> list[np.ndarray[Any, Any]]:
    async def read() -> list[np.ndarray[Any, Any]]:
        batches = aiter(reader.abatches())
        return [await anext(batches) for _ in range(count)]

    return asyncio.run(read())


WAYS = [by_read_batch, by_batches, by_aread_batch, by_abatches]


@pytest.mark.fault(53, how="producers of one stream with schemas of one and of other sizes")
@pytest.mark.parametrize("delivery", ["reliable", "lossy"])
@pytest.mark.parametrize("read", WAYS, ids=lambda way: way.__name__)
def test_each_epoch_is_read_by_its_own_schema(
    client: Client, delivery: Any, read: Callable[[Consumer, int], list[np.ndarray[Any, Any]]]
) -> None:
    sent = (INTEGERS, FLOATS, NARROW, PAIRS, INTEGERS)
    with client.consumer("s", delivery=delivery, follow=True) as reader:
        got = []
        if delivery == "reliable":
            produce(client, *sent[:3])  # a stream keeps four epochs
            got += read(reader, 3)
            produce(client, *sent[3:])
            got += read(reader, 2)
        else:
            for array in sent:
                produce(client, array)
                got += read(reader, 1)
        assert [same(*pair) for pair in zip(got, sent, strict=True)] == [True] * 5


@pytest.mark.fault(53, how="messages that were fetched in one epoch and handed out while the next is mapped")
@pytest.mark.parametrize("delivery", ["reliable", "lossy"])
def test_rows_that_were_fetched_one_by_one_keep_their_epochs_schema(client: Client, delivery: Any) -> None:
    with client.consumer("s", delivery=delivery, follow=True) as reader:
        produce(client, INTEGERS, FLOATS)
        for sent in (INTEGERS, FLOATS):
            first = message_of(reader)
            assert reader.dtype == sent.dtype
            assert np.frombuffer(first, reader.dtype).tolist() == sent[:1].tolist()
            batch = batch_of(reader)
            assert same(batch, sent[1:])
            assert reader.dtype == sent.dtype


def test_the_dtype_is_of_what_was_read_last_before_that_of_what_comes(client: Client) -> None:
    with client.consumer("s", follow=True) as reader:
        assert reader.dtype is None
        with client.producer("s", dtype=INTEGERS.dtype) as out:
            assert reader.dtype == INTEGERS.dtype
            out.publish(INTEGERS)
            batch_of(reader)
        with client.producer("s", dtype=FLOATS.dtype) as out:
            assert reader.read_batch(timeout=0) is None
            assert reader.dtype == INTEGERS.dtype
            out.publish(FLOATS)
            assert same(batch_of(reader), FLOATS)
            assert reader.dtype == FLOATS.dtype


def test_a_batch_that_is_kept_keeps_its_schema(client: Client) -> None:
    with client.consumer("s", follow=True) as reader:
        produce(client, INTEGERS, FLOATS, slots=64)
        kept = by_read_batch(reader, 2)
        assert same(kept[0], INTEGERS)
        assert same(kept[1], FLOATS)


def test_bytes_between_records_are_refused_as_records_and_stay_readable(client: Client) -> None:
    with client.consumer("s", follow=True) as reader:
        with client.producer("s"):
            pass  # bytes, but not one message: nothing to refuse
        produce(client, INTEGERS, b"eight by", FLOATS)
        assert same(batch_of(reader), INTEGERS)
        for _ in range(2):
            with pytest.raises(TypeError, match="carries bytes"):
                batch_of(reader)
        assert bytes(message_of(reader)) == b"eight by"
        assert same(batch_of(reader), FLOATS)


def test_an_array_among_records_is_no_record(client: Client) -> None:
    with client.producer("s", slots=64, slot_bytes=512) as out:
        out.publish_array(INTEGERS[:1])
        out.publish_array(INTEGERS[:1])
        with client.consumer("s", delivery="lossy", start="oldest") as reader:
            assert len(message_of(reader)) == 8
            assert reader.buffered == 1
            with pytest.raises(TypeError, match="carries bytes"):
                batch_of(reader)


@pytest.mark.fault(53, how="the schema of an epoch overwritten by its producer's process")
@pytest.mark.parametrize(
    "garbage", [b"[('a', '<f8')", b"'<f8'; 1", b"(" * 500, b"\xff\xfe", b"-" * 1000 + b"1"]
)
def test_a_schema_that_is_none_is_refused(client: Client, garbage: bytes) -> None:
    with client.consumer("s") as reader, client.producer("s", dtype=INTEGERS.dtype) as out:
        with data_segment(client).open("r+b") as segment:
            segment.seek(2048)  # shmd_data_t.schema
            segment.write(garbage)
            segment.seek(164)  # shmd_data_t.schema_bytes
            segment.write(len(garbage).to_bytes(4, sys.byteorder))
        out.publish(INTEGERS)
        with pytest.raises(SchemaMismatch):
            batch_of(reader)
        assert len(message_of(reader)) == 8


@pytest.mark.fault(53, how="the length of an epoch's schema overwritten")
def test_a_schema_of_impossible_length_is_refused(client: Client) -> None:
    with client.consumer("s") as reader, client.producer("s", dtype=INTEGERS.dtype) as out:
        with data_segment(client).open("r+b") as segment:
            segment.seek(164)
            segment.write(b"\xff\xff\xff\xff")
        out.publish(INTEGERS)
        with pytest.raises(SchemaMismatch, match="4294967295 bytes"):
            batch_of(reader)


def test_a_reader_with_a_dtype_is_told_of_another_one_field_by_field(client: Client) -> None:
    """The driver refuses such a pair; a schema that was changed afterwards is found out by the reader."""
    with client.consumer("s", dtype=PAIRS.dtype) as reader, client.producer("s", dtype=PAIRS.dtype) as out:
        text = b"[('a', '<i8'), ('b', '<i8')]"
        with data_segment(client).open("r+b") as segment:
            segment.seek(2048)
            segment.write(text)
        out.publish(PAIRS)
        with pytest.raises(SchemaMismatch, match="'b': found int64 at byte 8, expected float64 at byte 8"):
            batch_of(reader)


@pytest.mark.fault(53, how="tail over two producers whose records have one size and different fields")
def test_tail_shows_each_record_by_its_own_producers_schema(client: Client) -> None:
    arguments = [sys.executable, "-m", "shmdriver", "tail", "s", "--count", "4", "-i", client.instance]
    tail = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    one, other = np.dtype([("whole", "<i8")]), np.dtype([("part", "<f8")])
    with client.producer("s", dtype=one, slots=64) as out:
        assert out.wait_for_consumers(1, timeout=PATIENCE_S) == 1
        os.kill(tail.pid, signal.SIGSTOP)
        out.publish(np.array([(7,), (8,)], one))
    with client.producer("s", dtype=other, slots=64) as out:
        out.publish(np.array([(0.5,), (1.5,)], other))
        os.kill(tail.pid, signal.SIGCONT)
        text, _ = tail.communicate(timeout=PATIENCE_S)
    shown = [line.split()[-1] for line in text.splitlines()[1:]]
    assert shown == ["whole=7", "whole=8", "part=0.5", "part=1.5"]


# ---- ends that come before any record: that a wait is over says only that there is something to see


def read_once(reader: Consumer, way: str) -> Any:
    if way == "read_batch":
        return batch_of(reader)
    if way == "batches":
        return next(reader.batches())
    if way == "read":
        return message_of(reader)
    if way == "aread":
        return asyncio.run(reader.aread(timeout=PATIENCE_S))
    return asyncio.run(reader.aread_batch(timeout=PATIENCE_S))


READS = ["read_batch", "batches", "read", "aread", "aread_batch"]


@pytest.mark.fault(55, how="a consumer whose driver ends before its stream had a producer")
@pytest.mark.parametrize("way", READS)
def test_an_end_before_the_first_producer_is_an_end(instance_name: str, way: str) -> None:
    driver = EmbeddedDriver(instance_name, SHORT)
    driver.start()
    with shmdriver.connect(instance_name) as client:
        reader = client.consumer("s")
        driver.stop()
        assert shmdriver.wait([reader], timeout=PATIENCE_S) == [reader]
        with pytest.raises(LeaseRevoked):
            read_once(reader, way)


@pytest.mark.fault(55, how="a consumer whose driver is replaced before its stream had a producer")
@pytest.mark.parametrize("way", READS)
def test_a_reader_without_a_producer_goes_over_to_the_next_driver(instance_name: str, way: str) -> None:
    driver = EmbeddedDriver(instance_name, SHORT)
    driver.start()
    with shmdriver.connect(instance_name, reconnect=True, timeout=PATIENCE_S) as client:
        reader = client.consumer("s")
        driver.stop()
        driver = EmbeddedDriver(instance_name, SHORT)
        driver.start()
        try:
            assert reader.read_batch(timeout=0) is None
            wait_until(
                lambda: reader.read_batch(timeout=0.01) is None and reader.reattachments, "attached anew"
            )
            with client.producer("s", dtype=INTEGERS.dtype) as out:
                out.publish(INTEGERS)
                assert read_once(reader, way) is not None
        finally:
            reader.close()
            client.close()
            driver.stop()


@pytest.mark.parametrize("way", ["read_batch", "batches", "aread_batch"])
def test_an_epoch_that_came_and_went_unseen_is_an_end(way: str) -> None:
    with shmdriver.embedded(config=Config.load(env={}, overrides={"policies.grace_ms": 0})) as client:
        reader = client.consumer("s", delivery="lossy")
        produce(client, INTEGERS)
        wait_until(lambda: not client.streams()[0].epochs, "the epoch to be retired")
        with pytest.raises((EndOfStream, StopIteration)):
            read_once(reader, way)
        assert reader.lost == len(INTEGERS)
