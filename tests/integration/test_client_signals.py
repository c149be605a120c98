"""Signals: a handler that raises ends every wait and takes no message along; one that does not lets it go on.

A signal is sent only while shared memory says that the call is blocked, and until its handler has run; a call
that nothing else can end therefore shows that the signal did. Times are only guards against hanging.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice, repeat
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver._native import ffi, lib
from shmdriver.client import link
from shmdriver.client.consumer import Consumer
from shmdriver.driver.shm import SegmentMap, open_segment
from shmdriver.observe import EpochStatus, Instance

TICK = np.dtype([("n", "<i8")])
GUARD_S = 60
LOOKS = 1_000_000
RUN_MAX = 256  # messages that are fetched at once
ENDLESS_NS = 10**17
SLICE_NS = 5_000_000
FUTEX_WAITV = "449"  # on one of several words


class Alarm(Exception):
    """Raised by a signal's handler."""


@pytest.fixture
def client() -> Iterator[shmdriver.Client]:
    with shmdriver.embedded() as client:
        yield client


@pytest.fixture(autouse=True)
def _signals_alone_end_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that are driven from Python do not look for signals now and then by themselves."""
    monkeypatch.setattr(link, "FOREVER_SLICE_NS", ENDLESS_NS)


@contextmanager
def handler_of(number: int, act: Callable[[int], None]) -> Iterator[list[int]]:
    """Has ``act`` called with 1, 2, ... at each signal; the list of these numbers."""
    came: list[int] = []

    def handle(_number: int, _frame: FrameType | None) -> None:
        came.append(len(came) + 1)
        act(came[-1])

    before = signal.signal(number, handle)
    try:
        yield came
    finally:
        signal.signal(number, before)


def raise_once(error: type[BaseException]) -> Callable[[int], None]:
    def act(time_: int) -> None:
        if time_ == 1:
            raise error

    return act


# ---- who is blocked


def epoch_of(client: shmdriver.Client) -> list[EpochStatus]:
    with Instance(client.instance) as instance:
        return [epoch for stream in instance.streams() for epoch in stream.epochs if epoch.state == "open"]


def is_reading(client: shmdriver.Client) -> bool:
    """Whether a consumer sleeps."""
    return any(gate.sleeping for epoch in epoch_of(client) for gate in epoch.gates)


def is_awaiting_a_producer(client: shmdriver.Client) -> bool:
    """Whether the main thread sleeps on a word of the driver's: the kernel tells its system call."""
    authority = client._connected().authority
    words = [ffi.addressof(authority, word) for word in ("event_word", "change_word")]
    call = Path(f"/proc/self/task/{os.getpid()}/syscall").read_text().split()
    is_on_one = len(call) > 1 and call[1] in {hex(int(ffi.cast("uintptr_t", word))) for word in words}
    return is_on_one or call[0] == FUTEX_WAITV


def is_writing(client: shmdriver.Client) -> bool:
    """Whether a producer waits for room."""
    return any(epoch.blocked is not None for epoch in epoch_of(client))


class Signaller:
    """A thread that sends a signal to the main thread whenever that is seen blocked, until ``enough``."""

    def __init__(
        self,
        number: int,
        is_blocked: Callable[[], bool],
        enough: Callable[[], bool],
        release: Callable[[], object],
    ) -> None:
        self._arguments = number, is_blocked, enough, release
        self.hung = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number, is_blocked, enough, release = self._arguments
        main = threading.main_thread().ident
        assert main is not None
        deadline = time.monotonic() + GUARD_S
        try:
            while not enough():
                if time.monotonic() > deadline:
                    self.hung = True
                    release()
                    return
                if is_blocked():
                    signal.pthread_kill(main, number)
                threading.Event().wait(0.001)
        except shmdriver.DriverUnavailable:
            self.hung = True  # the test has failed and is over

    def join(self) -> None:
        self._thread.join()
        assert not self.hung, "no handler ran while the call was blocked"


BLOCKED_READERS: dict[str, Callable[[Any], object]] = {
    "for": lambda consumer: [message for message in consumer],  # noqa: C416
    "iteration from C": lambda consumer: deque(consumer, maxlen=0),
    "read": lambda consumer: consumer.read(),
    "read with a timeout": lambda consumer: consumer.read(timeout=GUARD_S * 10),
    "wait": lambda consumer: shmdriver.wait([consumer]),
    "wait with a timeout": lambda consumer: shmdriver.wait([consumer], GUARD_S * 10),
}
BLOCKED_RECORD_READERS: dict[str, Callable[[Any], object]] = {
    "read_batch": lambda consumer: consumer.read_batch(),
    "read_batch with a timeout": lambda consumer: consumer.read_batch(timeout=GUARD_S * 10),
    "batches": lambda consumer: [batch for batch in consumer.batches()],  # noqa: C416
}
BLOCKED_WRITERS: dict[str, Callable[[Any], object]] = {
    "publish": lambda out: out.publish(b"x"),
    "publish with a timeout": lambda out: out.publish(b"x", timeout=GUARD_S * 10),
    "claim": lambda out: out.claim(1),
    "publish_array": lambda out: out.publish_array(np.zeros(1, "u1")),
}
SIGNALS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGALRM, Alarm)]


