"""Where drivers put their runtime folders, when others were there before, or nothing can be written."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver.observe import Instance
from tests.chaos.stage import wait_until
from tests.segments import SHM, paths_of, remove, runtime_folder_of, runtime_folders
from tests.tool import tool, tool_json
from tests.users import GROUP, MEMBER, SHARED, STRANGER, UsersDriver, as_user, exchange, needs_root

ROOT = Path(__file__).resolve().parents[2]
OFTEN: dict[str, Any] = {"policies.announce_interval_ms": 50}


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


# ---- the lock, while its driver serves


def refused_start(instance: str, log: Path) -> str:
    """The log of a second driver of that instance."""
    second = UsersDriver(instance, os.geteuid(), log)
    second.launch()
    assert second.join() == 3, second.log_text()
    return second.log_text()


@pytest.mark.fault(15, 78, how="rm of the lock, and of the whole runtime folder, while its driver serves")
@pytest.mark.parametrize("what", ["lock", "folder"])
def test_lock_that_is_removed_is_made_anew_and_no_second_driver_starts(
    instance_name: str, tmp_path: Path, what: str
) -> None:
    with UsersDriver(instance_name, os.geteuid(), tmp_path / "log", **OFTEN) as driver:
        folder = runtime_folder_of(instance_name)
        shutil.rmtree(folder) if what == "folder" else (folder / "lock").unlink()
        wait_until(lambda: "made anew" in driver.log_text(), "the driver to say so")
        assert (folder / "lock").exists()
        assert f"pid {driver.pid}" in refused_start(instance_name, tmp_path / "second")
        assert connected(instance_name) == "hello"
        done = tool("shutdown", "-i", instance_name)
        assert (done.returncode, driver.join()) == (0, 0), done.stderr
    assert not folder.exists()


@pytest.mark.fault(15, 78, how="another file in the place of the lock, while its driver serves")
def test_driver_whose_lock_was_replaced_says_so_everywhere_until_it_has_it_again(
    instance_name: str, tmp_path: Path
) -> None:
    with UsersDriver(instance_name, os.geteuid(), tmp_path / "log", **OFTEN) as driver:
        lock = runtime_folder_of(instance_name) / "lock"
        other = lock.with_name("lock.0")
        other.touch(mode=0o600)
        other.replace(lock)

        def degraded() -> bool:
            with Instance(instance_name) as view:
                return "lost_lock" in view.driver().degraded

        wait_until(degraded, "the driver to be degraded")
        told = "was replaced while this driver holds its lock"
        wait_until(lambda: told in driver.log_text(), "the driver to say so, which it does afterwards")
        assert tool("stat", "--check", "-i", instance_name).returncode == 1
        (check,) = (each for each in tool_json("doctor") if each["name"] == "instances")
        assert f"lost their lock: {instance_name}" in check["found"]
        assert f"pid {driver.pid}" in refused_start(instance_name, tmp_path / "second"), "it shows life"
        assert connected(instance_name) == "hello"
        lock.unlink()
        wait_until(lambda: not degraded(), "the driver to have a lock again")


# ---- next to no places


BARE = """
mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm || exit 99
for folder in /run /tmp /var/tmp; do
    test -d $folder || continue
    mount --bind $folder $folder && mount -o remount,bind,ro $folder || exit 99
done
cd / && exec env -i PATH=/usr/bin:/bin PYTHONPATH="$0" PYTHONDONTWRITEBYTECODE=1 "$@"
"""


DEMO = """
import os, sys
from shmdriver.cli.app import run
assert not any(os.access(folder, os.W_OK) for folder in ("/run", "/tmp"))
code = run(["demo", "--quick"])
print("left:", os.listdir("/dev/shm"))
sys.exit(code)
"""


def in_a_bare_container(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a mount namespace, without an environment. Skips the test where there can be none."""
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", BARE, str(ROOT), sys.executable]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=400, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"NOT LOOKED AT: no permission to make a mount namespace: {done.stderr}")
    return done


@needs_root
@pytest.mark.fault(
    78, how="no HOME, no XDG_RUNTIME_DIR, /run and /tmp read-only; root, a user without a name"
)
@pytest.mark.parametrize("uid", [0, 54321])
def test_in_a_bare_container_all_meet_in_dev_shm_and_nothing_stays_there(uid: int) -> None:
    done = in_a_bare_container(str(ROOT / "tests/integration/bare_container.py"), str(uid))
    assert done.returncode == 0, done.stderr
    found, health, left = done.stdout.splitlines()
    assert re.search(rf"bare: /dev/shm/shmdriver-{uid}\.[0-9a-f]{{16}}/bare", found)
    assert int(health) < 2, "a driver serves"
    assert left == "[]"


