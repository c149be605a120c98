"""Order across processes, and what becomes of objects whose putter, getter or maker ends, whoever made it."""

from __future__ import annotations

import gc
import os
import queue as standard
import random
import signal
import subprocess
import sys
import textwrap
import threading
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver.driver.collect import collect as collect_segments
from tests.chaos.stage import wait_until
from tests.integration.test_queue import start

PATIENCE_S = 60
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def up_to(queue, last):
    got = []
    while (item := queue.get(timeout=PATIENCE_S)) != last:
        got.append(item)
    return got


# ---- order


def put_numbers(queue, k, count):
    for number in range(count):
        queue.put((k, number))


@pytest.mark.fault(52, how="a sentinel that is put when the workers have ended")
def test_a_sentinel_that_is_put_when_the_workers_have_ended_is_read_last(client):
    for round_number in range(10):
        queue = client.queue(f"q{round_number}")
        workers = [start(put_numbers, queue, k, 200) for k in range(4)]
        for worker in workers:
            worker.join()
        queue.put(None)
        assert len(up_to(queue, None)) == 800
        assert queue.empty()
        queue.close()


def collect(queue, answers):
    answers.put(len(up_to(queue, None)))


def read_by_a_later_getter(client, putter):
    """How many numbers a getter reads that begins after four putters of 50 have ended."""
    queue, answers = client.queue("q"), client.queue("answers")
    for k in range(4):
        start(putter, queue, k, 50).join()
    queue.put(None)
    getter = start(collect, queue, answers)
    count = answers.get(timeout=PATIENCE_S)
    getter.join()
    return count


@pytest.mark.fault(52, how="a sentinel that is put before there is a getter, in a third process")
def test_a_getter_that_begins_later_reads_the_sentinel_last(client):
    assert read_by_a_later_getter(client, put_numbers) == 200


def put_numbers_and_die(queue, k, count):
    put_numbers(queue, k, count)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.fault(52, how="kill -9 of putters before there is a getter")
def test_what_killed_putters_left_is_read_before_a_later_sentinel(client):
    assert read_by_a_later_getter(client, put_numbers_and_die) == 200


def relay(first, second, count):
    """Puts into the second queue only when what it got from the first has been put by another process."""
    for _ in range(count):
        second.put(("relayed", first.get(timeout=PATIENCE_S)))


def put_to_both(first, second, count):
    for number in range(count):
        second.put(("original", number))
        first.put(number)


@pytest.mark.fault(52, how="a cause in one process, its consequence in another one")
def test_a_consequence_is_read_after_its_cause(client):
    first, second = client.queue("first"), client.queue("second")
    processes = [start(relay, first, second, 2000), start(put_to_both, first, second, 2000)]
    seen = set()
    for _ in range(4000):
        what, number = second.get(timeout=PATIENCE_S)
        assert what == "original" or number in seen
        seen.add(number)
    for process in processes:
        process.join()


# ---- children, whoever made them


def put_range(queue, count):
    for number in range(count):
        queue.put(number)


@pytest.mark.fault(52, how="a child of os.fork that leaves by os._exit")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_a_plain_fork_has_put_is_delivered(client):
    queue = client.queue("q")
    pid = os.fork()
    if pid == 0:
        put_range(queue, 200)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    queue.put(None)
    assert up_to(queue, None) == list(range(200))


@pytest.mark.fault(52, how="a child of os.fork that leaves by os._exit with more than there is room for")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_waited_in_the_memory_of_a_process_that_is_gone_is_told(client):
    queue = client.queue("q", max_bytes=1 << 16)
    pid = os.fork()
    if pid == 0:
        put_range(queue, 5000)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    got = []
    with pytest.raises(shmdriver.ObjectsLost, match="memory of their putter") as told:
        while True:
            got.append(queue.get(timeout=PATIENCE_S))
    assert got == list(range(len(got)))
    assert len(got) > 500
    assert told.value.lost is None
    with pytest.raises(standard.Empty):
        queue.get_nowait()


BILLIARD = """
    import billiard, sys, shmdriver

    def work(queue):
        for number in range(200):
            queue.put(bytes(1000) + bytes([number]))

    client = shmdriver.connect(sys.argv[1])
    queue = client.queue("q", max_bytes=1 << 16)
    worker = billiard.Process(target=work, args=(queue,))
    worker.start()
    got = [queue.get(timeout=60)[-1] for _ in range(200)]
    worker.join()
    print(worker.exitcode, got == list(range(200)))
"""


