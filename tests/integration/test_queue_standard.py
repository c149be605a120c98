"""Queue behaves as multiprocessing.Queue does: the same test bodies run against both."""

from __future__ import annotations

import multiprocessing
import os
import queue as standard
import threading

import numpy as np
import pytest

import shmdriver

FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=["multiprocessing", "shmdriver"])
def make(request):
    """A function that makes queues of one kind: ``make(maxsize)``."""
    if request.param == "multiprocessing":
        made = []

        def standard_queue(maxsize=0):
            made.append(FORK.Queue(maxsize))
            return made[-1]

        yield standard_queue
        for each in made:
            each.cancel_join_thread()
            each.close()
        return
    with shmdriver.embedded() as client:
        names = (f"q{number}" for number in range(100))
        yield lambda maxsize=0: client.queue(next(names), maxsize)


def child(target, *args):
    process = FORK.Process(target=target, args=args)
    process.start()
    return process


def put_all(queue, items):
    for item in items:
        queue.put(item)


@pytest.mark.fault(53, how="read-only arrays of each order and size, put into both queues")
@pytest.mark.parametrize("bytes_each", [8, 100_000])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_read_only_array_arrives_writable(make, bytes_each, order):
    queue, sent = make(), []
    for shape in ((), (0,), (bytes_each // 8,), (2, bytes_each // 16)):
        array = np.asarray(np.arange(np.prod(shape, dtype=int), dtype="<f8").reshape(shape), order=order)
        array.flags.writeable = False
        sent.append(array)
    strided = np.arange(2 * bytes_each, dtype="u1")[::2]
    strided.flags.writeable = False
    sent.append(strided)
    queue.put(sent)
    for got, expected in zip(queue.get(timeout=60), sent, strict=True):
        assert np.array_equal(got, expected)
        assert got.flags.writeable
        assert got.flags.f_contiguous == expected.flags.f_contiguous or not expected.flags.contiguous
        got += 1
        assert not expected.flags.writeable


@pytest.mark.parametrize(
    "item",
    [
        None,
        0,
        "text",
        b"bytes",
        [1, (2, {"three": 3.0})],
        Ellipsis,
        "x" * 300_000,
        bytes(10_000_000),
        ValueError("x").args,
    ],
    ids=lambda item: type(item).__name__,
)
def test_an_object_comes_out_as_it_went_in(make, item):
    queue = make()
    queue.put(item)
    assert queue.get(timeout=60) == item


def test_objects_of_one_putter_come_in_order(make):
    queue = make()
    put_all(queue, range(3000))
    assert [queue.get(timeout=60) for _ in range(3000)] == list(range(3000))


@pytest.mark.parametrize("shape", [(3,), (100, 100), (700, 900), (1000, 3, 1000)])
def test_arrays_come_out_equal_and_writable(make, shape):
    queue = make()
    sent = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    queue.put({"array": sent, "same": sent, "transposed": sent.T, "n": 1})
    got = queue.get(timeout=60)
    assert np.array_equal(got["array"], sent)
    assert np.array_equal(got["transposed"], sent.T)
    assert got["array"] is got["same"]
    got["array"][...] = 0  # private memory
    assert sent.any()


def test_an_empty_queue_says_so(make):
    queue = make()
    with pytest.raises(standard.Empty):
        queue.get_nowait()
    with pytest.raises(standard.Empty):
        queue.get(timeout=0.01)
    with pytest.raises(standard.Empty):
        queue.get(block=False)
    with pytest.raises(standard.Empty):
        queue.get(timeout=-1)
    assert queue.empty()
    assert queue.qsize() == 0


def test_a_full_queue_says_so(make):
    queue = make(3)
    put_all(queue, "abc")
    assert queue.full()
    assert queue.qsize() == 3
    with pytest.raises(standard.Full):
        queue.put_nowait("d")
    with pytest.raises(standard.Full):
        queue.put("d", timeout=0.01)
    with pytest.raises(standard.Full):
        queue.put("d", block=False)
    assert queue.get(timeout=60) == "a"
    queue.put("d", timeout=60)
    assert [queue.get(timeout=60) for _ in range(3)] == ["b", "c", "d"]
    assert not queue.full()


def test_a_queue_without_a_limit_is_never_full(make):
    queue = make()
    put_all(queue, range(5000))
    assert not queue.full()
    assert queue.qsize() == 5000
    assert [queue.get(timeout=60) for _ in range(5000)] == list(range(5000))


def test_a_closed_queue_refuses(make):
    queue = make()
    queue.close()
    queue.close()
    queue.join_thread()
    with pytest.raises(ValueError, match="closed"):
        queue.put(1)
    with pytest.raises(ValueError, match="closed"):
        queue.get()


def test_what_a_child_has_put_outlives_it(make):
    queue = make()
    process = child(put_all, queue, range(100))
    process.join()
    assert process.exitcode == 0
    assert [queue.get(timeout=60) for _ in range(100)] == list(range(100))


def test_many_processes_put_and_each_keeps_its_order(make):
    queue = make()
    processes = [child(put_all, queue, [(k, number) for number in range(500)]) for k in range(6)]
    got = [queue.get(timeout=60) for _ in range(3000)]
    for process in processes:
        process.join()
    for k in range(6):
        assert [number for who, number in got if who == k] == list(range(500))
    assert queue.empty()


def answer(questions, answers):
    while (question := questions.get()) is not None:
        answers.put((os.getpid(), question * 2))


def test_a_child_gets_what_the_parent_puts(make):
    questions, answers = make(), make()
    put_all(questions, range(50))  # before there is a getter
    process = child(answer, questions, answers)
    put_all(questions, range(50, 100))
    questions.put(None)
    assert [answers.get(timeout=60) for _ in range(100)] == [(process.pid, 2 * n) for n in range(100)]
    process.join()


def test_a_bounded_queue_holds_a_fast_putter_back(make):
    queue = make(2)
    process = child(put_all, queue, range(200))
    assert [queue.get(timeout=60) for _ in range(200)] == list(range(200))
    process.join()


def test_threads_share_a_queue(make):
    queue = make(10)
    got: list[int] = []
    lock = threading.Lock()

    def take():
        while (item := queue.get(timeout=60)) is not None:
            with lock:
                got.append(item)

    takers = [threading.Thread(target=take) for _ in range(3)]
    putters = [threading.Thread(target=put_all, args=(queue, range(k, 300, 3))) for k in range(3)]
    for thread in takers + putters:
        thread.start()
    for thread in putters:
        thread.join()
    put_all(queue, [None] * 3)
    for thread in takers:
        thread.join()
    assert sorted(got) == list(range(300))


def test_a_getter_that_waits_is_woken_by_a_putter(make):
    queue = make()
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(queue.get(timeout=60)))
    thread.start()
    process = child(put_all, queue, ["news"])
    thread.join()
    process.join()
    assert got == ["news"]


def get_some(queue, count, answers):
    answers.put([queue.get(timeout=60) for _ in range(count)])


def test_a_getter_goes_on_where_one_before_it_stopped(make):
    queue, answers = make(), make()
    put_all(queue, range(10))
    first = child(get_some, queue, 4, answers)
    assert answers.get(timeout=60) == [0, 1, 2, 3]
    first.join()
    second = child(get_some, queue, 4, answers)
    assert answers.get(timeout=60) == [4, 5, 6, 7]
    second.join()
    assert [queue.get(timeout=60) for _ in range(2)] == [8, 9]
