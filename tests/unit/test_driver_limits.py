"""Limits of memory: each is read before memory is touched, and is named when it refuses."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from grp import getgrgid
from pathlib import Path
from typing import Any

import posix_ipc
import pytest

from shmdriver import procfs
from shmdriver._native import lib
from shmdriver.driver import admission, limits, memory
from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver
from shmdriver.driver.limits import ShmSpace, cgroup_limits, lock_shortage, shortage
from shmdriver.driver.memory import MemoryThread, Unmap
from shmdriver.driver.shm import Modes, ShmSpaceError, create_segment
from shmdriver.errors import Reason, ShmDriverError
from tests.driver_rig import Rig
from tests.segments import runtime_folders

MIB = 1 << 20
V2 = "31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n" + V2
INSIDE = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"  # a container, v1
MEMINFO = "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Puts files in place of those of this machine, and a mount that is large enough."""

    def put(
        cgroup: str = "0::/\n", mountinfo: str = V2, meminfo: str = MEMINFO, status: str = "", **files: object
    ) -> None:
        texts = {
            "/proc/self/cgroup": cgroup, "/proc/self/mountinfo": mountinfo, "/proc/meminfo": meminfo,
            "/proc/self/statm": f"{64 * MIB // resource.getpagesize()} 1 1 1 0 1 0\n",
            "/proc/thread-self/status": status,
        }  # fmt: skip
        texts |= {f"/sys/fs/cgroup/{name}": f"{text}\n" for name, text in files.items()}
        for module, name in ((limits, "small_text"), (procfs, "small_text")):
            monkeypatch.setattr(module, name, lambda path: texts.get(str(path), ""))
        procfs.hierarchies.cache_clear()

    monkeypatch.setattr(ShmSpace, "now", classmethod(lambda cls: ShmSpace(total=1 << 40, free=1 << 39)))
    put()
    yield put
    procfs.hierarchies.cache_clear()


def cannot_look(_path: str) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/dev/shm")


def limited(monkeypatch: pytest.MonkeyPatch, **values: int) -> None:
    """Soft limits of resources, by name."""
    real = resource.getrlimit
    numbers = {getattr(resource, f"RLIMIT_{name}"): value for name, value in values.items()}
    monkeypatch.setattr(
        resource, "getrlimit", lambda which: (numbers[which], -1) if which in numbers else real(which)
    )


def test_nothing_is_short_on_a_machine_without_limits(machine: Machine) -> None:
    assert shortage(MIB, largest=MIB) == ""
    assert list(cgroup_limits()) == []


@pytest.mark.fault(70, how="/proc/meminfo of another machine")
def test_machine_whose_memory_is_used_up_is_said_so(machine: Machine) -> None:
    machine(meminfo="MemTotal: 16777216 kB\nMemAvailable: 102400 kB\nSwapFree: 0 kB\n")
    assert shortage(64 * MIB, largest=1) == ""
    text = shortage(100 * MIB, largest=1)
    assert text.startswith("this machine's memory leaves ")
    assert "max_bytes=" in text
    assert "profiles.<name>" in text
    machine(meminfo="MemTotal: 16777216 kB\nMemAvailable: 102400 kB\nSwapFree: 102400 kB\n")
    assert shortage(100 * MIB, largest=1) == "", "it can be swapped"


@pytest.mark.fault(70, how="files of a cgroup v2, limits at each level")
@pytest.mark.parametrize("name", ["memory.max", "memory.high"])
def test_cgroup_v2_counts_at_every_level(machine: Machine, name: str) -> None:
    def hierarchy(**more: object) -> None:
        level = {"a/memory.current": 60 * MIB, "a/memory.max": "max", "a/memory.high": "max",
                 "a/b/memory.current": 10 * MIB, "a/b/memory.max": 500 * MIB}  # fmt: skip
        machine("0::/a/b\n", **{**level, f"a/{name}": 100 * MIB, **more})

    hierarchy()
    assert shortage(32 * MIB, largest=1) == ""
    text = shortage(64 * MIB, largest=1)
    assert text.startswith(f"/sys/fs/cgroup/a/{name} leaves ")
    assert str(100 * MIB) in text
    assert f"raise {name} of that cgroup" in text
    files = f"anon 1\ninactive_file {30 * MIB}\nactive_file {10 * MIB}"
    hierarchy(**{"a/memory.stat": files})
    assert shortage(64 * MIB, largest=1) == "", "the kernel drops file pages first"
    assert "leaves" in shortage(90 * MIB, largest=1)


