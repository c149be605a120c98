"""What a client says when it connects: the instance, its name, where its C threads run."""

from __future__ import annotations

import ctypes
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver import ConfigError, ShmDriverError
from shmdriver._native import ffi, lib
from shmdriver.client.attempts import Attempt, Attempts
from shmdriver.names import INSTANCE_CHARS_MAX, instance_problem
from shmdriver.observe import Instance
from tests.chaos.stage import wait_until

NOBODY = f"nobody-{os.getpid()}"
VARIABLE = "SHMDRIVER_DRIVER_INSTANCE"


@pytest.fixture
def instance(instance_name: str) -> Iterator[str]:
    with shmdriver.embedded(instance_name):
        yield instance_name


# ---- the instance's name


def refusal_of(name: bytes | Any) -> str | None:
    """What C says of an instance's name; None: it only misses a driver."""
    client = ffi.new("shmd_client **")
    code = lib.shmd_connect(name, 0, client)
    text = str(ffi.string(lib.shmd_last_error()).decode("utf-8", "replace"))
    if code == lib.SHMD_E_INVALID:
        return text
    assert code == lib.SHMD_E_DRIVER_UNAVAILABLE, text
    return None


@pytest.mark.parametrize("place", ["first", "second"])
def test_c_takes_the_instance_names_that_the_driver_takes(place: str) -> None:
    for number in range(1, 128):
        name = f"{chr(number)}{NOBODY}" if place == "first" else f"n{chr(number)}{NOBODY}"
        assert (refusal_of(name.encode()) is None) == (instance_problem(name) is None), repr(name)
    for number in range(128, 256):
        assert refusal_of(b"n" + bytes([number])) is not None


@pytest.mark.parametrize("length", [0, 1, INSTANCE_CHARS_MAX, INSTANCE_CHARS_MAX + 1, 47, 48, 5000])
def test_c_takes_instance_names_as_long_as_the_driver_does(length: int) -> None:
    name = "Z" * length
    assert (refusal_of(name.encode()) is None) == (instance_problem(name) is None)
    assert lib.SHMD_INSTANCE_CHARS_MAX == INSTANCE_CHARS_MAX


def test_null_is_the_instance_of_the_environment(monkeypatch: pytest.MonkeyPatch, instance: str) -> None:
    client = ffi.new("shmd_client **")
    monkeypatch.setenv(VARIABLE, instance)
    assert lib.shmd_connect(ffi.NULL, 10**10, client) == 0
    assert lib.shmd_disconnect(client[0]) == 0
    assert refusal_of(NOBODY.encode()) is None, "a name that is given counts more"
    monkeypatch.setenv(VARIABLE, "no/name")
    text = refusal_of(ffi.NULL)
    assert text is not None
    assert VARIABLE in text
    assert "no/name" in text


def test_program_of_any_name_connects(instance: str) -> None:
    pointer = ctypes.c_char_p.in_dll(ctypes.CDLL(None), "program_invocation_short_name")
    before = pointer.value
    client = ffi.new("shmd_client **")
    try:
        pointer.value = b"caf\xc3\xa9\n\xff" + b"x" * 100
        assert lib.shmd_connect(instance.encode(), 10**10, client) == 0
    finally:
        pointer.value = before
    with Instance(instance) as view:
        names = [found.name for found in view.clients()]
    assert lib.shmd_disconnect(client[0]) == 0
    assert any(name.startswith("caf????xxx") for name in names), names


# ---- the C threads


def threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def made_since(before: set[int], name: str) -> int:
    """The thread of that name, which it gives itself when it first runs."""

    def look() -> list[int]:
        names = {thread: Path(f"/proc/self/task/{thread}/comm").read_text() for thread in threads() - before}
        return [thread for thread, found in names.items() if found.strip() == name]

    (thread,) = wait_until(look, f"a thread named {name}")
    return thread


def test_heartbeat_and_notifier_run_on_the_cpus_that_were_asked_for(instance: str) -> None:
    cpu = min(os.sched_getaffinity(0))
    before = threads()
    with shmdriver.connect(instance, heartbeat_cpus=[cpu]) as client, client.consumer("s") as consumer:
        assert consumer.fileno() >= 0
        for name in ("shmd-heartbeat", "shmd-notifier"):
            assert os.sched_getaffinity(made_since(before, name)) == {cpu}


@contextmanager
def pinned() -> Iterator[set[int]]:
    """The calling thread is pinned to one CPU meanwhile; yields those that it might use."""
    may = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(may)})
    try:
        yield may
    finally:
        os.sched_setaffinity(0, may)


@pytest.mark.fault(64, how="a caller that is pinned to one CPU")
def test_heartbeat_of_a_pinned_caller_is_not_pinned(instance: str) -> None:
    before = threads()
    with pinned() as may, shmdriver.connect(instance):
        assert os.sched_getaffinity(made_since(before, "shmd-heartbeat")) >= may


def test_embedded_driver_of_a_pinned_caller_is_not_pinned() -> None:
    before = threads()
    with pinned() as may, shmdriver.embedded():
        made = threads() - before
        assert made
        assert [thread for thread in made if not os.sched_getaffinity(thread) >= may] == []


class Wants:
    """A handle that is to be attached anew."""

    closed = False


def test_thread_that_attaches_anew_for_a_pinned_caller_is_not_pinned() -> None:
    owner = Wants()
    attempt = Attempt(owner, lambda: os.sched_getaffinity(0))
    with pinned() as may:
        Attempts().see_to(attempt)
        wait_until(lambda: attempt.is_over, "the thread to have made its attempt")
        assert attempt.take() >= may


def test_a_client_takes_its_cpus_along(instance: str) -> None:
    cpu = min(os.sched_getaffinity(0))
    with shmdriver.connect(instance, heartbeat_cpus=(cpu, cpu)) as client:
        copy = pickle.loads(pickle.dumps(client))
        assert copy.heartbeat_cpus == (cpu,)


@pytest.mark.parametrize("cpus", [[], [-1], [8192], ["0"], [True], [0.0]])
def test_cpus_that_are_none_are_refused(cpus: list[Any]) -> None:
    with pytest.raises(ConfigError, match="heartbeat_cpus"):
        shmdriver.connect(NOBODY, heartbeat_cpus=cpus)


def test_cpus_are_whole_numbers_of_any_kind(instance: str) -> None:
    cpu = min(os.sched_getaffinity(0))
    with shmdriver.connect(instance, heartbeat_cpus=[np.int64(cpu)]) as client:
        assert client.heartbeat_cpus == (cpu,)
    with pytest.raises(TypeError, match=r"heartbeat_cpus=5: expected CPU numbers"):
        shmdriver.connect(instance, heartbeat_cpus=5)  # type: ignore[arg-type]


def test_cpus_that_nobody_has_are_refused(instance: str) -> None:
    with pytest.raises(ShmDriverError, match="none of the CPUs that were asked for"):
        shmdriver.connect(instance, heartbeat_cpus=[8191])
    assert [lease for lease in shmdriver.connect(instance).leases() if lease.live] == []
