"""Frozen cgroups: a process in one is shown as frozen, and told is which file thaws it."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shmdriver import procfs
from shmdriver._native import lib
from shmdriver.cli.admin import _kill
from shmdriver.cli.stat import health
from shmdriver.observe import Instance, ProcessStatus, diagnose, freezer, process_status
from shmdriver.observe.driver_status import advice_for, judge
from shmdriver.observe.freezer import freezer_in
from shmdriver.observe.records import BackPressure
from shmdriver.os_errors import errno_text
from tests.driver_rig import Rig, start_time_of
from tests.real_cgroups import freezable

SECOND = 1_000_000_000
THAW = "echo 0 > /c/a/cgroup.freeze"
FROZEN = ProcessStatus(42, "frozen", "model", cgroup="/c/a", thaw=THAW)
DENIED = errno_text(PermissionError(errno.EACCES, "Permission denied"), lib.SHMD_CALL_FILE)
DOUBTFUL = ProcessStatus(42, "sleeping", "model", "its cgroup /a (v2) cannot be read (Permission denied)")
Tree = Callable[..., None]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    """Makes folders of cgroups with files, below mounts of v2 (``2``) and of v1's freezer (``1``)."""

    def put(files: dict[str, str], roots: tuple[str, str] = ("/", "/")) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        mountinfo = (
            f"31 24 0:27 {roots[0]} {tmp_path}/2 rw shared:4 - cgroup2 cgroup2 rw\n"
            f"37 24 0:34 {roots[1]} {tmp_path}/1 rw - cgroup cgroup rw,freezer\n"
        )
        real = procfs.small_text
        fake = {procfs.MOUNTINFO: mountinfo}
        monkeypatch.setattr(procfs, "small_text", lambda path: fake.get(path) or real(path))
        procfs.hierarchies.cache_clear()

    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    yield put
    procfs.hierarchies.cache_clear()


# ---- what the files say


@pytest.mark.parametrize("frozen", ["", "a", "a/b"])
def test_cgroup_v2_is_frozen_by_itself_or_by_a_parent(tree: Tree, tmp_path: Path, frozen: str) -> None:
    files = {f"2/{each}/cgroup.freeze": "1" if each == frozen else "0" for each in ("a", "a/b")}
    tree({**files, "2/a/b/cgroup.events": f"populated 1\nfrozen {1 if frozen else 0}"})
    found = freezer_in("0::/a/b\n")
    assert found.why == ""
    if frozen:
        assert found.cgroup == f"{tmp_path}/2/{frozen}"
        assert found.thaw == f"echo 0 > {tmp_path}/2/{frozen}/cgroup.freeze"
    else:
        assert (found.cgroup, found.thaw) == ("", "")


def test_cgroup_whose_other_process_cannot_stop_yet_counts_as_frozen(tree: Tree) -> None:
    tree({"2/a/cgroup.events": "populated 1\nfrozen 0", "2/a/cgroup.freeze": "1"})
    assert freezer_in("0::/a\n").thaw


def test_each_cgroup_that_was_frozen_is_thawed(tree: Tree, tmp_path: Path) -> None:
    tree({"2/a/b/cgroup.events": "frozen 1", "2/a/b/cgroup.freeze": "1", "2/a/cgroup.freeze": "1",
          "1/c/freezer.state": "FROZEN", "1/c/freezer.self_freezing": "1"})  # fmt: skip
    found = freezer_in("6:freezer:/c\n0::/a/b\n")
    for file in ("1/c/freezer.state", "2/a/b/cgroup.freeze", "2/a/cgroup.freeze"):
        assert f"> {tmp_path}/{file}" in found.thaw
    assert found.thaw.count(" && ") == 2


@pytest.mark.parametrize("state", ["FROZEN", "FREEZING", "THAWED"])
def test_cgroup_v1_is_thawed_where_it_was_frozen(tree: Tree, tmp_path: Path, state: str) -> None:
    tree({"1/a/b/freezer.state": state, "1/a/b/freezer.self_freezing": "0",
          "1/a/freezer.self_freezing": "0" if state == "THAWED" else "1"})  # fmt: skip
    found = freezer_in("4:memory:/x\n6:freezer,net_cls:/a/b\n")
    assert found.thaw == ("" if state == "THAWED" else f"echo THAWED > {tmp_path}/1/a/freezer.state")
    assert found.why == ""


