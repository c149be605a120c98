"""A driver whose signals come early or blocked, and a driver whose log nobody reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver.driver.collect import collect
from tests.chaos.stage import wait_until
from tests.integration.test_standard_descriptors import serves

PATIENCE_S = 60
INTERRUPTED_IMPORT = """
import builtins, os, signal, sys
import shmdriver.cli

number, instance = int(sys.argv[1]), sys.argv[2]
real = builtins.__import__
def imports(name, *rest, **named):
    if name == "shmdriver.cli.app":
        os.kill(os.getpid(), number)
    return real(name, *rest, **named)
builtins.__import__ = imports
sys.argv = ["shmdriver", "run", "-i", instance]
sys.exit(shmdriver.cli.main())
"""


@pytest.fixture
def instance(instance_name: str) -> Iterator[str]:
    yield instance_name
    collect(instance_name)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}


def segments(instance: str) -> list[str]:
    return sorted(path.name for path in Path("/dev/shm").glob(f"shmd.{instance}.*"))


Starts = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Starts]:
    """Starts programs, with signals blocked as their parent process has them; at the end none is left."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], blocked: Iterable[int] = (), **options: Any) -> subprocess.Popen[bytes]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            started.append(subprocess.Popen([sys.executable, *command], **options))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


@pytest.mark.fault(62, how="a signal while the program is imported")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_before_the_handlers_stand_is_obeyed(
    instance: str, environment, start: Starts, number: int
) -> None:
    command = ["-c", INTERRUPTED_IMPORT, str(int(number)), instance]
    driver = start(command, stderr=subprocess.PIPE, env=environment)
    assert driver.stderr is not None
    if number == signal.SIGHUP:  # it shows the configuration and goes on
        assert any(b"config: instance" in line for line in driver.stderr)
        driver.send_signal(signal.SIGTERM)
    _, log = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, log
    assert bool(segments(instance)) == (number == signal.SIGUSR1)  # handed over, or ended for good


@pytest.mark.fault(62, how="signals blocked by the parent process")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_that_the_parent_had_blocked_is_obeyed(
    instance: str, environment, start: Starts, number: int
) -> None:
    command = ["-m", "shmdriver", "run", "-i", instance]
    driver = start(command, {number}, env=environment, stderr=subprocess.DEVNULL)
    driver.send_signal(number)  # before its first instruction, perhaps
    assert driver.wait(PATIENCE_S) == 0
    assert bool(segments(instance)) == (number == signal.SIGUSR1)


def test_a_tool_that_was_started_with_its_signals_blocked_can_be_stopped(start: Starts) -> None:
    with shmdriver.embedded() as client, client.producer("s", min_consumers=1) as out:
        command = ["-m", "shmdriver", "sub", "s", "-i", client.instance, "--lines"]
        tool = start(command, {signal.SIGTERM}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert tool.stdout is not None
        out.publish(b"one", timeout=PATIENCE_S)
        assert tool.stdout.readline() == b"one\n"
        tool.send_signal(signal.SIGTERM)
        tool.communicate(timeout=PATIENCE_S)
        assert tool.returncode == 128 + signal.SIGTERM


@pytest.mark.fault(62, how="stderr is a full pipe")
def test_a_driver_whose_log_nobody_reads_does_all_its_duties(
    instance: str, environment, start: Starts, full_pipe: tuple[int, int]
) -> None:
    driver = start(["-m", "shmdriver", "run", "-i", instance], stderr=full_pipe[1], env=environment)
    wait_until(lambda: serves(instance), "the driver to serve")
    for _ in range(3):
        with shmdriver.connect(instance) as client, client.producer("s"):
            driver.send_signal(signal.SIGHUP)  # a hundred lines for nobody
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(PATIENCE_S) == 0
    assert segments(instance) == []