def test_cgroup_v2_may_swap_what_its_swap_limit_lets_it(machine: Machine) -> None:
    level = {"a/memory.current": 90 * MIB, "a/memory.max": 100 * MIB, "a/memory.swap.current": 0}
    swap = MEMINFO.replace("SwapFree: 0 kB", "SwapFree: 1048576 kB")
    machine("0::/a\n", meminfo=swap, **level, **{"a/memory.swap.max": "max"})
    assert shortage(64 * MIB, largest=1) == ""
    machine("0::/a\n", meminfo=swap, **level, **{"a/memory.swap.max": 0})
    assert "memory.max leaves" in shortage(64 * MIB, largest=1)


@pytest.mark.fault(70, how="files of a cgroup v1, in and out of a container")
@pytest.mark.parametrize(
    ("cgroup", "mountinfo"),
    [("4:memory:/a\n0::/\n", V1), ("9:cpu,memory:/docker/abc/a\n", INSIDE), ("9:memory:/../x/a\n", V1)],
)
def test_cgroup_v1_is_found_where_it_is_mounted(machine: Machine, cgroup: str, mountinfo: str) -> None:
    where = "memory" if ".." in cgroup else "memory/a"  # of another namespace: the mount is all
    files = {f"{where}/memory.usage_in_bytes": 90 * MIB, f"{where}/memory.limit_in_bytes": 100 * MIB}
    machine(cgroup, mountinfo, **files)
    assert shortage(MIB, largest=1) == ""
    assert shortage(64 * MIB, largest=1).startswith(f"/sys/fs/cgroup/{where}/memory.limit_in_bytes leaves ")
    machine(cgroup, mountinfo, **files, **{f"{where}/memory.stat": f"total_inactive_file {80 * MIB}"
                                                                    f"\ntotal_active_file 0"})  # fmt: skip
    assert shortage(64 * MIB, largest=1) == ""


def test_cgroup_v1_counts_memory_and_swap_together(machine: Machine) -> None:
    files = {"memory/a/memory.usage_in_bytes": 90 * MIB, "memory/a/memory.limit_in_bytes": 100 * MIB,
             "memory/a/memory.memsw.usage_in_bytes": 90 * MIB,
             "memory/a/memory.memsw.limit_in_bytes": 100 * MIB}  # fmt: skip
    swap = MEMINFO.replace("SwapFree: 0 kB", "SwapFree: 1048576 kB")
    machine("4:memory:/a\n", V1, swap, **files)
    assert "memory.limit_in_bytes leaves" in shortage(64 * MIB, largest=1)
    machine("4:memory:/a\n", V1, swap, **{**files, "memory/a/memory.memsw.limit_in_bytes": 500 * MIB})
    assert shortage(64 * MIB, largest=1) == ""


def test_unlimited_and_unreadable_limits_restrict_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("4:memory:/a\n", V1, **{"memory/a/memory.limit_in_bytes": 9223372036854771712,
                                    "memory/a/memory.usage_in_bytes": MIB})  # fmt: skip
    assert shortage(1 << 34, largest=1, pending=0).startswith("this machine's memory")
    machine("", "", "")
    assert shortage(1 << 34, largest=1) == ""

    def refuse(_cls: object) -> ShmSpace:
        raise PermissionError(errno.EACCES, "Permission denied", "/dev/shm")

    monkeypatch.setattr(ShmSpace, "now", classmethod(refuse))
    assert shortage(1 << 34, largest=1) == ""


def test_pending_bytes_count(machine: Machine) -> None:
    machine("0::/a\n", **{"a/memory.current": 0, "a/memory.max": 100 * MIB})
    assert shortage(64 * MIB, largest=1) == ""
    assert "memory.max leaves" in shortage(64 * MIB, largest=1, pending=64 * MIB)


