"""The command line: one small module a command. Importing this package imports none of them."""

from __future__ import annotations

__all__ = ["main"]


def main() -> int:
    """Run ``shmdriver`` with the process's arguments; its exit code."""
    from shmdriver.cli.app import run

    return run()
