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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shmdriver._native import ffi, lib
from shmdriver.driver.limits import MORE_INODES, cgroup_limits
from shmdriver.errors import DriverUnavailable, ShmDriverError
from shmdriver.hints import command
from shmdriver.observe.instance import Instance
from shmdriver.observe.links import linked_segments
from shmdriver.observe.objects import SEGMENT, SHM_FOLDER, shared_objects
from shmdriver.observe.process import own_namespace
from shmdriver.observe.records import DriverStatus
from shmdriver.os_errors import errno_text, remedy
from shmdriver.procfs import MOUNTINFO, OWN_CGROUPS, Mount, controlling, mounts, read_small, small_text

_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC
_MIB: Final = 1 << 20
_INODES: Final = 4  # of a driver and a stream
_FEW_INODES: Final = 64
_SHOWN: Final = 8


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: ``level`` is ok, warn or fail; ``advice`` says what to do, "" when nothing."""

    name: str
    level: str
    found: str
    advice: str = ""


# ---- segments on this machine --------------------------------------------------------------------


def segments_of(instance: str) -> dict[str, int]:
    """Names (as /dev/shm shows them) and bytes of an instance's segments. Raises OSError."""
    found = {}
    for name in shared_objects():
        match = SEGMENT.fullmatch(name)
        if match and match["instance"] == instance:
            try:
                found[name] = (SHM_FOLDER / name).lstat().st_size
            except FileNotFoundError:
                continue
    return found


def instances_with_segments() -> list[str]:
    """Every instance that has at least one segment, with or without an authority. Raises OSError."""
    matches = map(SEGMENT.fullmatch, shared_objects())
    return sorted({match["instance"] for match in matches if match})


# ---- the checks ----------------------------------------------------------------------------------


def check_host() -> tuple[Check, ...]:
    """All checks, in the order in which they matter."""
    return tuple(_guarded(check) for check in _CHECKS)


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except (OSError, ValueError, LookupError) as error:
        name = check.__name__.removeprefix("_").replace("_", " ")
        return Check(name, "warn", f"cannot be checked here: {error}{remedy(error)}")


def _bytes(number: float) -> str:
    return f"{number / _MIB:.0f} MiB" if number < 10240 * _MIB else f"{number / _MIB / 1024:.0f} GiB"


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
    found = f"{folder}: {_bytes(total)}, {_bytes(free)} free{inodes}, {','.join(mount.options)}"
    if "ro" in mount.options or not os.access(folder, os.W_OK):
        advice = f"`mount -o remount,rw {folder}`, or run as another user"
        return Check(name, "fail", f"{found}: not writable", advice)
    bigger = f"`mount -o remount,size=1G {folder}`; in a container: --shm-size=1g"
    if free < 16 * _MIB:
        return Check(
            name,
            "fail",
            found,
            f"too little for a driver and a stream: {command('gc', instance=None)}, or {bigger}",
        )
    if space.f_files and space.f_favail < max(_FEW_INODES, space.f_files // 20):
        level = "warn" if space.f_favail >= _INODES else "fail"
        return Check(name, level, found, f"a driver takes 2 inodes, each stream 2 more: {MORE_INODES}")
    if free < 256 * _MIB:
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
    found = f"{limit.name} allows {_bytes(limit.most)}, shared memory included"
    level, advice = "ok", ""
    if limit.most < 512 * _MIB:
        level, advice = "warn", f"{limit.remedy}, or keep streams small: an overrun kills processes"
    return _unless_untold(Check("memory limit", level, found, advice), untold)


def _memlock() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft / 1024:.0f} KiB"
    if soft == resource.RLIM_INFINITY or soft >= 256 * _MIB or os.geteuid() == 0:
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


def _instances() -> Check:
    stale: list[str] = []
    living: list[str] = []
    unseen: dict[str, ShmDriverError] = {}
    not_serving: dict[str, DriverStatus] = {}
    for name in instances_with_segments():
        try:
            with Instance(name) as view:
                driver = view.driver()
        except DriverUnavailable:
            stale.append(name)  # without an authority there is no driver
            continue
        except ShmDriverError as error:
            unseen[name] = error
            continue
        (living if driver.alive else stale).append(name)
        if driver.alive and driver.status not in ("running", "starting"):
            not_serving[name] = driver
    found = f"{len(living)} with a driver" + (f" ({', '.join(living)})" if living else "")
    found += "".join(f"; {name}: {driver.explanation}" for name, driver in not_serving.items())
    advice = [f"{name}: {driver.advice}" for name, driver in not_serving.items()]
    if stale:
        size = sum(sum(segments_of(name).values()) for name in stale)
        found += f"; without one: {', '.join(stale)} ({_bytes(size)})"
        again = ", ".join(command("run", instance=name) for name in stale)
        gone = command("gc", instance=None)
        advice.append(f"start the driver again and it adopts them: {again}; or remove them: {gone}")
    else:
        found += ", none stale"
    if unseen:
        found += "; cannot be looked at: " + ", ".join(f"{name} ({why})" for name, why in unseen.items())
        advice.append("look as the user, and with the version of shmdriver, that made them")
    return Check("instances", "warn" if advice else "ok", found, "; ".join(advice))


def _hard_links() -> Check:
    name = "hard links"
    found, unread = linked_segments()
    untold = f"; {unread} files of others cannot be read" if unread else ""
    if not found:
        return Check(name, "ok", f"no segment has another name{untold}")
    size = sum({each.inode: each.bytes for each in found}.values())
    paths = ", ".join(each.path for each in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
    advice = (
        "they keep the memory of what has ended, and can be read: find who made them (a process that may "
        "write the segments, or any where the sysctl fs.protected_hardlinks is 0), and remove them"
    )
    text = f"{len(found)} names of linked segments ({_bytes(size)}): {paths}{untold}"
    return Check(name, "warn", text, advice)


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
    _instances,
    _hard_links,
)
