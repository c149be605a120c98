"""Files of shutdown tokens: whose are taken, which are refused, and who may change one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmdriver import runtime_folder
from shmdriver.cli.admin import token_of
from shmdriver.driver import process
from shmdriver.driver.authentication import TOKEN_NAME, FolderToken, create_token, read_token
from shmdriver.driver.config import Config
from shmdriver.driver.embedded import EmbeddedDriver
from shmdriver.errors import ConfigError, ShmDriverError
from shmdriver.observe import Instance
from shmdriver.runtime_folder import RuntimeFolder
from tests.segments import runtime_folder_of
from tests.users import needs_root

TOKEN = b"0" * 64
STRANGER, OTHER = 65533, 65532


def plant(path: Path, what: str) -> None:
    """Something that is no token file of this user."""
    if what == "fifo":
        os.mkfifo(path, 0o600)
    elif what == "folder":
        path.mkdir()
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif what == "symlink":
        create_token(path.with_name("real"))
        path.symlink_to(path.with_name("real"))
    else:
        path.write_bytes(TOKEN)
        path.chmod(int(what, 8) if what.startswith("0") else 0o600)
        if what == "stranger":
            os.chown(path, STRANGER, -1)


REFUSED = [
    ("fifo", "is a FIFO; expected a regular file"),
    ("folder", "is a directory; expected a regular file"),
    ("socket", "No such device or address"),
    ("symlink", "is a symlink; expected a regular file"),
    ("0660", "has mode 0660, so others may know or choose it; expected"),
    ("0644", "has mode 0644"),
    ("0602", "has mode 0602"),
    pytest.param("stranger", f"belongs to uid {STRANGER}; expected", marks=needs_root),
]


@pytest.mark.fault(29, how="a FIFO, directory, socket, symlink, loose mode or another user's file as token")
@pytest.mark.parametrize(("what", "words"), REFUSED)
def test_loose_or_foreign_tokens_are_refused(tmp_path: Path, what: str, words: str) -> None:
    path = tmp_path / "token"
    plant(path, what)
    with pytest.raises(ShmDriverError, match=re.escape(words)) as refused:
        read_token(path)
    assert str(path) in str(refused.value)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RuntimeFolder]:
    """An instance's runtime folder, without a driver."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("SHMDRIVER_RUNTIME_DIR", str(tmp_path))
    with runtime_folder.make("x", for_group=False) as folder:
        yield folder


@pytest.mark.fault(29, how="the same in the place of the token that `run` makes")
@pytest.mark.parametrize(("what", "words"), REFUSED)
def test_driver_refuses_them_in_its_folder_at_once_and_leaves_them(
    folder: RuntimeFolder, what: str, words: str
) -> None:
    path = folder.path / TOKEN_NAME
    plant(path, what)
    before = path.lstat()
    with pytest.raises(ShmDriverError, match=re.escape(words)) as refused:
        FolderToken()(folder)
    assert str(path) in str(refused.value)
    assert path.lstat() == before


@pytest.mark.fault(29, how="the same in the place of the configured token")
@pytest.mark.parametrize(("what", "words"), REFUSED)
def test_driver_refuses_them_where_they_are_configured_and_leaves_them(
    tmp_path: Path, what: str, words: str
) -> None:
    path = tmp_path / "token"
    plant(path, what)
    before = path.lstat()
    with pytest.raises(ShmDriverError, match=re.escape(words)):
        process._token(Config.load(env={}, overrides={"policies.shutdown_token_file": str(path)}))
    assert path.lstat() == before


def test_a_configured_token_may_be_of_root_and_readable_for_a_group_and_the_made_one_may_not(
    folder: RuntimeFolder,
) -> None:
    made = folder.path / TOKEN_NAME
    plant(made, "0640")
    overrides = {"policies.shutdown_token_file": str(made)}
    assert process._token(Config.load(env={}, overrides=overrides)) == TOKEN
    with pytest.raises(ShmDriverError, match=r"mode 0640, .* with mode 0600 at most: make a new token"):
        FolderToken()(folder)


@needs_root
def test_a_tool_takes_a_token_of_the_drivers_user(tmp_path: Path) -> None:
    path = tmp_path / "token"
    plant(path, "stranger")
    assert read_token(path, owners=(STRANGER,)) == TOKEN
    with pytest.raises(ShmDriverError, match="belongs to uid"):
        read_token(path, owners=(OTHER,))


@pytest.mark.fault(29, how="a second start of an instance, with and without a token file")
@pytest.mark.parametrize("has_file", [True, False])
def test_refused_start_leaves_the_token(instance_name: str, *, has_file: bool) -> None:
    driver = EmbeddedDriver(instance_name, config=Config.load(env={}))
    driver.start()
    path = runtime_folder_of(instance_name) / TOKEN_NAME
    if has_file:
        path.write_bytes(TOKEN)
        path.chmod(0o600)
    try:
        command = [sys.executable, "-m", "shmdriver", "run", "-i", instance_name]
        done = subprocess.run(command, capture_output=True, timeout=400, check=False)
        assert done.returncode == process.EXIT_RUNNING, done.stderr
        assert path.exists() == has_file
        assert not has_file or path.read_bytes() == TOKEN
    finally:
        driver.stop()


@pytest.mark.fault(29, how="a driver whose configuration names the token of another instance")
def test_token_path_is_never_read_from_a_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance_name: str
) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(TOKEN)
    theirs.chmod(0o600)
    given = tmp_path / "given"
    given.write_bytes(TOKEN[::-1] + b"1")
    given.chmod(0o600)
    told = Config.load(env={}, overrides={"policies.shutdown_token_file": str(theirs)})
    driver = EmbeddedDriver(instance_name, config=told)
    driver.start()
    try:
        with Instance(instance_name) as view:
            assert str(theirs) in view.config_text()
            with pytest.raises(ConfigError, match=r"no shutdown token .* is known here") as unknown:
                token_of(view, None)
            assert str(theirs) not in str(unknown.value)
            monkeypatch.setenv("SHMDRIVER_POLICIES_SHUTDOWN_TOKEN_FILE", str(theirs))
            with pytest.raises(ConfigError):
                token_of(view, None)  # of the default instance
            monkeypatch.setenv("SHMDRIVER_DRIVER_INSTANCE", instance_name)
            assert token_of(view, None) == TOKEN
            assert token_of(view, given) == TOKEN[::-1] + b"1"
    finally:
        driver.stop()