@pytest.mark.fault(52, how="a child of a package like multiprocessing, with more than there is room for")
def test_what_a_child_of_billiard_has_put_is_delivered(client):
    pytest.importorskip("billiard")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BILLIARD), client.instance],
        capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0 True\n", "")


def grandchild(queue, answers):
    child = get_context("fork").Process(target=put_range, args=(queue, 3000))
    child.start()
    answers.put("started")
    child.join()


@pytest.mark.fault(52, how="a child's child that ends with more than there is room for")
def test_what_a_grandchild_has_put_is_delivered(client):
    queue, answers = client.queue("q", max_bytes=1 << 16), client.queue("answers")
    child = start(grandchild, queue, answers)
    assert answers.get(timeout=PATIENCE_S) == "started"
    assert [queue.get(timeout=PATIENCE_S) for _ in range(3000)] == list(range(3000))
    child.join()


def waits_puts_and_tells(queue, answers, go):
    go.wait()
    queue.put("of a child")
    answers.put("has put")


@pytest.mark.fault(52, how="the process that made the queue drops it")
@pytest.mark.parametrize("maxsize", [0, 2])
def test_a_putter_goes_on_when_the_maker_has_dropped_the_queue(client, maxsize):
    queue, answers = client.queue("q", maxsize), client.queue("answers")
    go = get_context("fork").Event()

    child = start(waits_puts_and_tells, queue, answers, go)
    del queue
    gc.collect()
    go.set()
    assert answers.get(timeout=PATIENCE_S) == "has put"
    child.join(PATIENCE_S)
    assert child.exitcode == 0


# ---- getters, one after another


def get_some(queue, answers, count, how):
    answers.put([queue.get(timeout=PATIENCE_S) for _ in range(count)])
    if how == "killed":
        answers.close()
        answers.join_thread()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.fault(52, how="getters that end or are killed, at every place in a lane's ring")
@pytest.mark.parametrize("how", ["ends", "killed"])
@pytest.mark.parametrize("maxsize", [0, 3])
def test_each_getter_goes_on_where_the_last_one_stopped(client, how, maxsize):
    queue, answers = client.queue("q", maxsize), client.queue("answers")
    numbers = iter(range(10_000))
    expected = 0
    put = 0
    for count in (1, 2, 3, 1, 2):
        while put - expected < (maxsize or 5):
            queue.put(next(numbers), timeout=PATIENCE_S)
            put += 1
        getter = start(get_some, queue, answers, count, how)
        assert answers.get(timeout=PATIENCE_S) == list(range(expected, expected + count))
        getter.join()
        expected += count
    # What a killed getter has not told counts until its death is proved.
    wait_until(lambda: queue.qsize() == put - expected, "a count without the killed getter")
    assert [queue.get(timeout=PATIENCE_S) for _ in range(put - expected)] == list(range(expected, put))
    queue.put("goes on", timeout=PATIENCE_S)
    assert queue.get(timeout=PATIENCE_S) == "goes on"


# ---- sizes, and errors


@pytest.mark.fault(52, how="a putter, a getter and a third process ask how much there is")
def test_every_end_counts_what_is_unread(client):
    with shmdriver.connect(client.instance) as putters, shmdriver.connect(client.instance) as getters:
        putter, getter = putters.queue("q"), getters.queue("q")
        for number in range(6):
            putter.put(number)
        assert getter.get(timeout=PATIENCE_S) == 0
        asked = client.queue("q")
        for queue in (putter, getter, asked):
            assert queue.qsize() == 5
            assert not queue.empty()
        assert [getter.get(timeout=PATIENCE_S) for _ in range(5)] == [1, 2, 3, 4, 5]
        for queue in (putter, getter, asked):
            assert queue.qsize() == 0
            assert queue.empty()


@pytest.mark.fault(52, how="objects of up to 20 MiB and a bound of 1")
@pytest.mark.parametrize("size", [3 << 20, 20 << 20])
def test_an_empty_queue_takes_one_object_of_any_size_at_once(client, size):
    queue = client.queue("q", 1)
    queue.put_nowait(bytes(size))
    with pytest.raises(standard.Full):
        queue.put(bytes(size), timeout=0.05)
    assert len(queue.get(timeout=PATIENCE_S)) == size
    queue.put_nowait(bytes(size))
    assert len(queue.get(timeout=PATIENCE_S)) == size


