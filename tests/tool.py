"""A command of `shmdriver` in the test's own process, which costs no start of an interpreter."""

from __future__ import annotations

import io
import json
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from shmdriver.cli.app import run

__all__ = ["tool", "tool_json"]


def tool(*words: str) -> subprocess.CompletedProcess[str]:
    """The exit code and the output of a command that ends by itself.

    For tests of what a command says and does. Those of its signals, pipes and descriptors need a process.
    """
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(list(words))
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def tool_json(*words: str) -> Any:
    """What a command says with ``--json``."""
    done = tool(*words, "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout)