def interrupted(
    call: Callable[[], object],
    number: int,
    error: type[BaseException],
    is_blocked: Callable[[], bool],
    release: Callable[[], object],
) -> None:
    """``call`` blocks, a signal comes whose handler raises ``error``, and that comes out of it."""
    with handler_of(number, raise_once(error)) as came:
        signaller = Signaller(number, is_blocked, lambda: len(came) > 0, release)
        with pytest.raises(error):
            call()
        signaller.join()


@pytest.mark.fault(38, how="a handler that raises in every wait, while shared memory says that it is blocked")
@pytest.mark.parametrize("delivery", ["reliable", "lossy", "latest"])
@pytest.mark.parametrize("how", BLOCKED_READERS)
@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_handler_that_raises_ends_a_blocked_read_and_nothing_is_lost(client, how, number, error, delivery):
    consumer = client.consumer("s", delivery=delivery, wait="sleep")
    out = client.producer("s", slots=64, max_message=16)
    for n in range(3):
        out.publish(b"%d" % n)
        assert bytes(consumer.read()) == b"%d" % n
    call = BLOCKED_READERS[how]
    interrupted(lambda: call(consumer), number, error, lambda: is_reading(client), out.close)
    for n in range(3, 10):
        out.publish(b"%d" % n)
        assert bytes(consumer.read()) == b"%d" % n
    assert (consumer.lost, consumer.skipped) == (0, 0)
    assert consumer.read(timeout=0) is None


@pytest.mark.parametrize("how", ["for", "iteration from C", "read", "read with a timeout"])
@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_handler_that_raises_ends_a_read_that_waits_for_a_producer(client, how, number, error):
    consumer = client.consumer("s", wait="sleep")
    call = BLOCKED_READERS[how]
    try:
        is_awaiting_a_producer(client)
    except OSError as problem:
        pytest.skip(f"this machine does not show in what system call a thread is: {problem}")

    def release() -> None:
        client.producer("s").close()

    interrupted(lambda: call(consumer), number, error, lambda: is_awaiting_a_producer(client), release)
    with client.producer("s") as out:
        out.publish(b"x")
        assert bytes(consumer.read()) == b"x"


@pytest.mark.parametrize("how", BLOCKED_RECORD_READERS)
@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_handler_that_raises_ends_a_blocked_read_of_records_and_nothing_is_lost(client, how, number, error):
    consumer = client.consumer("s", dtype=TICK, wait="sleep")
    out = client.producer("s", dtype=TICK, slots=64)
    out.publish(np.arange(3).astype(TICK))
    assert list(consumer.read_batch()["n"]) == [0, 1, 2]
    call = BLOCKED_RECORD_READERS[how]
    interrupted(lambda: call(consumer), number, error, lambda: is_reading(client), out.close)
    out.publish(np.arange(3, 13).astype(TICK))
    assert list(consumer.read_batch()["n"]) == list(range(3, 13))
    assert consumer.lost == 0


@pytest.mark.parametrize("how", BLOCKED_WRITERS)
@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_handler_that_raises_ends_a_blocked_publish_and_nothing_went_in(client, how, number, error):
    consumer = client.consumer("s")
    out = client.producer("s", slots=4, max_message=1024)
    full = out.slots
    for n in range(full):
        out.publish(b"%d" % n)
    call = BLOCKED_WRITERS[how]
    interrupted(lambda: call(out), number, error, lambda: is_writing(client), consumer.close)
    assert out.seq == full
    assert bytes(consumer.read()) == b"0"
    consumer.release()
    out.publish(b"%d" % full)
    out.close()
    assert [bytes(message) for message in consumer] == [b"%d" % n for n in range(1, full + 1)]


def test_handler_that_raises_ends_a_blocked_publish_of_records_which_says_how_far_it_got(client):
    consumer = client.consumer("s", dtype=TICK)
    out = client.producer("s", dtype=TICK, slots=64)
    records = np.arange(1000).astype(TICK)
    interrupted(
        lambda: out.publish(records), signal.SIGALRM, Alarm, lambda: is_writing(client), consumer.close
    )
    done = out.seq
    assert done == out.slots
    found: list[int] = []
    while done < len(records) or len(found) < len(records):
        done += out.try_publish(records[done:])
        batch = consumer.read_batch(timeout=0)
        found += [] if batch is None else list(batch["n"])
    assert found == list(range(1000))


