"""Messages that can be checked: who wrote them, their number, and a checksum over all of it."""

from __future__ import annotations

import mmap
import random
import struct
import zlib
from pathlib import Path

HEAD = struct.Struct("<QQI")  # writer, number, length of the filler
TAIL = struct.Struct("<I")  # CRC-32 of all before
NOISE = random.Random(20260101).randbytes(1 << 17)
SIZES = (
    0,
    1,
    20,
    64,
    7,
    33,
    8,
    100,
    3000,
    12,
    0,
    5,
    57,
    9000,
    40,
    16,
)  # inline and, past a slot, in the arena
LARGEST = HEAD.size + max(SIZES) + TAIL.size


def payload(writer: int, number: int, size: int | None = None) -> bytes:
    """Message ``number`` of ``writer``, with ``size`` bytes of filler (None: a mixture)."""
    length = SIZES[number % len(SIZES)] if size is None else size
    start = (number * 131 + writer * 7919) % (len(NOISE) - length)
    body = HEAD.pack(writer, number, length) + NOISE[start : start + length]
    return body + TAIL.pack(zlib.crc32(body))


class TornMessage(Exception):
    """A message whose checksum or length is wrong."""


def check(data: bytes) -> tuple[int, int]:
    """(writer, number) of a whole message."""
    if len(data) < HEAD.size + TAIL.size:
        raise TornMessage(f"{len(data)} bytes, shorter than any message")
    writer, number, length = HEAD.unpack_from(data)
    if len(data) != HEAD.size + length + TAIL.size:
        raise TornMessage(
            f"writer {writer}, number {number}: {len(data)} bytes, its head says {length} of filler"
        )
    if zlib.crc32(data[: -TAIL.size]) != TAIL.unpack_from(data, len(data) - TAIL.size)[0]:
        raise TornMessage(f"writer {writer}, number {number}: wrong checksum")
    return writer, number


class Board:
    """A few numbers that a process keeps writing, and that stay readable when it is killed."""

    WORDS = 8
    SENT, RECEIVED, WRITER, FAILURES = range(4)

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * self.WORDS))
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 8 * self.WORDS)).cast("Q")

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value