def outcome(act):
    try:
        return act()
    except BaseException as error:
        return type(error)


@pytest.mark.parametrize(
    "act", ["get_text", "put_text", "join_early", "empty_closed", "put_closed", "get_closed"]
)
def test_errors_are_those_of_the_standard_queue(client, act):
    def errors_of(queue):
        match act:
            case "get_text":
                return outcome(lambda: queue.get(timeout="x"))
            case "put_text":
                return outcome(lambda: queue.put(1, timeout="x"))
            case "join_early":
                return outcome(queue.join_thread)
        queue.put(1)
        queue.get()
        queue.close()
        queue.join_thread()
        asked = {"empty_closed": queue.empty, "put_closed": lambda: queue.put(1), "get_closed": queue.get}
        return outcome(asked[act])

    expected, got = errors_of(get_context("fork").Queue(3)), errors_of(client.queue("q", 3))
    assert issubclass(got, expected)


@pytest.mark.parametrize("seed", range(6))
def test_random_calls_answer_as_the_standard_queue(client, seed):
    draw = random.Random(seed)
    maxsize = draw.choice([0, 1, 2, 5, 40])
    model: Any = standard.Queue(maxsize)  # multiprocessing's answers, without its thread's delay
    queue = client.queue("q", maxsize, max_bytes=1 << 16)
    for number in range(400):
        act = draw.choice(["put", "put", "get", "get", "qsize", "empty", "full"])
        if act == "put":
            item = (number, bytes(draw.choice([0, 10, 300, 5000, 40_000])))
            calls = [outcome(lambda end=end, item=item: end.put_nowait(item)) for end in (model, queue)]
        elif act == "get" and not model.empty() and queue._overflow:
            calls = [outcome(lambda end=end: end.get(timeout=PATIENCE_S)) for end in (model, queue)]
        elif act == "get":
            calls = [outcome(end.get_nowait) for end in (model, queue)]
        else:
            calls = [outcome(getattr(end, act)) for end in (model, queue)]
        assert calls[0] == calls[1], (act, number)


def test_threads_of_several_processes_keep_their_own_order(client):
    queue = client.queue("q")

    def put_by_threads():
        own = [(os.getpid(), k) for k in range(3)]
        threads = [threading.Thread(target=put_numbers, args=(queue, who, 300)) for who in own]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    processes = [start(put_by_threads) for _ in range(2)]
    got: dict[Any, list[int]] = {}
    for _ in range(1800):
        who, number = queue.get(timeout=PATIENCE_S)
        got.setdefault(who, []).append(number)
    for process in processes:
        process.join()
    assert len(got) == 6
    assert all(numbers == list(range(300)) for numbers in got.values())


EMBEDDED = """
    import sys, shmdriver
    with shmdriver.embedded() as client:
        queues = client.queue("get"), client.queue("put"), client.queue("put-bounded", 2)
        for item in ("the first one", "the last one"):
            queues[0].put(item)
        print(client.instance, flush=True)
        sys.stdin.read()
"""


@pytest.mark.fault(52, how="kill -9 of the program that runs the driver and is the peer")
@pytest.mark.parametrize("reconnect", [False, True])
@pytest.mark.parametrize("act", ["get", "put", "put-bounded"])
def test_every_wait_ends_when_the_embedded_driver_was_killed_with_the_peer(act, reconnect):
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(EMBEDDED)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        instance = program.stdout.readline().strip()
        with shmdriver.connect(instance, reconnect=reconnect) as client:
            queue = client.queue(act, 2 if act == "put-bounded" else 0)
            if act == "get":
                assert queue.get(timeout=PATIENCE_S) == "the first one"
            else:
                queue.put("before")
            program.kill()
            program.wait()
            got = []
            ends = (shmdriver.DriverUnavailable, shmdriver.ObjectsLost)  # that: of what it put meanwhile
            with pytest.raises(ends, match=r"embedded driver .* is dead"):
                while True:
                    got.append(queue.get()) if act == "get" else queue.put("after")
            assert got == (["the last one"] if act == "get" else [])
    collect_segments(instance)
