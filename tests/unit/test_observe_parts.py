"""The parts of observe that need no driver: words for numbers, processes, verdicts about drivers."""

from __future__ import annotations

import errno
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmdriver._native import lib
from shmdriver.driver.lifecycle import DegradedBy
from shmdriver.errors import DriverUnavailable, LayoutMismatch, ShmDriverError
from shmdriver.observe import Instance, ProcessStatus, instance_names, names, process, process_status
from shmdriver.observe.driver_status import advice_for, judge
from shmdriver.observe.host import check_host
from shmdriver.observe.objects import instances_with_segments, segments_of
from tests.driver_rig import start_time_of
from tests.segments import plantable
from tests.tool import tool, tool_json

SECOND = 1_000_000_000
RUNNING = ProcessStatus(42, "sleeping", "shmdriver run")


@pytest.mark.parametrize(
    ("prefix", "table"),
    [
        ("SHMD_LIFECYCLE_", names.LIFECYCLES),
        ("SHMD_EXIT_", names.EXIT_KINDS),
        ("SHMD_CLIENT_", names.CLIENT_STATES),
        ("SHMD_LEASE_", names.LEASE_STATES),
        ("SHMD_EPOCH_", names.EPOCH_STATES),
        ("SHMD_ROLE_", names.ROLES),
        ("SHMD_DELIVERY_", names.DELIVERIES),
        ("SHMD_START_", names.STARTS),
        ("SHMD_WAIT_", names.WAITS),
        ("SHMD_SLOW_", names.SLOW_CONSUMERS),
        ("SHMD_CODE_", names.CODES),
        ("SHMD_REASON_", names.REASONS),
        ("SHMD_EVENT_", names.EVENT_KINDS),
        ("SHMD_COUNTER_", names.COUNTERS),
    ],
)
def test_every_number_of_the_header_has_a_word(prefix: str, table: dict[int, str]) -> None:
    no_enumerators = {
        *("SHMD_CLIENT_MAX", "SHMD_CLIENT_REQUESTS", "SHMD_CLIENT_LEASES"),
        "SHMD_LEASE_MAX",
        "SHMD_EPOCH_RECORDS",
        "SHMD_COUNTER_MAX",
        "SHMD_REASON_BYTES",
    }
    known = {name for name in dir(lib) if name.startswith(prefix) and name not in no_enumerators}
    missing = {name for name in known if int(getattr(lib, name)) not in table}
    assert not missing


def test_reasons_to_be_degraded_stand_in_the_drivers_order() -> None:
    assert tuple(DegradedBy) == names.DEGRADED_BY
    assert names.words_of_bits(names.DEGRADED_BY, 0b100_0101) == ("tick_overrun", "stalled_clients", "bit 6")


def test_unknown_numbers_are_shown_not_refused() -> None:
    assert names.word(names.LEASE_STATES, 99) == "unknown(99)"


def test_process_states_come_from_proc() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        start = start_time_of(child.pid)
        assert process_status(child.pid, start).state in ("running", "sleeping")
        assert process_status(child.pid, start + 1).state == "reused"
        assert process_status(child.pid, start, namespace=1).state == "elsewhere"
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        stopped = process_status(child.pid, start)
        assert stopped.state == "stopped"
        assert stopped.frozen
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process_status(child.pid, start).state == "zombie"
    finally:
        child.kill()
        child.communicate()
    assert process_status(child.pid, start).state == "gone"
    assert process_status(child.pid, start).dead


@pytest.mark.parametrize(
    ("process", "exit_kind", "age_ns", "status"),
    [
        (RUNNING, "none", 0, "running"),
        (RUNNING, "none", 10 * SECOND, "hung"),
        (ProcessStatus(42, "stopped"), "none", 0, "paused"),
        (ProcessStatus(42, "stopped"), "none", 10 * SECOND, "paused"),
        (ProcessStatus(42, "frozen", cgroup="/c"), "none", 10 * SECOND, "paused"),
        (ProcessStatus(42, "gone"), "none", 0, "dead"),
        (ProcessStatus(42, "zombie"), "none", 0, "dead"),
        (ProcessStatus(42, "reused"), "none", 0, "dead"),
        (ProcessStatus(42, "elsewhere"), "none", 0, "running"),
        (ProcessStatus(42, "elsewhere"), "none", 10 * SECOND, "silent"),
        (ProcessStatus(42, "gone"), "clean", 0, "stopped"),
        (ProcessStatus(42, "gone"), "handover", 0, "handover"),
        (RUNNING, "superseded", 0, "superseded"),
    ],
)
def test_a_driver_is_judged_by_its_process_first(
    process: ProcessStatus, exit_kind: str, age_ns: int, status: str
) -> None:
    assert judge(process, exit_kind, "healthy", age_ns, 3 * SECOND)[0] == status


