"""Imports that wait until something needs them, beside forks.

A child that is forked in the middle of another thread's import can never import that module: its lock belongs
to a thread that does not exist there. So a fork waits for the imports that this package does late:

    with LATE_IMPORT:
        from shmdriver.observe import Instance

The package may also be replaced on the disk while a client runs: see client/kept_sources.py.

No module that is imported so takes, at its import, a lock that another package's hook holds over a fork: the
fork may have that lock already, while it waits here. ``logging.getLogger`` takes one.
"""

from __future__ import annotations

import os
from _thread import RLock  # threading costs a program that only imports this package more than the rest of it

__all__ = ["LATE_IMPORT"]

LATE_IMPORT = RLock()
os.register_at_fork(
    before=LATE_IMPORT.acquire, after_in_parent=LATE_IMPORT.release, after_in_child=LATE_IMPORT.release
)