def test_what_was_frozen_above_the_mount_is_said_so(tree: Tree, tmp_path: Path) -> None:
    tree({"2/cgroup.events": "frozen 1", "2/cgroup.freeze": "0"}, ("/docker/c1", "/"))
    found = freezer_in("0::/docker/c1\n")
    assert (found.cgroup, found.thaw) == (f"{tmp_path}/2", "")
    process = ProcessStatus(42, "frozen", cgroup=found.cgroup)
    assert process.resume.startswith(f"thaw the cgroup above {tmp_path}/2, where that can be seen")


@pytest.mark.fault(44, how="frozen in one hierarchy, the other not to be seen")
def test_what_else_may_freeze_a_frozen_process_is_told(tree: Tree, tmp_path: Path) -> None:
    frozen = {"1/c/freezer.state": "FROZEN", "1/c/freezer.self_freezing": "1"}
    thaw = f"echo THAWED > {tmp_path}/1/c/freezer.state"
    tree(frozen, ("/docker/c1", "/"))
    unseen = freezer_in("6:freezer:/c\n0::/docker/c2\n")
    assert (unseen.thaw, unseen.why) == (thaw, "its cgroup /docker/c2 (v2) is not mounted here")
    tree({"2/cgroup.events": "frozen 1", "2/cgroup.freeze": "0"}, ("/docker/c1", "/"))
    above = freezer_in("6:freezer:/c\n0::/docker/c1\n")
    assert above.thaw == thaw
    assert above.why == f"a cgroup above {tmp_path}/2 froze it, too, and cannot be seen here"
    assert freezer_in("0::/docker/c1\n").why == "", "its text says that already"


def test_a_process_that_more_may_have_frozen_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    held = freezer.Freezer("/c/a", THAW, "its cgroup /b (v2) is not mounted here")
    monkeypatch.setattr("shmdriver.observe.process.freezer_of", lambda _pid: held)
    found = process_status(os.getpid())
    assert found.frozen is True
    assert found.resume == f"thaw its cgroup: `{THAW}`; that may not be all that froze it: {held.why}"
    assert str(found) == "frozen by cgroup /c/a"


def test_roots_and_kernels_without_a_freezer_freeze_nothing(tree: Tree) -> None:
    tree({"2/a/cgroup.procs": ""})
    assert freezer_in("6:freezer:/\n0::/\n") == freezer.Freezer()
    assert freezer_in("0::/a\n") == freezer.Freezer()
    assert freezer_in("") == freezer.Freezer()


@pytest.mark.fault(44, how="cgroups that are not mounted, or cannot be read")
def test_what_cannot_be_read_is_no_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree({"2/a/cgroup.events": "frozen 0"}, ("/docker/c1", "/"))
    assert freezer_in("0::/docker/c2\n").why == "its cgroup /docker/c2 (v2) is not mounted here"
    assert freezer_in("6:freezer:/../x\n").why == "its cgroup /../x (v1 freezer) is not mounted here"
    assert "No such file" in freezer_in("0::/docker/c1/gone\n").why

    def refuse(path: str) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(freezer, "read_small", refuse)
    assert freezer_in("0::/docker/c1/a\n").why == (f"its cgroup /docker/c1/a (v2) cannot be read ({DENIED})")
    assert freezer.freezer_of(1).why == f"/proc/1/cgroup cannot be read ({DENIED})"


@pytest.mark.fault(44, how="a parent's cgroup.freeze cannot be read")
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_switch_that_cannot_be_read_is_not_off(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: int
) -> None:
    tree({"2/a/b/cgroup.events": f"frozen {frozen}", "2/a/b/cgroup.freeze": "0", "2/a/cgroup.freeze": "1"})
    real, hidden = procfs.read_small, f"{tmp_path}/2/a/cgroup.freeze"

    def refuse(path: str) -> bytes:
        if path == hidden:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(freezer, "read_small", refuse)
    found = freezer_in("0::/a/b\n")
    assert (found.cgroup, found.thaw) == (f"{tmp_path}/2/a/b" if frozen else "", "")
    assert found.why == f"{hidden} cannot be read ({DENIED})"
    monkeypatch.setattr("shmdriver.observe.process.freezer_of", lambda _pid: found)
    shown = process_status(os.getpid())
    assert shown.frozen is (True if frozen else None)
    if frozen:
        assert shown.resume.startswith(
            f"thaw the cgroup at or above {tmp_path}/2/a/b, where that can be seen"
        )
    else:
        assert shown.doubt == f"its cgroup may be frozen: {found.why}"


