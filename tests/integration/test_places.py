"""Where drivers put their runtime folders, when others were there before, or nothing can be written."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

import pytest

import shmdriver
from tests.segments import SHM, paths_of, remove, runtime_folders
from tests.users import MEMBER, STRANGER, UsersDriver, as_user, exchange, needs_root


def connected(instance: str) -> str | None:
    with shmdriver.connect(instance) as client:
        return exchange(client)


@needs_root
@pytest.mark.fault(78, how="an XDG_RUNTIME_DIR and folders in /dev/shm of a stranger")
def test_places_that_are_a_strangers_are_passed_over_and_told(instance_name: str, tmp_path: Path) -> None:
    foreign = Path("/dev/shm") / f"{instance_name}-run"
    taken = SHM / f"shmdriver-{MEMBER}.{secrets.token_hex(8)}"

    def take() -> None:
        os.umask(0)
        foreign.mkdir()
        (taken / instance_name).mkdir(parents=True)
        (taken / instance_name / "lock").touch()

    as_user(STRANGER, [], take)
    driver = UsersDriver(
        instance_name, MEMBER, tmp_path / "log", environment={"XDG_RUNTIME_DIR": str(foreign)}
    )
    try:
        with driver:
            log = driver.log_text()
            assert re.search(rf"{re.escape(str(foreign))}.* uid {STRANGER}", log), log
            (folder,) = runtime_folders(
                lambda name: name == instance_name,
                [each for each in SHM.glob(f"shmdriver-{MEMBER}.*") if each != taken],
            )
            assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (MEMBER, 0o700)
            assert as_user(MEMBER, [], lambda: connected(instance_name)) == "hello"
        assert not folder.exists()
        assert list(SHM.glob(f"shmdriver-{MEMBER}.*")) == [taken], "an empty place is removed, too"
        assert [path.name for path in (taken / instance_name).iterdir()] == ["lock"]
    finally:
        (taken / instance_name / "lock").unlink()
        remove([taken / instance_name, taken, foreign])


@needs_root
@pytest.mark.fault(78, how="a SHMDRIVER_RUNTIME_DIR below a stranger's folder")
def test_named_place_that_strangers_can_write_is_refused_and_nothing_else_tried(
    instance_name: str, tmp_path: Path
) -> None:
    foreign = SHM / f"{instance_name}-run"
    foreign.mkdir()
    (foreign / "below").mkdir()
    os.chown(foreign, STRANGER, -1)
    driver = UsersDriver(
        instance_name,
        os.geteuid(),
        tmp_path / "log",
        environment={"SHMDRIVER_RUNTIME_DIR": str(foreign / "below")},
    )
    try:
        driver.launch()
        assert driver.join() == 1
        assert "SHMDRIVER_RUNTIME_DIR cannot be used" in driver.log_text()
        assert f"{foreign}" in driver.log_text()
        assert f"uid {STRANGER}" in driver.log_text()
        assert list((foreign / "below").iterdir()) == paths_of(instance_name) == []
    finally:
        remove([foreign / "below", foreign])
