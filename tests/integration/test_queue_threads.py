"""Threads, handlers, finalisers and interruptions around a queue's end: no lock of it becomes an answer."""

from __future__ import annotations

import gc
import itertools
import logging
import logging.handlers
import queue as standard
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver.client.outlet import has_ended
from shmdriver.client.reattach import left_behind
from shmdriver.driver.config import Config
from tests.integration.test_queue import start

PATIENCE_S = 60
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def get_all(queue):
    """What is there, up to Empty."""
    got = []
    while True:
        try:
            got.append(queue.get_nowait())
        except standard.Empty:
            return got


def run(program, *arguments, timeout=PATIENCE_S):
    """A program as a process of its own: its answer, which has come in time."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True, text=True, timeout=timeout, cwd=ROOT, check=False,
    )  # fmt: skip


# ---- a lock that is taken is no answer


@pytest.mark.fault(52, how="threads, handlers and finalisers inside a put or a get")
def test_a_queue_without_a_bound_is_never_full_while_its_feeder_is_at_work(client):
    queue = client.queue("q", max_bytes=1 << 16)
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.extend(queue.get(timeout=PATIENCE_S) for _ in range(6000)))
    for number in range(3000):  # more than the lane has room for
        queue.put_nowait(number)
    thread.start()
    for number in range(3000, 6000):
        queue.put_nowait(number)
    thread.join()
    assert got == list(range(6000))


def put_some(queue, first, count):
    for number in range(first, first + count):
        queue.put(number)


@pytest.mark.fault(52, how="threads, handlers and finalisers inside a put or a get")
def test_what_ended_processes_have_put_is_there_for_who_does_not_wait(client):
    for round_number in range(5):
        queue = client.queue(f"q{round_number}")
        workers = [start(put_some, queue, 100 * k, 100) for k in range(3)]
        for worker in workers:
            worker.join()
        assert sorted(get_all(queue)) == list(range(300))
        queue.close()


@pytest.mark.fault(52, how="threads, handlers and finalisers inside a put or a get")
def test_no_record_of_a_queue_handler_is_lost_while_another_thread_puts(client, monkeypatch):
    queue = client.queue("q")
    handler = logging.handlers.QueueHandler(queue)
    logger = logging.getLogger("shmdriver-test-queue")
    logger.propagate = False
    logger.addHandler(handler)
    failed: list[logging.LogRecord] = []
    monkeypatch.setattr(handler, "handleError", failed.append)
    stop = threading.Event()

    def put_large_ones():
        array = np.zeros(300_000)
        while not stop.is_set():
            queue.put(array)
            queue.get(timeout=PATIENCE_S)

    got = []
    rival = threading.Thread(target=put_large_ones)
    rival.start()
    for number in range(300):
        logger.warning("%d", number)
    stop.set()
    rival.join()
    got = [record.getMessage() for record in get_all(queue) if isinstance(record, logging.LogRecord)]
    assert failed == []
    assert len(got) <= 300  # the rival got others


# ---- reentrancy


class Puts:
    """Puts another object while it is pickled."""

    def __init__(self, queue):
        self.queue = queue

    def __reduce__(self):
        self.queue.put("by what is pickled")
        return (str, ("whole",))


@pytest.mark.fault(52, how="threads, handlers and finalisers inside a put or a get")
def test_what_is_pickled_may_put(client):
    queue = client.queue("q")
    queue.put("first")
    queue.put([Puts(queue), 1])
    assert get_all(queue) == ["first", "by what is pickled", ["whole", 1]]


THE_QUEUE: list[Any] = []


def gets():
    return THE_QUEUE[0].get(timeout=PATIENCE_S)


class Gets:
    """Gets another object while it is unpickled."""

    def __reduce__(self):
        return (gets, ())


@pytest.mark.fault(52, how="threads, handlers and finalisers inside a put or a get")
def test_what_is_unpickled_may_get(client):
    queue = client.queue("q")
    THE_QUEUE[:] = [queue]
    queue.put([Gets(), "outer"])
    queue.put("inner")
    assert queue.get(timeout=PATIENCE_S) == ["inner", "outer"]
    THE_QUEUE.clear()


class PutsAtItsEnd:
    def __init__(self, queue):
        self.queue = queue
        self.me = self

    def __del__(self):
        self.queue.put("by a finaliser")


@pytest.mark.fault(50, 52, how="threads, handlers and finalisers inside a put or a get")
def test_a_finaliser_may_put_wherever_the_collector_runs_it(client):
    queue = client.queue("q", max_bytes=1 << 16)
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(3000):
            PutsAtItsEnd(queue)
            queue.put([number])
    finally:
        gc.set_threshold(*before)
    gc.collect()
    got = [queue.get(timeout=PATIENCE_S) for _ in range(6000)]
    assert [item[0] for item in got if isinstance(item, list)] == list(range(3000))
    assert got.count("by a finaliser") == 3000


@pytest.mark.fault(49, 52, how="threads, handlers and finalisers inside a put or a get")
def test_a_signals_handler_may_put_wherever_it_comes(client):
    queue = client.queue("q", max_bytes=1 << 16)
    count = itertools.count()  # a handler may be interrupted, too

    def handler(_signal, _frame):
        queue.put(("handler", next(count)))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        got = []
        for number in range(5000):
            queue.put(("main", number))
            if number % 3 == 0:
                got.append(queue.get(timeout=PATIENCE_S))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    by_handler = next(count)
    got += [queue.get(timeout=PATIENCE_S) for _ in range(5000 + by_handler - len(got))]
    assert [n for who, n in got if who == "main"] == list(range(5000))
    assert sorted(n for who, n in got if who == "handler") == list(range(by_handler))


class InterruptionError(Exception):
    pass


@pytest.mark.fault(49, 52, how="a signal's handler that raises, at random points of put and get")
@pytest.mark.parametrize("maxsize", [0, 3])
def test_a_handler_that_raises_leaves_no_lock_locked(client, maxsize):
    queue = client.queue("q", maxsize, max_bytes=1 << 16)

    def handler(_signal, _frame):
        raise InterruptionError

    draw = random.Random(maxsize)
    interrupted = 0
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for number in range(2000):
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, 3e-4))
                for _ in range(20):
                    try:
                        queue.put(number, timeout=0)
                    except standard.Full:
                        pass
                    try:
                        queue.get(timeout=0)
                    except standard.Empty:
                        pass
                signal.setitimer(signal.ITIMER_REAL, 0)
            except InterruptionError:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 0
    get_all(queue)
    answers = []

    def elsewhere():
        queue.put("still there", timeout=PATIENCE_S)
        answers.append(queue.get(timeout=PATIENCE_S))

    thread = threading.Thread(target=elsewhere, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert answers == ["still there"]


class RaisingLock:
    """A lock. From this thread's first acquire() on, a handler raises at the end of each of its calls."""

    def __init__(self, lock):
        self._lock = lock
        self._thread = threading.get_ident()
        self._has_begun = False

    def __getattr__(self, name):
        def call(*arguments, **named):
            found = getattr(self._lock, name)(*arguments, **named)
            if self._thread == threading.get_ident():
                self._has_begun = self._has_begun or name == "acquire"
                if self._has_begun:
                    raise InterruptionError
            return found

        return call


