"""Tools in terminals and pipes of all kinds: what cannot be printed, or read, is no traceback."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver import procfs
from shmdriver.cli import signals
from shmdriver.driver.limits import Limit
from shmdriver.observe import host
from tests.small_mount import in_small_mount

Finished = subprocess.CompletedProcess[bytes]
COMMANDS = {
    "doctor": (),
    "stat": ("-i",),
    "why s": ("--sample", "0", "-i"),
    "sub s --start oldest --count 1": ("-i",),
    "tail s --start oldest --count 1": ("-i",),
}


@pytest.fixture
def instance(instance_name: str) -> Iterator[str]:
    with (
        shmdriver.embedded(instance_name) as client,
        shmdriver.connect(instance_name, name="märkte→") as other,
        other.producer("s") as out,
        client.consumer("s"),
    ):
        out.publish("größe →\n".encode())
        yield instance_name


def line(command: str, instance: str) -> list[str]:
    options = COMMANDS.get(command, ("-i",))
    named = [instance] if options else []
    return [sys.executable, "-m", "shmdriver", *command.split(), *options, *named]


def run(command: str, instance: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(line(command, instance), timeout=400, check=False, **(streams | how))


def run_each(act: Callable[[str], Finished]) -> dict[str, Finished]:
    """What ``act`` returned for each command; two of them run at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(COMMANDS, pool.map(act, COMMANDS), strict=True))


@pytest.mark.fault(68, how="latin-1")
def test_a_terminal_of_another_encoding_gets_what_it_can_show(instance: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    said = run_each(lambda command: run(command, instance, env=environment))
    for command, done in said.items():
        assert b"Traceback" not in done.stderr, (command, done.stderr)
        assert done.stdout, command
        assert done.returncode in (0, 1), (command, done.stderr)
    assert b"->" in said["why s"].stdout


@pytest.mark.fault(68, how="closed stdin, stdout, stderr")
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_are_no_traceback(instance: str, closed: str) -> None:
    def act(command: str) -> Finished:
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *line(command, instance)]
        return subprocess.run(shell, capture_output=True, timeout=400, check=False)

    for command, done in run_each(act).items():
        assert b"Traceback" not in done.stderr + done.stdout, (command, done.stderr)
        assert b"Exception ignored" not in done.stderr, (command, done.stderr)
        assert done.returncode in (0, 1), (command, done.stderr)


@pytest.mark.fault(68, how="a closed pipe")
def test_a_reader_that_has_gone_ends_a_tool_silently(instance: str) -> None:
    def act(command: str) -> Finished:
        reading, writing = os.pipe()
        os.close(reading)
        try:
            return run(command, instance, stdout=writing)
        finally:
            os.close(writing)

    for command, done in run_each(act).items():
        assert done.stderr == b"", (command, done.stderr)
        assert done.returncode in (1, 141), command


def test_a_full_disk_is_said_once(instance: str) -> None:
    for command in ("stat", "config"):
        with Path("/dev/full").open("wb") as full:
            done = run(command, instance, stdout=full)
        assert done.returncode == 1
        said = done.stderr.splitlines()[-1]
        assert said.startswith(b"shmdriver: [Errno 28] No space left on device: no bytes, no inodes")
        assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("pub s2 --slots 99999999999 --min-consumers 0", "slots=99999999999: expected 0 to"),
        ("sub s --timeout nan", "timeout=nan: expected seconds"),
        ("sub s --npy --start oldest", "carries bytes, no array"),
        ("sub \N{LATIN SMALL LETTER A WITH DIAERESIS}" + "x" * 80, "stream name"),
    ],
)
def test_an_argument_that_is_none_is_one_line(instance: str, command: str, words: str) -> None:
    done = run(command, instance, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    (said,) = done.stderr.decode().splitlines()
    assert words in said


def test_a_user_without_a_name_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nameless)
    monkeypatch.setattr(Path, "exists", lambda _path: True)
    found = {check.name: check for check in host.check_host()}
    assert found["RemoveIPC"].level == "ok"
    assert f"uid {os.getuid()} has no name here" in found["RemoveIPC"].found


