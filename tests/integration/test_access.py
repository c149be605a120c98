"""Who may open, map and write what: modes, groups, users, read-only mappings."""

from __future__ import annotations

import ctypes
import errno
import grp
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver.driver.config import Config
from shmdriver.driver.embedded import EmbeddedDriver
from shmdriver.driver.shm import open_segment
from shmdriver.observe import Instance

SHM = Path("/dev/shm")
STRANGER, MEMBER = 65534, 65533  # uids without a name will do
ENDLESS_S = 10**6  # who waits that long for an answer hangs
IS_ROOT = os.geteuid() == 0


def as_user(uid: int, groups: list[int], work: Callable[[], Any]) -> Any:
    """What ``work`` returns, or ``[name of the exception, text]``, in a child that has become this user."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setgid(uid)
            os.setuid(uid)
            try:
                answer = work()
            except Exception as error:
                answer = [type(error).__name__, str(error)]
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


@pytest.fixture
def driver() -> Iterator[Callable[..., str]]:
    """Starts embedded drivers with settings (dotted keys); their instance names."""
    started: list[EmbeddedDriver] = []

    def start(**settings: Any) -> str:
        embedded = EmbeddedDriver(config=Config.load(env={}, overrides=settings))
        embedded.start()
        started.append(embedded)
        return embedded.instance

    yield start
    for embedded in started:
        embedded.stop()


def work_with(instance: str, timeout: float = 20) -> Callable[[], Any]:
    """Produces and consumes once."""

    def work() -> Any:
        with shmdriver.connect(instance, timeout=timeout) as client:
            out, consumer = client.producer("shared"), client.consumer("shared")
            out.publish(b"hello")
            message = consumer.read(timeout=60)
            return bytes(message).decode() if message else None

    return work


needs_root = pytest.mark.skipif(not IS_ROOT, reason="becoming another user takes root")


@needs_root
@pytest.mark.fault(22, how="a client of another user, mode 0600")
def test_another_user_is_told_at_once_that_it_may_not(driver) -> None:
    instance = driver()
    name, text = as_user(STRANGER, [], work_with(instance, timeout=ENDLESS_S))
    assert name in ("DriverUnavailable", "ShmDriverError", "PermissionError"), (name, text)
    assert "Permission denied" in text
    assert "shm.mode" in text


@needs_root
@pytest.mark.fault(22, how="users in and out of the configured group, mode 0660")
def test_members_of_the_group_share_and_others_do_not(driver) -> None:
    group = grp.getgrgid(os.getegid())
    instance = driver(**{"shm.mode": "0660", "shm.group": group.gr_name})
    assert as_user(MEMBER, [group.gr_gid], work_with(instance)) == "hello"
    assert "Permission denied" in as_user(STRANGER, [], work_with(instance))[1]


@needs_root
@pytest.mark.fault(71, how="a user in 300 groups")
def test_member_of_hundreds_of_groups_is_known_as_one(instance_name: str) -> None:
    path = SHM / f"shmd.{instance_name}.control"
    groups = list(range(5000, 5300))
    path.write_bytes(bytes(4096))
    os.chown(path, STRANGER, groups[-1])
    path.chmod(0o660)

    def look() -> int:
        fd, size = open_segment(f"/{path.name}", writable=True)
        os.close(fd)
        return size

    try:
        assert as_user(MEMBER, groups, look) == 4096
        path.chmod(0o666)
        assert "planted" in as_user(MEMBER, groups, look)[1]
    finally:
        path.unlink()


@needs_root
@pytest.mark.fault(21, how="a copy of a real authority, made by a stranger, for everybody to open")
def test_authority_that_a_stranger_made_fools_no_client(driver, instance_name: str) -> None:
    path = SHM / f"shmd.{instance_name}.authority"
    good = (SHM / f"shmd.{driver()}.authority").read_bytes()

    def plant() -> None:
        os.umask(0)
        path.write_bytes(good)
        path.chmod(0o666)

    as_user(STRANGER, [], plant)
    try:
        name, text = as_user(MEMBER, [os.getegid()], work_with(instance_name))
        assert (name, f"belongs to uid {STRANGER}" in text) == ("LayoutMismatch", True), text
        name, text = as_user(MEMBER, [], lambda: Instance(instance_name).name)
        assert f"uid {STRANGER}" in text, (name, text)
    finally:
        path.unlink()


@needs_root
def test_mode_0640_lets_the_group_watch_and_nothing_else(driver) -> None:
    group = grp.getgrgid(os.getegid())
    instance = driver(**{"shm.mode": "0640", "shm.group": group.gr_name})

    def watch() -> str:
        with Instance(instance) as view:
            return view.driver().status

    assert as_user(MEMBER, [group.gr_gid], watch) == "running"
    assert "for writing: Permission denied" in as_user(MEMBER, [group.gr_gid], work_with(instance))[1]


@needs_root
@pytest.mark.fault(22, how="a driver of another user for an instance that exists")
def test_driver_of_another_user_leaves_the_instance_alone(driver) -> None:
    instance = driver()

    def work() -> None:
        EmbeddedDriver(instance, config=Config.load(env={})).start()

    before = sorted(path.name for path in SHM.glob(f"shmd.{instance}.*"))
    name, text = as_user(STRANGER, [], work)
    assert "Permission denied" in text or "belongs to uid" in text, (name, text)
    assert sorted(path.name for path in SHM.glob(f"shmd.{instance}.*")) == before


@needs_root
def test_group_members_cannot_write_the_authority(driver) -> None:
    group = grp.getgrgid(os.getegid())
    instance = driver(**{"shm.mode": "0660", "shm.group": group.gr_name})

    def work() -> list[str]:
        refused = []
        for path in sorted(SHM.glob(f"shmd.{instance}.*")):
            try:
                os.close(os.open(path, os.O_RDWR))
            except PermissionError:
                refused.append(path.name.rpartition(".")[2])
        return refused

    assert as_user(MEMBER, [group.gr_gid], work) == ["authority"]


# ---- within one process: what a role does not write is mapped for reading


def mprotect(address: int, protection: int) -> int:
    """0, or the errno of making this page writable."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = address & ~(mmap.PAGESIZE - 1)
    done = libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), protection)
    return 0 if done == 0 else ctypes.get_errno()


