"""Commands that texts tell their readers to run.

Each names its instance, so that it does what the text says in whatever terminal it is pasted into. The
driver, the client and the tools make them here; texts of the C core write ``-i`` themselves.
tests/unit/test_hints.py parses all of them with the command line's own parser.
"""

from __future__ import annotations

import shlex

__all__ = ["command"]


def command(name: str, *arguments: str, instance: str | None) -> str:
    """``shmdriver NAME ARGUMENTS -i INSTANCE``, quoted for a shell, between backquotes.

    ``instance`` None: the command is not about one.
    """
    words = ["shmdriver", name, *arguments, *(() if instance is None else ("-i", instance))]
    return f"`{shlex.join(words)}`"
