"""Attaching anew where no thread can be made: nobody waits for a driver in the caller's thread."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shmdriver.client.attempts import Attempt, Attempts
from tests.chaos.stage import wait_until

Refuse = Callable[[str], None]


class Owner:
    """A handle that is to be attached anew."""

    closed = False


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Has CPython make no thread any more, with that text."""

    def refuse(text: str) -> None:
        def start(thread: threading.Thread) -> None:
            raise RuntimeError(text)

        monkeypatch.setattr(threading.Thread, "start", start)

    return refuse


def test_without_threads_an_attempt_is_made_later_and_never_by_the_caller(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, attempts = Owner(), Attempts()
    attempt = Attempt(owner, threading.get_ident)
    refuse("can't start new thread")
    attempts.see_to(attempt)
    assert not attempt.is_over
    monkeypatch.undo()
    attempts.see_to(attempt)
    wait_until(lambda: attempt.is_over, "the attempt to be made by a thread")
    assert attempt.take() != threading.get_ident()


def test_an_interpreter_that_exits_makes_its_attempts_in_the_callers_thread(refuse: Refuse) -> None:
    owner = Owner()
    attempt = Attempt(owner, threading.get_ident)
    refuse("can't create new thread at interpreter shutdown")
    Attempts().see_to(attempt)
    assert attempt.take() == threading.get_ident()


def test_without_threads_whoever_waits_for_the_fd_is_woken_to_look_again(
    refuse: Refuse,
) -> None:
    owner: Any = Owner()
    attempt = Attempt(owner, lambda: "attached")
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        attempt.ring = [fd]
        refuse("can't start new thread")
        Attempts().see_to(attempt)
        assert select.select([fd], [], [], 0)[0] == [fd]
        assert attempt.ring is None, "the next look makes the fd unreadable again"
    finally:
        os.close(fd)
