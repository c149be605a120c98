"""What a machine offers to shared memory, and what it may do to it behind our back.

Each check is a function that returns one :class:`Check`; a check that cannot be made says so as a
warning. Nothing is changed.
"""

from __future__ import annotations

import errno
import os
import platform
import pwd
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from shmdriver._native import ffi, lib
from shmdriver.driver.limits import MORE_INODES, cgroup_limits
from shmdriver.errors import ShmDriverError
from shmdriver.hints import command
from shmdriver.observe.check import MIB, Check, bytes_text
from shmdriver.observe.host_instances import INSTANCE_CHECKS
from shmdriver.observe.objects import SHM_FOLDER
from shmdriver.observe.process import own_namespace
from shmdriver.os_errors import errno_text, remedy
from shmdriver.procfs import MOUNTINFO, OWN_CGROUPS, Mount, controlling, mounts, read_small, small_text
from shmdriver.trust import owner_text, owner_uid

_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC
_INODES: Final = 4  # of a driver and a stream
_FEW_INODES: Final = 64


# ---- the checks ----------------------------------------------------------------------------------


def check_host(owner: str | int | None = None) -> tuple[Check, ...]:
    """All checks, in the order in which they matter. ``owner``: a user whose instances are looked at, too."""
    named = owner_uid(owner_text(owner))
    return (*map(_guarded, _CHECKS), *(_guarded(check, named) for check in INSTANCE_CHECKS))


def _guarded(check: Callable[..., Check], *arguments: int) -> Check:
    try:
        return check(*arguments)
    except (OSError, ValueError, LookupError, ShmDriverError) as error:
        name = check.__name__.removeprefix("_").replace("_", " ")
        return Check(name, "warn", f"cannot be checked here: {error}{remedy(error)}")


def mount_at(path: str, device: int, mountinfo: str) -> Mount | None:
    """The mount that shows ``device`` at ``path``, by /proc/self/mountinfo; None: none."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for mount in reversed(list(mounts(mountinfo))):
        if mount.device == number and Path(path).is_relative_to(mount.place):
            return mount
    return None


def _shared_memory() -> Check:
    name, folder = "shared memory", str(SHM_FOLDER)
    place = SHM_FOLDER.resolve()
    mount = mount_at(str(place), place.stat().st_dev, small_text(MOUNTINFO))
    if mount is None or mount.kind != "tmpfs":
        kind = mount.kind if mount else "on no mount that /proc shows"
        return Check(name, "fail", f"{folder} is {kind}, not a tmpfs", f"`mount -t tmpfs tmpfs {folder}`")
    space = os.statvfs(folder)
    total, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    inodes = f", {space.f_favail} of {space.f_files} inodes free" if space.f_files else ""
    found = f"{folder}: {bytes_text(total)}, {bytes_text(free)} free{inodes}, {','.join(mount.options)}"
    if "ro" in mount.options or not os.access(folder, os.W_OK):
        advice = f"`mount -o remount,rw {folder}`, or run as another user"
        return Check(name, "fail", f"{found}: not writable", advice)
    bigger = f"`mount -o remount,size=1G {folder}`; in a container: --shm-size=1g"
    if free < 16 * MIB:
        return Check(
            name,
            "fail",
            found,
            f"too little for a driver and a stream: {command('gc', instance=None)}, or {bigger}",
        )
    if space.f_files and space.f_favail < max(_FEW_INODES, space.f_files // 20):
        level = "warn" if space.f_favail >= _INODES else "fail"
        return Check(name, level, found, f"a driver takes 2 inodes, each stream 2 more: {MORE_INODES}")
    if free < 256 * MIB:
        return Check(name, "warn", found, f"enough for small streams (5 MiB each by default): {bigger}")
    return Check(name, "ok", found)


def _untold(controller: str, v2_file: str, v1_file: str) -> str:
    """Why a limit of this process's cgroups may be missed; "" when all that are mounted can be read."""
    found = controlling(small_text(OWN_CGROUPS), controller)
    whys = [] if found else [f"{OWN_CGROUPS} names no cgroup for {controller}, or cannot be read"]
    for hierarchy in found:
        if not hierarchy.is_seen:
            whys.append(f"its cgroup {hierarchy.path} is not mounted here")
            continue
        for folder in hierarchy.folders:
            file = f"{folder}/{v1_file if hierarchy.is_v1 else v2_file}"
            try:
                read_small(file)
            except FileNotFoundError:
                pass  # a root, or the controller is off: no limit there
            except OSError as error:
                whys.append(f"{file}: {errno_text(error)}")
    return "; ".join(whys)


def _unless_untold(check: Check, untold: str) -> Check:
    """The check; a warning when limits may have been missed."""
    if not untold:
        return check
    found = f"{check.found}; limits of cgroups cannot be told: {untold}"
    elsewhere = "look where its cgroup can be read (docker inspect, systemctl show)"
    return Check(check.name, "warn", found, "; ".join(filter(None, (check.advice, elsewhere))))


def _memory_limit() -> Check:
    untold = _untold("memory", "memory.max", "memory.limit_in_bytes")
    limit = min(cgroup_limits(), key=lambda each: each.most, default=None)
    if limit is None:
        return _unless_untold(Check("memory limit", "ok", "no cgroup limit is seen here"), untold)
    found = f"{limit.name} allows {bytes_text(limit.most)}, shared memory included"
    level, advice = "ok", ""
    if limit.most < 512 * MIB:
        level, advice = "warn", f"{limit.remedy}, or keep streams small: an overrun kills processes"
    return _unless_untold(Check("memory limit", level, found, advice), untold)