@pytest.mark.parametrize("status", ["paused", "hung", "silent", "dead", "stopped", "handover", "superseded"])
def test_every_bad_status_says_what_to_do(status: str) -> None:
    process = ProcessStatus(42, "stopped" if status == "paused" else "sleeping")
    assert advice_for(status, "md", process)
    assert not re.search("[{}]", advice_for(status, "md", process))


def test_missing_instance_is_unavailable(instance_name: str) -> None:
    with pytest.raises(DriverUnavailable, match="no driver runs as instance") as caught:
        Instance(instance_name)
    assert caught.value.instance == instance_name


@pytest.fixture
def planted(instance_name: str) -> Iterator[Path]:
    """An authority segment of another version, which cannot be looked at."""
    path = plantable(instance_name, "authority")
    magic = int(lib.shmd_magic(lib.SHMD_SEGMENT_AUTHORITY))
    path.write_bytes(struct.pack("<QIIQ", magic, 99, lib.SHMD_SEGMENT_AUTHORITY, 8192).ljust(8192, b"\0"))
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("command", ["config", "stat", "stat clients", "why x"])
def test_a_tool_that_cannot_open_an_instance_does_not_say_that_there_is_none(
    instance_name: str, planted: Path, command: str
) -> None:
    assert planted.exists()
    done = tool(*command.split(), "-i", instance_name)
    assert (done.returncode, done.stdout) == (1, "")
    assert "layout version is 99" in done.stderr
    assert "no driver runs" not in done.stderr


def test_what_cannot_be_opened_is_neither_stale_nor_living(instance_name: str, planted: Path) -> None:
    (outcome,) = tool_json("gc", "--dry-run", "-i", instance_name)
    assert outcome["action"] == "may remove"
    assert outcome["reason"].startswith("cannot be looked at: ")
    (check,) = [check for check in check_host() if check.name == "instances"]
    assert f"cannot be looked at: {instance_name} (" in check.found
    planted.unlink()
    control = plantable(instance_name, "control")
    control.touch()
    try:
        (outcome,) = tool_json("gc", "--dry-run", "-i", instance_name)
        assert outcome["action"] == "would remove"
        (check,) = [check for check in check_host() if check.name == "instances"]
        assert f"without one: {instance_name}" in check.found
    finally:
        control.unlink()


def test_a_process_whose_state_cannot_be_read_is_not_said_to_run_freely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: str) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(process, "read_small", refuse)
    found = process_status(os.getpid(), start_time_of(os.getpid()))
    assert (found.dead, found.unknown, found.frozen) == (False, False, None)
    assert (
        found.doubt
        == f"it may be stopped or frozen: /proc/{os.getpid()}/stat cannot be read (Input/output error)"
    )


def test_bad_instance_name_is_refused() -> None:
    with pytest.raises(ShmDriverError, match="expected 1 to"):
        Instance("../etc")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8192, b"garbage!" * 1024], ids=["empty", "no magic", "garbage"]
)
def test_segments_that_are_not_ours_are_refused_and_left(instance_name: str, content: bytes) -> None:
    path = plantable(instance_name, "authority")
    path.write_bytes(content)
    try:
        with pytest.raises((LayoutMismatch, DriverUnavailable)):
            Instance(instance_name)
        assert path.read_bytes() == content
        assert instance_name in instance_names()
        assert instance_name in instances_with_segments(os.geteuid())
        assert segments_of(instance_name, os.geteuid()) == {path.name: len(content)}
    finally:
        path.unlink()


def test_segments_of_an_instance_are_not_those_of_a_longer_name(
    make_instance_name: Callable[[], str],
) -> None:
    short = make_instance_name()
    path, uid = plantable(f"{short}-more", "control"), os.geteuid()
    path.touch()
    try:
        assert segments_of(short, uid) == {}
        assert segments_of(f"{short}-more", uid) == {path.name: 0}
    finally:
        path.unlink()
