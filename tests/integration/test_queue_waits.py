"""Threads that wait in a queue cost next to nothing, and none of them keeps another one waiting."""

from __future__ import annotations

import queue as standard
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver.client import lanes, link, turns
from shmdriver.client import queue as queues
from shmdriver.observe import Instance
from tests.chaos.stage import wait_until

PATIENCE_S = 60.0
WAIT_S = 0.9
SLEEPS_MAX = 40  # 50, 100, 200 ms and so on, and what the interpreter adds; 180 when they did not grow
ENDLESS_NS = 10**17


@pytest.fixture
def client() -> Iterator[shmdriver.Client]:
    with shmdriver.embedded() as client:
        yield client


@pytest.fixture
def _endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread inside looks for nothing by itself."""
    monkeypatch.setattr(link, "FOREVER_SLICE_NS", ENDLESS_NS)
    monkeypatch.setattr(queues, "FIRST_SLICE_NS", ENDLESS_NS)
    monkeypatch.setattr(queues, "FOREVER_SLICE_NS", ENDLESS_NS)


class Waiter(threading.Thread):
    """A thread in a call: its result or its error, and how often it went to sleep."""

    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._act = act
        self.result: Any = None
        self.sleeps = 0
        self.start()

    def run(self) -> None:
        try:
            self.result = self._act()
        except Exception as error:
            self.result = error
        self.sleeps = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw

    def end(self) -> Any:
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self.result


def is_getting(client: shmdriver.Client) -> bool:
    """Whether a getter sleeps."""
    with Instance(client.instance) as instance:
        gates = [gate for stream in instance.streams() for epoch in stream.epochs for gate in epoch.gates]
    return any(gate.sleeping for gate in gates)


def is_putting(client: shmdriver.Client) -> bool:
    """Whether a putter waits for room."""
    with Instance(client.instance) as instance:
        epochs = [epoch for stream in instance.streams() for epoch in stream.epochs]
    return any(epoch.blocked is not None for epoch in epochs)


def used(client: shmdriver.Client, maxsize: int = 0) -> Any:
    """A queue of which this process is the getter, and has put."""
    queue = client.queue("q", maxsize)
    queue.put(0)
    assert queue.get(timeout=PATIENCE_S) == 0
    return queue


# ---- what waiting costs


@pytest.mark.fault(76, how="threads that wait in a queue, sleeps counted")
def test_getters_of_one_process_hardly_ever_wake(client: shmdriver.Client) -> None:
    queue = used(client)
    waiters = [Waiter(lambda: queue.get(timeout=WAIT_S)) for _ in range(3)]
    assert [type(waiter.end()) for waiter in waiters] == [standard.Empty] * 3
    assert [waiter.sleeps for waiter in waiters if waiter.sleeps > SLEEPS_MAX] == []


@pytest.mark.fault(76, how="threads that wait in a queue, sleeps counted")
def test_putters_into_a_full_queue_hardly_ever_wake(client: shmdriver.Client) -> None:
    queue = used(client, 1)
    queue.put(1)
    waiters = [Waiter(lambda: queue.put(2, timeout=WAIT_S)) for _ in range(3)]
    assert [type(waiter.end()) for waiter in waiters] == [standard.Full] * 3
    assert [waiter.sleeps for waiter in waiters if waiter.sleeps > SLEEPS_MAX] == []


def sleeps_of(thread: threading.Thread) -> int:
    lines = Path(f"/proc/self/task/{thread.native_id}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


@pytest.mark.fault(76, how="threads that wait in a queue, sleeps counted")
@pytest.mark.parametrize("size", [100, 20_000])
def test_a_feeder_whose_lane_is_full_hardly_ever_wakes(client: shmdriver.Client, size: int) -> None:
    queue = client.queue("q", max_bytes=1 << 16)
    for _ in range(2000 if size == 100 else 20):
        queue.put(np.zeros(size, np.uint8))
    wait_until(lambda: is_putting(client), "the feeder to wait", PATIENCE_S)
    feeder = queue._feeder
    assert feeder is not None
    before = sleeps_of(feeder)
    threading.Event().wait(WAIT_S)
    assert sleeps_of(feeder) - before <= SLEEPS_MAX
    count = 0
    while queue.qsize():
        assert len(queue.get(timeout=PATIENCE_S)) == size
        count += 1
    assert count == (2000 if size == 100 else 20)


# ---- who gets in


@pytest.mark.fault(52, 76, how="waits without an end, which only a wake-up ends")
@pytest.mark.usefixtures("_endless")
def test_a_getter_that_waits_lets_every_other_call_in(client: shmdriver.Client) -> None:
    queue = used(client)
    waiter = Waiter(queue.get)
    wait_until(lambda: is_getting(client), "a thread to wait", PATIENCE_S)
    for timeout in (0, -1, 0.01):
        with pytest.raises(standard.Empty):
            queue.get(timeout=timeout)
    with pytest.raises(standard.Empty):
        queue.get_nowait()
    others = [Waiter(queue.get) for _ in range(2)]
    for number in range(3):
        queue.put(number)
    assert sorted(each.end() for each in (waiter, *others)) == [0, 1, 2]


@pytest.mark.fault(52, 76, how="waits without an end, which only a wake-up ends")
@pytest.mark.usefixtures("_endless")
def test_getters_each_have_their_own_timeout(client: shmdriver.Client) -> None:
    queue = used(client)
    waiter = Waiter(queue.get)
    wait_until(lambda: is_getting(client), "a thread to wait", PATIENCE_S)
    others = [Waiter(partial(queue.get, timeout=timeout)) for timeout in (0.3, 0.1, 0.2)]
    assert [type(other.end()) for other in others] == [standard.Empty] * 3
    queue.put("news")
    assert waiter.end() == "news"


@pytest.mark.fault(52, 76, how="waits without an end, which only a wake-up ends")
@pytest.mark.usefixtures("_endless")
def test_a_close_ends_the_waits_of_all_getters_and_putters(client: shmdriver.Client) -> None:
    queue = used(client, 1)
    getters = [Waiter(queue.get) for _ in range(2)]
    wait_until(lambda: is_getting(client), "a thread to wait", PATIENCE_S)
    queue.close()
    assert [type(getter.end()).__mro__[1] for getter in getters] == [ValueError] * 2
    full = client.queue("full", 1)
    full.put(1)
    putters = [Waiter(lambda: full.put(2)) for _ in range(2)]
    wait_until(lambda: is_putting(client), "a thread to wait", PATIENCE_S)
    full.close()
    assert [type(putter.end()).__mro__[1] for putter in putters] == [ValueError] * 2


@pytest.mark.fault(52, 76, how="waits without an end, which only a wake-up ends")
@pytest.mark.usefixtures("_endless")
def test_a_putter_that_waits_lets_every_other_call_in(client: shmdriver.Client) -> None:
    queue = used(client, 1)
    queue.put(1)
    waiters = [Waiter(partial(queue.put, number)) for number in (2, 3)]
    wait_until(lambda: is_putting(client), "a thread to wait", PATIENCE_S)
    assert queue.qsize() == 1
    assert queue.full()
    with pytest.raises(standard.Full):
        queue.put_nowait(4)
    with pytest.raises(standard.Full):
        queue.put(4, timeout=0.01)
    assert sorted(queue.get(timeout=PATIENCE_S) for _ in range(3)) == [1, 2, 3]
    assert [waiter.end() for waiter in waiters] == [None, None]


@pytest.mark.fault(52, 76, how="waits without an end, which only a wake-up ends")
@pytest.mark.usefixtures("_endless")
def test_a_feeder_that_waits_for_much_room_lets_a_putter_in_for_less(client: shmdriver.Client) -> None:
    queue = client.queue("q", 12, max_bytes=1 << 16)
    for number in range(5):
        queue.put(number)
    while not queue.full():
        queue.put(np.zeros(15_000, np.uint8))
    wait_until(lambda: is_putting(client), "the feeder to wait", PATIENCE_S)
    waiter = Waiter(partial(queue.put, "news"))
    wait_until(lambda: len(queue._put_turns._noted) == 2, "a call", PATIENCE_S)
    assert queue.get(timeout=PATIENCE_S) == 0  # that is no room for an array
    assert waiter.end() is None
    assert [queue.get(timeout=PATIENCE_S) for _ in range(4)] == [1, 2, 3, 4]
    for _ in range(7):
        assert len(queue.get(timeout=PATIENCE_S)) == 15_000
    assert queue.get(timeout=PATIENCE_S) == "news"


class Alarm(Exception):
    """Raised by a signal's handler."""