# ---- what the tools say of it


def test_a_frozen_driver_is_paused_and_its_cgroup_is_to_be_thawed() -> None:
    status, text = judge(FROZEN, "none", "healthy", 60 * SECOND, 3 * SECOND)
    assert status == "paused"
    assert "frozen by cgroup /c/a" in text
    assert advice_for(status, "md", FROZEN) == f"thaw its cgroup: `{THAW}`"
    assert _kill(FROZEN).startswith(f"thaw its cgroup: `{THAW}`; then ")
    assert (FROZEN.frozen, FROZEN.dead, FROZEN.unknown) == (True, False, False)


@pytest.mark.fault(44, how="a driver whose cgroup cannot be read")
def test_a_driver_that_may_be_frozen_is_not_told_to_be_killed_first() -> None:
    status, text = judge(DOUBTFUL, "none", "healthy", 60 * SECOND, 3 * SECOND)
    assert status == "hung"
    assert text.endswith(f"its cgroup may be frozen: {DOUBTFUL.why}")
    advice = advice_for(status, "md", DOUBTFUL)
    assert advice.index("whether its cgroup is frozen") < advice.index("kill")
    assert DOUBTFUL.frozen is None
    assert judge(DOUBTFUL, "none", "healthy", 0, 3 * SECOND) == ("running", "the driver (pid 42) runs")


@pytest.mark.fault(8, how="a frozen cgroup")
@pytest.mark.parametrize("process", [FROZEN, DOUBTFUL])
def test_a_frozen_consumer_is_blamed_with_its_cgroup_and_never_to_be_killed(
    rig: Rig, process: ProcessStatus
) -> None:
    rig.client().produce()
    consumer = rig.client().consume()
    with Instance(rig.instance) as view:
        stream, leases = view.stream("s"), view.leases()
        driver = dataclasses.replace(view.driver(), status="running", advice="")  # its clock is the rig's
    epoch = stream.epochs[0]
    gates = tuple(dataclasses.replace(gate, process=process) for gate in epoch.gates)
    blocked = BackPressure(gate=consumer.gate, for_ns=2 * SECOND, position=0)
    held = dataclasses.replace(stream, epochs=(dataclasses.replace(epoch, blocked=blocked, gates=gates),))
    seen: Any = SimpleNamespace(stream=lambda _name: held, driver=lambda: driver)
    found = diagnose(seen, "s")
    told = " ".join((found.summary, *found.details, *found.advice))
    assert "kill" not in told
    stalled = tuple(dataclasses.replace(lease, state="stalled", process=process) for lease in leases)
    line = health(driver, (), stalled)[1]
    if process is FROZEN:
        assert found.verdict == "consumer_stopped"
        assert found.advice == (f"thaw its cgroup: `{THAW}`",)
        assert "which is frozen by cgroup /c/a" in found.summary
        assert f"which is frozen by cgroup /c/a (thaw its cgroup: `{THAW}`)" in line
    else:
        assert found.verdict == "consumer_slow"
        assert f"its cgroup may be frozen: {DOUBTFUL.why}" in found.summary


def test_a_debugged_process_is_not_told_to_be_continued_by_a_signal() -> None:
    assert "debugger" in ProcessStatus(42, "traced").resume


# ---- real ones


@pytest.mark.fault(8, how="a real frozen cgroup, v1 and v2")
@pytest.mark.parametrize("is_v1", [True, False], ids=["v1", "v2"])
def test_a_process_in_a_real_frozen_cgroup_is_frozen_and_runs_after_the_advice(*, is_v1: bool) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; [print(line, flush=True) for line in sys.stdin]"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with freezable(is_v1=is_v1) as cgroup:
            start = start_time_of(child.pid)
            assert process_status(child.pid, start).frozen is False
            cgroup.freeze(child.pid)
            found = process_status(child.pid, start)
            assert (found.state, found.frozen, found.dead, found.why) == ("frozen", True, False, "")
            assert (found.cgroup, found.thaw) == (str(cgroup.folder), cgroup.command)
            child.stdin.write("runs\n")
            child.stdin.flush()
            subprocess.run(["sh", "-c", found.thaw], check=True)
            assert child.stdout.readline() == "runs\n"
            assert process_status(child.pid, start).frozen is False
    finally:
        child.kill()
        child.communicate()