def test_consumer_cannot_make_its_view_writable_not_even_with_mprotect() -> None:
    with shmdriver.embedded() as client:
        out = client.producer("frames", slots=4, max_message=100_000)
        consumer = client.consumer("frames")
        out.publish_array(np.arange(10_000))
        message = consumer.read(timeout=60)
        assert message is not None
        array = message.array
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        assert mprotect(array.ctypes.data, mmap.PROT_READ | mmap.PROT_WRITE) == errno.EACCES
        assert array[7] == 7


POKE = """
import ctypes, sys, shmdriver, numpy as np
with shmdriver.connect(sys.argv[1]) as client:
    message = client.consumer("frames", delivery="lossy", start="oldest").read(timeout=60)
    consumer = client.consumer("frames")
    print("attached", flush=True)
    message = consumer.read(timeout=60)
    ctypes.memset(message.array.ctypes.data, 1, 8)
    print("written", flush=True)
"""


@pytest.mark.fault(11, how="a store through a consumer's view, past Python")
def test_store_through_a_view_kills_its_own_process_alone() -> None:
    with shmdriver.embedded() as client:
        out = client.producer("frames", slots=4, max_message=100_000)
        consumer = client.consumer("frames")
        out.publish_array(np.arange(10_000))
        poker = subprocess.Popen(
            [sys.executable, "-c", POKE, client.instance], stdout=subprocess.PIPE, text=True
        )
        assert poker.stdout is not None
        assert poker.stdout.readline() == "attached\n"
        out.publish_array(np.arange(10_000))
        assert poker.communicate(timeout=60)[0] == ""
        assert poker.returncode == -11
        for _ in range(2):
            message = consumer.read(timeout=60)
            assert message is not None
            assert np.array_equal(message.array, np.arange(10_000))
        out.publish_array(np.arange(3))


def test_producer_cannot_write_the_gates_that_hold_it_back() -> None:
    with shmdriver.embedded() as client:
        handles = client.producer("s"), client.consumer("s")
        text = Path("/proc/self/maps").read_text()
        maps = [line.split() for line in text.splitlines() if f"shmd.{client.instance}." in line]
        modes: dict[str, set[str]] = {}
        for fields in maps:
            modes.setdefault(fields[5].rpartition(".")[2], set()).add(fields[1][:2])
        # Driver, producer and consumer live in this one process: each segment is there in both ways.
        assert all(not handle.closed for handle in handles)
        assert modes == {kind: {"r-", "rw"} for kind in ("authority", "data", "gates")} | {"control": {"rw"}}
