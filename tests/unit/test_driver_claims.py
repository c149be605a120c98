"""Who may drive an instance: its lock and its runtime folder, the sign of life, several starters at once."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmdriver._native import ffi, lib
from shmdriver.driver import claim, instance_lock
from shmdriver.driver.authentication import TOKEN_NAME, FolderToken
from shmdriver.driver.authority_file import AuthorityFile, find_authorities
from shmdriver.driver.collect import collect
from shmdriver.driver.config import Config
from shmdriver.driver.door import SOCKET_NAME
from shmdriver.driver.driver import Driver
from shmdriver.driver.held import hold, let_go, no_fork
from shmdriver.driver.instance_lock import HINT_NAME, LOCK_NAME
from shmdriver.driver.memory import InlineMemory
from shmdriver.errors import DriverAlreadyRunning, LayoutMismatch, Reason, ShmDriverError
from tests.driver_rig import FakeClock, Rig
from tests.segments import path_of, paths_of, plantable, runtime_folders, segment_name

SHM = Path("/dev/shm")


def make_driver(instance: str, logged: list[str] | None = None, **overrides) -> Driver:
    values = {"driver.instance": instance, "policies.announce_interval_ms": 1000}
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    log = (lambda _line: None) if logged is None else logged.append
    return Driver(
        Config.load(env={}, overrides=values),
        clock=FakeClock(),
        memory=InlineMemory(),
        log=log,
        token=FolderToken(),
    )


def start(instance: str, logged: list[str] | None = None, **overrides) -> Driver:
    driver = make_driver(instance, logged, **overrides)
    driver.start()
    return driver


def end(driver: Driver) -> None:
    driver.request_shutdown()
    driver.tick()
    driver.close()


def folder_of(driver: Driver) -> Path:
    return driver.tables.authority.lock.folder.path


def pass_time(driver: Driver, milliseconds: int) -> None:
    clock = driver._clock
    assert isinstance(clock, FakeClock)
    for _ in range(0, milliseconds, 100):
        clock.advance_ms(100)
        driver.tick()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "LOCK_TURN_S", 0.0)


@pytest.fixture
def driver(instance_name: str) -> Iterator[Driver]:
    """It runs; whatever state it is in afterwards, nothing stays."""
    driver = start(instance_name)
    yield driver
    driver.close()
    collect(instance_name)


def is_gone(instance: str) -> bool:
    return not paths_of(instance) and not runtime_folders(lambda name: name == instance)


# ---- the lock and what stands beside it


def test_folder_has_lock_token_and_hint_and_is_private(driver: Driver) -> None:
    folder, authority = folder_of(driver), driver.tables.authority
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {LOCK_NAME: 0o600, TOKEN_NAME: 0o600, HINT_NAME: 0o644, SOCKET_NAME: 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    hint = json.loads((folder / HINT_NAME).read_text())
    assert hint == {
        "authority": segment_name(path_of(driver.instance, "authority")),
        "boot_id": f"{authority.boot_id:016x}",
        "pid": os.getpid(),
        "layout": 4,
    }
    base = authority.base
    assert claim.text_of_path(base.folder) == str(folder)
    assert (base.folder_device, base.folder_inode) == (folder.stat().st_dev, folder.stat().st_ino)


def test_group_passes_the_folder_and_reads_nothing_but_the_hint(instance_name: str) -> None:
    import grp

    driver = start(instance_name, shm__mode="0660", shm__group=grp.getgrgid(os.getegid()).gr_name)
    assert stat.S_IMODE(folder_of(driver).stat().st_mode) & 0o077 in (0o011, 0o010, 0o050)
    end(driver)
    assert is_gone(instance_name)


def is_open_as(fd: int, file: os.stat_result) -> bool:
    """Whether this descriptor leads to that file."""
    try:
        return os.path.samestat(os.fstat(fd), file)
    except OSError as error:
        if error.errno == errno.EBADF:
            return False
        raise


@pytest.mark.fault(36)
def test_lock_and_sign_of_life_are_not_inherited_by_a_forked_child(instance_name: str) -> None:
    driver = start(instance_name)
    fds = driver.tables.authority.lock.fd, driver.tables.authority.file.fd
    files = [os.fstat(fd) for fd in fds]
    reading, writing = os.pipe()
    began, begins = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        closed = sum(not is_open_as(fd, file) for fd, file in zip(fds, files, strict=True))
        os.write(begins, b".")
        os.read(reading, 1)  # until the driver is dead, and adopted
        os._exit(0 if closed == len(fds) else 1)
    os.close(reading)
    os.read(began, 1)
    os.close(began)
    os.close(begins)
    try:
        driver.close()  # the child lives, and has all of its memory mapped
        assert [found.life for found in find_authorities(instance_name)] == [0]
        end(start(instance_name))
    finally:
        os.close(writing)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert is_gone(instance_name)


def test_handed_over_or_killed_driver_leaves_its_token_and_an_ended_one_leaves_nothing(
    instance_name: str,
) -> None:
    driver = start(instance_name)
    token = (folder_of(driver) / TOKEN_NAME).read_bytes()
    driver.close()
    driver = start(instance_name)
    assert (folder_of(driver) / TOKEN_NAME).read_bytes() == token
    end(driver)
    assert is_gone(instance_name)
    driver = start(instance_name)
    assert (folder_of(driver) / TOKEN_NAME).read_bytes() != token
    end(driver)


def test_what_is_not_the_drivers_in_its_folder_stays_and_the_folder_with_it(instance_name: str) -> None:
    driver = start(instance_name)
    folder = folder_of(driver)
    (folder / "notes.txt").write_text("mine")
    end(driver)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    end(start(instance_name))
    assert is_gone(instance_name)


@pytest.mark.parametrize("damage", ["token mode", "symlink", "directory"])
def test_start_that_is_refused_removes_what_it_made(
    instance_name: str, monkeypatch, tmp_path, damage: str
) -> None:
    monkeypatch.setenv("SHMDRIVER_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / instance_name
    folder.mkdir(mode=0o700)
    name = {"token mode": TOKEN_NAME, "symlink": LOCK_NAME, "directory": LOCK_NAME}[damage]
    if damage == "token mode":
        (folder / name).write_text("0123456789abcdef0123")
        (folder / name).chmod(0o644)
    elif damage == "symlink":
        (folder / name).symlink_to(tmp_path / "elsewhere")
    else:
        (folder / name).mkdir()
    with pytest.raises(ShmDriverError, match=name):
        start(instance_name)
    assert not paths_of(instance_name)
    assert not (tmp_path / "elsewhere").exists()
    assert [path.name for path in folder.iterdir()] == [name]
    folder.rename(tmp_path / "seen")


# ---- what others do to the folder of a driver that runs


@pytest.mark.fault(15, how="rm of the lock, of the runtime folder, under a driver")
@pytest.mark.parametrize("removed", ["lock", "folder", "place"])
def test_missing_lock_or_folder_is_made_anew_and_said(
    instance_name: str, monkeypatch, tmp_path, removed: str
) -> None:
    monkeypatch.setenv("SHMDRIVER_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    logged: list[str] = []
    driver = start(instance_name, logged)
    folder = folder_of(driver)
    token, hint = (folder / TOKEN_NAME).read_bytes(), (folder / HINT_NAME).read_bytes()
    (folder / LOCK_NAME).unlink()
    if removed != "lock":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    if removed == "place":
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir(mode=0o700)
    pass_time(driver, 1100)
    assert len([line for line in logged if "made anew" in line]) == 1
    assert (folder / TOKEN_NAME).read_bytes() == token
    assert (folder / HINT_NAME).read_bytes() == hint
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [LOCK_NAME, TOKEN_NAME, HINT_NAME, SOCKET_NAME]
    )
    base = driver.tables.authority.base
    assert (base.folder_device, base.folder_inode) == (folder.stat().st_dev, folder.stat().st_ino)
    assert str(driver.state) == "running.healthy"
    with pytest.raises(DriverAlreadyRunning, match=f"pid {os.getpid()}"):
        start(instance_name)
    pass_time(driver, 2000)
    assert len([line for line in logged if "made anew" in line]) == 1
    end(driver)
    assert not paths_of(instance_name)
    assert not folder.exists()


@pytest.mark.fault(15, how="another lock file in place of the driver's")
def test_lock_that_was_replaced_degrades_the_driver_until_it_is_back(driver: Driver) -> None:
    lock = folder_of(driver) / LOCK_NAME
    kept = lock.with_name("kept")
    lock.rename(kept)
    lock.write_bytes(b"")
    pass_time(driver, 3000)
    assert str(driver.state) == "running.degraded"
    assert driver._lifecycle.reasons == {"lost_lock"}
    errors = int(lib.shmd_counter_get(driver.tables.authority.base, lib.SHMD_COUNTER_ERRORS))
    assert errors == 1, "said once"
    with pytest.raises(DriverAlreadyRunning, match="runs already"):
        start(driver.instance)  # by its sign of life
    kept.rename(lock)
    pass_time(driver, 1100)
    assert str(driver.state) == "running.healthy"


@pytest.mark.fault(15, how="another runtime folder in place of the driver's")
def test_folder_that_was_replaced_degrades_the_driver(instance_name: str, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SHMDRIVER_RUNTIME_DIR", str(tmp_path))
    driver = start(instance_name)
    folder = folder_of(driver)
    folder.rename(tmp_path / "moved")
    folder.mkdir(mode=0o700)
    pass_time(driver, 1100)
    assert driver._lifecycle.reasons == {"lost_lock"}
    with pytest.raises(DriverAlreadyRunning):
        start(instance_name)
    (tmp_path / "moved").rename(folder)
    end(driver)
    assert not folder.exists()


def test_folder_that_cannot_be_looked_at_is_neither_lost_nor_made_anew(driver: Driver, monkeypatch) -> None:
    def fails(_lock: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(instance_lock.InstanceLock, "look", fails)
    pass_time(driver, 3000)
    assert str(driver.state) == "running.healthy"
    errors = int(lib.shmd_counter_get(driver.tables.authority.base, lib.SHMD_COUNTER_ERRORS))
    assert errors > 0, "it is told"
    monkeypatch.undo()


# ---- another driver, seen from another folder


@pytest.fixture
def two_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """Two runtime directories, as two containers that share /dev/shm have them; the first is set."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setenv("SHMDRIVER_RUNTIME_DIR", str(tmp_path / "one"))
    return tmp_path / "one", tmp_path / "two"