@needs_root
@pytest.mark.fault(78, how="an XDG_RUNTIME_DIR below a folder that a stranger keeps to himself")
def test_place_below_what_a_stranger_keeps_to_himself_is_passed_over(
    instance_name: str, tmp_path: Path
) -> None:
    kept = SHM / f"{instance_name}-kept"

    def keep() -> None:
        (kept / "run").mkdir(parents=True)
        kept.chmod(0o700)

    as_user(STRANGER, [], keep)
    environment = {"XDG_RUNTIME_DIR": str(kept / "run")}
    try:
        with UsersDriver(instance_name, MEMBER, tmp_path / "log", environment=environment) as driver:
            assert f"passed over: cannot resolve {kept / 'run'}: Permission denied" in driver.log_text()
            assert as_user(MEMBER, [], lambda: connected(instance_name)) == "hello"
    finally:
        remove([kept / "run", kept])


@needs_root
@pytest.mark.fault(14, how="a killed driver's folder in a place that is found in two ways")
def test_former_folder_that_is_found_twice_does_not_bar_the_next_driver(
    instance_name: str, tmp_path: Path
) -> None:
    user = Path(f"/run/user/{MEMBER}")
    above_was_there = user.parent.exists()
    user.mkdir(parents=True)
    try:
        user.chmod(0o700)
        os.chown(user, MEMBER, MEMBER)
        environment = {"XDG_RUNTIME_DIR": str(user)}
        former = UsersDriver(instance_name, MEMBER, tmp_path / "log", environment=environment)
        former.start()
        former.end(signal.SIGKILL)
        assert (user / "shmdriver" / instance_name / "lock").exists()
        with UsersDriver(
            instance_name, MEMBER, tmp_path / "log", groups=[GROUP.gr_gid], environment=environment, **SHARED
        ) as driver:
            assert "adopted" in driver.log_text()
            assert not (user / "shmdriver" / instance_name).exists()
    finally:
        shutil.rmtree(user)
        if not above_was_there:
            user.parent.rmdir()


READ_ONLY = """
import os, subprocess, sys
from pathlib import Path
from tests.users import MEMBER, UsersDriver
place, log, instance = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,uid={MEMBER}", "tmpfs", place], check=True)
environment = {"XDG_RUNTIME_DIR": str(place)}
former = UsersDriver(instance, MEMBER, log, environment=environment)
former.start()
former.end(9)
subprocess.run(["mount", "-o", "remount,ro", place], check=True)
with UsersDriver(instance, MEMBER, log, environment=environment) as driver:
    print("adopted" in driver.log_text(), flush=True)
print(sorted(path.name for path in place.rglob("*")))
"""


@needs_root
@pytest.mark.fault(14, how="a killed driver's folder in a place that has become read-only")
def test_former_folder_that_is_read_only_does_not_bar_the_next_driver(
    instance_name: str, tmp_path: Path
) -> None:
    place = SHM / f"{instance_name}-run"
    place.mkdir()
    try:
        done = subprocess.run(
            ["unshare", "-m", "--propagation", "private", sys.executable, "-c", READ_ONLY,
             place, tmp_path / "log", instance_name],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "unshare" in done.stderr or "mount" in done.stderr:
            pytest.skip("NOT LOOKED AT: no permission to mount")
        adopted, left = done.stdout.splitlines()
        assert adopted == "True", done.stderr
        assert left == str(sorted(["shmdriver", instance_name, "instance.json", "lock", "socket", "token"]))
    finally:
        place.rmdir()
    assert not paths_of(instance_name)


@needs_root
@pytest.mark.slow
@pytest.mark.fault(78, how="the demo as root, without HOME and XDG_RUNTIME_DIR, /run and /tmp read-only")
def test_in_a_bare_container_the_demo_shows_everything_and_nothing_stays_there() -> None:
    done = in_a_bare_container("-c", DEMO)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\u2717" not in done.stdout
    assert "lost 0" in done.stdout
    assert done.stdout.splitlines()[-1] == "left: []"