@pytest.mark.fault(52, 76, how="waits without an end, which only a wake-up ends")
@pytest.mark.usefixtures("_endless")
@pytest.mark.parametrize("is_inside", [True, False])
def test_a_signals_handler_runs_while_several_threads_get(client: shmdriver.Client, is_inside: bool) -> None:
    """In the thread that waits inside as in one that waits for its turn."""
    queue = used(client)
    main, over = threading.main_thread().ident, threading.Event()
    assert main is not None

    def raise_alarm(_number: int, _frame: object) -> None:
        if not over.is_set():
            over.set()
            raise Alarm

    def send() -> None:
        wait_until(lambda: len(queue._get_turns._noted) == (1 if is_inside else 2), "a call", PATIENCE_S)
        wait_until(lambda: is_getting(client), "a thread to wait", PATIENCE_S)
        while not over.wait(0.01):
            signal.pthread_kill(main, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, raise_alarm)
    try:
        other = None if is_inside else Waiter(queue.get)
        if other is not None:
            wait_until(lambda: is_getting(client), "the other thread to wait", PATIENCE_S)
        sender = Waiter(send)
        with pytest.raises(Alarm):
            queue.get(timeout=PATIENCE_S)
        sender.end()
    finally:
        signal.signal(signal.SIGALRM, before)
    other = other or Waiter(queue.get)
    queue.put("news")
    assert other.end() == "news"


