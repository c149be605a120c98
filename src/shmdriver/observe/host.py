"""What a machine offers to shared memory, and what it may do to it behind our back.

Each check is a function that returns one :class:`Check`; a check that cannot be made says so as a
warning. Nothing is changed.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shmdriver._native import ffi, lib
from shmdriver.driver.limits import cgroup_limits
from shmdriver.errors import ShmDriverError
from shmdriver.hints import command
from shmdriver.observe.instance import SHM_FOLDER, Instance
from shmdriver.observe.process import own_namespace

_OBJECT: Final = re.compile(
    r"shmd\.(?P<instance>[A-Za-z0-9][A-Za-z0-9_-]{0,40})\.(?:[0-9a-f]{16}\.\d+\.\d+\.)?[a-z]+"
)
_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: ``level`` is ok, warn or fail; ``advice`` says what to do, "" when nothing."""

    name: str
    level: str
    found: str
    advice: str = ""


# ---- segments on this machine --------------------------------------------------------------------


def segments_of(instance: str) -> dict[str, int]:
    """Names (as /dev/shm shows them) and bytes of an instance's segments."""
    found = {}
    for path in SHM_FOLDER.glob(f"shmd.{instance}.*"):
        match = _OBJECT.fullmatch(path.name)
        if match and match["instance"] == instance:
            try:
                found[path.name] = path.lstat().st_size
            except FileNotFoundError:
                continue
    return found


def instances_with_segments() -> list[str]:
    """Every instance that has at least one segment, with or without an authority."""
    matches = (_OBJECT.fullmatch(path.name) for path in SHM_FOLDER.glob("shmd.*"))
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
        return Check(name, "warn", f"cannot be checked here: {error}")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _bytes(number: float) -> str:
    return f"{number / _MIB:.0f} MiB" if number < 10240 * _MIB else f"{number / _MIB / 1024:.0f} GiB"


def mount_at(path: str, device: int, mountinfo: str) -> tuple[str, str] | None:
    """Kind and options of the mount that shows ``device`` at ``path``, by /proc/self/mountinfo; None: none.

    Of several mounts on one place the last one is seen.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in reversed(mountinfo.splitlines()):
        head, _, tail = line.partition(" - ")
        fields, (kind, _, options) = head.split(), tail.split(" ", 2)
        place = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        if fields[2] == number and Path(path).is_relative_to(place):
            return kind, ",".join(dict.fromkeys([*fields[5].split(","), *options.split(",")]))
    return None


def _shared_memory() -> Check:
    name, folder = "shared memory", str(SHM_FOLDER)
    place = SHM_FOLDER.resolve()
    mount = mount_at(str(place), place.stat().st_dev, _text("/proc/self/mountinfo"))
    if mount is None or mount[0] != "tmpfs":
        kind = mount[0] if mount else "on no mount that /proc shows"
        return Check(name, "fail", f"{folder} is {kind}, not a tmpfs", f"`mount -t tmpfs tmpfs {folder}`")
    space = os.statvfs(folder)
    total, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    found = f"{folder}: {_bytes(total)}, {_bytes(free)} free, {mount[1]}"
    if "ro" in mount[1].split(",") or not os.access(folder, os.W_OK):
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
    if free < 256 * _MIB:
        return Check(name, "warn", found, f"enough for small streams (8 MiB each by default): {bigger}")
    return Check(name, "ok", found)


def _memory_limit() -> Check:
    limit = min(cgroup_limits(), key=lambda each: each.most, default=None)
    if limit is None:
        return Check("memory limit", "ok", "no cgroup limit here")
    found = f"{limit.name} allows {_bytes(limit.most)}, shared memory included"
    if limit.most < 512 * _MIB:
        advice = f"{limit.remedy}, or keep streams small: an overrun kills processes"
        return Check("memory limit", "warn", found, advice)
    return Check("memory limit", "ok", found)


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
        for line in _text(str(path)).splitlines():
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
    hidden = any(
        "hidepid=" in line and "hidepid=0" not in line for line in _text("/proc/mounts").splitlines()
    )
    if hidden:
        advice = (
            "tools cannot see other users' processes: remount /proc with hidepid=0 or gid=, or run as root"
        )
        return Check("PID namespace", "warn", f"inode {inode}, /proc hides other users' processes", advice)
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
    except (OSError, AttributeError):
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
    source = _text("/sys/devices/system/clocksource/clocksource0/current_clocksource") or "unknown"
    if source in ("hpet", "acpi_pm", "jiffies"):
        return Check(
            "clock",
            "warn",
            f"clock source {source}: reading the time is a system call",
            "boot with tsc=reliable",
        )
    return Check("clock", "ok", f"clock source {source}")


def _cores() -> Check:
    usable, total = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    limit = int(quota) / int(period) if quota.isdigit() and period.isdigit() else float(usable)
    found = f"{usable} of {total} usable" + (f", quota {limit:.1f}" if limit < usable else "")
    if min(usable, limit) < 2:
        return Check(
            "cores",
            "warn",
            found,
            "producer and consumer take turns on one core: wait='sleep' fits better than spinning",
        )
    return Check("cores", "ok", found)


def _python() -> Check:
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    native = bytes(ffi.string(lib.shmd_version())).decode()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    found = f"{python}, {'with' if gil else 'without'} GIL"
    return Check("python", "ok", f"{found}, native core {native}, layout {int(lib.SHMD_LAYOUT_VERSION)}")


def _instances() -> Check:
    stale: list[str] = []
    living: list[str] = []
    odd: list[str] = []
    for name in instances_with_segments():
        try:
            with Instance(name) as view:
                (living if view.driver().alive else stale).append(name)
        except ShmDriverError:
            odd.append(name)
    found = f"{len(living)} with a driver" + (f" ({', '.join(living)})" if living else "")
    left = stale + odd
    if not left:
        return Check("instances", "ok", f"{found}, none stale")
    size = sum(sum(segments_of(name).values()) for name in left)
    found += f"; without one: {', '.join(left)} ({_bytes(size)})"
    again = ", ".join(command("run", instance=name) for name in left)
    advice = f"start the driver again and it adopts them: {again}; or remove them: "
    return Check("instances", "warn", found, advice + command("gc", instance=None))


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
)
