"""SIGTERM as an exception, so that it unwinds like Ctrl-C; and what a closed pipe means."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import AbstractContextManager

from shmdriver.cli.options import INTERRUPTED, PIPE_CLOSED, TERMINATED
from shmdriver.stopping import raising


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


def stoppable() -> AbstractContextManager[None]:
    """SIGTERM raises :class:`Terminated` inside."""
    return raising((signal.SIGTERM,), lambda _number: Terminated())


def exit_code(error: KeyboardInterrupt) -> int:
    """130 for Ctrl-C, 143 for SIGTERM, as shells have it."""
    return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def pipe_closed() -> int:
    """The reader of our stdout has gone: say nothing, also not when Python flushes at its exit."""
    drop_stdout()
    return PIPE_CLOSED


def drop_stdout() -> None:
    """Flushes stdout. If that fails, stdout becomes /dev/null, because Python flushes again at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        null, stdout = os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        if null != stdout:
            os.dup2(null, stdout)
            os.close(null)