def _memlock() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft / 1024:.0f} KiB"
    if soft == resource.RLIM_INFINITY or soft >= 256 * MIB or os.geteuid() == 0:
        return Check("locked memory", "ok", f"RLIMIT_MEMLOCK {found}")
    more = "" if hard == soft else "ulimit -l <KiB>, or "
    advice = f"matters only with shm.mlock = true: {more}LimitMEMLOCK= in the unit, memlock in limits.conf"
    return Check("locked memory", "ok", f"RLIMIT_MEMLOCK {found}", advice)


def _remove_ipc() -> Check:
    name = "RemoveIPC"
    if not Path("/run/systemd/system").exists():
        return Check(name, "ok", "no systemd here: nobody removes segments at logout")
    value = "yes"  # logind's default
    drop_ins = [
        path
        for root in ("/usr/lib", "/run", "/etc")
        for path in sorted(Path(f"{root}/systemd/logind.conf.d").glob("*.conf"))
    ]
    for path in [Path("/etc/systemd/logind.conf"), *drop_ins]:
        for line in small_text(str(path)).splitlines():
            key, _, setting = line.partition("=")
            value = setting.strip() if key.strip() == "RemoveIPC" else value
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:  # as in containers
        return Check(name, "ok", f"RemoveIPC={value}, uid {uid} has no name here, and so no logins that end")
    lingers = Path(f"/var/lib/systemd/linger/{user}").exists()
    found = f"RemoveIPC={value}, user {user} (uid {uid}){', lingering' if lingers else ''}"
    if value.lower() in ("no", "false", "0", "off") or uid < 1000 or lingers:
        return Check(name, "ok", found)
    advice = f"segments of this user go at its last logout: `loginctl enable-linger {user}`, or RemoveIPC=no"
    return Check(name, "warn", found, advice)


def _pid_namespace() -> Check:
    inode = own_namespace()
    mount = mount_at("/proc", Path("/proc").stat().st_dev, small_text(MOUNTINFO))
    hidden = [option for option in (mount.options if mount else ()) if option.startswith("hidepid=")]
    if hidden and hidden[0] not in ("hidepid=0", "hidepid=off"):
        advice = (
            "tools cannot see other users' processes: remount /proc with hidepid=0 or gid=, or run as root"
        )
        found = f"inode {inode}, /proc hides other users' processes ({hidden[0]})"
        return Check("PID namespace", "warn", found, advice)
    if inode == _INITIAL_PID_NAMESPACE:
        return Check("PID namespace", "ok", "the machine's own")
    advice = (
        "clients in other containers: share it (--pid), else their death is noticed by the lease timeout only"
    )
    return Check("PID namespace", "ok", f"a container's (inode {inode})", advice)


def _kernel() -> Check:
    release = platform.release()
    missing = []
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError) as error:
        # Of the own process only a seccomp filter refuses it (EPERM).
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        missing.append("pidfd_open (Linux 5.3: death is proved with it)")
    word = ffi.new("uint32_t *", 1)
    if lib.shmd_futex_wait(word, 0, 1) != 0:
        missing.append("futex")
    if missing:
        return Check(
            "kernel",
            "fail",
            f"Linux {release} lacks {', '.join(missing)}",
            "a newer kernel, or a laxer seccomp filter",
        )
    return Check("kernel", "ok", f"Linux {release}: pidfd, futex")


def _clock() -> Check:
    found = small_text("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    source = found.strip() or "unknown"
    if source in ("hpet", "acpi_pm", "jiffies"):
        return Check(
            "clock",
            "warn",
            f"clock source {source}: reading the time is a system call",
            "boot with tsc=reliable",
        )
    return Check("clock", "ok", f"clock source {source}")


def _cpu_quotas() -> Iterator[tuple[float, str]]:
    """Cores that the cgroups of this process allow, and the file that says so; its own first."""
    for hierarchy in controlling(small_text(OWN_CGROUPS), "cpu"):
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if hierarchy.is_v1 else ("cpu.max",)
        for folder in hierarchy.folders:
            words = " ".join(small_text(f"{folder}/{name}") for name in names).split()
            if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
                yield int(words[0]) / int(words[1]), f"{folder}/{names[0]}"


def _cores() -> Check:
    usable, total = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    limit, file = min(_cpu_quotas(), default=(float(usable), ""))
    found = f"{usable} of {total} usable" + (f", quota {limit:.1f} ({file})" if limit < usable else "")
    level, advice = "ok", ""
    if min(usable, limit) < 2:
        level = "warn"
        advice = "producer and consumer take turns on one core: wait='sleep' fits better than spinning"
    return _unless_untold(Check("cores", level, found, advice), _untold("cpu", "cpu.max", "cpu.cfs_quota_us"))


def _python() -> Check:
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    native = bytes(ffi.string(lib.shmd_version())).decode()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    found = f"{python}, {'with' if gil else 'without'} GIL"
    return Check("python", "ok", f"{found}, native core {native}, layout {int(lib.SHMD_LAYOUT_VERSION)}")


_CHECKS: Final = (
    _shared_memory,
    _memory_limit,
    _memlock,
    _remove_ipc,
    _pid_namespace,
    _kernel,
    _clock,
    _cores,
    _python,
)