MOUNTS = r"""
24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw,size=12334432k
25 24 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw,size=8192k
30 25 0:27 / /dev/shm ro,relatime shared:3 - tmpfs tmpfs rw,size=65536k
31 27 0:27 / /srv/with\040space rw - tmpfs tmpfs rw,size=65536k
"""


def test_the_mount_that_is_seen_is_the_last_one_on_its_place() -> None:
    seen = host.mount_at("/dev/shm", os.makedev(0, 27), MOUNTS.strip())
    assert seen is not None
    assert (seen.kind, seen.options) == ("tmpfs", ("ro", "relatime", "rw", "size=65536k"))
    other = host.mount_at("/srv/with space", os.makedev(0, 27), MOUNTS.strip())
    assert other is not None
    assert (other.kind, other.options) == ("tmpfs", ("rw", "size=65536k"))
    assert host.mount_at("/dev/shm", os.makedev(0, 99), MOUNTS.strip()) is None
    space = os.statvfs("/dev/shm")
    shown = next(check for check in host.check_host() if check.name == "shared memory")
    assert (
        f"{space.f_blocks * space.f_frsize >> 20}" in shown.found.replace(" MiB", "") or "GiB" in shown.found
    )


def test_the_memory_limit_is_the_least_of_this_process_own_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Limit("/sys/fs/cgroup/a/b/memory.max", 1 << 20, 64 << 20, "raise memory.max of that cgroup")
    above = Limit("/sys/fs/cgroup/a/memory.max", 1 << 30, 1 << 30, "raise memory.max of that cgroup")
    monkeypatch.setattr(host, "cgroup_limits", lambda: iter((own, above)))
    found = {check.name: check for check in host.check_host()}["memory limit"]
    assert found.level == "warn"
    assert found.found.startswith(f"{own.name} allows 64 MiB")
    assert "raise memory.max of that cgroup" in found.advice


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Texts of files that stand in place of this machine's."""
    texts: dict[str, str] = {}
    real = procfs.small_text
    for module in (procfs, host):
        monkeypatch.setattr(module, "small_text", lambda path: texts.get(str(path)) or real(path))
    procfs.hierarchies.cache_clear()
    yield texts
    procfs.hierarchies.cache_clear()


def level_and_text(name: str) -> tuple[str, str]:
    found = {check.name: check for check in host.check_host()}[name]
    return found.level, f"{found.found} {found.advice}"