@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_handler_that_raises_ends_a_blocked_get_and_a_blocked_put_of_a_queue(client, number, error):
    queue = client.queue("q", maxsize=2)
    queue.put("first")
    assert queue.get() == "first"
    interrupted(queue.get, number, error, lambda: is_reading(client), lambda: queue.put("release"))
    queue.put(1)
    queue.put(2)
    interrupted(lambda: queue.put(3), number, error, lambda: is_writing(client), queue.get)
    assert [queue.get(), queue.get()] == [1, 2]
    queue.put(4)
    assert queue.get() == 4
    assert queue.empty()


# ---- handlers that return


@pytest.mark.parametrize("how", BLOCKED_READERS)
def test_blocked_read_goes_on_after_handlers_that_return(client, how):
    consumer = client.consumer("s", wait="sleep")
    out = client.producer("s", slots=64, max_message=16)
    out.publish(b"0")
    assert bytes(consumer.read()) == b"0"
    with handler_of(signal.SIGALRM, lambda _time: None) as came:
        ended = threading.Event()

        def end() -> None:
            out.publish(b"1")
            out.close()
            ended.set()

        def enough() -> bool:
            if len(came) < 5:
                return False
            end()
            return True

        signaller = Signaller(signal.SIGALRM, lambda: is_reading(client), enough, end)
        BLOCKED_READERS[how](consumer)
        signaller.join()
    assert len(came) >= 5
    assert ended.is_set()


@pytest.mark.parametrize("wait", ["sleep", "adaptive", "spin"])
def test_timeout_is_neither_cut_nor_stretched_by_handlers_that_return(client, wait, monkeypatch):
    consumer = client.consumer("s", wait=wait)
    out = client.producer("s", slots=4, max_message=16)
    waits: list[Callable[[float], object]] = [
        lambda timeout: consumer.read(timeout=timeout) is None,
        lambda timeout: shmdriver.wait([consumer], timeout) == [],
        lambda timeout: out.wait_for_consumers(2, timeout) == 1,
        lambda timeout: blocked_publish(out, timeout),
    ]
    timeout = 0.25
    with handler_of(signal.SIGALRM, lambda _time: None) as came:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)  # more often than any slice of a wait
        try:
            for call in waits:
                began = time.monotonic()
                assert call(timeout)
                assert time.monotonic() - began >= timeout
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert came


def blocked_publish(out: shmdriver.Producer, timeout: float) -> bool:
    while out.try_publish(b"x"):
        pass
    with pytest.raises(shmdriver.BackPressured):
        out.publish(b"x", timeout=timeout)
    return True


# ---- the message that comes together with a signal


