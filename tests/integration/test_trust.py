"""Whose drivers are used: by connect(), tools and pickled clients, for root, a group and others."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import shmdriver
from shmdriver._native import lib
from shmdriver.errors import ConfigError, ShmDriverError
from shmdriver.observe import Instance
from tests.segments import SHM, paths_of, plantable
from tests.tool import tool, tool_json
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


@pytest.mark.fault(17, how="an authority of the layout before, of this user, of root and of a stranger")
def test_layout_before_is_refused_with_what_to_do_unless_it_is_a_strangers(instance_name: str) -> None:
    old = SHM / f"shmd.{instance_name}.authority"
    magic = int(lib.shmd_magic(lib.SHMD_SEGMENT_AUTHORITY))
    old.write_bytes(struct.pack("<QIIQ", magic, 3, lib.SHMD_SEGMENT_AUTHORITY, 8192).ljust(8192, b"\0"))
    try:
        for call in (lambda: shmdriver.embedded(instance_name).__enter__(), lambda: Instance(instance_name),
                     lambda: shmdriver.connect(instance_name)):  # fmt: skip
            with pytest.raises(ShmDriverError, match=r"layout version 3, and this build speaks 4.*stop that"):
                call()
        os.chown(old, STRANGER, -1)
        with shmdriver.embedded(instance_name) as client:
            assert exchange(client) == "hello"
        assert old.exists()
    finally:
        old.unlink()


@pytest.mark.fault(21, 79, how="a copy of a real authority, made by a stranger, for everybody to open")
def test_authority_that_a_stranger_made_fools_nobody(instance_name: str) -> None:
    copy = copy_of_an_authority(instance_name)
    path = plantable(instance_name, "authority")

    def make() -> None:
        os.umask(0)
        path.write_bytes(copy)

    as_user(STRANGER, [GROUP.gr_gid], make)
    try:
        for work in (lambda: shmdriver.connect(instance_name), lambda: Instance(instance_name)):
            for uid in (os.geteuid(), MEMBER):  # of a group with the stranger, and root
                name, text = as_user(uid, [GROUP.gr_gid], lambda: str(work()))  # noqa: B023
                assert name == "DriverUnavailable", text
                assert f"belongs to uid {STRANGER}, whom this process (uid {uid}) does not trust" in text
        assert tool("stat", "--check", "-i", instance_name).returncode == 2
        assert tool_json("gc", "-i", instance_name)[0]["segments"] == 0
        assert path.read_bytes() == copy
    finally:
        path.unlink()


def connecting(instance: str, owner: str | None = None) -> Callable[[], str | None]:
    def work() -> str | None:
        with shmdriver.connect(instance, owner=owner) as client:
            return exchange(client)

    return work


@pytest.mark.fault(
    79, how="a stranger's driver on an instance that nobody drives, for root and for a common group"
)
def test_driver_of_another_user_is_used_by_those_only_who_name_that_user(
    instance_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = UsersDriver(instance_name, STRANGER, tmp_path / "log", groups=[GROUP.gr_gid], **SHARED)
    with driver:
        for uid in (os.geteuid(), MEMBER):
            name, text = as_user(uid, [GROUP.gr_gid], connecting(instance_name))
            assert (name, f"uid {STRANGER}" in text) == ("DriverUnavailable", True), text
            assert as_user(uid, [GROUP.gr_gid], connecting(instance_name, str(STRANGER))) == "hello"
        with pytest.raises(ConfigError, match="owner 'nobody-of-that-name'"):
            shmdriver.connect(instance_name, owner="nobody-of-that-name")
        client = shmdriver.connect(instance_name, owner=STRANGER)
        with client, pickle.loads(pickle.dumps(client)) as again:
            assert exchange(again) == "hello", "a pickled client carries the owner"
            assert len(client.leases()) == 0
            queue = pickle.loads(pickle.dumps(client.queue("q")))
            queue.put("over there")
            assert queue.get(timeout=60) == "over there", "and so does a queue"
            queue.close()
        assert tool("stat", "--check", "-i", instance_name).returncode == 2
        named = ("-i", instance_name, "--owner", str(STRANGER))
        assert tool_json("stat", "--check", *named)["code"] < 2, "a driver serves"
        monkeypatch.setenv("SHMDRIVER_TRUST_OWNERS", f"daemon,{STRANGER}")
        assert connecting(instance_name)() == "hello"
        monkeypatch.delenv("SHMDRIVER_TRUST_OWNERS")
        assert tool("shutdown", "-i", instance_name).returncode == 1
        done = tool("shutdown", *named)
        assert done.returncode == 0, done.stderr
        assert driver.join() == 0
    assert paths_of(instance_name) == []


@pytest.mark.fault(79, how="one name under two owners")
def test_one_name_under_two_owners_is_told_apart(
    instance_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = UsersDriver(instance_name, STRANGER, tmp_path / "theirs", groups=[GROUP.gr_gid], **SHARED)
    ours = UsersDriver(instance_name, os.geteuid(), tmp_path / "ours", **SHARED)
    with theirs, ours, shmdriver.connect(instance_name) as own:
        with shmdriver.connect(instance_name, owner=STRANGER) as client:
            other = client.boot_id
        assert own.boot_id != other
        with Instance(instance_name) as view:
            assert (view.boot_id, view.owner) == (own.boot_id, os.geteuid())
        with Instance(instance_name, STRANGER) as view:
            assert (view.boot_id, view.owner) == (other, STRANGER)
        monkeypatch.setenv("SHMDRIVER_TRUST_OWNERS", str(STRANGER))
        for work in (lambda: Instance(instance_name).name, connecting(instance_name)):
            _, text = as_user(MEMBER, [GROUP.gr_gid], work)
            for path in paths_of(instance_name, "authority"):
                assert str(path) in text
            assert "--owner" in text


@contextmanager
def systems_folder(instance: str, owner: int) -> Iterator[Path]:
    """As systemd makes it: RuntimeDirectory=shmdriver/INSTANCE."""
    above = Path("/run/shmdriver")
    try:
        above.mkdir(mode=0o755, exist_ok=True)
        (above / instance).mkdir(mode=0o711)
    except OSError as error:
        pytest.skip(f"NOT LOOKED AT: /run is not writable here: {error}")
    os.chown(above / instance, owner, -1)
    yield above / instance
    (above / instance).rmdir()


@pytest.mark.fault(79, how="a service user's folder in /run/shmdriver, for others and for root")
def test_owner_of_the_systems_folder_is_trusted_by_all_but_root(instance_name: str, tmp_path: Path) -> None:
    driver = UsersDriver(instance_name, STRANGER, tmp_path / "log", groups=[GROUP.gr_gid], **SHARED)
    with systems_folder(instance_name, STRANGER) as folder:
        with driver:
            assert (folder / "lock").lstat().st_mode & 0o777 == 0o600
            assert as_user(MEMBER, [GROUP.gr_gid], connecting(instance_name)) == "hello"
            name, _ = as_user(os.geteuid(), [], connecting(instance_name))
            assert name == "DriverUnavailable", "root uses another user's driver only when it names that user"
            assert connecting(instance_name, str(STRANGER))() == "hello"
        assert list(folder.iterdir()) == []
