"""shm.mlock: all segments are locked in memory, also adopted ones, or the driver says which not and why."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shmdriver._native import ffi, lib
from tests.driver_rig import Rig

CAP_IPC_LOCK = 14
PAGE = resource.getpagesize()


def locked() -> int:
    """Bytes that this process has locked."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmLck:")[2].split()[0]) * 1024


def segments(rig: Rig) -> int:
    """Bytes of all segments of the instance, in whole pages."""
    paths = Path("/dev/shm").glob(f"shmd.{rig.instance}.*")
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in paths)


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def _use_capability(number: int, *, used: bool) -> bool:
    """For this thread; whether it was used before. What the process may not use stays so."""
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0), (_Sets * 2)()
    assert libc.capget(ctypes.byref(header), sets) == 0
    before, bit = bool(sets[0].effective >> number & 1), 1 << number
    sets[0].effective = sets[0].effective | bit if used else sets[0].effective & ~bit
    assert libc.capset(ctypes.byref(header), sets) == 0, os.strerror(ctypes.get_errno())
    return before


@contextmanager
def lock_limit(limit: int) -> Iterator[None]:
    """RLIMIT_MEMLOCK, and it holds: no capability stands over it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    was_used = _use_capability(CAP_IPC_LOCK, used=False)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
        if was_used:
            _use_capability(CAP_IPC_LOCK, used=True)


@pytest.fixture
def rig(instance_name: str) -> Iterator[Rig]:
    rig = Rig(instance_name, shm__mlock=True)
    if locked() == 0:
        rig.close()
        pytest.skip(f"nothing can be locked here: {rig.logged}")
    yield rig
    rig.close()


def errors(rig: Rig) -> dict[str, int]:
    """The error log: texts and how often."""
    records = (lib.shmd_authority_error(rig.view.authority, index) for index in range(4))
    return {ffi.string(record.text).decode(): int(record.count) for record in records if record.count}


@pytest.mark.fault(61, how="an adoption, an epoch that is retired")
def test_all_segments_are_locked_also_adopted_ones(rig: Rig) -> None:
    before = locked() - segments(rig)
    client = rig.client()
    producer = client.produce()
    client.consume("t")
    assert locked() == before + segments(rig)
    rig.crash()
    assert locked() == before
    rig.start()
    assert locked() == before + segments(rig)
    assert errors(rig) == {}
    client.detach(producer)
    rig.tick(60_000)  # until its epoch is retired
    assert rig.epoch(producer) is None
    assert locked() == before + segments(rig)


@pytest.mark.fault(61, 70, how="RLIMIT_MEMLOCK below shm.max_bytes, and no CAP_IPC_LOCK")
def test_a_limit_too_small_for_all_streams_is_told_with_numbers_at_the_start(rig: Rig) -> None:
    rig.crash()
    before = len(rig.logged)
    limit = locked() + 8 * PAGE
    with lock_limit(limit):
        rig.start(shm__max_bytes=1 << 20)
    text = f"shm.mlock: RLIMIT_MEMLOCK leaves {8 * PAGE} bytes (of {limit}), and streams may take {1 << 20} "
    assert rig.logged[before].startswith(text), "before memory is touched"
    assert rig.client().produce().code == lib.SHMD_CODE_OK, "it refuses nothing"


@pytest.mark.fault(61, how="RLIMIT_MEMLOCK and no CAP_IPC_LOCK")
def test_adopted_segments_that_cannot_be_locked_are_told(rig: Rig) -> None:
    rig.client().produce()
    rig.crash()
    with lock_limit(locked() + PAGE):
        rig.start()
    (event,) = rig.events_of(lib.SHMD_EVENT_ERROR)
    assert event.text.startswith("shm.mlock: 4 of 4 segments")
    assert any(f"{PAGE + locked()} bytes: raise it" in line for line in rig.logged)
    assert errors(rig) == {"shm.mlock: not all segments are locked in memory": 1}


@pytest.mark.fault(61, how="RLIMIT_MEMLOCK and no CAP_IPC_LOCK")
def test_a_new_epoch_that_cannot_be_locked_is_told_and_works(rig: Rig) -> None:
    client = rig.client()
    with lock_limit(locked() + PAGE):
        answers = [client.produce(stream) for stream in ("s", "t")]
    assert [answer.code for answer in answers] == [lib.SHMD_CODE_OK, lib.SHMD_CODE_OK]
    events = rig.events_of(lib.SHMD_EVENT_ERROR)
    assert [event.text.partition(": mlock of")[0] for event in events] == [
        f"stream '{stream}': shm.mlock: 2 of 2 segments ({size} bytes) are not locked in memory"
        for stream, size in (("s", epoch_bytes(rig, answers[0])), ("t", epoch_bytes(rig, answers[1])))
    ]
    assert errors(rig) == {"shm.mlock: not all segments are locked in memory": 2}


def epoch_bytes(rig: Rig, answer) -> int:
    record = rig.epoch(answer)
    return int(record.data_bytes + record.gates_bytes)
