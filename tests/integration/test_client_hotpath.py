"""The classes in C: their arguments, what they keep alive, and that they keep nothing."""

from __future__ import annotations

import gc
import os
import pickle
import random
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

import shmdriver
from shmdriver.client.hotpath import ClaimCore, ConsumerCore, MappingCore, ProducerCore

BIG = 20_000


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


@pytest.fixture
def reader(client):
    return client.consumer("s")


@pytest.fixture
def out(client, reader):
    return client.producer("s", slots=512, max_message=64 * 1024)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda out: out.publish(), r"publish\(\) missing required argument 'data'"),
        (lambda out: out.publish(b"", data=b""), "multiple values for argument 'data'"),
        (lambda out: out.publish(b"", 0, None, 1), "at most 3 positional"),
        (lambda out: out.publish(b"", colour=1), "unexpected keyword argument 'colour'"),
        (lambda out: out.try_publish(b"", 0, None), "at most 2 positional"),
        (lambda out: out.claim(), "missing required argument 'length'"),
        (lambda out: out.claim(8, 1), "at most 1 positional"),
        (lambda out: out.claim("8"), "cannot be interpreted as an integer"),
        (lambda out: out.claim(8, type="x"), "expected an int from 0 to 65535"),
        (lambda out: out.publish(b"", type=1.5), "expected an int from 0 to 65535"),
        (lambda out: out.publish(3), "publish takes bytes"),
        (lambda out: out.try_publish("text"), "encode text first"),
    ],
)
def test_wrong_arguments_of_a_producer_are_named(out, call, text):
    with pytest.raises(TypeError, match=text):
        call(out)
    assert out.seq == 0


def test_wrong_arguments_of_a_consumer_are_named(reader):
    with pytest.raises(TypeError, match="at most 1 positional"):
        reader.read(1, 2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'wait'"):
        reader.read(wait=1)
    with pytest.raises(TypeError):
        reader.read(timeout="soon")


@pytest.mark.parametrize("length", [np.int64(100), True, 100])
def test_a_claim_takes_every_kind_of_integer(out, reader, length):
    with out.claim(length) as place:
        assert len(place.view) == int(length)
    assert len(reader.read()) == int(length)


def test_a_type_of_any_kind_of_integer_reaches_the_reader(out, reader):
    for kind in (7, np.uint16(7), np.int64(7)):
        out.publish(b"x", kind)
        assert out.try_publish(b"x", type=kind) == 1
    out.claim(1, type=np.uint16(7)).commit()
    assert [reader.read().type for _ in range(7)] == [7] * 7


@pytest.mark.parametrize("core", [ConsumerCore, ProducerCore, ClaimCore])
def test_a_core_without_its_class_fails_and_does_not_crash(core):
    bare = core()
    calls = {
        ConsumerCore: lambda: bare.read(timeout=0),
        ProducerCore: lambda: bare.publish(b"x"),
        ClaimCore: lambda: bare.commit(),
    }
    with pytest.raises(AttributeError):
        calls[core]()


def test_a_mapping_at_no_address_is_refused():
    with pytest.raises(ValueError, match="address 0"):
        MappingCore(0, 1)


@pytest.mark.parametrize("seed", range(5))
def test_places_may_go_in_any_order(client, seed):
    """More of them than the first table of places has room for; the gate follows the oldest that is left."""
    rng = random.Random(seed)
    reader = client.consumer("m")
    out = client.producer("m", slots=512, max_message=8192)
    for number in range(200):
        out.publish(number.to_bytes(4, "little") * 1024)
    held = dict(enumerate(reader.read() for _ in range(200)))
    assert reader.held == 200
    while held:
        number = rng.choice(list(held))
        assert int.from_bytes(bytes(held[number])[-4:], "little") == number
        del held[number]
        assert reader.held == len(held)
        assert reader._hold_seq() == min(held, default=2**64 - 1)
    out.publish(b"last" * 1024)
    assert bytes(reader.read().data[:4]) == b"last"


def test_one_held_place_among_many_that_go_keeps_the_table_small(client):
    reader = client.consumer("m")
    out = client.producer("m", slots=64, max_message=8192)
    for _ in range(5):
        out.publish(b"k" * 8192)
        kept = reader.read()
        for _ in range(60):
            out.publish(b"x" * 8192)
            reader.read()
        assert (reader.held, bytes(kept.data[:1])) == (1, b"k")
        del kept


def test_a_large_copy_lets_other_threads_run(client):
    """The GIL is released: a thread that closes the client's other handle is not kept out by publishing."""
    reader = client.consumer("m", delivery="lossy")
    out = client.producer("m", slots=8, max_message=1 << 20)
    stop = threading.Event()
    turns: list[None] = []

    def count() -> None:
        while not stop.is_set():
            turns.append(None)

    counter = threading.Thread(target=count)
    counter.start()
    frame = bytes(1 << 20)
    while len(turns) < 1000:
        out.publish(frame)
        reader.read()
    stop.set()
    counter.join()


def test_a_claim_that_outlives_its_producer_by_a_moment_says_so(client, monkeypatch):
    """Another thread closes the producer while claim() waits for room."""
    out = client.producer("full", slots=2, max_message=64)
    holder = client.consumer("full")
    while out.try_publish(b"x"):
        pass

    make_room = type(out)._make_room

    def close_meanwhile(self, *args):
        holder.close()
        self.close()
        return make_room(self, *args)

    monkeypatch.setattr(type(out), "_make_room", close_meanwhile)
    with pytest.raises(shmdriver.HandleClosed):
        out.claim(8)


def test_a_finaliser_that_closes_the_producer_in_the_middle_of_a_claim_harms_nothing(client):
    out = client.producer("f", slots=8, max_message=64)

    class Closes:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            out.close()

    threshold = gc.get_threshold()
    Closes()
    gc.set_threshold(1)
    try:
        place = out.claim(8)
        place.view[0] = 1
    except shmdriver.HandleClosed:
        pass
    finally:
        gc.set_threshold(*threshold)
        gc.collect()
    assert out.closed


def test_what_cannot_be_handed_out_is_handed_out_by_the_next_read(client, monkeypatch):
    reader = client.consumer("m")
    out = client.producer("m", slots=8, max_message=BIG)
    out.publish(b"a" * BIG)
    out.publish(b"b" * BIG)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(reader), "_map", interrupt)
        reader.read()
    assert reader._hold_seq() == 0, "its place is held meanwhile"
    assert [bytes(reader.read().data[:1]) for _ in range(2)] == [b"a", b"b"]


