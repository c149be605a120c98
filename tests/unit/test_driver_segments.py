"""Segments: names, what is refused and left alone, half-made ones, permissions, a mount too small, gc."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import posix_ipc
import pytest

from shmdriver._native import ffi, lib
from shmdriver.driver import collect as collecting
from shmdriver.driver import segment_names
from shmdriver.driver.collect import collect, collect_dead_embedded
from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver
from shmdriver.driver.embedded import EmbeddedDriver
from shmdriver.driver.memory import InlineMemory, MemoryThread, Provision
from shmdriver.driver.segment_names import is_name_of, new_name
from shmdriver.driver.shm import Modes, ShmSpace, ShmSpaceError, create_segment, is_absent, unlink_segment
from shmdriver.errors import DriverAlreadyRunning, LayoutMismatch, Reason, ShmDriverError
from tests.driver_rig import FakeClock, Rig
from tests.segments import path_of, paths_of, plantable, runtime_folders, segment_name

SHM = Path("/dev/shm")
STRANGER = 4242


def start(instance: str, **overrides) -> Driver:
    values = {"driver.instance": instance} | {
        key.replace("__", "."): value for key, value in overrides.items()
    }
    driver = Driver(Config.load(env={}, overrides=values), clock=FakeClock(), memory=InlineMemory())
    driver.start()
    return driver


@pytest.mark.fault(14)
def test_second_driver_is_refused_and_names_the_first(rig: Rig) -> None:
    with pytest.raises(DriverAlreadyRunning, match=f"pid {os.getpid()}") as refused:
        start(rig.instance)
    assert refused.value.pid == os.getpid()


def test_magic_is_there_only_when_everything_is(rig: Rig) -> None:
    assert rig.view.authority.header.magic == lib.shmd_magic(lib.SHMD_SEGMENT_AUTHORITY)
    assert rig.client().control.header.magic == lib.shmd_magic(lib.SHMD_SEGMENT_CONTROL)
    assert rig.view.authority.lifecycle == lib.SHMD_LIFECYCLE_HEALTHY


@pytest.mark.fault(17, how="an authority without its magic, of any size")
@pytest.mark.parametrize("size", [0, 100, 4096, 1 << 20])
def test_half_made_authority_goes_and_another_is_made(instance_name: str, size: int) -> None:
    left = plantable(instance_name, "authority")
    left.write_bytes(bytes(size))
    driver = start(instance_name)
    assert not left.exists()
    assert driver.tables.authority.boot_id != 0
    driver.close()
    assert len(collect(instance_name)) == 1


@pytest.mark.fault(17, 21, how="an authority of another layout version under a name of ours")
@pytest.mark.parametrize("fresh", ["adopt", "fresh"])
def test_authority_of_another_layout_is_refused_and_left_alone(instance_name: str, fresh: str) -> None:
    path = plantable(instance_name, "authority")
    content = struct.pack("<QIIQ", int(lib.shmd_magic(1)), 99, 1, 8192) + bytes(8168)
    path.write_bytes(content)
    for act in (lambda: start(instance_name, driver__boot=fresh), lambda: collect(instance_name)):
        with pytest.raises(LayoutMismatch, match="layout version 99") as refused:
            act()
        assert (refused.value.found, refused.value.expected) == (99, lib.SHMD_LAYOUT_VERSION)
    assert path.read_bytes() == content
    assert not runtime_folders(lambda name: name == instance_name), "a refused start leaves nothing"
    path.unlink()


@pytest.mark.fault(21, how="an authority of the layout with fixed names")
def test_authority_under_the_fixed_name_of_old_is_refused_with_instructions(instance_name: str) -> None:
    path = SHM / f"shmd.{instance_name}.authority"
    path.write_bytes(struct.pack("<QIIQ", int(lib.shmd_magic(1)), 3, 1, 8192) + bytes(8168))
    for act in (start, collect):
        with pytest.raises(
            LayoutMismatch, match=r"layout version 3, .* speaks 4\. It is left as it is: stop"
        ):
            act(instance_name)
    assert path.exists()
    assert not runtime_folders(lambda name: name == instance_name)
    path.write_bytes(b"")  # anybody can make one of that name
    start(instance_name).close()
    path.unlink()
    collect(instance_name)


def twin_of(path: Path) -> Path:
    return SHM / f"{path.name[len('shmd.') :]}.twin"


def plant_directory(path: Path) -> None:
    path.mkdir()


def plant_symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def plant_fifo(path: Path) -> None:
    os.mkfifo(path)


def plant_hard_link(path: Path) -> None:
    path.write_bytes(b"")
    twin_of(path).hardlink_to(path)


def plant_stranger(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    path.write_bytes(b"precious")
    os.chown(path, STRANGER, STRANGER)
    path.chmod(0o666)


def plant_garbage(path: Path) -> None:
    path.write_bytes(b"somebody else's file" * 300)


@pytest.mark.fault(21, how="objects of other kinds and of another user under names of our form")
@pytest.mark.parametrize(
    "plant", [plant_directory, plant_symlink, plant_fifo, plant_hard_link, plant_stranger, plant_garbage]
)
@pytest.mark.parametrize("kind", ["authority", "control", "data", "gates"])
def test_what_stands_under_a_name_of_ours_keeps_nobody_from_starting_and_stays(
    instance_name: str, kind: str, plant: Callable[[Path], None]
) -> None:
    if plant is plant_garbage and kind != "authority":
        return  # of this user, and of no table: what a killed driver leaves looks so, and is removed
    path = plantable(instance_name, kind)
    plant(path)
    before = os.lstat(path)
    try:
        driver = start(instance_name)
        driver.close()
        driver = start(instance_name)  # adopts
        driver.request_shutdown()
        driver.tick()
        driver.close()
        assert paths_of(instance_name) == [path]
        collect(instance_name)
        after = os.lstat(path)
        assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (
            before.st_ino, before.st_mode, before.st_mtime_ns,
        )  # fmt: skip
    finally:
        for planted in (path, twin_of(path)):
            if planted.is_dir() and not planted.is_symlink():
                planted.rmdir()
            else:
                planted.unlink(missing_ok=True)


@pytest.mark.fault(17, how="a size in the tables that cannot be")
def test_broken_authority_is_refused_until_fresh(rig: Rig) -> None:
    rig.crash()
    path = path_of(rig.instance, "authority")
    with path.open("r+b") as file:
        file.seek(ffi.offsetof("shmd_authority_t", "client_max"))
        file.write(b"\xff" * 4)
    content = path.read_bytes()
    with pytest.raises(LayoutMismatch):
        rig.start()
    assert path.read_bytes() == content
    rig.start(driver__boot="fresh")
    assert not path.exists()


@pytest.mark.fault(
    19, how="rm, truncation and another boot's in place of a control segment between two drivers"
)
@pytest.mark.parametrize("how", ["removed", "short", "foreign"])
def test_client_whose_control_segment_is_lost_is_expelled_alone(rig: Rig, how: str) -> None:
    lost, other = rig.client(), rig.client()
    gone, kept = lost.produce("a"), other.produce("b")
    path = rig.control_path(lost)
    rig.crash()
    if how == "short":
        os.truncate(path, 100)
    elif how == "foreign":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        path.unlink()
    rig.start()
    rig.tick()
    assert (rig.lease_state(gone), rig.lease(gone).end_reason) == (lib.SHMD_LEASE_REVOKED, Reason.EXPELLED)
    assert rig.lease_state(kept) in (lib.SHMD_LEASE_ATTACHED, lib.SHMD_LEASE_ACTIVE)
    assert other.produce("c").code == lib.SHMD_CODE_OK
    answer = lost.hear()
    assert answer is not None
    assert answer.reason == Reason.UNKNOWN_CLIENT
    assert any("is expelled" in line for line in rig.logged)


@pytest.mark.fault(19, how="rm of an epoch's, the control segment and the authority under a driver")
def test_driver_says_once_which_segments_in_use_are_gone(rig: Rig) -> None:
    producer = rig.client().produce()
    names = [
        ffi.string(rig.epoch(producer).data_name).decode(),
        segment_name(path_of(rig.instance, "control")),
        segment_name(path_of(rig.instance, "authority")),
    ]
    for name in names:
        (SHM / name[1:]).unlink()
    rig.tick(5000)
    told = [event.text for event in rig.events_of(lib.SHMD_EVENT_ERROR)]
    assert len(told) == 3
    assert all(any(text.startswith(name) for text in told) for name in names)


# ---- names


def test_names_are_drawn_anew_for_each_segment(instance_name: str) -> None:
    names = {new_name(instance_name, "data") for _ in range(100)}
    assert len(names) == 100
    for name in names:
        assert is_name_of(name, instance_name, "data", "gates")
        assert not is_name_of(name, instance_name, "gates")
        assert not is_name_of(name, instance_name[:-1], "data")
    assert not is_name_of(f"/shmd.{instance_name}.control", instance_name, "control")


@pytest.mark.fault(21, how="a foreign object under each name that is drawn first")
def test_name_that_is_taken_is_passed_over_and_told(instance_name: str, monkeypatch) -> None:
    drawn = [new_name(instance_name, kind) for kind in ("authority", "control", "data", "gates")]
    for name in drawn:
        (SHM / name[1:]).mkdir()
    real, left = segment_names.new_name, list(drawn)

    def first_a_taken_one(instance: str, kind: segment_names.Kind) -> str:
        taken = [name for name in left if name.endswith(kind)]
        if not taken:
            return real(instance, kind)
        left.remove(taken[0])
        return taken[0]

    monkeypatch.setattr(segment_names, "new_name", first_a_taken_one)
    logged: list[str] = []
    driver = Driver(
        Config.load(env={}, overrides={"driver.instance": instance_name}),
        clock=FakeClock(), memory=InlineMemory(), log=logged.append,
    )  # fmt: skip
    try:
        driver.start()
        assert sorted(left) == sorted(drawn[1:])
        for name in drawn[:1]:
            assert len([line for line in logged if line.startswith(f"/dev/shm{name} is there already")]) == 1
    finally:
        driver.close()
        collect(instance_name)
        for name in drawn:
            (SHM / name[1:]).rmdir()


def test_epoch_passes_over_a_name_that_is_taken(rig: Rig, monkeypatch) -> None:
    taken, real = new_name(rig.instance, "data"), segment_names.new_name
    (SHM / taken[1:]).mkdir()
    left = [taken]
    monkeypatch.setattr(
        segment_names,
        "new_name",
        lambda name, kind: left.pop() if left and kind == "data" else real(name, kind),
    )
    try:
        assert rig.client().produce().code == lib.SHMD_CODE_OK
        assert [line for line in rig.logged if f"{taken} is there already" in line]
    finally:
        (SHM / taken[1:]).rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.fault(21, how="a stranger takes the name of a segment that was removed under its driver")
def test_name_that_a_stranger_has_taken_meanwhile_is_not_ours_to_remove(rig: Rig, monkeypatch) -> None:
    def refuses(_name: str) -> None:
        raise posix_ipc.PermissionsError("No permission to remove this segment")  # root would not be refused

    client = rig.client()
    producer = client.produce()
    data = path_of(rig.instance, "data")
    data.unlink()
    data.write_bytes(b"")
    os.chown(data, STRANGER, STRANGER)
    monkeypatch.setattr("posix_ipc.unlink_shared_memory", refuses)
    assert unlink_segment(segment_name(data)) is False
    with pytest.raises(ShmDriverError, match=f"cannot remove .*gates as uid {os.geteuid()}"):
        unlink_segment(segment_name(path_of(rig.instance, "gates")))
    monkeypatch.undo()
    os.chown(data, 0, 0)
    client.detach(producer)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_are_what_configuration_says(instance_name: str, umask: int) -> None:
    import grp

    group = grp.getgrgid(os.getegid()).gr_name
    before = os.umask(umask)
    rig = Rig(instance_name, shm__mode="0660", shm__group=group)
    try:
        rig.client().produce()
        modes = {
            path.name.rpartition(".")[2]: stat.S_IMODE(path.stat().st_mode)
            for path in paths_of(instance_name)
        }
        assert modes == {"authority": 0o640, "control": 0o600, "data": 0o660, "gates": 0o660}
    finally:
        os.umask(before)
        rig.close()


def test_unknown_group_is_refused(instance_name: str) -> None:
    with pytest.raises(ShmDriverError, match="no group 'nosuchgroup'"):
        start(instance_name, shm__mode="0660", shm__group="nosuchgroup")


# ---- a mount too small


def test_segment_larger_than_the_mount_is_refused_with_numbers(instance_name: str) -> None:
    free = ShmSpace.now().free
    name = f"/shmd.{instance_name}.big"
    with pytest.raises(ShmSpaceError, match="/dev/shm is too small") as refused:
        create_segment(name, free + (1 << 30), Modes())
    assert refused.value.need == free + (1 << 30)
    assert refused.value.mount == "/dev/shm"
    assert not (SHM / name[1:]).exists()


@pytest.mark.fault(18, how="fallocate that fails")
def test_full_mount_is_a_refused_attach_and_leaves_nothing(rig: Rig, monkeypatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    client = rig.client()
    monkeypatch.setattr(os, "posix_fallocate", full)
    refused = client.produce()
    monkeypatch.undo()
    assert refused.reason == Reason.NO_MEMORY
    assert "it needs 77824 bytes" in refused.text
    assert client.produce().code == lib.SHMD_CODE_OK
    assert len(paths_of(rig.instance)) == 4


def test_little_memory_left_degrades_and_recovers(rig: Rig, monkeypatch) -> None:
    space = ShmSpace(total=1000, free=40)
    monkeypatch.setattr(ShmSpace, "now", classmethod(lambda cls: space))
    rig.tick(1100)
    assert str(rig.driver.state) == "running.degraded"
    space = ShmSpace(total=1000, free=90)
    rig.tick(1100)
    assert str(rig.driver.state) == "running.degraded"
    space = ShmSpace(total=1000, free=110)
    rig.tick(1100)
    assert str(rig.driver.state) == "running.healthy"


# ---- memory work elsewhere


def test_large_memory_is_made_in_the_helper_thread_while_ticks_go_on(instance_name: str) -> None:
    rig = Rig(instance_name)
    try:
        memory = MemoryThread()
        rig.driver.close()
        rig.driver = Driver(
            Config.load(env={}, overrides={**rig.overrides, "driver.instance": instance_name}),
            clock=rig.clock, memory=memory, token=rig.token,
        )  # fmt: skip
        rig.driver.start()
        client = rig.client()
        raw = client.attach_request("big", lib.SHMD_ROLE_PRODUCER, slots=16, max_message=1 << 20)
        correlation = client.send(raw)
        rig.tick()
        second = client.produce("big")
        assert second.reason == Reason.PRODUCER_EXISTS
        assert client.consume("small").code == lib.SHMD_CODE_OK
        while not [event for event in rig.events if event.correlation_id == correlation]:
            rig.driver.tick()
        answer = rig.answer(correlation)
        assert answer.code == lib.SHMD_CODE_OK
        assert rig.epoch(answer).arena_bytes == 16 << 20
    finally:
        rig.close()


class Held(InlineMemory):
    """Hands nothing back until told to, or until it is closed."""

    hold = True

    def completions(self):
        return [] if self.hold else super().completions()

    def close(self):
        self.hold = False


def test_memory_that_is_made_when_the_driver_stops_leaves_no_segment(instance_name: str) -> None:
    rig = Rig(instance_name)
    try:
        rig.driver.close()
        rig.driver = Driver(
            Config.load(env={}, overrides={**rig.overrides, "driver.instance": instance_name}),
            clock=rig.clock, memory=Held(), token=rig.token,
        )  # fmt: skip
        rig.driver.start()
        client = rig.client()
        client.send(client.attach_request("s", lib.SHMD_ROLE_PRODUCER))
        rig.tick()
        rig.driver.request_shutdown()
        rig.tick()
        assert rig.driver.state.value == "stopped"
        rig.driver.close()
        assert paths_of(instance_name) == []
    finally:
        rig.close()


def test_attach_given_up_while_its_memory_is_made_leaves_nothing(instance_name: str) -> None:
    rig = Rig(instance_name)
    try:
        rig.driver.close()
        memory = Held()
        rig.driver = Driver(
            Config.load(env={}, overrides={**rig.overrides, "driver.instance": instance_name}),
            clock=rig.clock, memory=memory, token=rig.token,
        )  # fmt: skip
        rig.driver.start()
        client = rig.client()
        raw = client.attach_request("s", lib.SHMD_ROLE_PRODUCER)
        client.send(raw)
        rig.tick()
        assert rig.driver.next_deadline_ns() <= rig.clock.now_ns + 1_000_000
        client.send(
            client.request(
                lib.SHMD_REQUEST_DETACH,
                target_correlation_id=raw.correlation_id,
                stream=b"s",
                role=lib.SHMD_ROLE_PRODUCER,
            )
        )
        rig.tick()
        memory.hold = False
        rig.tick()
        assert rig.driver.tables.streams.segment_bytes == 0
        assert len(paths_of(instance_name)) == 2
        assert client.produce().code == lib.SHMD_CODE_OK
    finally:
        rig.close()


def test_provision_that_fails_half_way_leaves_no_segment(rig: Rig, monkeypatch) -> None:
    client = rig.client()
    monkeypatch.setattr(
        Provision, "_gates", lambda self, native: (_ for _ in ()).throw(OSError("gone wrong"))
    )
    refused = client.produce()
    assert refused.code == lib.SHMD_CODE_INTERNAL_ERROR
    assert "gone wrong" in refused.text
    assert len(paths_of(rig.instance)) == 2


# ---- collecting


def test_collect_removes_what_a_dead_driver_left_and_spares_a_living_one(rig: Rig) -> None:
    rig.client().produce()
    with pytest.raises(DriverAlreadyRunning):
        collect(rig.instance)
    rig.crash()
    assert len(collect(rig.instance)) == 4
    assert not runtime_folders(lambda name: name == rig.instance)
    assert collect(rig.instance) == []
    rig.start()


@pytest.mark.parametrize("step", ["before the claim", "under the claim"])
def test_collecting_without_an_authority_takes_nothing_from_a_driver_that_starts_meanwhile(
    instance_name: str, monkeypatch, step: str
) -> None:
    """It starts before the collector has the lock, or is refused while the collector has it."""
    name = new_name(instance_name, "control")
    os.close(create_segment(name, 4096, Modes()))
    driver = Driver(Config.load(env={}, overrides={"driver.instance": instance_name}))
    monkeypatch.setattr("shmdriver.driver.claim.LOCK_TURN_S", 0.0)
    function = "claimed" if step == "before the claim" else "_remove"
    real, outcomes = getattr(collecting, function), []

    def start_meanwhile(*arguments, **named):
        try:
            driver.start()
        except DriverAlreadyRunning:
            outcomes.append("refused")
        else:
            outcomes.append("started")
        return real(*arguments, **named)

    monkeypatch.setattr(collecting, function, start_meanwhile)
    if step == "before the claim":
        with pytest.raises(DriverAlreadyRunning):
            collect(instance_name)
        assert outcomes == ["started"]
        assert path_of(instance_name, "authority").stat().st_ino == driver.tables.authority.map.inode
        driver.request_shutdown()
        driver.run()
    else:
        assert collect(instance_name) == [name]
        assert outcomes == ["refused"]
    monkeypatch.undo()
    assert collect(instance_name) == []
    assert not runtime_folders(lambda name: name == instance_name)


def test_dead_embedded_instances_are_collected_by_the_next_one() -> None:
    dead = EmbeddedDriver(config=Config.load(env={}))
    driver = Driver(dead._config)
    driver.start()
    living = EmbeddedDriver(config=Config.load(env={}))
    living.start()
    driver.close()
    removed = collect_dead_embedded()
    assert {name.split(".")[1] for name in removed} == {dead.instance}
    living.stop()


def test_one_start_looks_at_a_few_embedded_instances_and_the_next_ones_at_the_rest(monkeypatch) -> None:
    monkeypatch.setattr(collecting, "EMBEDDED_MAX", 2)
    dead = [EmbeddedDriver(config=Config.load(env={})) for _ in range(3)]
    for embedded in dead:
        driver = Driver(embedded._config)
        driver.start()
        driver.close()
    removed = [{name.split(".")[1] for name in collect_dead_embedded()} for _ in range(3)]
    assert [len(instances) for instances in removed] == [2, 1, 0]
    assert set.union(*removed) == {embedded.instance for embedded in dead}
    assert not runtime_folders(lambda name: name in removed[0] | removed[1])


def test_config_text_fits_and_is_readable(rig: Rig) -> None:
    text = ffi.string(lib.shmd_authority_config(rig.view.authority)).decode()
    assert f'instance = "{rig.instance}"' in text


def test_name_that_cannot_be_looked_at_is_neither_absent_nor_there() -> None:
    name = f"/shmd.test-{os.getpid()}"
    assert is_absent(name) is True
    os.close(create_segment(name, 4096, Modes()))
    try:
        assert is_absent(name) is False
    finally:
        Path(f"/dev/shm{name}").unlink()
    assert is_absent("/" + "x" * 300) is None  # ENAMETOOLONG