@pytest.mark.fault(14, how="a second driver with another runtime directory")
def test_driver_of_another_folder_is_found_by_its_authority(
    two_places, monkeypatch, instance_name: str
) -> None:
    driver = start(instance_name)
    monkeypatch.setenv("SHMDRIVER_RUNTIME_DIR", str(two_places[1]))
    with pytest.raises(DriverAlreadyRunning, match=f"pid {os.getpid()}") as refused:
        start(instance_name)
    assert refused.value.pid == os.getpid()
    with pytest.raises(DriverAlreadyRunning):
        collect(instance_name)
    assert list(two_places[1].iterdir()) == []
    boot_id = driver.tables.authority.boot_id
    driver.close()
    driver = start(instance_name)
    assert driver.tables.authority.boot_id == boot_id
    assert folder_of(driver).parent == two_places[1]
    end(driver)
    assert not paths_of(instance_name)


@pytest.mark.fault(14, how="a second driver that cannot see the folder of the first")
def test_driver_whose_folder_is_gone_is_seen_by_its_sign_of_life(
    two_places, monkeypatch, instance_name: str
) -> None:
    driver = start(instance_name)
    folder_of(driver).rename(two_places[0] / "moved")
    monkeypatch.setenv("SHMDRIVER_RUNTIME_DIR", str(two_places[1]))
    name = segment_name(path_of(instance_name, "authority"))
    with pytest.raises(DriverAlreadyRunning, match=f"authority {name}, it shows life"):
        start(instance_name)
    with pytest.raises(DriverAlreadyRunning):
        collect(instance_name)
    boot_id = driver.tables.authority.boot_id
    driver.close()
    driver = start(instance_name)
    assert driver.tables.authority.boot_id == boot_id
    end(driver)
    assert not paths_of(instance_name)