@pytest.mark.fault(52, 76, how="waits without an end, which only a wake-up ends")
@pytest.mark.usefixtures("_endless")
def test_a_handler_that_gets_is_not_kept_by_the_call_beneath_it(client: shmdriver.Client) -> None:
    queue = used(client)
    got: list[object] = []

    def get_one(_number: int, _frame: object) -> None:
        if not got:
            got.append(None)
            putter.start()
            got.append(queue.get(timeout=PATIENCE_S))

    putter = threading.Timer(0.3, queue.put, ["for the handler"])
    before = signal.signal(signal.SIGALRM, get_one)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        before_it = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        with pytest.raises(standard.Empty):
            queue.get(timeout=0.1)  # over long before its handler is
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before_it < 10 * SLEEPS_MAX
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    putter.join()
    assert got == [None, "for the handler"]


def interrupting_at(line: int, act: Callable[[], object]) -> Callable[[FrameType, str, object], Any]:
    """Calls ``act`` at the line of turns.py that is the ``line``-th to run."""
    lines = count(1)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != turns.__file__:
            return None
        if event == "line" and next(lines) == line:
            act()
        return trace

    return trace


def traced(trace: Any, act: Callable[[], object]) -> None:
    """Calls ``act`` under a trace function, and lets its exceptions out."""
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)


@pytest.mark.fault(49, 52, how="an exception at each line of turns.py in turn")
@pytest.mark.parametrize("call", ["get", "qsize", "full"])
def test_an_exception_in_a_turn_reaches_the_caller_and_leaves_no_call(
    client: shmdriver.Client, call: str
) -> None:
    queue = used(client, 5)
    act = partial(queue.get, timeout=0.001) if call == "get" else getattr(queue, call)

    def raise_alarm() -> None:
        raised.append(line)
        raise Alarm

    for line in count(1):
        raised: list[int] = []
        kept: BaseException | None = None  # as a program may, with its traceback
        try:
            traced(interrupting_at(line, raise_alarm), act)
        except (Alarm, standard.Empty) as error:
            kept = error
        assert isinstance(kept, Alarm) == bool(raised)
        if not raised:
            break
        for each in (queue._get_turns, queue._put_turns):
            assert Waiter(each.rest_ns).end() > ENDLESS_NS


@pytest.mark.fault(49, 52, 76, how="a call that is interrupted at each line of turns.py in turn")
@pytest.mark.usefixtures("_endless")
@pytest.mark.parametrize("how", ["raises", "gets"])
def test_a_call_that_is_interrupted_keeps_no_other_one_waiting(client: shmdriver.Client, how: str) -> None:
    """By a handler that raises, or gets itself; another thread waits inside, and only a wake-up ends that."""
    queue = used(client)
    waiter = Waiter(queue.get)

    def interrupt() -> None:
        interrupted.append(line)
        if how == "raises":
            raise Alarm
        with pytest.raises(standard.Empty):
            queue.get(timeout=0)

    for line in count(1):
        interrupted: list[int] = []
        wait_until(lambda: is_getting(client), "a thread to wait", PATIENCE_S)
        act = partial(traced, interrupting_at(line, interrupt), partial(queue.get, timeout=0))
        assert isinstance(Waiter(act).end(), Alarm if interrupted and how == "raises" else standard.Empty)
        assert isinstance(Waiter(partial(queue.get, timeout=0)).end(), standard.Empty)
        if not interrupted:
            break
    queue.put("news")
    assert waiter.end() == "news"


@pytest.mark.fault(52, 76, how="a signal's handler puts while its own thread waits for room")
def test_what_a_handler_puts_does_not_keep_the_put_beneath_it(client: shmdriver.Client) -> None:
    queue = used(client, 1)
    queue.put(1)
    main, over = threading.main_thread().ident, threading.Event()
    assert main is not None

    def put_one(_number: int, _frame: object) -> None:
        queue.put("by the handler")
        over.set()

    def get_all() -> list[object]:
        wait_until(lambda: is_putting(client), "a thread to wait", PATIENCE_S)
        signal.pthread_kill(main, signal.SIGALRM)
        wait_until(lambda: over.is_set() or queue._overflow, "the handler to run", PATIENCE_S)
        return [queue.get(timeout=PATIENCE_S) for _ in range(3)]

    before = signal.signal(signal.SIGALRM, put_one)
    try:
        getter = Waiter(get_all)
        queue.put(2, timeout=PATIENCE_S)
        assert set(getter.end()) == {1, "by the handler", 2}
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.fault(52, how="threads, handlers and finalisers inside a put or a get")
@pytest.mark.parametrize("call", ["qsize", "full"])
def test_what_a_handler_puts_inside_a_call_that_only_asks_is_delivered(
    client: shmdriver.Client, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    queue = used(client, 5)
    owner, name = (queue, "_waiting") if call == "qsize" else (lanes.Inlet, "unread")
    before = getattr(owner, name)

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(owner, name, before)
        queue.put("by a handler")
        return before(*arguments)

    monkeypatch.setattr(owner, name, interrupted)
    getattr(queue, call)()
    assert queue.get(timeout=PATIENCE_S) == "by a handler"
