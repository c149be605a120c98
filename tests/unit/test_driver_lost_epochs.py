"""Segments of a sealed epoch are lost: who has drained it before loses nothing, and is not revoked."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shmdriver._native import ffi, lib
from shmdriver.errors import Reason
from tests.driver_rig import Rig

FOLLOW: dict[str, Any] = {"flags": lib.SHMD_ATTACH_CREATE | lib.SHMD_ATTACH_FOLLOW}


class Drained:
    """A sealed epoch, who has drained it, and who has not begun: a reliable and a lossy one of each kind."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.client = rig.client()
        lossy: dict[str, Any] = {"delivery": lib.SHMD_DELIVERY_LOSSY}
        consume = self.client.consume
        self.followers = [consume(**FOLLOW), consume(**FOLLOW, **lossy)]
        self.single = [consume(), consume(**lossy)]
        self.late = [consume(**FOLLOW), consume(**FOLLOW, **lossy)]
        producer = self.client.produce()
        rig.publish(producer, 3)
        self.client.detach(producer)
        for answer in (*self.followers, *self.single):
            rig.leave(answer, 1)

    def read_on(self) -> SimpleNamespace:
        """The followers begin the next epoch; its producer."""
        producer = self.client.produce()
        with self.rig.epoch_memory(producer) as memory:
            for answer in self.followers:
                memory.gate(answer.gate).last_read_ns = 1
        return producer

    def paths(self) -> tuple[Path, Path]:
        """Of data and gates."""
        record = self.rig.epoch(self.late[0], 1)
        data, gates = (ffi.string(name).decode() for name in (record.data_name, record.gates_name))
        return Path(f"/dev/shm{data}"), Path(f"/dev/shm{gates}")

    def reasons(self, answers: list[SimpleNamespace]) -> set[Reason]:
        return {Reason(self.rig.lease(answer).end_reason) for answer in answers}

    def followers_go_on(self, producer: SimpleNamespace) -> None:
        """They alone are wired to this producer's epoch; who had not drained the lost one is told."""
        assert self.reasons(self.followers) == {Reason.NONE}
        assert self.reasons(self.late) == {Reason.TRUNCATED}
        wired = sum(1 << answer.gate for answer in self.followers)
        assert int(self.rig.epoch(producer).hot.wired_mask) == wired


@pytest.mark.fault(19, how="rm of the data of a sealed epoch between two drivers, some have drained it")
def test_reader_that_has_drained_a_lost_epoch_is_not_revoked(rig: Rig) -> None:
    drained = Drained(rig)
    data, _ = drained.paths()
    rig.crash()
    data.unlink()
    rig.start()
    assert drained.reasons(drained.single) == {Reason.DELIVERED}
    drained.followers_go_on(drained.client.produce())


@pytest.mark.fault(19, how="rm of a sealed epoch's data and gates between two drivers, some read a later one")
def test_reader_that_reads_a_later_epoch_than_the_lost_one_is_not_revoked(rig: Rig) -> None:
    drained = Drained(rig)
    producer = drained.read_on()
    paths = drained.paths()
    rig.crash()
    for path in paths:
        path.unlink()
    rig.start()
    drained.followers_go_on(producer)


@pytest.mark.fault(48, how="ftruncate of a sealed epoch's gates, some read a later one")
def test_reader_that_reads_a_later_epoch_than_the_truncated_one_is_not_revoked(rig: Rig) -> None:
    drained = Drained(rig)
    producer = drained.read_on()
    _, gates = drained.paths()
    os.truncate(gates, 0)
    rig.tick(1000)
    drained.followers_go_on(producer)
    for _ in range(60):  # nobody holds it: it goes after the grace time
        drained.client.beat()
        rig.tick(1000, step_ms=500)
    assert rig.epoch(producer, 1) is None
    assert drained.reasons(drained.followers) == {Reason.NONE}
