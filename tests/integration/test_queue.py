"""What Queue does beyond multiprocessing.Queue: deaths, the one getter, lanes, sizes, the drop-in."""

from __future__ import annotations

import multiprocessing
import os
import queue as standard
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import shmdriver


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def start(target, *args, method="fork"):
    process = multiprocessing.get_context(method).Process(target=target, args=args)
    process.start()
    return process


def test_a_queue_takes_the_streams_and_the_memory_that_the_guide_names(client):
    queue = client.queue("q")
    queue.put(1)
    assert queue.get(timeout=60) == 1
    taken = {stream.name.removeprefix("queue.q."): stream.shm_bytes for stream in client.streams()}
    assert sorted(taken) == ["0", "1", "2", "get", "keep"]
    putter = taken.pop("0")
    assert 2.2 * 2**20 < putter < 2.3 * 2**20
    assert taken == {"1": 0, "2": 0, "get": 44 << 10, "keep": 44 << 10}


@pytest.mark.fault(72, how="thirty queues, room for the streams of two")
def test_queues_that_were_dropped_leave_room_for_others():
    limits = {"policies": {"limits": {"streams": 10}}}
    with shmdriver.embedded(config=limits) as client:
        for number in range(30):
            queue = client.queue(f"q{number}")
            queue.put(number)
            assert queue.get(timeout=60) == number
            queue.close()


def put_and_die(queue, count):
    for number in range(count):
        queue.put(number)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_putter_had_put_is_delivered(client):
    queue = client.queue("q")
    process = start(put_and_die, queue, 300)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [queue.get(timeout=60) for _ in range(300)] == list(range(300))
    assert queue.empty()


def get_and_die(queue, count, answers):
    for _ in range(count):
        answers.put(queue.get(timeout=60))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_getter_that_is_killed_is_replaced_by_one_that_goes_on(client):
    queue, answers = client.queue("q"), client.queue("answers")
    for number in range(200):
        queue.put(number)
    process = start(get_and_die, queue, 70, answers)
    process.join()
    assert [answers.get(timeout=60) for _ in range(70)] == list(range(70))
    assert [queue.get(timeout=60) for _ in range(130)] == list(range(70, 200))


def get_some(queue, count):
    for number in range(count):
        assert queue.get(timeout=60) == number


@pytest.mark.fault(52, how="one getter's process after another ends when it has read all there is")
def test_a_queue_goes_on_when_its_getters_process_has_ended(client):
    queue = client.queue("q", maxsize=4)
    for _ in range(4):
        for number in range(4):
            queue.put(number, timeout=60)
        process = start(get_some, queue, 4, method="spawn")
        process.join()
        assert process.exitcode == 0


def put_one(queue, item):
    queue.put(item)


def get_one(queue, answers):
    answers.put(queue.get(timeout=60))


def test_what_ended_putters_left_is_handed_on_to_a_getter_in_another_process(client):
    queue, answers = client.queue("q"), client.queue("answers")
    for number in range(3):
        start(put_one, queue, number).join()
    got = []
    for _ in range(3):
        process = start(get_one, queue, answers)
        got.append(answers.get(timeout=60))
        process.join()
    assert sorted(got) == [0, 1, 2]


def test_a_second_getter_is_refused_and_pointed_to_shards(client):
    queue = client.queue("q")
    with pytest.raises(standard.Empty):
        queue.get_nowait()
    with shmdriver.connect(client.instance) as other:
        second = other.queue("q")
        with pytest.raises(shmdriver.AttachRejected, match=rf"\(pid {os.getpid()}\) gets.*shard=\(k, n\)"):
            second.get_nowait()
        second.put("still a putter")
        assert queue.get(timeout=60) == "still a putter"
        queue.close()
        second.put("left behind")
        assert second.get(timeout=60) == "left behind"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_every_kind_put(client, method):
    queue = client.queue("q")
    process = start(put_one, queue, {"pi": 3.14}, method=method)
    assert queue.get(timeout=60) == {"pi": 3.14}
    process.join()


def test_an_object_larger_than_the_lane_goes_in_parts(client):
    queue = client.queue("q", max_bytes=1 << 16)
    sent = np.random.default_rng(1).integers(0, 255, 3_000_000, np.uint8)
    process = start(put_one, queue, {"a": sent, "b": b"x" * 500_000})
    got = queue.get(timeout=60)
    process.join()
    assert np.array_equal(got["a"], sent)
    assert got["b"] == b"x" * 500_000


@pytest.mark.fault(52, how="an object of 16 lanes' size, and a bound of 1")
def test_a_bound_counts_objects_however_large(client):
    queue = client.queue("q", maxsize=2, max_bytes=1 << 16)
    queue.put_nowait(bytes(1_000_000))
    queue.put_nowait("second")
    with pytest.raises(standard.Full):
        queue.put_nowait("third")
    assert queue.full()
    assert len(queue.get(timeout=60)) == 1_000_000
    queue.put("third", timeout=60)
    assert queue.get(timeout=60) == "second"
    assert queue.get(timeout=60) == "third"
    assert queue.empty()
    assert not queue.full()


def test_what_cannot_be_pickled_is_told_to_the_putter(client):
    queue = client.queue("q")
    with pytest.raises(Exception, match="pickle"):
        queue.put(lambda: 0)
    queue.put("next")
    assert queue.get(timeout=60) == "next"


def test_an_object_is_put_as_it_was_then(client):
    queue = client.queue("q")
    array = np.ones(100_000)
    for value in range(100):  # beyond what the lane has room for
        array[:] = value
        queue.put(array)
    assert [queue.get(timeout=60)[-1] for _ in range(100)] == list(range(100))


def test_a_bound_is_of_each_putter(client):
    queue = client.queue("q", maxsize=2)
    with shmdriver.connect(client.instance) as other:
        second = other.queue("q", maxsize=2)
        for each in (queue, second):
            each.put_nowait(1)
            each.put_nowait(2)
            with pytest.raises(standard.Full):
                each.put_nowait(3)
            assert each.full()
        assert queue.qsize() == 4


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [("a b", {}, "name"), ("x" * 70, {}, "name"), ("q", {"max_bytes": 10}, "max_bytes")],
)
def test_impossible_queues_are_refused(client, name, arguments, error):
    with pytest.raises(ValueError, match=error):
        client.queue(name, **arguments)


PROGRAM = """
    from multiprocessing import Process
    from {module} import Queue

    def work(tasks, results):
        while (n := tasks.get()) is not None:
            results.put((n, n * n))

    if __name__ == "__main__":
        import multiprocessing
        multiprocessing.set_start_method("{method}")
        tasks, results = Queue(), Queue(maxsize=100)
        worker = Process(target=work, args=(tasks, results))
        worker.start()
        for n in range(1000):
            tasks.put(n)
        tasks.put(None)
        print(sum(square for _, square in (results.get() for _ in range(1000))))
        worker.join()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_program_is_switched_by_changing_one_line(tmp_path, method):
    printed = []
    for module in ("multiprocessing", "shmdriver"):
        script = tmp_path / f"{module}_program.py"
        script.write_text(textwrap.dedent(PROGRAM.format(module=module, method=method)))
        done = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, timeout=90, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        printed.append(done.stdout)
    assert printed[0] == printed[1] == f"{sum(n * n for n in range(1000))}\n"
