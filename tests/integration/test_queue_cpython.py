"""CPython's own tests of queues, as installed with this interpreter, against shmdriver.Queue."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

MISSING = "this interpreter has no `test` package: CPython's own queue tests DO NOT RUN"
multiprocessing_tests = pytest.importorskip("test._test_multiprocessing", reason=MISSING)
logging_tests = pytest.importorskip("test.test_logging", reason=MISSING)

PROGRAM = Path(__file__).with_name("cpython_queue_program.py")
ROOT = PROGRAM.parents[2]
PATIENCE_S = 300

# Tests that are not run, and why.
NOT_OURS = {
    "Queues.test_task_done": "it makes a JoinableQueue, with four getters",
    "Queues.test_queue_feeder_donot_stop_onexc": "put pickles at once, and raises what pickling raises",
    "Queues.test_queue_feeder_on_queue_feeder_error": "a hook of the standard class's thread; put raises",
}


def names_in(prefix: str, case: type) -> list[str]:
    return [f"{prefix}.{name}" for name in sorted(dir(case)) if name.startswith("test_")]


QUEUES = names_in("Queues", multiprocessing_tests._TestQueue)
LOGGING = [
    *names_in("Handlers", logging_tests.QueueHandlerTest),
    *names_in("Listeners", logging_tests.QueueListenerTest),
]


@cache
def outcomes(how: str) -> dict[str, str]:
    """By test: what it said when it failed, else nothing."""
    names = [name for name in (LOGGING if how == "logging" else QUEUES) if name not in NOT_OURS]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), how, *names],
        capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.stdout.strip(), done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("name", QUEUES)
def test_queue_of_multiprocessing(name: str, how: str) -> None:
    if name in NOT_OURS:
        pytest.skip(NOT_OURS[name])
    assert outcomes(how)[name] == ""


@pytest.mark.parametrize("name", LOGGING)
def test_queue_of_logging(name: str) -> None:
    assert outcomes("logging")[name] == ""


def test_exceptions_are_of_tests_that_there_are() -> None:
    assert NOT_OURS.keys() <= {*QUEUES, *LOGGING}