@pytest.mark.fault(49, 52, how="a signal's handler that raises again where its first exception is handled")
@pytest.mark.parametrize("name", ["_put_lock", "_get_lock"])
def test_a_handler_that_raises_twice_leaves_no_lock_locked(client, name):
    queue = client.queue("q")
    queue.put(1)
    assert queue.get(timeout=PATIENCE_S) == 1
    lock = getattr(queue, name)
    setattr(queue, name, RaisingLock(lock))
    with pytest.raises(InterruptionError):
        queue.put(2) if name == "_put_lock" else queue.get()
    assert not lock._is_owned()


# ---- questions and ends beside a thread that waits


@pytest.mark.fault(52, how="threads, handlers and finalisers inside a put or a get")
def test_a_queue_answers_while_another_thread_gets(client):
    queue = client.queue("q")
    with pytest.raises(standard.Empty):
        queue.get_nowait()
    got = []
    thread = threading.Thread(target=lambda: got.append(queue.get()))
    thread.start()
    for _ in range(20):
        assert queue.qsize() == 0
        assert queue.empty()
        assert not queue.full()
        with pytest.raises(standard.Empty):
            queue.get_nowait()
    queue.put("news")
    thread.join(PATIENCE_S)
    assert got == ["news"]


@pytest.mark.fault(52, how="threads, handlers and finalisers inside a put or a get")
@pytest.mark.parametrize("act", ["put", "get"])
def test_a_queue_is_closed_while_another_thread_waits(client, act):
    queue = client.queue("q", 1)
    errors = []
    if act == "put":
        queue.put(0)
    begun = threading.Event()

    def waits():
        begun.set()
        try:
            queue.put(1) if act == "put" else queue.get()
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=waits)
    thread.start()
    begun.wait()
    queue.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert "closed" in errors[0]


OVERFLOW = """
    import sys, shmdriver
    client = shmdriver.connect(sys.argv[1])
    queue = client.queue("q", max_bytes=1 << 16)
    for number in range(5000):
        queue.put(number)
    if sys.argv[2] == "cancelled":
        queue.cancel_join_thread()
    if sys.argv[2] == "closed":
        queue.close()
"""


@pytest.mark.fault(52, how="more was put than there is room for, then the process ends")
def test_a_process_that_cancels_the_join_ends_although_nobody_gets(client):
    holder = client.queue("q", max_bytes=1 << 16)
    done = run(OVERFLOW, client.instance, "cancelled")
    assert (done.returncode, done.stderr) == (0, "")
    assert holder.get(timeout=PATIENCE_S) == 0


