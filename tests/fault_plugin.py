"""pytest plugin: notes how every test marked `fault` ended, and how many cycles it ran.

The notes go to build/reliability.json, test by test, so that a run of some tests renews the notes of these;
`make reliability` makes the tables of docs/RELIABILITY.md from them (scripts/reliability.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NOTES = Path(__file__).resolve().parent.parent / "build" / "reliability.json"
CYCLES = pytest.StashKey[int]()
WORST = ("failed", "skipped", "passed")


def _function(item: pytest.Item) -> str:
    """``file::function`` of a test, without its parameters."""
    return item.nodeid.partition("[")[0]


def save(kind: str, notes: dict[str, Any]) -> None:
    """Puts notes of one kind ("tests", "kills") over those of earlier runs."""
    NOTES.parent.mkdir(exist_ok=True)
    with (NOTES.parent / ".reliability.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = json.loads(NOTES.read_text()) if NOTES.exists() else {}
        known.setdefault(kind, {}).update(notes)
        fresh = NOTES.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(known, indent=1, sort_keys=True))
        fresh.replace(NOTES)


class Faults:
    """The notes of one session. Parameters of one function are summed; the worst outcome counts."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report: pytest.TestReport = (yield).get_result()
        if item.get_closest_marker("fault") is None or (report.when != "call" and report.passed):
            return
        entry = self.tests.setdefault(
            _function(item), {"outcome": "passed", "cycles": 0, "date": time.strftime("%Y-%m-%d")}
        )
        entry["outcome"] = min(entry["outcome"], report.outcome, key=WORST.index)
        if report.when == "call" and report.passed:
            entry["cycles"] += item.stash.get(CYCLES, 1)

    def pytest_sessionfinish(self) -> None:
        if self.tests:
            save("tests", self.tests)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Faults(), "shmdriver-faults")


@pytest.fixture
def fault_cycles(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Says how many times the test injected its fault (without it: once). The last call counts."""

    def note(cycles: int) -> None:
        request.node.stash[CYCLES] = cycles

    return note