@pytest.mark.parametrize(
    ("cgroup", "kind", "quota"),
    [
        ("0::/a/b\n", "cgroup2 cgroup2 rw", {"cpu.max": "150000 100000"}),
        ("3:cpu,cpuacct:/a/b\n", "cgroup cgroup rw,cpu,cpuacct",
         {"cpu.cfs_quota_us": "150000", "cpu.cfs_period_us": "100000"}),
    ],
    ids=["v2", "v1"],
)  # fmt: skip
def test_the_quota_of_cores_is_that_of_this_process_own_cgroup_or_of_a_parent(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, cgroup: str, kind: str, quota: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    files |= {procfs.OWN_CGROUPS: cgroup, procfs.MOUNTINFO: f"31 24 0:27 / /none/cg rw - {kind}\n"}
    assert level_and_text("cores")[0] == "ok"
    files |= {f"/none/cg/a/{name}": text for name, text in quota.items()}
    files |= {f"/none/cg/a/b/{name}": "max 100000" if name == "cpu.max" else "-1" for name in quota}
    files |= {f"/none/cg/x/{name}": "1 100000" if name == "cpu.max" else "1" for name in quota}
    level, text = level_and_text("cores")
    assert level == "warn"
    assert f"quota 1.5 (/none/cg/a/{next(iter(quota))})" in text


@pytest.mark.parametrize("name", ["memory limit", "cores"])
def test_limits_of_cgroups_that_cannot_be_read_are_not_said_to_be_none(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    mount = "31 24 0:27 / /none/cg rw - cgroup2 cgroup2 rw\n"
    v1 = f"{mount}32 24 0:28 / /none/v1 rw - cgroup cgroup rw,memory,cpu\n"
    unseen = "cannot be told: its cgroup /../a is not mounted here"
    for own, mounted, level, words in (
        ("0::/a\n", mount, "ok", ""),
        ("0::/../a\n", mount, "warn", unseen),
        ("0::/../a\n", "1 0 0:9999 / / rw - ext4 ext4 rw\n", "warn", unseen),
        ("4:memory,cpu:/../a\n0::/\n", v1, "warn", unseen),
        ("4:memory,cpu:/a\n0::/../b\n", v1, "ok", ""),  # no controller is in both
        ("5:pids:/\n", mount, "warn", "names no cgroup for"),
    ):
        files |= {procfs.OWN_CGROUPS: own, procfs.MOUNTINFO: mounted}
        procfs.hierarchies.cache_clear()
        found = level_and_text(name)
        assert found[0] == level, (own, found)
        assert words in found[1]

    def refuse(path: str) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    files |= {procfs.OWN_CGROUPS: "0::/a\n", procfs.MOUNTINFO: mount}
    monkeypatch.setattr(host, "read_small", refuse)
    level, text = level_and_text(name)
    assert level == "warn"
    assert "cannot be told: /none/cg/a/" in text
    assert ": Permission denied" in text


@pytest.mark.parametrize(
    ("number", "level", "words"),
    [
        (errno.ENOSYS, "fail", "lacks pidfd_open"),
        (errno.EPERM, "fail", "lacks pidfd_open"),  # what a seccomp filter says
        (errno.EMFILE, "warn", "cannot be checked here: [Errno 24]"),
    ],
)
def test_only_a_refused_pidfd_is_a_kernel_without_one(
    monkeypatch: pytest.MonkeyPatch, number: int, level: str, words: str
) -> None:
    def fails(_pid: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", fails)
    found = level_and_text("kernel")
    assert found[0] == level
    assert words in found[1]


@pytest.mark.parametrize("value", ["2", "invisible"])
def test_only_the_mount_of_proc_itself_can_hide_processes(files: dict[str, str], value: str) -> None:
    device = Path("/proc").stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    own = f"25 24 {number} / /proc rw - proc proc rw"
    other = f"26 24 0:9999 / /srv/jail/proc rw - proc proc rw,hidepid={value}"
    files[procfs.MOUNTINFO] = f"{other}\n{own}\n"
    assert level_and_text("PID namespace")[0] == "ok"
    files[procfs.MOUNTINFO] = f"{other}\n{own},hidepid=0\n"
    assert level_and_text("PID namespace")[0] == "ok"
    files[procfs.MOUNTINFO] = f"{own},hidepid={value}\n"
    level, text = level_and_text("PID namespace")
    assert level == "warn"
    assert f"(hidepid={value})" in text


@pytest.mark.parametrize(("inodes", "level"), [("0", "ok"), ("50000", "ok"), ("60", "warn"), ("3", "fail")])
def test_inodes_are_shown_and_told_when_nearly_used_up(inodes: str, level: str) -> None:
    (said,) = in_small_mount(
        f"size=1g,nr_inodes={inodes}",
        "from shmdriver.observe import host\n"
        "check = next(each for each in host.check_host() if each.name == 'shared memory')\n"
        "print(check.level, check.found, '|', check.advice)\n",
    )
    assert said.startswith(f"{level} ")
    shown = f"{int(inodes) - 1} of {inodes} inodes free"
    assert (shown in said) == (inodes != "0")
    assert ("nr_inodes=" in said.partition("|")[2]) == (level != "ok")


def test_a_stdout_that_is_dropped_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w"))
    print("nobody reads this")
    before = sorted(Path("/proc/self/fd").iterdir())
    signals.drop_stdout()
    assert sorted(Path("/proc/self/fd").iterdir()) == before
    assert str(Path(f"/proc/self/fd/{writing}").readlink()) == os.devnull
    sys.stdout.close()
