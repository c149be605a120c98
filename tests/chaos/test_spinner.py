"""A program that spins for ever under SCHED_FIFO on one CPU keeps its lease: its heartbeat runs elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import shmdriver
from shmdriver._native import lib
from tests.chaos.stage import PATIENCE_S, ROOT, Stage, wait_until

CHECK_MS = 20
TIMEOUT_MS = 1500
TIMEOUTS = 3  # so many leases' timeouts, counted in lease checks
SHORT = {
    "policies.lease_timeout_ms": TIMEOUT_MS,
    "policies.heartbeat_interval_ms": 100,
    "policies.lease_check_interval_ms": CHECK_MS,
}
STRESS_S = int(os.environ.get("SPINNER_S", "600"))
SPIN = """
import os, sys
import shmdriver
cpu = int(sys.argv[2])
os.sched_setaffinity(0, {cpu})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
beats_here = sys.argv[3] == "here"
with shmdriver.connect(sys.argv[1], name="spinner", heartbeat_cpus=[cpu] if beats_here else None) as client:
    with client.consumer("s", wait="spin") as consumer:
        print("attached", flush=True)
        print(bytes(consumer.read()).decode(), flush=True)
"""


@pytest.fixture
def cpu() -> int:
    """The CPU for the spinner. Where nobody may run under SCHED_FIFO the test is skipped."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pytest.skip("NOT LOOKED AT: no permission for SCHED_FIFO (CAP_SYS_NICE, or ulimit -r 1)")
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return max(os.sched_getaffinity(0))


def leaves_others_some_time() -> bool:
    """Whether real-time threads cannot take a CPU whole."""
    try:
        share_us = int(Path("/proc/sys/kernel/sched_rt_runtime_us").read_text())
        period_us = int(Path("/proc/sys/kernel/sched_rt_period_us").read_text())
    except OSError:
        return False
    return 0 <= share_us < period_us


@contextmanager
def spinner(stage: Stage, cpu: int, beats: str) -> Iterator[subprocess.Popen[str]]:
    program = subprocess.Popen(
        [sys.executable, "-c", SPIN, stage.instance, str(cpu), beats],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert program.stdout is not None
    try:
        assert program.stdout.readline() == "attached\n"
        yield program
    finally:
        program.kill()
        program.communicate()


def is_reached(stage: Stage, program: subprocess.Popen[str]) -> None:
    """It still has its lease, and gets a message."""
    leases = stage.leases(ended=True)
    assert [lease.client_name for lease in leases if lease.live] == ["spinner"], leases
    with shmdriver.connect(stage.instance) as client, client.producer("s", slots=64) as out:
        out.publish(b"to the spinner", timeout=PATIENCE_S)
        assert program.stdout is not None
        assert program.stdout.readline() == "to the spinner\n"


def checks_of(stage: Stage) -> int:
    counters = stage.counters()
    return counters["ticks"] + counters["idle_checks"]


@pytest.mark.fault(64, how="a pinned spinner under SCHED_FIFO")
def test_pinned_spinner_keeps_its_lease(make_stage: Callable[..., Stage], cpu: int) -> None:
    if len(os.sched_getaffinity(0)) == 1 and not leaves_others_some_time():
        pytest.skip("NOT LOOKED AT: one CPU, of which a spinner under SCHED_FIFO leaves nothing")
    stage = make_stage(SHORT)
    with spinner(stage, cpu, "anywhere") as program:
        enough = checks_of(stage) + TIMEOUTS * TIMEOUT_MS // CHECK_MS
        wait_until(lambda: checks_of(stage) >= enough, "lease checks")
        is_reached(stage, program)


@pytest.mark.stress
@pytest.mark.timeout(STRESS_S + 300)
@pytest.mark.fault(64, how="a pinned spinner under SCHED_FIFO, and its heartbeat and the driver on its core")
def test_spinner_that_shares_its_core_with_its_heartbeat_and_the_driver_keeps_its_lease(
    make_stage: Callable[..., Stage], cpu: int
) -> None:
    if not leaves_others_some_time():
        pytest.skip("NOT LOOKED AT: the kernel leaves nothing of a CPU beside a spinner under SCHED_FIFO")
    stage = make_stage()
    assert stage.driver is not None
    for task in Path(f"/proc/{stage.driver.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {cpu})
    with spinner(stage, cpu, "here") as program:
        before, end_ns = checks_of(stage), lib.shmd_now_ns() + STRESS_S * 10**9
        wait_until(lambda: lib.shmd_now_ns() >= end_ns, "time to pass: so long it spins", STRESS_S + 60)
        print(f"{checks_of(stage) - before} lease checks in {STRESS_S} s")
        is_reached(stage, program)
