"""Processes and threads: clients as addresses, fork guards, deaths that are no ends, one thread at a time."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import platform
import select
import signal
import sys
import threading

import pytest

import shmdriver
from shmdriver import Reason

N = 5_000
PATIENCE_S = 60


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def publish_numbers(client, n):
    with client.producer("s", min_consumers=1) as out:
        for i in range(n):
            out.publish(i.to_bytes(8, "little"))
    client.close()


def publish_and_die(client, how):
    out = client.producer("s", min_consumers=1)
    for i in range(100):
        out.publish(i.to_bytes(8, "little"))
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exception":
        raise SystemExit(1)


def join(process):
    process.join(PATIENCE_S)
    assert process.exitcode is not None


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_client_passed_to_a_child_connects_afresh(client, method):
    context = multiprocessing.get_context(method)
    with client.consumer("s") as into:
        child = context.Process(target=publish_numbers, args=(client, N))
        child.start()
        assert [int.from_bytes(bytes(message), "little") for message in into] == list(range(N))
        join(child)
        assert child.exitcode == 0


def test_a_client_pickles_as_an_address(client):
    client.timeout = 3.0
    other = pickle.loads(pickle.dumps(client))
    assert (other.instance, other.timeout) == (client.instance, 3.0)
    assert other.client_id != client.client_id
    assert other.boot_id == client.boot_id
    other.close()


@pytest.mark.parametrize(
    ("how", "reasons"),
    [
        ("kill", {Reason.DIED}),
        ("exit", {Reason.ABORTED, Reason.DIED}),
        ("exception", {Reason.ABORTED, Reason.DIED}),
    ],
)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_producer_that_dies_is_lost_after_all_that_it_committed(client, method, how, reasons):
    with client.consumer("s") as into:
        child = multiprocessing.get_context(method).Process(target=publish_and_die, args=(client, how))
        child.start()
        seen: list[int] = []
        with pytest.raises(shmdriver.ProducerLost) as caught:
            seen.extend(int.from_bytes(bytes(message), "little") for message in into)
        assert seen == list(range(100))
        assert caught.value.reason in reasons
        assert caught.value.sealed_seq == 100
        join(child)


C = ctypes.PyDLL(None)  # keeps the GIL, which another thread of the parent may have taken in the meantime
WAYS_TO_FORK = {"os.fork": os.fork}  # the others run no fork handlers, neither C's nor Python's
if hasattr(C, "_Fork"):
    WAYS_TO_FORK["_Fork"] = C._Fork
if platform.machine() == "x86_64":
    WAYS_TO_FORK["clone"] = lambda: C.syscall(56, int(signal.SIGCHLD), 0, 0, 0, 0)


@pytest.fixture(autouse=True)
def _no_thread_asks_for_the_gil(request):
    """A child that was forked behind CPython's back would wait for the thread that has asked its parent."""
    interval_s = sys.getswitchinterval()
    if "fork" in request.fixturenames:
        sys.setswitchinterval(3600)  # of a wait for the GIL, until that thread asks for it
    yield
    sys.setswitchinterval(interval_s)


