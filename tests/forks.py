"""Programs that users are shown do not fork a process that has threads: Python 3.12 warns of it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["FORK_OF_THREADS", "told_of_forks"]

FORK_OF_THREADS = "this program forks a process that has threads"
SITE = f"""
import os

def complain():  # as Python 3.12 does; also a thread of C counts there
    if len(os.listdir("/proc/self/task")) > 1:
        os.write(2, b"{FORK_OF_THREADS}\\n")

os.register_at_fork(before=complain)
"""


def told_of_forks(folder: Path) -> dict[str, str]:
    """An environment in which Python programs say so on standard error. ``folder`` is the test's own."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    return {**os.environ, "PYTHONPATH": str(site)}