@pytest.mark.fault(70, how="RLIMIT_AS, RLIMIT_FSIZE")
def test_limits_of_the_process_are_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, AS=200 * MIB)
    assert shortage(64 * MIB, largest=1) == ""
    assert shortage(150 * MIB, largest=1).startswith("RLIMIT_AS leaves ")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * MIB, hard))
    try:
        assert shortage(64 * MIB, largest=10 * MIB) == ""
        text = shortage(64 * MIB, largest=11 * MIB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert text.startswith(f"RLIMIT_FSIZE allows {10 * MIB} bytes a file")


@pytest.mark.fault(70, how="RLIMIT_MEMLOCK with and without CAP_IPC_LOCK")
def test_memory_that_cannot_be_locked_is_told_with_numbers_unless_the_limit_may_be_passed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, MEMLOCK=8 * MIB)
    machine(status="CapEff:\t0000000000000000\nVmLck:\t    1024 kB\n")
    assert lock_shortage(7 * MIB) == ""
    text = lock_shortage(8 * MIB)
    assert text.startswith(f"shm.mlock: RLIMIT_MEMLOCK leaves {7 * MIB} bytes (of {8 * MIB}), ")
    assert f"streams may take {8 * MIB} (shm.max_bytes" in text
    machine(status="CapEff:\t0000000000004000\nVmLck:\t    1024 kB\n")
    assert lock_shortage(8 * MIB) == ""
    machine(status="")
    assert lock_shortage(9 * MIB) == "", "what cannot be read restricts nothing"


