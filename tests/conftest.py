"""Fixtures that every test may use: its own instance name; a /dev/shm and runtime folders left as they were.

A test about a row of the fault table (tests/fault_rows.py, docs/RELIABILITY.md) is marked
`@pytest.mark.fault(12, how="kill -9 in a loop")`, with several numbers for several rows; when it injects
the fault more than once it takes the fixture `fault_cycles` and calls `fault_cycles(1000)`. C tests and
models have a comment `fault: 40, 41 (how)`. Then run `make reliability-page` and commit the
page: a test compares them.
"""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import build_ffi
from tests.chaos.zygote import NATIVE_VARIABLE, use_native

if NATIVE_VARIABLE in os.environ:  # another build of the core, for all tests of this run
    use_native(os.environ[NATIVE_VARIABLE])

from tests.segments import SHM, runtime_folders  # it imports the core, which is the other build by now

pytest_plugins = ["tests.fault_plugin"]
PREFIX = f"test-{os.getpid()}-{secrets.token_hex(3)}"


def _is_ours(name: str) -> bool:
    """Whether it is an instance of this test process: named after its tests, or of drivers that it embeds.

    Other processes' instances come and go at the same time and are none of our business.
    """
    return name.startswith((PREFIX, f"embedded-{os.getpid()}-"))


def _own_leftovers() -> set[Path]:
    """Segments and runtime folders of this process's instances."""
    objects = {entry for entry in SHM.iterdir() if entry.name.startswith("shmd.")}
    return {entry for entry in objects if _is_ours(entry.name[5:])} | set(runtime_folders(_is_ours))


def pytest_configure() -> None:
    """In a job that a script put into the background SIGINT is ignored, and tests of Ctrl-C would hang."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds the native modules that fixtures need, and has the garbage collector leave the tests alone.

    On a busy machine a compiler takes longer than a test may, and a test that takes too long ends the run.
    Modules and tests stay to the end: with them each collection, which many tests ask for, takes forty times
    as long.
    """
    gc.collect()
    gc.freeze()
    used = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if session.config.getoption("collectonly"):
        return
    with suppress(Exception):  # the fixture meets that again, and its test fails with it
        if used & {"failpoints", "striking", "matrix"}:
            build_ffi.build_failpoints()
        if "sanitized" in used:
            build_ffi.build_sanitized()


@pytest.fixture
def failpoints() -> Path:
    """The native module with failpoints."""
    return build_ffi.build_failpoints()


@pytest.fixture(scope="session")
def sanitized() -> Path:
    """The native module under ASAN and UBSAN."""
    return build_ffi.build_sanitized()


@pytest.fixture(autouse=True)
def shm_clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves segments or runtime folders behind (and removes them for the next one)."""
    before = _own_leftovers()
    yield
    left = sorted(_own_leftovers() - before)
    for path in left:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    if left:
        names = ", ".join(map(str, left))
        pytest.fail(f"{request.node.name} left {len(left)} behind: {names}", pytrace=False)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("SHMDRIVER_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that takes nothing more: its reading end, and its writing end, which blocks."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while os.write(writing, b"\n" * 4096):
            pass
    except BlockingIOError:
        os.set_blocking(writing, True)
    yield reading, writing
    os.close(writing)
    os.close(reading)


@pytest.fixture
def make_instance_name() -> Callable[[], str]:
    """For tests with several instances: every call returns a new name."""
    return lambda: f"{PREFIX}-{secrets.token_hex(3)}"


@pytest.fixture
def instance_name(make_instance_name: Callable[[], str]) -> str:
    """An instance name that nobody else uses; `shm_clean` looks for its segments afterwards."""
    return make_instance_name()
