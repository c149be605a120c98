"""System calls that really fail, in children under a limit: each is told with its cause and its remedy.

The C core's own are in tests/c/test_errno.c, the driver's in small mounts in test_small_mounts.py.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmdriver._native import lib
from shmdriver.driver.embedded import EmbeddedDriver
from shmdriver.os_errors import errno_hint, errno_text, explained, remedy

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120
NOBODY = 65534
NO_NAMESPACE = "NOT LOOKED AT: no permission to make a mount namespace"

# A child becomes an ordinary user, and says what a call raised: its kind, errno and text.
BEGIN = f"""
import errno, os, resource, sys
import shmdriver
from shmdriver._native import ffi, lib
from shmdriver.driver import authentication, shm
from shmdriver.driver.embedded import EmbeddedDriver

def ordinary():
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid({NOBODY})
        os.setuid({NOBODY})

def lower(limit, number):
    resource.setrlimit(limit, (number, resource.getrlimit(limit)[1]))

def use_up_descriptors():
    lower(resource.RLIMIT_NOFILE, 64)
    try:
        while True:
            os.open("/dev/null", os.O_RDONLY)
    except OSError:
        pass

def tell(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except Exception as error:
        print(type(error).__name__, getattr(error, "errno", None), " ".join(str(error).split()))
"""


USED_UP = "Too many open files: RLIMIT_NOFILE allows 64 descriptors: raise it (LimitNOFILE="


def told(program: str, *arguments: str, mount: str = "") -> list[str]:
    """The lines of a program, with BEGIN before it. ``mount``: in a mount namespace, after that command."""
    command = [sys.executable, "-c", BEGIN + program, *arguments]
    if mount:
        command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if mount and ("unshare" in done.stderr or "mount:" in done.stderr):
        pytest.skip(NO_NAMESPACE)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def instance(instance_name: str) -> Iterator[str]:
    driver = EmbeddedDriver(instance_name)
    driver.start()
    yield instance_name
    driver.stop()


@pytest.mark.fault(77, how="RLIMIT_NOFILE used up, in a client, an embedded driver and a consumer")
def test_no_descriptor_is_left(instance: str) -> None:
    lines = told(
        "client = shmdriver.connect(sys.argv[1])\n"
        "consumer = client.consumer('s')\n"
        "driver = EmbeddedDriver()\n"
        "use_up_descriptors()\n"
        "tell(consumer.fileno)\n"
        "tell(shmdriver.connect, sys.argv[1], name='another')\n"
        "tell(driver.start)\n"
        "tell(authentication.create_token, authentication.Path('/tmp/no-such-token'))\n"
        "tell(authentication.read_token, authentication.Path('/etc/hostname'))\n",
        instance,
    )
    assert len(lines) == 5
    for line in lines:
        assert USED_UP in line
        assert "XDG_RUNTIME_DIR" not in line
        assert line.count("RLIMIT_NOFILE") == 1
    assert lines[0].startswith(f"OSError {errno.EMFILE} ")


@pytest.mark.fault(77, how="RLIMIT_NOFILE nearly used up: not all of the driver's answer can be taken")
def test_too_few_descriptors_are_left_for_the_drivers_answer(instance: str) -> None:
    """With each descriptor that is free, connect comes a step further, until it succeeds."""
    lines = told(
        "use_up_descriptors()\n"
        "def connect():\n"
        "    global client\n"
        "    client = shmdriver.connect(sys.argv[1])\n"
        "client, freed = None, 63\n"
        "while client is None:\n"
        "    os.close(freed)\n"
        "    freed -= 1\n"
        "    tell(connect)\n",
        instance,
    )
    assert len(lines) >= 2
    for line in lines:
        assert USED_UP in line


@pytest.mark.fault(77, how="RLIMIT_NOFILE used up in what looks whether there is a driver")
def test_an_instance_that_cannot_be_opened_is_not_told_to_have_no_driver(instance: str) -> None:
    lines = told(
        "from shmdriver.client import reattach\n"
        "from shmdriver.observe import Instance, instance_names, process_status\n"
        "from shmdriver.observe.objects import instances_with_segments, segments_of\n"
        "client = shmdriver.connect(sys.argv[1])\n"
        "link = client._connected()\n"
        "use_up_descriptors()\n"
        "tell(Instance, sys.argv[1])\n"
        "tell(instance_names)\n"
        "tell(instances_with_segments, os.geteuid())\n"
        "tell(segments_of, sys.argv[1], os.geteuid())\n"
        "print(reattach._was_removed(link), link.driver_alive())\n"
        "found = process_status(os.getpid())\n"
        "print(found.dead, found.frozen, found.doubt)\n",
        instance,
    )
    assert len(lines) == 6
    assert lines[0].startswith("ShmDriverError")
    for line in lines[:4]:
        assert USED_UP in line
    assert lines[4] == "False True"
    assert lines[5].startswith("False None it cannot be proved alive or dead: no descriptor was left")


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT LOOKED AT: becoming another user takes root")
@pytest.mark.fault(77, how="a segment of another user, and a /dev/shm that this user may not list or enter")
def test_what_a_user_may_not_look_at_is_not_told_to_be_absent(instance: str) -> None:
    program = (
        "from shmdriver.observe import Instance, instance_names\n"
        "from shmdriver.observe.objects import instances_with_segments\n"
        "ordinary()\n"
        "for name in sys.argv[1], 'no-such-instance':\n"
        "    tell(Instance, name)\n"
        "tell(instance_names)\n"
        "tell(instances_with_segments, os.geteuid())\n"
    )
    foreign, absent = told(program, instance)
    assert foreign.startswith(
        f"DriverUnavailable None no driver of instance {instance!r} that this process can use"
    )
    assert f"of uid 0 cannot be read by uid {NOBODY} (mode 0600)" in foreign
    assert absent.startswith("DriverUnavailable None no driver runs as instance 'no-such-instance'")
    unlisted = told(program, instance, mount="mount -t tmpfs -o mode=0711 tmpfs /dev/shm")
    assert [line.split()[0] for line in unlisted] == ["ShmDriverError"] * 2 + ["PermissionError"] * 2
    closed = told(program, instance, mount="mount -t tmpfs -o mode=0700 tmpfs /dev/shm")
    assert [line.split()[0] for line in closed] == ["ShmDriverError"] * 2 + ["PermissionError"] * 2


@pytest.mark.fault(77, how="RLIMIT_AS of a client that attaches")
def test_no_address_space_is_left(instance: str) -> None:
    lines = told(
        "client = shmdriver.connect(sys.argv[1])\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "lower(resource.RLIMIT_AS, used + (16 << 20))\n"
        "tell(client.producer, 's', arena=32 << 20)\n",
        instance,
    )
    assert len(lines) == 1
    assert re.search(
        r"Cannot allocate memory: .*RLIMIT_AS is \d+ \(LimitAS= in the unit, ulimit -v\)", lines[0]
    )


@pytest.mark.fault(77, how="RLIMIT_FSIZE of a driver that starts")
def test_a_file_may_not_be_that_large() -> None:
    lines = told("lower(resource.RLIMIT_FSIZE, 65536)\ntell(EmbeddedDriver().start)\n")
    assert len(lines) == 1
    assert lines[0].startswith("ShmSpaceError")
    assert "File too large: RLIMIT_FSIZE allows 65536 bytes a file: raise it (LimitFSIZE=" in lines[0]


@pytest.mark.fault(77, how="RLIMIT_MEMLOCK of a process that locks all that it maps")
def test_locked_memory_is_used_up() -> None:
    lines = told(
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "ordinary()\n"
        "fd = os.memfd_create('large')\n"
        "os.ftruncate(fd, 64 << 20)\n"
        "lower(resource.RLIMIT_MEMLOCK, 4 << 20)\n"
        "if libc.mlockall(2) == 0:\n"  # MCL_FUTURE
        "    tell(shm.SegmentMap.of, fd, 64 << 20, writable=False)\n",
    )
    assert len(lines) == 1
    assert (
        "mmap of 67108864 bytes: Resource temporarily unavailable: this process locks its memory" in lines[0]
    )
    assert "RLIMIT_MEMLOCK is 4194304 bytes: raise it" in lines[0]


@pytest.mark.fault(77, how="a client that sees /dev/shm mounted read-only")
def test_the_mount_of_a_client_is_read_only(instance: str) -> None:
    lines = told(
        "tell(shmdriver.connect(sys.argv[1]).producer, 's')\n",  # to connect takes no name there
        instance,
        mount="mount -o remount,bind,ro /dev/shm",
    )
    assert len(lines) == 1
    assert "Read-only file system: /dev/shm is mounted read-only: mount -o remount,rw /dev/shm" in lines[0]


@pytest.mark.fault(77, how="a runtime directory on a read-only file system")
def test_no_token_can_be_written(tmp_path: Path) -> None:
    lines = told(
        "tell(authentication.create_token, authentication.Path(sys.argv[1]))\n",
        str(tmp_path / "x.token"),
        mount=f"mount -t tmpfs -o ro tmpfs '{tmp_path}'",
    )
    assert len(lines) == 1
    assert "x.token cannot be written as uid 0: Read-only file system: set SHMDRIVER_RUNTIME_DIR" in lines[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT LOOKED AT: becoming another user takes root")
@pytest.mark.fault(77, how="chown to a group that the process is not in; a token of another user")
def test_a_right_is_missing(instance_name: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    lines = told(
        "ordinary()\n"
        "tell(shm.create_segment, sys.argv[1], 4096, shm.Modes(0o660, 0))\n"
        "tell(authentication.read_token, authentication.Path(sys.argv[2]))\n",
        f"/shmd.{instance_name}.x",
        str(token),
    )
    assert len(lines) == 2
    assert "Operation not permitted: a process may give files to groups that it is in" in lines[0]
    assert f"by uid {NOBODY} with groups [{NOBODY}]" in lines[0]
    assert "Permission denied: give the path of a file that this user can read" in lines[1]


def test_an_explained_error_keeps_what_it_is_and_is_not_explained_twice() -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/x")
    assert errno_text(error, lib.SHMD_CALL_FILE) == "No such file or directory"
    full = OSError(errno.EMFILE, "Too many open files", "/x")
    assert explained(explained(full)) is full
    assert str(full) == f"[Errno {errno.EMFILE}] Too many open files: {errno_hint(errno.EMFILE)}: '/x'"
    assert remedy(full) == ""
    assert remedy(ValueError("x")) == ""
    assert str(explained(ValueError("x"))) == "x"


def test_no_error_text_ends_with_the_bare_words_of_the_system() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder, suffix in (("src/shmdriver", ".py"), ("csrc", ".c"))
        for path in (ROOT / folder).rglob(f"*{suffix}")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"\.strerror\b(?!\()|(?<!shmd_)(?<!os\.)strerror\(", line)
    ]
    assert sorted({line.partition(":")[0] for line in found}) == [
        "csrc/shmd_status.c",
        "src/shmdriver/os_errors.py",
    ], found
