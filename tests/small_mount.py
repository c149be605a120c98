"""Runs a program that has a /dev/shm of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PATIENCE_S = 400


def in_small_mount(options: str, program: str) -> list[str]:
    """The lines that a program writes which has a /dev/shm mounted with ``options``, as ``size=4m``.

    Skips where none can be mounted.
    """
    shell = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "{sys.executable}" -c "$0"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, program],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no permission to make a mount namespace")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
