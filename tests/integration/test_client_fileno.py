"""fileno(): readable while there is something to read, in select, poll and selectors; never a hang."""

from __future__ import annotations

import errno
import os
import resource
import select
import selectors
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver.driver.config import Config
from tests.chaos.stage import wait_until

TICK = np.dtype([("n", "<i8")])
BIG = 100_000
PATIENCE_S = 60


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def is_readable(consumer, timeout=0.0):
    return bool(select.select([consumer], [], [], timeout)[0])


def arrives(consumer):
    return is_readable(consumer, PATIENCE_S)


def notifiers():
    """How many threads of this process feed fds."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            names.append((task / "comm").read_text())
    return names.count("shmd-notifier\n")


@pytest.mark.parametrize("delivery", ["reliable", "lossy", "latest"])
@pytest.mark.parametrize("wait", ["adaptive", "sleep", "spin"])
def test_an_fd_is_readable_exactly_while_there_is_something(client, delivery, wait):
    with client.consumer("s", delivery=delivery, wait=wait) as into, client.producer("s") as out:
        into.read(timeout=0)  # takes notice of the epoch
        assert not is_readable(into)
        for n in range(5):
            out.publish(b"%d" % n)
            assert arrives(into)
            assert bytes(into.read(timeout=0)) == b"%d" % n
            assert not is_readable(into)
        out.close()
        assert arrives(into)
        for _ in range(2):
            with pytest.raises(shmdriver.EndOfStream):
                into.read(timeout=0)
            assert is_readable(into)


def test_messages_that_were_fetched_ahead_keep_an_fd_readable(client):
    with client.consumer("s") as into, client.producer("s") as out:
        for n in range(100):
            out.publish(b"%02d" % n)
        assert bytes(into.read()) == b"00"
        assert into.buffered == 99
        assert is_readable(into)  # asked for when the run is there already
        for n in range(1, 100):
            assert is_readable(into)
            assert bytes(into.read(timeout=0)) == b"%02d" % n
        assert not is_readable(into)
        for n in range(50):
            out.publish(b"%02d" % n)
        for n, message in zip(range(50), into, strict=False):
            assert bytes(message) == b"%02d" % n
            assert is_readable(into) == (n < 49)
        out.publish(b"a")
        out.publish(b"b")
        assert bytes(into.read()) == b"a"
        assert into.lag == 1  # looks, and takes nothing
        assert is_readable(into)
        assert bytes(into.read(timeout=0)) == b"b"
        assert not is_readable(into)


def test_batches_empty_an_fd(client):
    with client.consumer("s") as into, client.producer("s", dtype=TICK) as out:
        assert into.read_batch(timeout=0) is None
        assert not is_readable(into)
        out.publish(np.arange(100).view(TICK))
        assert arrives(into)
        assert into.read_batch(60)["n"].tolist() == list(range(60))
        assert is_readable(into)
        assert into.read_batch()["n"].tolist() == list(range(60, 100))
        assert not is_readable(into)


def test_selectors_find_who_has_something(client):
    with selectors.DefaultSelector() as selector:
        readers: list[Any] = [client.consumer(f"s{n}") for n in range(5)]
        for reader in readers:
            selector.register(reader, selectors.EVENT_READ)
        outs = [client.producer(f"s{n}") for n in range(5)]
        while selector.select(0):
            for reader in readers:
                assert reader.read(timeout=0) is None  # the epochs
        outs[3].publish(b"x")
        ((key, _),) = selector.select(PATIENCE_S)
        assert readers.index(key.fileobj) == 3
        assert bytes(readers[3].read(timeout=0)) == b"x"
        assert selector.select(0) == []
        outs[0].abort()
        ((key, _),) = selector.select(PATIENCE_S)
        assert readers.index(key.fileobj) == 0
        with pytest.raises(shmdriver.ProducerLost):
            readers[0].read(timeout=0)
        for reader in readers:
            reader.close()
            selector.unregister(reader)
        for out in outs[1:]:
            out.close()


@pytest.mark.parametrize("streams", [1, 100, 200])
def test_one_thread_feeds_all_fds_of_a_client(client, streams):
    readers = [client.consumer(f"s{n}") for n in range(streams)]
    outs = [client.producer(f"s{n}", slots=64, slot_bytes=64, arena=0) for n in range(streams)]
    waiting = select.poll()
    for reader in readers:
        assert reader.read(timeout=0) is None
        waiting.register(reader, select.POLLIN)
    wait_until(lambda: notifiers() == 1, "one thread, which says its name when it first runs")
    assert waiting.poll(0) == []
    by_fd = {reader.fileno(): (n, reader) for n, reader in enumerate(readers)}
    rounds = 2000 // streams

    def publish():
        for k in range(rounds):
            for n, out in enumerate(outs):
                out.publish(b"%d %d" % (n, k), timeout=PATIENCE_S)

    writer = threading.Thread(target=publish)
    writer.start()
    found = [0] * streams
    while sum(found) < streams * rounds:
        ready = waiting.poll(PATIENCE_S * 1000)
        assert ready
        for fd, _ in ready:
            n, reader = by_fd[fd]
            for message in iter(partial(reader.read, timeout=0), None):
                assert bytes(message) == b"%d %d" % (n, found[n])
                found[n] += 1
    writer.join()
    assert waiting.poll(0) == []


def test_views_that_are_dropped_without_a_read_do_not_stop_the_producer(client):
    """The gate moves only in a call of the consumer: so the fd asks for one."""
    with client.consumer("s") as into, client.producer("s", slots=16, max_message=BIG, slot_bytes=64) as out:
        into.read(timeout=0)
        assert not is_readable(into)
        kept: list[Any] = []
        while out.try_publish(bytes([len(kept)]) * BIG):
            assert arrives(into)
            kept.append(into.read(timeout=0))
        assert into.read(timeout=0) is None
        sent = threading.Event()

        def publish():
            out.publish(b"next" * (BIG // 4), timeout=PATIENCE_S)
            sent.set()

        writer = threading.Thread(target=publish)
        writer.start()
        assert arrives(into)
        assert into.read(timeout=0) is None  # all views live still
        assert [message.data[5] for message in kept] == list(range(len(kept)))
        kept.clear()
        assert arrives(into)
        while into.read(timeout=0) is None:
            assert arrives(into)
        assert sent.wait(PATIENCE_S)
        writer.join()


def test_an_eviction_makes_an_fd_readable():
    config = Config.load(env={}, overrides={"profiles.default.evict_after_ms": 20})
    with shmdriver.embedded(config=config) as client:
        slow = client.consumer("s")
        with client.producer("s", slots=64, slow_consumer="evict") as out:
            for n in range(32):
                out.publish(b"%d" % n)
            while slow.read(timeout=0) is not None:
                pass
            assert not is_readable(slow)
            for n in range(200):
                out.publish(b"%d" % n, timeout=PATIENCE_S)
            assert arrives(slow)
            with pytest.raises(shmdriver.LeaseRevoked, match="too slow"):
                while True:
                    slow.read(timeout=0)
            assert is_readable(slow)


def test_a_driver_that_stops_and_a_new_producer_make_an_fd_readable():
    with shmdriver.embedded() as client:
        into = client.consumer("s", follow=True)
        other = client.consumer("t")
        assert into.read(timeout=0) is None
        assert not is_readable(into)
        for n in range(3):
            with client.producer("s") as out:
                assert arrives(into)
                out.publish(b"%d" % n)
                while (message := into.read(timeout=0)) is None:
                    assert arrives(into)
                assert bytes(message) == b"%d" % n
        while is_readable(into):
            assert into.read(timeout=0) is None
        fds = (into.fileno(), other.fileno())
        assert not select.select(fds, [], [], 0)[0]
    assert sorted(select.select(fds, [], [], PATIENCE_S)[0]) == sorted(fds)
    with pytest.raises(shmdriver.HandleClosed):
        into.read(timeout=0)


def test_a_consumer_that_is_closed_wakes_who_selects_and_tells(client):
    into = client.consumer("s")
    entered = threading.Event()
    outcome = []

    def wait_there(reader):
        entered.set()
        try:
            assert arrives(reader)
            reader.read(timeout=0)
        except shmdriver.ShmDriverError as error:
            outcome.append(type(error))

    assert into.read(timeout=0) is None
    fd = into.fileno()
    thread = threading.Thread(target=wait_there, args=(into,))
    thread.start()
    entered.wait()
    into.close()
    thread.join(PATIENCE_S)
    assert outcome == [shmdriver.HandleClosed]
    assert into.fileno() == fd  # so that it can be unregistered
    del into, thread
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)


def test_fileno_of_a_closed_consumer_that_had_none_is_refused(client):
    into = client.consumer("s")
    into.close()
    with pytest.raises(shmdriver.HandleClosed):
        into.fileno()


def test_a_forked_child_has_no_fd_and_its_parent_goes_on(client):
    with client.consumer("s") as into, client.producer("s") as out:
        into.read(timeout=0)
        fd = into.fileno()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                into.fileno()
            except shmdriver.ForkedHandleError:
                os.write(writer, b"refused")
                try:
                    os.fstat(fd)
                except OSError:
                    os.write(writer, b", closed")
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == b"refused, closed"
        os.waitpid(pid, 0)
        for n in range(3):
            out.publish(b"%d" % n)
            assert arrives(into)
            assert bytes(into.read(timeout=0)) == b"%d" % n


def test_fds_in_a_child_of_a_process_that_has_some(client):
    """The child's client has a notifier of its own."""
    import multiprocessing

    with client.consumer("s") as into, client.producer("s") as out:
        into.read(timeout=0)
        assert not is_readable(into)
        child = multiprocessing.get_context("fork").Process(target=_select_and_answer, args=(client,))
        back = client.consumer("back")
        child.start()
        out.wait_for_consumers(2)
        out.publish(b"ping")
        assert arrives(back)
        while (message := back.read(timeout=0)) is None:
            assert arrives(back)
        assert bytes(message) == b"pong"
        child.join(PATIENCE_S)
        assert child.exitcode == 0