@pytest.mark.fault(52, how="more was put than there is room for, and nobody is left who reads")
@pytest.mark.parametrize("how", ["open", "closed"])
def test_a_process_whose_queue_nobody_reads_ends_and_says_what_is_lost(client, how):
    done = run(OVERFLOW, client.instance, how)
    assert done.returncode == 0
    assert "objects that this process has put are lost" in done.stderr
    assert "Traceback" not in done.stderr


HOLDER = """
    import sys, shmdriver
    client = shmdriver.connect(sys.argv[1])
    queue = client.queue("q", max_bytes=1 << 16)
    print("holds", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.fault(52, how="kill -9 of the only other process while a putter's overflow waits for it")
def test_a_process_ends_when_the_one_that_held_its_queue_is_killed(client):
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), client.instance],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(OVERFLOW), client.instance, "open"],
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
        ) as putter:  # fmt: skip
            deadline = time.monotonic() + PATIENCE_S
            while not any(s.name.startswith("queue.q.0") and s.epochs for s in client.streams()):
                assert time.monotonic() < deadline
            holder.kill()
            _, said = putter.communicate(timeout=PATIENCE_S)
    assert putter.returncode == 0
    assert "objects that this process has put are lost" in said


DAEMONS = """
    import threading
    import shmdriver
    from shmdriver import Queue

    empty, full = Queue(), Queue(1)
    client = full._client
    consumer = client.consumer("s")
    producer = client.producer("t", min_consumers=1)
    full.put(0)
    begun = threading.Barrier(5)

    def daemon(act):
        begun.wait()
        while True:
            act()

    for act in (empty.get, lambda: full.put(1), consumer.read, lambda: producer.publish(b"x")):
        threading.Thread(target=daemon, args=(act,), daemon=True).start()
    begun.wait()
    print("done")
"""


@pytest.mark.fault(52, how="the client is closed between two steps of the holder's thread")
def test_ends_that_another_thread_has_just_closed_say_so(client):
    queue = client.queue("q")
    queue.put(1)
    assert queue.get(timeout=PATIENCE_S) == 1
    lease, lane, inlet = queue._holder.lease, queue._outlet._array[0], queue._inlet
    client.close()
    assert has_ended(lease)
    with pytest.raises(shmdriver.HandleClosed):
        lane.forward(inlet)
    lane.note_end(shmdriver.LeaseRevoked("revoked"))
    assert not lane.drains()
    assert left_behind(lane.consumer, 0) == 0


@pytest.mark.fault(52, how="daemon threads in every kind of wait when the interpreter exits")
def test_daemon_threads_that_wait_print_nothing_when_the_interpreter_exits():
    for _ in range(3):
        done = run(DAEMONS)
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# ---- what exceptions keep


class Fails:
    def __init__(self, size):
        self.array = np.zeros(size)

    def __reduce__(self):
        return (fails, (self.array, "x" * 300_000))


def fails(*_):
    raise RuntimeError("cannot be made again")


@pytest.mark.fault(54, how="errors of unpickling that their user keeps")
def test_errors_that_are_kept_keep_no_place_in_the_lane(client):
    queue = client.queue("q", max_bytes=1 << 20)
    errors = []
    for number in range(40):  # ten times the arena
        queue.put(Fails(30_000), timeout=PATIENCE_S)
        queue.put(number, timeout=PATIENCE_S)
        with pytest.raises(RuntimeError) as caught:
            queue.get(timeout=PATIENCE_S)
        errors.append(caught)
        assert queue.get(timeout=PATIENCE_S) == number


@pytest.mark.fault(54, how="errors of put and get that their user keeps")
def test_errors_that_are_kept_keep_no_queue(client):
    queue = client.queue("q", 1)
    queue.put(0)
    errors = []
    for act in ("put", "get", "get"):
        try:
            queue.put(1, timeout=0) if act == "put" else queue.get(timeout=0)
        except (standard.Full, standard.Empty) as error:
            errors.append(error)
    assert len(errors) == 2
    gone = weakref.ref(queue)
    del queue
    gc.collect()
    assert gone() is None


@pytest.mark.fault(52, how="an attach of the holder is refused")
def test_a_holder_whose_attach_was_refused_goes_on():
    config = Config.load()
    limits = config.policies.limits.model_copy(update={"leases": 12})
    config = config.model_copy(update={"policies": config.policies.model_copy(update={"limits": limits})})
    died: list[threading.ExceptHookArgs] = []
    before, threading.excepthook = threading.excepthook, died.append
    try:
        with shmdriver.embedded(config=config) as client:
            queue = client.queue("q")
            with shmdriver.connect(client.instance) as other:
                room = 12 - len(client.leases())
                fill = [other.consumer(f"fill{number}") for number in range(room - 1)]
                other.queue("q").put("by the last lease")
                for consumer in fill:
                    consumer.close()
            for number in range(4):
                with shmdriver.connect(client.instance) as other:
                    other.queue("q").put(number)
            assert [queue.get(timeout=PATIENCE_S) for _ in range(5)] == ["by the last lease", 0, 1, 2, 3]
    finally:
        threading.excepthook = before
    assert died == []