@pytest.mark.fault(14, how="a reader that holds a lock on the authority")
def test_reader_that_shows_life_bars_no_successor(rig: Rig) -> None:
    boot_id = rig.driver.tables.authority.boot_id
    reader = os.open(path_of(rig.instance, "authority"), os.O_RDONLY)
    try:
        assert lib.shmd_life_show(reader) == 0
        rig.crash()
        assert [found.life for found in find_authorities(rig.instance)] == [1]
        rig.start()
        assert rig.driver.tables.authority.boot_id == boot_id
    finally:
        os.close(reader)


DRIVES = """
import sys
from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver
from shmdriver.errors import DriverAlreadyRunning
driver = Driver(Config.load(env={}, overrides={"driver.instance": sys.argv[1]}))
print("ready", flush=True)
sys.stdin.readline()
try:
    driver.start()
except DriverAlreadyRunning as error:
    print("refused", flush=True)
    sys.exit()
print("serves", driver.tables.authority.boot_id, flush=True)
sys.stdin.readline()
driver.request_shutdown()
driver.run()
"""


def process(instance: str, runtime: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "SHMDRIVER_RUNTIME_DIR": str(runtime)}
    started = subprocess.Popen(
        [sys.executable, "-c", DRIVES, instance], env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert line_of(started) == "ready"
    return started


def line_of(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def tell(started: subprocess.Popen[str]) -> None:
    assert started.stdin is not None
    started.stdin.write("\n")
    started.stdin.flush()


@pytest.mark.fault(
    14, how="kill -9 of the first, whose folder is gone, while a reader holds a lock on its authority"
)
def test_dead_process_is_adopted_although_a_reader_shows_life(
    two_places, monkeypatch, instance_name: str
) -> None:
    first = process(instance_name, two_places[0])
    tell(first)
    boot_id = int(line_of(first).split()[1])
    reader = os.open(path_of(instance_name, "authority"), os.O_RDONLY)
    try:
        assert lib.shmd_life_show(reader) == 0
        first.send_signal(signal.SIGKILL)
        first.communicate()
        (two_places[0] / instance_name).rename(two_places[0] / "moved")
        monkeypatch.setenv("SHMDRIVER_RUNTIME_DIR", str(two_places[1]))
        driver = start(instance_name)
        assert driver.tables.authority.boot_id == boot_id
        end(driver)
    finally:
        os.close(reader)
    assert not paths_of(instance_name)


@pytest.mark.fault(
    14, how="six drivers at once, in three runtime directories, each with nothing and with a dead driver's"
)
def test_of_several_starters_in_several_folders_one_serves(tmp_path, monkeypatch, instance_name: str) -> None:
    monkeypatch.undo()  # with the turns of real drivers
    places = [tmp_path / str(number) for number in range(3)]
    for place in places:
        place.mkdir(mode=0o700)
    for _ in range(3):
        starters = [process(instance_name, place) for place in places * 2]
        for started in starters:
            tell(started)
        lines = [line_of(started) for started in starters]
        serving = [
            started for started, line in zip(starters, lines, strict=True) if line.startswith("serves")
        ]
        assert len(serving) == 1, lines
        assert len(paths_of(instance_name)) == 1
        for started in starters:
            if started is serving[0]:
                started.kill()
            started.communicate()
    monkeypatch.setenv("SHMDRIVER_RUNTIME_DIR", str(places[0]))
    assert len(collect(instance_name)) == 1


def test_driver_that_begins_at_the_same_moment_is_given_way_to(instance_name: str, monkeypatch) -> None:
    """It has made its authority, and not found ours: both withdraw, and the one that comes first serves."""
    real = AuthorityFile.create
    rivals: list[int] = []

    def create(instance, size, tell):
        made = real(instance, size, tell)
        if not rivals:
            rivals.append(os.open(plantable(instance, "authority"), os.O_RDWR | os.O_CREAT, 0o600))
            assert lib.shmd_life_show(rivals[0]) == 0
        return made

    monkeypatch.setattr(AuthorityFile, "create", create)
    turns: list[float] = []

    class Turn:
        def wait(self, seconds: float) -> None:
            assert len(paths_of(instance_name)) == (1 if len(turns) < 3 else 0), (
                "nobody waits with an authority"
            )
            turns.append(seconds)
            if len(turns) == 3:
                paths_of(instance_name)[0].unlink()
                os.close(rivals[0])

    monkeypatch.setattr("shmdriver.driver.claim.threading.Event", Turn)
    driver = start(instance_name)
    assert len(turns) == 3
    monkeypatch.undo()
    end(driver)
    assert is_gone(instance_name)


def test_of_several_former_authorities_the_newest_is_adopted_and_the_others_are_ended(rig: Rig) -> None:
    client = rig.client()
    producer = client.produce()
    rig.crash()
    old = paths_of(rig.instance)
    for path in old:
        path.rename(SHM / f"kept-{path.name}")
    rig.clock.advance_ms(1000)
    rig.start()
    newer = rig.driver.tables.authority.boot_id
    rig.crash()
    for path in old:
        (SHM / f"kept-{path.name}").rename(path)
    assert len(find_authorities(rig.instance)) == 2
    rig.start()
    assert rig.driver.tables.authority.boot_id == newer
    assert rig.lease(producer).end_reason == Reason.SUPERSEDED
    assert rig.view.authority.exit_kind == lib.SHMD_EXIT_SUPERSEDED
    assert not [path for path in old if path.exists()]


def test_start_in_another_place_takes_over_and_removes_the_former_folder(
    instance_name: str, monkeypatch, tmp_path
):
    """As when /run/user comes or goes between two drivers of one user."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    driver = start(instance_name)
    former = folder_of(driver)
    boot_id = driver.tables.authority.boot_id
    driver.close()
    other = tmp_path / "shmdriver" / instance_name
    if other == former:
        collect(instance_name)
        pytest.skip("there is no other place for this user")
    other.mkdir(parents=True, mode=0o700)
    other.parent.chmod(0o700)
    (other / LOCK_NAME).touch(mode=0o600)
    holder = os.open(other / LOCK_NAME, os.O_RDWR)
    import fcntl

    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(DriverAlreadyRunning, match="it holds"):
        start(instance_name)
    os.close(holder)
    driver = start(instance_name)
    assert driver.tables.authority.boot_id == boot_id
    assert not other.exists()
    end(driver)
    assert is_gone(instance_name)


@pytest.mark.parametrize("look", ["_holder", "find_authorities"])
def test_held_lock_that_cannot_be_looked_at_leaves_no_descriptor(
    driver: Driver, monkeypatch, look: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "no descriptor is left")

    before = set(Path("/proc/self/fd").iterdir())
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no descriptor is left"):
        patch.setattr(claim, look, fail)
        start(driver.instance)
    assert set(Path("/proc/self/fd").iterdir()) == before


# ---- a user without any place of its own


class Forked:
    """A driver in a forked child of another user, who has no place for runtime folders but /dev/shm."""

    def __init__(self, instance: str, uid: int) -> None:
        self._orders, orders = os.pipe()
        told, self._tells = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(orders)
                os.close(told)
                os.environ.clear()
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
                self._drive(instance)
                code = 0
            finally:
                os._exit(code)
        os.close(self._orders)
        os.close(self._tells)
        self._tell, self._told = orders, told

    def _drive(self, instance: str) -> None:
        os.read(self._orders, 1)
        driver = Driver(Config.load(env={}, overrides={"driver.instance": instance}))
        try:
            driver.start()
        except DriverAlreadyRunning:
            os.write(self._tells, b"-")
            return
        os.write(self._tells, b"+")
        os.read(self._orders, 1)
        driver.request_shutdown()
        driver.run()

    def go(self) -> None:
        os.write(self._tell, b".")

    def outcome(self) -> str:
        """ "+" it serves, "-" it was refused, "" it failed."""
        return os.read(self._told, 1).decode()

    def wait(self) -> int:
        os.close(self._tell)
        os.close(self._told)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts drivers of other users")
@pytest.mark.fault(14, how="four drivers at once of a user that has no place but /dev/shm")
def test_user_without_a_place_has_a_folder_in_dev_shm_while_a_driver_runs(
    instance_name: str, monkeypatch
) -> None:
    monkeypatch.undo()  # with the turns of real drivers
    uid = 40_000 + os.getpid() % 10_000
    for _ in range(3):
        starters = [Forked(instance_name, uid) for _ in range(4)]
        for started in starters:
            started.go()
        outcomes = [started.outcome() for started in starters]
        assert sorted(outcomes) == ["+", "-", "-", "-"]
        (place,) = SHM.glob(f"shmdriver-{uid}.*")
        assert [path.name for path in place.iterdir()] == [instance_name]
        starters[outcomes.index("+")].go()
        assert [started.wait() for started in starters] == [0] * 4
        assert is_gone(instance_name)
        assert not list(SHM.glob(f"shmdriver-{uid}.*"))


# ---- claims of an authority that has no driver


def claim_of(rig: Rig) -> int:
    path, offset = path_of(rig.instance, "authority"), ffi.offsetof("shmd_authority_t", "claim")
    return int.from_bytes(path.read_bytes()[offset : offset + 8], "little")


@pytest.mark.fault(
    14, how="a start that fails after its claim, and a reader that holds a lock on the authority"
)
def test_start_that_fails_after_its_claim_gives_it_back(rig: Rig) -> None:
    path = path_of(rig.instance, "authority")
    with path.open("r+b") as file:
        file.seek(ffi.offsetof("shmd_authority_t", "client_max"))
        file.write(b"\xff" * 4)
    reader = os.open(path, os.O_RDONLY)
    try:
        assert lib.shmd_life_show(reader) == 0
        rig.crash()
        before = claim_of(rig)
        for _ in range(2):
            with pytest.raises(LayoutMismatch):
                rig.start()
            assert claim_of(rig) == before
            assert before % 2 == 0
    finally:
        os.close(reader)
    rig.start(driver__boot="fresh")


@pytest.mark.fault(14, how="another driver has claimed a dead one's authority, and lives, and dies")
def test_authority_that_is_taken_over_at_this_moment_is_left_to_the_other(rig: Rig) -> None:
    boot_id = rig.driver.tables.authority.boot_id
    rig.crash()
    (found,) = find_authorities(rig.instance)
    other = AuthorityFile.open(found)
    assert other is not None
    mapped = other.mapping(other.size, writable=True)
    base = mapped.view("shmd_authority_t *")
    other.show_life()
    first = int(base.claim)
    assert other.claim(base, first, 0)
    assert not other.claim(base, first, 0), "it is swapped once"
    with pytest.raises(DriverAlreadyRunning, match="another driver takes it over at this moment"):
        rig.start()
    with pytest.raises(DriverAlreadyRunning):
        collect(rig.instance)
    mapped.close()
    other._claim = (0, 0)  # as kill -9 leaves it
    other.close()
    assert claim_of(rig) % 2 == 1
    rig.start()
    assert rig.driver.tables.authority.boot_id == boot_id
    assert claim_of(rig) % 2 == 0


@pytest.mark.fault(
    14, how="kill -9 between claim and introduction, and a reader that holds a lock on the authority"
)
def test_claimant_that_died_under_the_lock_that_is_held_now_bars_nobody(rig: Rig) -> None:
    authority = rig.driver.tables.authority
    boot_id, mark = authority.boot_id, authority.lock.mark
    reader = os.open(path_of(rig.instance, "authority"), os.O_RDONLY)
    try:
        assert lib.shmd_life_show(reader) == 0
        rig.crash()
        for claimed_under, is_barred in ((mark ^ 1, True), (mark, False)):
            (found,) = find_authorities(rig.instance)
            dead = AuthorityFile.open(found)
            assert dead is not None
            mapped = dead.mapping(dead.size, writable=True)
            base = mapped.view("shmd_authority_t *")
            assert dead.claim(base, int(base.claim), claimed_under)
            mapped.close()
            dead._claim = (0, 0)  # as kill -9 leaves it
            dead.close()
            if is_barred:  # its claimant may live: it had another lock
                with pytest.raises(DriverAlreadyRunning, match="another driver takes it over"):
                    rig.start()
        rig.start()
        assert rig.driver.tables.authority.boot_id == boot_id
    finally:
        os.close(reader)


# ---- folders and descriptors, while others of this process or user do something


def test_no_thread_forks_between_the_opening_of_a_lock_and_its_being_known(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    path = tmp_path / "lock"
    opened: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            try:
                has = is_open_as(opened[0], path.stat())  # not another file under its number
                os.write(writer, b"kept" if has else b"closed")
            finally:
                os._exit(0)
        os.waitpid(child, 0)

    forking = threading.Thread(target=fork)

    with no_fork:
        opened.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        forking.start()
        select.select([reader], [], [], 0.2)  # a child that did not wait would have said so by then
        hold(opened[0])
    forking.join()
    assert os.read(reader, 16) == b"closed"
    let_go(opened[0])
    os.close(reader)
    os.close(writer)


FORKS_IN_C = """
import ctypes, os, sys
from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver
driver = Driver(Config.load(env={}, overrides={"driver.instance": sys.argv[1]}))
driver.start()
child = ctypes.PyDLL(None).fork()
if child == 0:
    sys.stdin.readline()
    os._exit(0)
print(child, flush=True)
sys.stdin.readline()
"""


@pytest.mark.fault(36, how="fork by a C library, and kill -9 of the parent")
def test_child_that_was_forked_in_c_does_not_hold_the_instance(rig: Rig) -> None:
    rig.crash()
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKS_IN_C, rig.instance],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = os.pidfd_open(int(line_of(parent)))
    parent.kill()
    parent.wait()
    rig.start()
    assert not select.select([child], [], [], 0)[0], "the child lives on"
    parent.communicate("\n")
    assert select.select([child], [], [], 60)[0]
    os.close(child)


MAKES_AND_REMOVES = """
import sys
from shmdriver import runtime_folder
from shmdriver._native import lib
for _ in range(4000):
    with runtime_folder.make(sys.argv[1], for_group=False) as folder:
        assert lib.shmd_folder_remove(folder.native) == 0
"""


@pytest.mark.fault(14, how="two starters, each of which removes the folder that the other one has just found")
def test_folder_that_another_starter_removes_is_made_again(
    tmp_path: Path, monkeypatch, instance_name: str
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("SHMDRIVER_RUNTIME_DIR", str(tmp_path))
    several = [
        subprocess.Popen(
            [sys.executable, "-c", MAKES_AND_REMOVES, instance_name], stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [started.communicate()[1] for started in several] == ["", ""]
    assert list(tmp_path.iterdir()) == []
