"""SIGTERM as an exception, so that it unwinds like Ctrl-C; and what a closed pipe means."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from shmdriver.cli.options import INTERRUPTED, PIPE_CLOSED, TERMINATED


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def _raise(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated` inside."""
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(error: KeyboardInterrupt) -> int:
    """130 for Ctrl-C, 143 for SIGTERM, as shells have it."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def pipe_closed() -> int:
    """The reader of our stdout has gone: say nothing, also not when Python flushes at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return PIPE_CLOSED
