"""What daemon threads of an interpreter that exits do when their handles are closed under them: nothing.

The interpreter ends such threads without a word at its very end. By then our handles are closed, and a thread
that waits in one would raise HandleClosed, which Python prints. So the thread stays where it is.
"""

from __future__ import annotations

import threading

__all__ = ["begin", "stay_if_daemon"]

OURS = "shmdriver-"  # names of this package's own threads begin with it: they end, and are waited for
_is_exiting = False


def begin() -> None:
    """From now on the interpreter exits."""
    global _is_exiting  # noqa: PLW0603 -- one a process
    _is_exiting = True


def stay_if_daemon() -> None:
    """Before a handle is said to be closed: a daemon thread of an interpreter that exits stays here."""
    thread = threading.current_thread()
    while _is_exiting and thread.daemon and not thread.name.startswith(OURS):
        threading.Event().wait()
