"""The command line: one small module a command. Importing this package imports none of them."""

from __future__ import annotations

from shmdriver.driver.signals import hold_signals

__all__ = ["main"]


def main() -> int:
    """Run ``shmdriver`` with the process's arguments; its exit code.

    Importing the commands takes a while. Signals that come meanwhile wait until the command begins, or until
    the driver's handlers stand.
    """
    hold_signals()
    from shmdriver.cli.app import run

    return run()
