"""Segments: the lock, what is refused and left alone, half-made ones, permissions, a mount too small, gc."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmdriver._native import ffi, lib
from shmdriver.driver import segments
from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver
from shmdriver.driver.embedded import EmbeddedDriver, collect_dead_embedded
from shmdriver.driver.memory import InlineMemory, MemoryThread, Provision
from shmdriver.driver.segments import authority_name, collect, control_name, lock_authority
from shmdriver.driver.shm import Modes, ShmSpace, ShmSpaceError, create_segment, is_absent
from shmdriver.errors import DriverAlreadyRunning, LayoutMismatch, Reason, ShmDriverError
from tests.driver_rig import FakeClock, Rig

SHM = Path("/dev/shm")


@pytest.fixture
def authority(instance_name: str) -> Iterator[Path]:
    """Where the authority object of the instance is, removed afterwards."""
    path = SHM / authority_name(instance_name)[1:]
    yield path
    for name in (authority_name(instance_name), control_name(instance_name)):
        (SHM / name[1:]).unlink(missing_ok=True)


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
    assert rig.view.control.header.magic == lib.shmd_magic(lib.SHMD_SEGMENT_CONTROL)
    assert rig.view.authority.lifecycle == lib.SHMD_LIFECYCLE_HEALTHY


@pytest.mark.fault(17, how="an authority without its magic, of any size")
@pytest.mark.parametrize("size", [0, 100, 4096, 1 << 20])
@pytest.mark.fault(17)
def test_half_made_authority_is_rebuilt(instance_name: str, authority: Path, size: int) -> None:
    authority.write_bytes(bytes(size))
    driver = start(instance_name)
    assert driver.tables.authority.boot_id != 0
    driver.close()


@pytest.mark.fault(17, 21, how="another magic, another layout version, garbage")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"someone else's file" * 300, "no authority segment"),
        (struct.pack("<QIIQ", int(lib.shmd_magic(1)), 99, 1, 8192) + bytes(8168), "layout version 99"),
        (struct.pack("<QIIQ", int(lib.shmd_magic(1)), 1, 1, 8192) + bytes(8168), "authority"),
    ],
)
@pytest.mark.fault(17)
def test_foreign_authority_is_refused_and_left_alone(instance_name, authority: Path, content, words) -> None:
    authority.write_bytes(content)
    for fresh in ("adopt", "fresh"):
        if fresh == "fresh" and words == "authority":
            continue  # ours, if broken: --fresh is how one gets rid of it
        with pytest.raises(LayoutMismatch, match=words):
            start(instance_name, driver__boot=fresh)
        assert authority.read_bytes() == content
    if words != "authority":
        with pytest.raises(LayoutMismatch):
            collect(instance_name)


@pytest.mark.fault(21)
def test_symlink_fifo_and_hard_link_are_refused(instance_name: str, authority: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    authority.symlink_to(target)
    with pytest.raises(LayoutMismatch, match="no regular file"):
        start(instance_name)
    assert target.read_bytes() == b"precious"
    authority.unlink()
    os.mkfifo(authority)
    with pytest.raises(LayoutMismatch, match="no regular file"):
        start(instance_name)
    authority.unlink()
    authority.write_bytes(b"")
    twin = authority.with_name(authority.name + "-twin")
    twin.hardlink_to(authority)
    try:
        with pytest.raises(LayoutMismatch, match="2 hard links"):
            start(instance_name)
    finally:
        twin.unlink()


@pytest.mark.fault(19, how="rm of the control segment between two drivers")
def test_lost_control_segment_is_refused_until_fresh(rig: Rig) -> None:
    rig.crash()
    (SHM / control_name(rig.instance)[1:]).unlink()
    with pytest.raises(LayoutMismatch, match="--fresh"):
        rig.start()
    rig.start(driver__boot="fresh")


@pytest.mark.fault(36)
def test_lock_is_not_inherited_by_a_forked_child(instance_name: str, authority: Path) -> None:
    lock = lock_authority(instance_name, Modes())
    fd = lock.fd
    pid = os.fork()
    if pid == 0:
        try:
            os.fstat(fd)
        except OSError as error:
            os._exit(0 if error.errno == errno.EBADF else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with pytest.raises(DriverAlreadyRunning):
        lock_authority(instance_name, Modes())
    lock.release()
    lock_authority(instance_name, Modes()).release()


@pytest.mark.fault(15, how="rm while a driver holds it")
def test_lock_object_that_was_unlinked_is_noticed(instance_name: str, authority: Path) -> None:
    lock = lock_authority(instance_name, Modes())
    assert lock.still_named()
    authority.unlink()
    assert not lock.still_named()
    authority.write_bytes(b"")
    assert not lock.still_named()
    lock.release()


def test_lock_on_an_object_that_has_no_name_any_more_is_no_other_driver(rig: Rig, monkeypatch) -> None:
    """A client takes it for a moment, to prove that nobody drives what it is mapped to."""
    rig.crash()
    path = SHM / authority_name(rig.instance)[1:]
    opened, other = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
    path.unlink()  # between a new driver's open and its lock
    fcntl.flock(other, fcntl.LOCK_SH)
    real, first = segments._open_or_create, [opened]
    monkeypatch.setattr(segments, "_open_or_create", lambda name: first.pop() if first else real(name))
    rig.start()
    os.close(other)
    assert path.stat().st_ino == os.fstat(rig.driver.tables.authority.lock.fd).st_ino


@pytest.mark.parametrize("look", ["_holder", "_names"])
def test_a_held_lock_that_cannot_be_looked_at_leaves_no_descriptor(rig: Rig, monkeypatch, look: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "no descriptor is left")

    before = set(Path("/proc/self/fd").iterdir())
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no descriptor is left"):
        patch.setattr(segments, look, fail)
        lock_authority(rig.instance, Modes())
    assert set(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.fault(15, 19, how="rm of the authority under a driver")
def test_driver_says_loudly_that_its_lock_object_is_gone(rig: Rig) -> None:
    (SHM / authority_name(rig.instance)[1:]).unlink()
    rig.tick(3000)
    told = rig.events_of(lib.SHMD_EVENT_ERROR)
    assert len(told) == 1
    assert "was removed or replaced" in told[0].text
    assert rig.counter("ERRORS") == 1  # one error, counted once


@pytest.mark.fault(19, how="rm of an epoch's and the control segment under a driver")
def test_driver_says_once_which_segments_in_use_are_gone(rig: Rig) -> None:
    producer = rig.client().produce()
    names = [ffi.string(rig.epoch(producer).data_name).decode(), control_name(rig.instance)]
    for name in names:
        (SHM / name[1:]).unlink()
    rig.tick(5000)
    told = [event.text for event in rig.events_of(lib.SHMD_EVENT_ERROR)]
    assert len(told) == 2
    assert all(any(text.startswith(name) for text in told) for name in names)


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
            for path in SHM.iterdir()
            if path.name.startswith(f"shmd.{instance_name}.")
        }
        assert modes == {"authority": 0o640, "control": 0o660, "data": 0o660, "gates": 0o660}
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
    assert len([path for path in SHM.iterdir() if path.name.startswith(f"shmd.{rig.instance}.")]) == 4


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
        assert [path.name for path in SHM.iterdir() if path.name.startswith(f"shmd.{instance_name}.")] == []
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
        assert len([path for path in SHM.iterdir() if path.name.startswith(f"shmd.{instance_name}.")]) == 2
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
    assert len([path for path in SHM.iterdir() if path.name.startswith(f"shmd.{rig.instance}.")]) == 2


# ---- collecting


def test_collect_removes_what_a_dead_driver_left_and_spares_a_living_one(rig: Rig) -> None:
    rig.client().produce()
    with pytest.raises(DriverAlreadyRunning):
        collect(rig.instance)
    rig.crash()
    assert len(collect(rig.instance)) == 4
    assert collect(rig.instance) == []
    rig.start()


@pytest.mark.parametrize("step", [1, 2])
def test_collecting_without_an_authority_takes_nothing_from_a_driver_that_starts_meanwhile(
    instance_name: str, monkeypatch, step: int
) -> None:
    """It starts before the collector has the lock (step 1), or is refused while the collector has it."""
    control = SHM / control_name(instance_name)[1:]
    control.write_bytes(b"left over")
    driver = Driver(Config.load(env={}, overrides={"driver.instance": instance_name}))
    real, outcomes = segments.epoch_objects, []

    def start_meanwhile(name: str) -> list[str]:
        names = real(name)
        outcomes.append("")
        if len(outcomes) == step:
            try:
                driver.start()
            except DriverAlreadyRunning:
                outcomes[-1] = "refused"
            else:
                outcomes[-1] = "started"
        return names

    monkeypatch.setattr(segments, "epoch_objects", start_meanwhile)
    monkeypatch.setattr(segments, "LOCK_TURN_S", 0.0)
    if step == 1:
        with pytest.raises(DriverAlreadyRunning):
            collect(instance_name)
        assert outcomes[0] == "started"
        assert control.stat().st_ino == driver.tables.authority.control_map.inode
        driver.request_shutdown()
        driver.run()
    else:
        assert collect(instance_name) == [control_name(instance_name)]
        assert outcomes[1] == "refused"
    assert collect(instance_name) == []


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