@pytest.mark.fault(18, how="a mount of one inode left")
def test_mount_without_inodes_is_said_so(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ShmSpace(total=1 << 40, free=1 << 39, inodes=1)
    monkeypatch.setattr(ShmSpace, "now", classmethod(lambda cls: few))
    assert "/dev/shm has 1 inodes left, and a stream takes 2" in shortage(1, largest=1)


# ---- what the driver does with it


@pytest.mark.fault(70, how="any limit that is too small")
def test_attach_past_a_limit_is_refused_before_memory_is_touched(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = rig.client()

    def touched(*_: object) -> None:
        raise AssertionError("memory was touched")

    with monkeypatch.context() as patch:
        patch.setattr(admission, "shortage", lambda need, **_: f"memory.max leaves {need - 1} bytes")
        patch.setattr(memory, "create_segment", touched)
        refused = client.produce()
    assert refused.reason == Reason.NO_MEMORY
    assert "needs 114688 bytes, and memory.max leaves 114687 bytes" in refused.text
    assert client.produce().code == lib.SHMD_CODE_OK


@pytest.mark.fault(18, how="shm.max_bytes")
def test_bytes_past_max_bytes_are_refused_with_what_can_be_done(instance_name: str) -> None:
    rig = Rig(instance_name, shm__max_bytes=50_000)
    try:
        text = rig.client().produce().text
        for remedy in ("max_bytes=", "profiles.<name>", "shm.max_bytes", "--shm-size", "slots"):
            assert remedy in text
    finally:
        rig.close()


@pytest.fixture
def may_unmap(rig: Rig) -> Iterator[threading.Event]:
    """Until it is set, the helper thread's next unmapping is held up."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.fault(72, how="a full mount while the helper thread unmaps an ended epoch")
@pytest.mark.parametrize("is_enough", [True, False])
def test_attach_waits_for_memory_that_is_being_unmapped(
    rig: Rig,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    may_unmap: threading.Event,
    *,
    is_enough: bool,
) -> None:
    rig.driver.close()
    config = Config.load(env={}, overrides={**rig.overrides, "driver.instance": rig.instance})
    rig.driver = Driver(config, clock=rig.clock, memory=MemoryThread(), token=rig.token)
    rig.driver.start()
    client = rig.client()

    def attach(stream: str, **sizes: int) -> Callable[[], list[Any]]:
        correlation = client.send(client.attach_request(stream, lib.SHMD_ROLE_PRODUCER, **sizes))
        rig.tick()
        return lambda: [event for event in rig.events if event.correlation_id == correlation]

    def answered(answers: Callable[[], list[Any]]) -> Any:
        while not answers():
            rig.tick()
        return answers()[0]

    ended = answered(attach("ended", slots=16, max_message=MIB))
    client.confirm(ended)
    client.detach(ended)
    space = ShmSpace(total=1 << 40, free=4096)

    def unmap(job: Unmap) -> None:
        nonlocal space
        may_unmap.wait()
        job.memory.close()
        space = ShmSpace(total=1 << 40, free=1 << 39 if is_enough else 8192)

    monkeypatch.setattr(ShmSpace, "now", classmethod(lambda cls: space))
    monkeypatch.setattr(Unmap, "run", unmap)
    waiting = attach("waiting")
    assert waiting() == []
    assert client.consume("other").code == lib.SHMD_CODE_OK, "the driver goes on meanwhile"
    may_unmap.set()
    answer = answered(waiting)
    if is_enough:
        assert answer.code == lib.SHMD_CODE_OK
    else:
        assert answer.reason == Reason.NO_MEMORY
        assert "needs 114688 bytes, and /dev/shm leaves 8192 bytes" in answer.text


@pytest.mark.fault(18, 70, how="fallocate fails with each errno")
@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EFBIG, ShmSpaceError, "RLIMIT_FSIZE allows"),
        (errno.ENOMEM, ShmSpaceError, "the kernel has no memory for it"),
        (errno.EPERM, ShmDriverError, "seccomp"),
        (errno.EIO, ShmDriverError, "posix_fallocate of 4096 bytes"),
    ],
)
def test_failed_allocation_says_what_failed(
    instance_name: str, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], words: str
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fails)
    with pytest.raises(kind, match=words) as refused:
        create_segment(f"/shmd.{instance_name}.x", 4096, Modes())
    assert "is too small" not in str(refused.value)


@pytest.mark.fault(18, how="shm_open fails with each errno")
def test_full_table_of_inodes_and_read_only_mounts_are_said_so(
    instance_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, words in (
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "inodes"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "read-only"),
        (OSError("This process already has the maximum number of files open"), "RLIMIT_NOFILE"),
        (OSError("The system limit on the total number of open files has been reached"), "fs.file-max"),
        (posix_ipc.PermissionsError("No permission to make this segment"), "as uid"),
    ):

        def fails(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("posix_ipc.SharedMemory", fails)
        with pytest.raises(ShmDriverError, match=words):
            create_segment(f"/shmd.{instance_name}.x", 4096, Modes())


@pytest.mark.fault(18, how="statvfs fails beside shm_open and fallocate")
@pytest.mark.parametrize(
    ("function", "number", "words"),
    [
        ("posix_ipc.SharedMemory", errno.ENOSPC, r"^/dev/shm takes no more files, so /shmd"),
        ("posix_ipc.SharedMemory", errno.EROFS, "read-only"),
        ("os.posix_fallocate", errno.ENOSPC, r"it needs 4096 bytes; ask for less"),
        ("os.posix_fallocate", errno.EIO, "posix_fallocate of 4096 bytes"),
    ],
)
def test_mount_that_cannot_be_looked_at_hides_no_other_error(
    instance_name: str, monkeypatch: pytest.MonkeyPatch, function: str, number: int, words: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "statvfs", cannot_look)
    monkeypatch.setattr(function, fails)
    with pytest.raises(ShmDriverError, match=words):
        create_segment(f"/shmd.{instance_name}.x", 4096, Modes())


@pytest.mark.fault(18, how="statvfs fails while a driver starts, serves and checks its files")
def test_driver_serves_while_its_mount_cannot_be_looked_at(
    instance_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", cannot_look)
    rig = Rig(instance_name, shm__max_bytes=16 * MIB)
    try:
        assert rig.client().produce().code == lib.SHMD_CODE_OK
        rig.tick(2000)
        assert "error in a tick" not in " ".join(rig.logged)
    finally:
        rig.close()


@pytest.mark.fault(18, how="ENOSPC on a mount that counts no inodes")
def test_mount_that_counts_no_inodes_is_not_said_to_have_none_left(
    machine: Machine, instance_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("posix_ipc.SharedMemory", fails)
    with pytest.raises(ShmSpaceError, match=r"^/dev/shm takes no more files, so /shmd"):
        create_segment(f"/shmd.{instance_name}.x", 4096, Modes())


def test_group_that_cannot_be_given_leaves_nothing_behind(
    instance_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuses)
    with pytest.raises(
        ShmDriverError, match=r"shm\.group, shm\.mode.*: a process may give files to groups that it is in"
    ):
        Rig(instance_name, shm__mode="0660", shm__group=getgrgid(os.getegid()).gr_name)
    assert not list(Path("/dev/shm").glob(f"shmd.{instance_name}.*"))
    assert not runtime_folders(lambda name: name == instance_name)