def test_records_that_cannot_be_handed_out_are_handed_out_by_the_next_read(client, monkeypatch):
    reader = client.consumer("r", dtype="<u8")
    client.producer("r", dtype="<u8").publish(np.arange(10, dtype="<u8"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(reader), "_map", interrupt)
        reader.read_batch()
    assert reader.read_batch().tolist() == list(range(10))


def interrupt(_self, _serial):
    raise KeyboardInterrupt


def one_that_waits(client):
    """A consumer, and the thread that is inside its read()."""
    reader = client.consumer("w")
    waiting = threading.Thread(target=reader.read)
    waiting.start()
    while reader._hold_seq() != 0:
        pass
    return reader, waiting


def test_while_one_thread_fetches_no_other_moves_the_gate(client):
    """What it is about to hand out has no hold yet."""
    reader, waiting = one_that_waits(client)
    client.producer("w").publish(b"x")
    waiting.join()
    assert reader._hold_seq() == 2**64 - 1


def test_a_child_that_was_forked_during_a_read_is_told_that_it_is_a_child(client):
    reader, waiting = one_that_waits(client)
    child = os.fork()
    if child == 0:
        try:
            reader.read(timeout=0)
        except shmdriver.ForkedHandleError:
            os._exit(3)
        finally:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    client.producer("w").publish(b"x")
    waiting.join()


def test_a_handle_is_of_its_own_kind_or_none(out, reader):
    with pytest.raises(TypeError, match="expected 'struct shmd_consumer"):
        reader._handle = out._handle
    with pytest.raises(TypeError):
        reader._handle = 5
    with pytest.raises(AttributeError, match="set it to None"):
        del reader._handle


def test_a_claim_cannot_be_pickled(out):
    with out.claim(8) as place, pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(place)


def test_a_second_interpreter_of_the_process_is_refused():
    interpreters = pytest.importorskip("_xxsubinterpreters")
    program = (
        "import _xxsubinterpreters as others, shmdriver\n"
        "shmdriver.Client\n"
        "try:\n"
        "    others.run_string(others.create(), 'import shmdriver; shmdriver.Client')\n"
        "except others.RunFailedError as error:\n"
        "    assert 'sub-interpreters cannot share it' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('it was let in')\n"
    )
    assert interpreters
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def everything(out, reader, lossy):
    out.publish(b"x" * 100, type=3)
    out.publish(bytearray(10))
    out.publish(b"y" * BIG)
    out.publish(np.arange(5), timeout=1.0)
    out.try_publish(memoryview(b"22"), 5)
    for wrong in ((b"x", -1), ("text", 0), (b"x" * (out.max_message + 1), 0)):
        with pytest.raises((TypeError, ValueError, shmdriver.MessageTooLarge)):
            out.publish(*wrong)
    for length in (-1, 1 << 40, 1 << 70):
        with pytest.raises((ValueError, shmdriver.MessageTooLarge)):
            out.claim(length)
    with out.claim(50) as place:
        place.view[0] = 1
    place = out.claim(BIG, type=7)
    array = np.frombuffer(place.view, np.uint8)
    place.commit(5)
    assert len(array) == BIG
    with pytest.raises(shmdriver.ClaimError):
        place.commit()
    out.claim(10).abort()
    out.publish_array(np.ones((3, 4), "f4"), meta=b"tag")
    for consumer in (reader, lossy):
        seen = []
        while (message := consumer.read(timeout=0)) is not None:
            seen.append((message, message.data, bytes(message), repr(message), hash(message)))
        assert len(seen) == 8
        assert seen[-1][0].array.sum() == 12
        assert seen[0][0] == seen[0][0]


def test_nothing_stays_allocated(client, out, reader):
    lossy = client.consumer("s", delivery="lossy")
    tracemalloc.start()
    try:
        for _ in range(20):
            everything(out, reader, lossy)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            everything(out, reader, lossy)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 50 * 200, "less than the smallest object of each round"
    assert reader.held == 0