def in_child(action, fork=os.fork):
    """Runs ``action`` in a forked child; what it returned, as text."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.write(writer, str(action()).encode())
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


@pytest.mark.fault(36)
@pytest.mark.fault(45, how="os.fork, _Fork, raw clone")
@pytest.mark.parametrize("fork", WAYS_TO_FORK.values(), ids=list(WAYS_TO_FORK))
def test_handles_refuse_in_a_forked_child_and_the_parent_goes_on(client, fork):
    with client.consumer("s") as into, client.producer("s") as out:
        for n in range(10):
            out.publish(b"%d" % n)
        assert bytes(into.read(timeout=PATIENCE_S)) == b"0"
        for action in (
            lambda: out.publish(b"x"),
            lambda: out.try_publish(b"x"),
            lambda: out.claim(10),
            lambda: out.close(),
            lambda: into.read(timeout=0),
            lambda: next(iter(into)),
            lambda: into.close(),
        ):
            assert in_child(action, fork).startswith("ForkedHandleError"), action
        assert [bytes(into.read(timeout=PATIENCE_S)) for _ in range(9)] == [b"%d" % n for n in range(1, 10)]
        out.publish(b"still")
        assert bytes(into.read(timeout=PATIENCE_S)) == b"still"


@pytest.mark.fault(45, how="a claim is open")
@pytest.mark.parametrize("fork", WAYS_TO_FORK.values(), ids=list(WAYS_TO_FORK))
def test_a_claim_that_was_open_at_a_fork_stays_the_parents(client, fork):
    with client.consumer("s") as into, client.producer("s", max_message=4096) as out:
        claim = out.claim(4096)
        claim.view[:] = b"p" * 4096
        for action in (claim.commit, claim.abort, lambda: out.publish(b"x"), lambda: out.claim(8)):
            assert in_child(action, fork).startswith("ForkedHandleError"), action
        claim.commit()
        assert bytes(into.read(timeout=PATIENCE_S)) == b"p" * 4096


@pytest.mark.fault(45, how="another thread waits")
@pytest.mark.parametrize("fork", WAYS_TO_FORK.values(), ids=list(WAYS_TO_FORK))
def test_a_fork_while_another_thread_waits_is_noticed(client, fork):
    with client.consumer("s") as into, client.producer("s") as out:
        got: list[bytes] = []
        waiter = threading.Thread(target=lambda: got.append(bytes(into.read(timeout=PATIENCE_S))))
        waiter.start()
        for action in (lambda: into.read(timeout=0), lambda: out.publish(b"x"), into.close):
            assert in_child(action, fork).startswith("ForkedHandleError"), action
        out.publish(b"for the parent")
        waiter.join(PATIENCE_S)
        assert got == [b"for the parent"]


@pytest.mark.fault(45, how="an fd is watched, messages are fetched ahead")
@pytest.mark.parametrize("fork", WAYS_TO_FORK.values(), ids=list(WAYS_TO_FORK))
def test_a_fork_leaves_a_watched_fd_and_what_was_fetched_ahead_to_the_parent(client, fork):
    with client.consumer("s") as into, client.producer("s") as out:
        fd = into.fileno()
        for n in range(10):
            out.publish(b"%d" % n)
        assert bytes(into.read(timeout=PATIENCE_S)) == b"0"
        assert bytes(into.read(timeout=PATIENCE_S)) == b"1"
        assert into.buffered > 0
        for action in (lambda: into.read(timeout=0), lambda: next(iter(into))):
            assert in_child(action, fork).startswith("ForkedHandleError"), action
        assert select.select([fd], [], [], 0) == ([fd], [], [])
        assert [bytes(into.read(timeout=0)) for _ in range(8)] == [b"%d" % n for n in range(2, 10)]
        assert into.read(timeout=0) is None
        assert select.select([fd], [], [], 0) == ([], [], [])


def test_a_forked_child_that_drops_handles_ends_nothing(client):
    with client.consumer("s") as into:
        out = client.producer("s")

        def drop():
            nonlocal out, into
            with out, into:
                pass
            import gc

            out = into = None
            gc.collect()
            return "dropped"

        assert in_child(drop) == "dropped"
        out.publish(b"alive")
        assert bytes(into.read(timeout=PATIENCE_S)) == b"alive"
        out.close()


def test_a_client_in_a_forked_child_connects_afresh(client):
    with client.consumer("s") as into:
        ours = client.client_id

        def talk():
            with client.producer("s") as out:
                out.publish(b"from the child")
            theirs = client.client_id
            client.close()
            return theirs

        theirs = int(in_child(talk))
        assert theirs != ours
        assert bytes(into.read(timeout=PATIENCE_S)) == b"from the child"
        assert client.client_id == ours


def test_views_are_readable_in_a_forked_child(client):
    with client.consumer("s") as into, client.producer("s", max_message=100_000, slots=16) as out:
        out.publish(b"v" * 100_000)
        message = into.read(timeout=PATIENCE_S)
        assert in_child(lambda: bytes(message) == b"v" * 100_000) == "True"
        assert bytes(message) == b"v" * 100_000


def test_interpreter_exit_ends_streams_as_aborted(client):
    import subprocess
    import sys

    program = (
        "import shmdriver, sys\n"
        "client = shmdriver.connect(sys.argv[1])\n"
        "out = client.producer('s', min_consumers=1)\n"
        "out.publish(b'x')\n"
    )
    with client.consumer("s") as into:
        subprocess.run([sys.executable, "-c", program, client.instance], check=True, timeout=60)
        assert bytes(into.read(timeout=PATIENCE_S)) == b"x"
        with pytest.raises(shmdriver.ProducerLost) as caught:
            into.read(timeout=PATIENCE_S)
        assert caught.value.reason == Reason.ABORTED


@pytest.mark.fault(39)
def test_a_second_thread_inside_a_consumer_is_refused(client):
    with client.consumer("s") as into, client.producer("s") as out:
        inside = threading.Event()
        outcome: list[bytes] = []

        def wait_there():
            inside.set()
            while not outcome:
                try:
                    outcome.append(bytes(into.read()))
                except shmdriver.ConcurrentUseError:
                    pass  # the other thread was inside first

        thread = threading.Thread(target=wait_there)
        thread.start()
        inside.wait(PATIENCE_S)
        with pytest.raises(shmdriver.ConcurrentUseError, match="another thread"):
            while True:  # the first is between two slices of its wait now and then
                into.read(timeout=0)
        out.publish(b"for the first")
        thread.join(PATIENCE_S)
        assert outcome == [b"for the first"]


@pytest.mark.fault(39)
def test_a_second_thread_inside_a_producer_is_refused(client):
    with client.consumer("s"), client.producer("s", slots=64, slot_bytes=64, arena=0) as out:
        while out.try_publish(b"x"):
            pass
        inside = threading.Event()
        outcome: list[object] = []

        def block():
            inside.set()
            while not outcome:
                try:
                    out.publish(b"x", timeout=60)
                except shmdriver.ConcurrentUseError:
                    pass  # the other one was inside just then
                except shmdriver.ShmDriverError as error:
                    outcome.append(type(error))

        thread = threading.Thread(target=block)
        thread.start()
        inside.wait(PATIENCE_S)
        with pytest.raises(shmdriver.ConcurrentUseError, match="another thread"):
            while True:
                out.try_publish(b"x")
        out.close()
        thread.join(PATIENCE_S)
        assert outcome == [shmdriver.HandleClosed]


def test_many_threads_share_a_client(client):
    errors = []

    def talk(k):
        try:
            with client.consumer(f"s{k}") as into, client.producer(f"s{k}") as out:
                for n in range(200):
                    out.publish(b"%d" % n)
                    assert bytes(into.read(timeout=PATIENCE_S)) == b"%d" % n
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=talk, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert errors == []
