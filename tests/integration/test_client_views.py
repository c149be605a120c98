"""Views: read-only, in place, they hold their place, and outlive the handle that made them."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import shmdriver

BIG = 100_000


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client
        name = client.instance
    gc.collect()
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if f"shmd.{name}." in line]
    assert not [line for line in mapped if ".data" in line], "no ring stays mapped when nothing looks at it"


def pair(client, stream="s", *, consumer=None, **producer):
    reader = client.consumer(stream, **(consumer or {}))
    return client.producer(stream, **producer), reader


def payload(n):
    return bytes([n % 256]) * BIG


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


def test_a_large_message_of_a_reliable_stream_is_a_view(client):
    out, into = pair(client, max_message=BIG, slots=16)
    with out, into:
        out.publish(payload(1))
        message = into.read(timeout=5)
        assert message.data.readonly
        assert message.data == payload(1)
        assert into.held == 1
        assert message.valid()
        with pytest.raises(TypeError):
            message.data[0] = 0
        del message
        assert into.held == 0


@pytest.mark.parametrize(
    "derive",
    [
        lambda message: message.data,
        lambda message: message.data[10:20],
        lambda message: message.data[10:2000][5:10],
        lambda message: np.frombuffer(message.data, "u1"),
        lambda message: np.frombuffer(message.data, "u1")[5:50].reshape(3, 15).T,
        lambda message: np.frombuffer(message.data, "u1")[5:50].data,
    ],
)
def test_whatever_is_derived_from_a_view_holds_its_place(client, derive):
    out, into = pair(client, max_message=BIG, slots=16)
    with out, into:
        out.publish(payload(1))
        kept = derive(into.read(timeout=5))
        assert into.held == 1
        before = bytes(kept)
        sent = 0
        while sent < 100 and out.try_publish(payload(sent)):
            sent += 1
            if into.read(timeout=0) is None:
                break
        assert sent < 100
        assert bytes(kept) == before
        del kept
        assert into.held == 0
        into.release()
        assert out.try_publish(payload(7)) == 1


def test_a_window_of_views_stays_intact_while_more_arrives(client):
    out, into = pair(client, max_message=BIG, slots=64)
    with out, into:
        window = []
        for n in range(100):
            out.publish(payload(n), timeout=5)
            window.append(into.read(timeout=5))
            del window[:-4]
            for message in window:
                assert message.data[0] == message.seq % 256
                assert message.data[-1] == message.seq % 256


def test_views_that_fill_the_ring_are_reported_to_their_holder(client):
    out, into = pair(client, max_message=BIG, slots=16)
    with out, into:
        kept: list = []
        while out.try_publish(payload(len(kept))):
            kept.append(into.read(timeout=5))
        with pytest.raises(shmdriver.ViewsHeld, match="copy them") as caught:
            into.read(timeout=5)
        assert caught.value.held == len(kept)
        kept.clear()
        assert into.read(timeout=0) is None
        out.publish(payload(1), timeout=5)
        assert bytes(into.read(timeout=5)) == payload(1)


@pytest.mark.fault(10)
def test_a_view_outlives_close_and_the_driver(client):
    out, into = pair(client, max_message=BIG, slots=16)
    out.publish(payload(3))
    message = into.read(timeout=5)
    kept = np.frombuffer(message.data, "u1")
    into.close()
    assert not message.valid()
    assert kept.sum() == 3 * BIG
    out.close()
    assert bytes(message) == payload(3)
    assert kept[-1] == 3


def test_a_view_whose_bytes_may_be_another_messages_is_not_pickled(client):
    with client.consumer("s") as reader, client.producer("s", slots=4, max_message=100_000) as out:
        for letter in (b"a", b"b"):
            out.publish(letter * 50_000)
        first, second = reader.read(), reader.read()
        copied = pickle.loads(pickle.dumps(first))
        assert (copied, copied.valid()) == (first, True)
        reader.close()
        assert not second.valid()
        with pytest.raises(shmdriver.LeaseRevoked, match="later message's"):
            pickle.dumps(second)
        with pytest.raises(shmdriver.LeaseRevoked, match="later message's"):
            copy.copy(second)
        assert copied.valid()


def test_views_outlive_their_epoch_and_hold_nothing_in_the_next(client):
    with client.consumer("s", follow=True) as into:
        with client.producer("s", max_message=BIG, slots=16) as out:
            for n in range(5):
                out.publish(payload(n))
            old = [into.read(timeout=5) for _ in range(5)]
        with client.producer("s", max_message=BIG, slots=16) as out:
            for n in range(100):
                out.publish(payload(n) if n % 2 else b"small", timeout=5)
                assert into.read(timeout=5).seq == n
        assert [message.data[0] for message in old] == [0, 1, 2, 3, 4]
        assert all(message.valid() for message in old)


def test_an_ungated_consumer_gets_large_messages_as_copies(client):
    out, into = pair(client, consumer={"delivery": "latest"}, max_message=BIG, slots=16)
    with out, into:
        kept: list = []
        for n in range(50):
            out.publish(payload(n), timeout=0)
            kept.append(into.read(timeout=5))
        assert [message.data[7] for message in kept] == [n % 256 for n in range(50)]
        assert all(message.data.readonly and message.valid() for message in kept)
        assert into.held == 0


def test_an_evicted_consumers_views_are_not_valid_any_more():
    from shmdriver.driver.config import Config

    config = Config.load(overrides={"profiles.default.evict_after_ms": 20})
    with shmdriver.embedded(config=config) as client:
        into = client.consumer("s")
        out = client.producer("s", max_message=BIG, slots=16, slow_consumer="evict")
        with out, into:
            out.publish(payload(1))
            message = into.read()
            assert message.valid()
            for n in range(100):
                out.publish(payload(n), timeout=10)
            assert not message.valid()
            with pytest.raises(shmdriver.LeaseRevoked, match="too slow") as caught:
                into.read(timeout=5)
            assert caught.value.reason == shmdriver.Reason.EVICTED


@pytest.mark.fault(43, how="an evicted reader asks when its epoch and its record are gone")
def test_what_was_overwritten_stays_invalid_when_its_epoch_is_gone():
    from shmdriver.driver.config import Config

    config = Config.load(overrides={"profiles.default.evict_after_ms": 20, "policies.grace_ms": 0})
    with shmdriver.embedded(config=config) as client, client.consumer("s") as into:
        with client.producer("s", max_message=BIG, slots=16, slow_consumer="evict") as out:
            out.publish(payload(1))
            message = into.read(timeout=30)
            for n in range(100):
                out.publish(payload(n), timeout=30)
        until(lambda: not any(stream.epochs for stream in client.streams()))
        assert message is not None
        assert message.data != payload(1)
        assert not message.valid()
        assert not into.valid()


def test_what_was_read_to_the_end_stays_valid(client):
    out, into = pair(client, max_message=BIG, slots=16)
    with into:
        with out:
            out.publish(payload(1))
            message = into.read(timeout=30)
        with pytest.raises(shmdriver.EndOfStream):
            into.read(timeout=30)
        until(lambda: not any(stream.consumers for stream in client.streams()))
        assert message.valid()
        assert into.valid()
        assert bytes(message) == payload(1)


@pytest.mark.fault(43, how="an evicted reader asks for a batch that it uses")
def test_a_consumer_says_whether_the_batches_in_use_are_whole():
    from shmdriver.driver.config import Config

    config = Config.load(overrides={"profiles.default.evict_after_ms": 20})
    with shmdriver.embedded(config=config) as client:
        dtype = np.dtype([("n", "<i8")])
        with (
            client.consumer("s") as into,
            client.producer("s", dtype=dtype, slots=64, slow_consumer="evict") as out,
        ):
            assert into.valid()
            out.publish(np.ones(8, dtype))
            batch = into.read_batch(timeout=30)
            assert batch is not None
            assert into.valid()
            for _ in range(4):
                out.publish(np.zeros(64, dtype), timeout=30)
            assert not into.valid()
            assert not batch["n"].any()


# ---- arrays


@pytest.mark.parametrize("delivery", ["reliable", "lossy", "latest"])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype="<f8").reshape(3, 4),
        np.arange(100_000, dtype="<i4").reshape(100, 1000),
        np.asfortranarray(np.arange(50_000, dtype="<u2").reshape(500, 100)),
        np.arange(60_000, dtype="u1").reshape(200, 300)[::2, ::3],
        np.array(3.5),
        np.zeros((0, 3), "<f4"),
        np.zeros(7, [("a", "<i4"), ("b", "<M8[s]")]),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays_arrive_with_shape_dtype_and_meta(client, array, delivery):
    out, into = pair(client, consumer={"delivery": delivery}, max_message=1 << 20, slots=16)
    with out, into:
        out.publish_array(array, type=9, meta=b"frame 1")
        message = into.read(timeout=5)
        got = message.array
        assert got.dtype == array.dtype
        assert got.shape == array.shape
        assert np.array_equal(got, array)
        assert (message.meta, message.type) == (b"frame 1", 9)
        assert not got.flags.writeable
        if got.size:
            with pytest.raises(ValueError, match="WRITEABLE"):
                got.flags.writeable = True


def test_an_array_of_max_message_bytes_fits(client):
    shape = (1080, 1920, 3)
    out, into = pair(client, max_message=1080 * 1920 * 3, slots=2)
    with out, into:
        out.publish_array(np.ones(shape, "u1"))
        assert into.read(timeout=5).array.shape == shape


def test_a_claimed_array_is_written_in_place(client):
    out, into = pair(client, max_message=BIG, slots=16)
    with out, into:
        with out.claim_array((10, 20), "<f4", meta=b"m") as array:
            array[:] = np.arange(200).reshape(10, 20)
        message = into.read(timeout=5)
        assert np.array_equal(message.array, np.arange(200, dtype="<f4").reshape(10, 20))
        assert message.meta == b"m"
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1


def test_a_claimed_array_is_aborted_on_an_exception(client):
    out, into = pair(client, max_message=BIG, slots=16)
    with out, into:
        with pytest.raises(RuntimeError), out.claim_array(10) as array:
            array[:] = 1
            raise RuntimeError
        assert into.read(timeout=0) is None


def test_a_claimed_array_outlives_its_producer(client):
    out, into = pair(client, max_message=BIG, slots=16)
    with into:
        with out.claim_array((1000,), "u1") as array:
            array[:] = 5
        out.close()
        assert array.sum() == 5000
        assert [message.array.sum() for message in into] == [5000]


def test_a_window_of_arrays_stays_intact(client):
    out, into = pair(client, max_message=BIG, slots=64)
    with out, into:
        window = []
        for n in range(100):
            out.publish_array(np.full((100, 100), n, "<i4"), timeout=5)
            window.append(into.read(timeout=5).array)
            del window[:-3]
            assert [int(array[0, 0]) for array in window] == [int(array[-1, -1]) for array in window]
            assert int(window[-1][50, 50]) == n


class Stop(BaseException):
    """What a signal's handler raises."""


@pytest.mark.fault(43, 49, how="asked between the steps of close(), and after an exception there")
@pytest.mark.parametrize("raises", [False, True])
def test_a_view_is_not_called_valid_while_its_consumer_closes(client, raises):
    out, *readers = pair(client, max_message=BIG, slots=4)
    said: list[tuple[bool, ...]] = []
    views: list[shmdriver.Message] = []

    def between(_frame, event, function):
        if event != "c_return" or getattr(function, "__name__", "") != "shmd_guarded_consumer_close":
            return
        for n in range(2, 20):
            out.publish(payload(n), timeout=5)  # its gate is gone: over what it has handed out
        said.append((views[0].data == payload(1), views[0].valid(), readers[0].valid()))
        if raises:
            raise Stop

    with out:
        out.publish(payload(1))
        views.append(readers[0].read(timeout=5))
        sys.setprofile(between)
        try:
            readers[0].close()
        except Stop:
            pass
        finally:
            sys.setprofile(None)
        assert said == [(False, False, False)]
        assert not views[0].valid()
        readers.clear()
        gc.collect()
        assert not views[0].valid()
        views.clear()