@pytest.fixture
def idled(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a consumer has waited for longer than its first slice."""
    event, idle = threading.Event(), Consumer._idle

    def idle_and_tell(consumer: Consumer) -> None:
        event.set()
        idle(consumer)

    monkeypatch.setattr(Consumer, "_idle", idle_and_tell)
    monkeypatch.setattr(link, "FOREVER_SLICE_NS", SLICE_NS)
    return event


class Meeting:
    """A thread that publishes and sends a signal before the main thread, blocked in a read, is back from it.

    Until that has worked: a main thread that was just between two slices of its wait reads as always.
    """

    def __init__(
        self, client: shmdriver.Client, publish: Callable[[], object], idled: threading.Event
    ) -> None:
        (epoch,) = epoch_of(client)
        fd, size = open_segment(epoch.gates_name, writable=False)
        self._map = SegmentMap.of(fd, size, writable=False)
        os.close(fd)
        self._gate = lib.shmd_gates_gate(self._map.view("shmd_gates_t *"), epoch.gates[0].gate)
        self._client, self._publish, self._idled = client, publish, idled
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        interval = sys.getswitchinterval()
        self._idled.wait(GUARD_S)
        met = False
        while not met:
            while not is_reading(self._client):
                threading.Event().wait(0.001)
            sys.setswitchinterval(GUARD_S)  # nobody else has the interpreter before this is done
            met = self._try()
            sys.setswitchinterval(interval)

    def _try(self) -> bool:
        gate, before = self._gate, self._gate.cursor
        main = threading.main_thread().ident
        assert main is not None
        self._publish()
        for _ in range(LOOKS):
            if gate.cursor != before:  # the core has read it, and waits for the interpreter
                signal.pthread_kill(main, signal.SIGALRM)
                return True
        return False

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._map.close()


def seqs_from_c(consumer: Any, into: list[int]) -> None:
    """Iterates without a step of Python's own."""
    messages: deque[Any] = deque()
    try:
        messages.extend(consumer)
    finally:
        into += [message.seq for message in messages]


def read_seq(consumer: Any, into: list[int]) -> None:
    into.append(consumer.read().seq)


def batch_seqs(consumer: Any, into: list[int]) -> None:
    into += list(consumer.read_batch()["n"])


def batches_seqs(consumer: Any, into: list[int]) -> None:
    for batch in consumer.batches():
        into += list(batch["n"])


@pytest.mark.fault(38, how="a handler that raises between a message's arrival and its hand-out")
@pytest.mark.parametrize("size", [16, 8000, 20_000], ids=["packed", "private", "in place"])
@pytest.mark.parametrize("read", [seqs_from_c, read_seq])
def test_message_that_comes_together_with_a_signal_is_not_lost(client, idled, read, size):
    consumer = client.consumer("s", wait="sleep")
    out = client.producer("s", slots=16, max_message=size, slot_bytes=16384 if size == 8000 else None)
    out.publish(bytes(size))
    found: list[int] = []
    read_seq(consumer, found)
    with (
        handler_of(signal.SIGALRM, raise_once(Alarm)),
        Meeting(client, lambda: out.publish(bytes(size)), idled),
        pytest.raises(Alarm),
    ):
        while True:
            read(consumer, found)
    out.publish(bytes(size))
    total = out.seq
    out.close()
    seqs_from_c(consumer, found)
    assert found == list(range(total))


@pytest.mark.parametrize("read", [batch_seqs, batches_seqs])
def test_records_that_come_together_with_a_signal_are_not_lost(client, idled, read):
    consumer = client.consumer("s", dtype=TICK, wait="sleep")
    out = client.producer("s", dtype=TICK, slots=64)

    def publish() -> None:
        out.publish(np.arange(out.seq, out.seq + 5).astype(TICK))

    publish()
    found: list[int] = []
    batch_seqs(consumer, found)
    with handler_of(signal.SIGALRM, raise_once(Alarm)), Meeting(client, publish, idled), pytest.raises(Alarm):
        while True:
            read(consumer, found)
    with pytest.raises(RuntimeError, match=r"call read_batch\(\) for it first"):
        consumer.read(timeout=0)
    publish()
    total = out.seq
    out.close()
    batches_seqs(consumer, found)
    assert found == list(range(total))


def test_handler_that_reads_itself_takes_what_came_and_the_read_goes_on(client, idled):
    consumer = client.consumer("s", wait="sleep")
    out = client.producer("s", slots=16, max_message=16)
    out.publish(b"x")
    found: list[int] = []
    read_seq(consumer, found)

    def act(_time: int) -> None:
        read_seq(consumer, found)
        out.publish(b"x")

    with handler_of(signal.SIGALRM, act) as came, Meeting(client, lambda: out.publish(b"x"), idled):
        while not came:
            read_seq(consumer, found)
    assert found == list(range(out.seq))


# ---- flat out


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """No collection in between runs Python code, in which a handler's exception would be lost."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def raise_at(number: int, count: int) -> Iterator[object]:
    """Sends this thread a signal at its ``count``-th step, by way of C alone, not Python's steps."""
    kill = ctypes.CDLL(None)["raise"]
    return map(kill, chain(repeat(0, count), [int(number)], repeat(0)))


@pytest.mark.parametrize("size", [16, 100_000], ids=["in runs", "one by one"])
@pytest.mark.parametrize(("number", "error"), SIGNALS)
def test_iteration_that_never_blocks_is_ended_within_a_run_of_messages(
    client, no_garbage, number, error, size
):
    consumer = client.consumer("s")
    total, at = 60, 20
    if size == 16:
        total, at = 4000, 1000
    out = client.producer("s", slots=4096, max_message=size, arena=16 << 20 if size > 16 else None)
    for _ in range(total):
        out.publish(bytes(size))
    out.close()
    found: deque[Any] = deque()
    with handler_of(number, raise_once(error)), pytest.raises(error):
        found.extend(islice(zip(consumer, raise_at(number, at), strict=False), total))
    read = len(found)
    assert at <= read <= at + 1 + (RUN_MAX if size == 16 else 0)
    seqs = [message.seq for message, _ in found]
    seqs_from_c(consumer, seqs)
    assert seqs == list(range(total))


def test_iteration_that_is_interrupted_over_and_over_loses_and_repeats_nothing(client, no_garbage):
    consumer = client.consumer("s")
    out = client.producer("s", slots=4096, max_message=16)
    total = 4000
    for _ in range(total):
        out.publish(b"x")
    out.close()

    def act(_time: int) -> None:
        raise Alarm

    found: deque[Any] = deque()
    interruptions = 0
    with handler_of(signal.SIGALRM, act):
        while len(found) < total:
            steps = raise_at(signal.SIGALRM, interruptions)
            try:
                found.extend(zip(consumer, steps, strict=False))
            except Alarm:
                interruptions += 1
    assert [message.seq for message, _ in found] == list(range(total))
    assert interruptions > total // RUN_MAX // 2
