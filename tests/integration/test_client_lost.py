"""``lost`` counts the gaps before what was handed out last, also where messages are fetched ahead in runs."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmdriver
from shmdriver._native import lib

SLOTS = 64
MARK = b"mark %02d"


@pytest.fixture
def client(instance_name: str) -> Iterator[Any]:
    with shmdriver.embedded(instance_name) as client:
        yield client


def spoil(client: Any, payload: bytes, seq: int) -> None:
    """Makes the slot of one message look as if the next lap had overwritten it."""
    (stream,) = client.streams()
    (epoch,) = stream.epochs
    with (
        Path("/dev/shm", epoch.data_name.removeprefix("/")).open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as memory,
    ):
        at = memory.find(payload) - lib.SHMD_SLOT_HEADER_BYTES
        assert struct.unpack_from("<Q", memory, at) == (seq << 1 | 1,)
        struct.pack_into("<Q", memory, at, (seq + SLOTS) << 1 | 1)


@pytest.mark.fault(9, how="slots overwritten inside a run that is fetched ahead")
def test_a_gap_counts_from_the_message_that_follows_it(client: Any) -> None:
    with client.producer("s", slots=SLOTS) as out, client.consumer("s", delivery="lossy") as into:
        for number in range(10):
            out.publish(MARK % number)
        spoil(client, MARK % 5, 5)
        spoil(client, MARK % 8, 8)
        seen = []
        for _ in range(8):
            seq = into.read(timeout=60).seq
            seen.append((seq, into.lost, [(gap.first, gap.last) for gap in into.lost_ranges]))
        assert seen[:5] == [(seq, 0, []) for seq in range(5)]
        assert seen[5:7] == [(seq, 1, [(5, 5)]) for seq in (6, 7)]
        assert seen[7:] == [(9, 2, [(5, 5), (8, 8)])]
        assert into.read(timeout=0) is None
        assert into.lost == 2
    assert into.lost == 2


def test_a_gap_at_the_end_counts_with_the_end(client: Any) -> None:
    with client.consumer("s", delivery="lossy") as into:
        with client.producer("s", slots=SLOTS) as out:
            for number in range(10):
                out.publish(MARK % number)
            spoil(client, MARK % 9, 9)
        for number in range(9):
            assert into.read(timeout=60).seq == number
            assert into.lost == 0
        with pytest.raises(shmdriver.EndOfStream):
            into.read(timeout=60)
        assert (into.lost, len(into.lost_ranges)) == (1, 1)


def test_a_gap_counts_from_the_batch_that_follows_it(client: Any) -> None:
    kind = np.dtype("<u8")
    with client.producer("s", dtype=kind, slots=SLOTS) as out, client.consumer("s", delivery="lossy") as into:
        values = np.arange(10, dtype=kind) + 0x1122334455667700
        out.publish(values)
        spoil(client, values[5:6].tobytes(), 5)
        batches = [(list(into.read_batch(timeout=60) - values[0]), into.lost) for _ in range(2)]
        assert batches == [([0, 1, 2, 3, 4], 0), ([6, 7, 8, 9], 1)]