def _select_and_answer(client):
    with client.consumer("s") as into, client.producer("back") as out:
        while into.read(timeout=0) is None:
            assert arrives(into)
        out.publish(b"pong")
    client.close()


def test_no_fds_left_is_an_os_error_and_the_consumer_still_reads(client):
    with client.consumer("s") as into, client.producer("s") as out:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        try:
            taken = []
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            with pytest.raises(OSError, match=f"{os.strerror(errno.EMFILE)}: RLIMIT_NOFILE allows") as raised:
                into.fileno()
            assert raised.value.errno == errno.EMFILE
        finally:
            for fd in taken:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        out.publish(b"x")
        assert bytes(into.read()) == b"x"
        assert isinstance(into.fileno(), int)


def test_waiting_for_several_finds_those_that_are_ready(client):
    readers = [client.consumer(f"s{n}") for n in range(130)]
    outs = [client.producer(f"s{n}", slots=64, slot_bytes=64, arena=0) for n in range(130)]
    assert shmdriver.wait(readers, timeout=0.05) == []
    assert shmdriver.wait([], timeout=0) == []
    for n in (0, 64, 129):
        timer = threading.Timer(0.02, outs[n].publish, (b"x",))
        timer.start()
        assert shmdriver.wait(readers) == [readers[n]]
        timer.join()
        assert bytes(readers[n].read(timeout=0)) == b"x"
    readers[7].fileno()  # one that is watched as well
    outs[7].publish(b"y")
    outs[3].publish(b"y")
    assert shmdriver.wait(readers, timeout=PATIENCE_S) == [readers[3], readers[7]]
    assert is_readable(readers[7])
    outs[9].close()
    assert readers[9] in shmdriver.wait(readers)


IDLE = """
import resource, select, sys
import shmdriver
with shmdriver.connect(sys.argv[1]) as client:
    readers = [client.consumer(f"s{n}") for n in range(100)]
    waiting = select.poll()
    for reader in readers:
        reader.read(timeout=0)
        waiting.register(reader, select.POLLIN)
    begin = resource.getrusage(resource.RUSAGE_SELF)
    assert waiting.poll(1000) == []
    end = resource.getrusage(resource.RUSAGE_SELF)
    print(end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime)
"""


def test_a_hundred_idle_streams_cost_next_to_nothing(client):
    outs = [client.producer(f"s{n}", slots=64, slot_bytes=64, arena=0) for n in range(100)]
    done = subprocess.run(
        [sys.executable, "-c", IDLE, client.instance], capture_output=True, text=True, check=True, timeout=60
    )
    assert float(done.stdout) < 0.05  # of a second, CPU; 0.002 on an idle machine
    assert all(out.consumers == 0 for out in outs)  # they have left
