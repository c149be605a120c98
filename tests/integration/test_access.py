"""Who may open, map and write what: modes, groups, users, read-only mappings."""

from __future__ import annotations

import ctypes
import errno
import grp
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
from tests.segments import paths_of, plantable, segment_name
from tests.users import MEMBER, STRANGER, as_user, exchange, needs_root

ENDLESS_S = 10**6  # who waits that long for an answer hangs


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
            return exchange(client)

    return work


@needs_root
@pytest.mark.fault(22, how="a client of another user, mode 0600")
def test_another_user_is_told_at_once_that_it_may_not(driver) -> None:
    instance = driver()
    name, text = as_user(STRANGER, [], work_with(instance, timeout=ENDLESS_S))
    assert name in ("DriverUnavailable", "ShmDriverError", "PermissionError"), (name, text)
    # A folder in /dev/shm is found by its owner alone: there, what others meet is the segment.
    assert "cannot be used by uid" in text or "cannot be read by uid" in text
    assert "mode 0700" in text or "mode 0600" in text


@needs_root
@pytest.mark.fault(22, how="users in and out of the configured group, mode 0660")
def test_members_of_the_group_share_and_others_do_not(driver) -> None:
    group = grp.getgrgid(os.getegid())
    instance = driver(**{"shm.mode": "0660", "shm.group": group.gr_name})
    assert as_user(MEMBER, [group.gr_gid], work_with(instance)) == "hello"
    assert "cannot be used by uid" in as_user(STRANGER, [], work_with(instance))[1]


@needs_root
@pytest.mark.fault(71, how="a user in 300 groups")
def test_member_of_hundreds_of_groups_is_known_as_one(instance_name: str) -> None:
    """By the kernel alone: a group that is shared with the owner is no reason to trust a segment."""
    path = plantable(instance_name, "control")
    groups = list(range(5000, 5300))
    path.write_bytes(bytes(4096))
    path.chmod(0o660)

    def look() -> int:
        fd, size = open_segment(segment_name(path), writable=True)
        os.close(fd)
        return size

    try:
        os.chown(path, 0, groups[-1])
        assert as_user(MEMBER, groups, look) == 4096
        assert "Permission denied" in as_user(MEMBER, groups[:-1], look)[1]
        os.chown(path, STRANGER, groups[-1])
        assert f"belongs to uid {STRANGER}" in as_user(MEMBER, groups, look)[1]
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
def test_driver_of_another_user_has_an_instance_of_its_own_under_the_same_name(driver) -> None:
    instance = driver()

    def work() -> str | None:
        with shmdriver.embedded(instance) as client:
            text = exchange(client)
        assert paths_of(instance) == before
        return text

    before = paths_of(instance)
    assert as_user(STRANGER, [], work) == "hello"
    assert work_with(instance)() == "hello"


@needs_root
def test_group_members_cannot_write_the_authority(driver) -> None:
    group = grp.getgrgid(os.getegid())
    instance = driver(**{"shm.mode": "0660", "shm.group": group.gr_name})

    def work() -> list[str]:
        refused = []
        for path in paths_of(instance):
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
        assert modes == {kind: {"r-", "rw"} for kind in ("authority", "control", "data", "gates")}
