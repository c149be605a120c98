"""What other users of the machine can do to drivers and clients: next to nothing.

Anybody can make files in /dev/shm. Names of segments are drawn at random, so nobody takes one first. What has
a name like one is judged by its owner. The lock stands in a folder that others cannot write.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver._native import lib
from shmdriver.driver.collect import collect
from tests.segments import SHM, path_of, paths_of, plantable, remove, runtime_folder_of
from tests.tool import tool_json
from tests.users import (
    GROUP,
    MEMBER,
    SHARED,
    STRANGER,
    UsersDriver,
    as_user,
    copy_of_an_authority,
    exchange,
    needs_root,
)

pytestmark = needs_root
HANDOVER, END = signal.SIGUSR1, signal.SIGTERM
KINDS = ("authority", "control", "data", "gates")


def look_of(paths: list[Path]) -> list[tuple[int, int, int]]:
    """What must not change of what others have made."""
    found = [path.lstat() for path in paths]
    return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in found]


# ---- E1: files, folders, links and FIFOs under names of ours


def plant(what: str, instance: str, copy: bytes) -> list[Path]:
    """Everywhere that a driver could look. Called as the stranger."""
    os.umask(0)
    fixed = [SHM / f"shmd.{instance}.{kind}" for kind in ("authority", "control")]
    fixed.append(SHM / f"shmd.{instance}.{secrets.token_hex(8)}.1.1.data")
    paths = [*(plantable(instance, kind) for kind in KINDS), *fixed]
    twin = SHM / f"{instance}-twin"
    for path in paths:
        if what == "folder":
            path.mkdir()
        elif what == "fifo":
            os.mkfifo(path)
        elif what == "symlink":
            path.symlink_to("/etc/passwd")
        elif what == "hard link":
            twin.write_bytes(copy)
            path.hardlink_to(twin)
        else:
            contents = {"empty": b"", "no magic": bytes(8192), "garbage": b"garbage!" * 1024, "copy": copy}
            path.write_bytes(contents[what])
    return [*paths, *([twin] if what == "hard link" else [])]


@pytest.mark.fault(
    21,
    78,
    how="a stranger's files, copies, folders, FIFOs and links under all names that segments could have",
)
@pytest.mark.parametrize(
    "what", ["empty", "no magic", "garbage", "copy", "folder", "fifo", "symlink", "hard link"]
)
def test_what_a_stranger_plants_keeps_nobody_from_anything(
    what: str, instance_name: str, tmp_path: Path
) -> None:
    copy = copy_of_an_authority(instance_name)
    planted = [Path(path) for path in as_user(STRANGER, [], lambda: planted_names(what, instance_name, copy))]
    before = look_of(planted)
    driver = UsersDriver(instance_name, os.geteuid(), tmp_path / "log")
    try:
        driver.start()
        with shmdriver.connect(instance_name, reconnect=True) as client:
            assert exchange(client) == "hello"
            boot_id = client.boot_id
            for way in (signal.SIGKILL, HANDOVER):
                driver.end(way)
                driver.start()
                assert client.boot_id == boot_id, f"the successor adopts after {way.name}"
                assert exchange(client, way.name) == "hello"
        assert tool_json("stat", "--check", "-i", instance_name)["code"] < 2, "a driver serves"
        (found,) = (check for check in tool_json("doctor") if check["name"] == "foreign objects")
        assert (found["level"], str(STRANGER) in found["found"]) == ("warn", True), found
        driver.end(signal.SIGKILL)
        (outcome,) = tool_json("gc", "-i", instance_name)
        assert outcome["action"] == "removed"
        with shmdriver.embedded(instance_name) as client:
            assert exchange(client) == "hello"
        assert look_of(planted) == before, "what is another user's is left as it is"
    finally:
        if driver.pid:
            driver.end(signal.SIGKILL)
            collect(instance_name)
        remove(planted)
    assert paths_of(instance_name) == []


def planted_names(what: str, instance: str, copy: bytes) -> list[str]:
    return [str(path) for path in plant(what, instance, copy)]


# ---- E3: names that are not known before


@pytest.mark.fault(78, how="thousands of names like those of the next epochs, taken by a stranger")
def test_names_of_epochs_to_come_cannot_be_taken(instance_name: str) -> None:
    with shmdriver.embedded(instance_name) as client, client.consumer("s", follow=True) as consumer:
        boot_id, out = client.boot_id, client.producer("s")
        seen = {path.name.split(".")[2] for path in paths_of(instance_name)}
        assert len(seen) == len(paths_of(instance_name)) == 4

        out.close()

        def take() -> list[str]:
            near = [
                f"{int(each, 16) + step & (1 << 128) - 1:032x}" for each in seen for step in range(-500, 500)
            ]
            names = [f"shmd.{instance_name}.{each}.{kind}" for each in near for kind in ("data", "gates")]
            names += [f"shmd.{instance_name}.{boot_id:016x}.1.{n}.data" for n in range(200)]
            made = []
            for name in names:
                if not (SHM / name).exists():
                    (SHM / name).touch()
                    made.append(name)
            return made

        taken = [SHM / name for name in as_user(STRANGER, [], take)]
        try:
            for number in range(5):
                with client.producer("s") as out:
                    out.publish(b"%d" % number)
                message = consumer.read(timeout=60)
                assert message is not None
                assert bytes(message) == b"%d" % number
            assert exchange(client, "another") == "hello"
        finally:
            remove(taken)


# ---- E4: locks of watchers


@contextmanager
def locked_by_a_watcher(instance: str) -> Iterator[None]:
    """A member of the group who may only read holds every lock on the authority that it can get."""
    path, (reader, writer) = path_of(instance, "authority"), os.pipe()

    def hold() -> str:
        os.close(writer)
        fd = os.open(path, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        code = lib.shmd_life_show(os.open(path, os.O_RDONLY))
        os.write(told_writer, b"x")
        os.read(reader, 1)
        return f"{code}"

    told, told_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([GROUP.gr_gid])
            os.setgid(MEMBER)
            os.setuid(MEMBER)
            hold()
        finally:
            os._exit(0)
    os.close(told_writer)
    assert os.read(told, 1) == b"x", "the watcher did not get its locks"
    yield
    os.close(writer)
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(told)


@pytest.mark.fault(
    78, how="flock and a read lock of a watcher on the authority, at handover and after kill -9"
)
@pytest.mark.parametrize("way", [HANDOVER, signal.SIGKILL])
def test_watchers_locks_bar_no_successor(way: signal.Signals, instance_name: str, tmp_path: Path) -> None:
    watched: dict[str, Any] = {"shm.mode": "0640", "shm.group": GROUP.gr_name}
    driver = UsersDriver(instance_name, os.geteuid(), tmp_path / "log", **watched)
    driver.start()
    try:
        lock = runtime_folder_of(instance_name) / "lock"
        assert as_user(MEMBER, [GROUP.gr_gid], lambda: os.open(lock, os.O_RDONLY))[0] == "PermissionError"
        with shmdriver.connect(instance_name) as client:
            boot_id = client.boot_id
            with locked_by_a_watcher(instance_name):
                driver.end(way)
                driver.start()
                assert client.boot_id == boot_id
                assert exchange(client) == "hello"
                client.close()
                driver.end(signal.SIGKILL)
                (outcome,) = tool_json("gc", "--force", "-i", instance_name)
                assert outcome["action"] == "removed", outcome
    finally:
        if driver.pid:
            driver.end(signal.SIGKILL)
        collect(instance_name)


# ---- E11: hard links


@pytest.mark.fault(
    86, how="hard links of a group member under names like those of segments, through a clean end"
)
def test_hard_links_under_our_names_harm_nobody_and_go_with_the_next_driver(
    instance_name: str, tmp_path: Path
) -> None:
    driver = UsersDriver(instance_name, os.geteuid(), tmp_path / "log", **SHARED)
    with driver, shmdriver.connect(instance_name) as client, client.producer("s"):
        ours = [path for path in paths_of(instance_name) if path.name.endswith(("data", "gates"))]
        links = [plantable(instance_name, path.name.rpartition(".")[2]) for path in ours]

        def link() -> None:
            for path, new in zip(ours, links, strict=True):
                new.hardlink_to(path)

        assert as_user(MEMBER, [GROUP.gr_gid], link) is None
        (check,) = (check for check in tool_json("doctor") if check["name"] == "hard links")
        assert all(str(path) in check["found"] for path in links[:1])
        driver.end(signal.SIGKILL)
        driver.start()
        assert exchange(client, "another") == "hello", "adoption refuses nobody for a link"
    assert paths_of(instance_name) == sorted(links), "a clean end leaves what others have linked"
    assert "hard link" in driver.log_text()
    with shmdriver.embedded(instance_name) as client:
        assert exchange(client) == "hello"
    assert paths_of(instance_name) == []
