"""How long a client sleeps between two looks for what nobody tells."""

from __future__ import annotations

import threading
import time

import pytest

from shmdriver.client.link import Deadline, pause_after
from shmdriver.client.turns import Turns

MS = 1_000_000


@pytest.mark.fault(76, how="the pauses of a client that waits for a driver, in steps")
@pytest.mark.parametrize(
    ("lasted_ms", "longest_ms"), [(0, 20), (160, 20), (1600, 200), (8000, 1000), (3_600_000, 1000)]
)
def test_pauses_grow_with_the_time_that_a_wait_has_lasted(lasted_ms: int, longest_ms: int) -> None:
    found = [pause_after(lasted_ms * MS) for _ in range(100)]
    assert all(longest_ms * MS * 3 // 4 <= pause <= longest_ms * MS for pause in found)
    assert len(set(found)) > 1  # processes that began at once do not look at once


def test_a_pause_ends_with_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline(100)
    began_ns = deadline.end_ns - 100_000 * MS
    monkeypatch.setattr(time, "monotonic_ns", lambda: began_ns + 99_999 * MS)
    assert deadline.pause_ns() == 1 * MS
    monkeypatch.setattr(time, "monotonic_ns", lambda: began_ns + 100_001 * MS)
    assert deadline.pause_ns() == 0


def test_a_thread_inside_may_wait_until_another_threads_call_wants_the_lock() -> None:
    turns = Turns()
    noted, leave = threading.Event(), threading.Event()

    def call_from_elsewhere() -> None:
        with turns.call():
            noted.set()
            leave.wait()

    with turns.call():  # of this thread: a handler's call beneath, which goes on when this one is over
        assert turns.rest_ns() > 10**18
        (_, seen) = turns.word()
        thread = threading.Thread(target=call_from_elsewhere)
        thread.start()
        noted.wait()
        assert turns.rest_ns() == 0
        assert turns.word()[1] != seen
        leave.set()
        thread.join()
    assert turns.rest_ns() > 10**18
