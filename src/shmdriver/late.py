"""Imports that wait until something needs them, beside forks.

A child that is forked in the middle of another thread's import can never import that module: its lock belongs
to a thread that does not exist there. So a fork waits for the imports that this package does late:

    with LATE_IMPORT:
        from shmdriver.observe import Instance
"""

from __future__ import annotations

import os
from _thread import RLock  # threading costs a program that only imports this package more than the rest of it

__all__ = ["LATE_IMPORT"]

LATE_IMPORT = RLock()
os.register_at_fork(
    before=LATE_IMPORT.acquire, after_in_parent=LATE_IMPORT.release, after_in_child=LATE_IMPORT.release
)
