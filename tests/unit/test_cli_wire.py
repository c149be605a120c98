"""Cutting byte streams into messages and putting them back."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shmdriver.cli import wire

PipeOf = Callable[[bytes], int]


@pytest.fixture
def pipe_of() -> Iterator[PipeOf]:
    """Makes a pipe that holds some bytes and then ends."""
    opened: list[int] = []

    def make(data: bytes) -> int:
        reader, writer = os.pipe()
        opened.append(reader)
        assert os.write(writer, data) == len(data)
        os.close(writer)
        return reader

    yield make
    for fd in opened:
        os.close(fd)


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"x", b"one\ntwo\n", b"one\ntwo", b"\r\n\r\n\n", bytes(range(256)), b"\n" * 7, b"y" * 1000],
)
@pytest.mark.parametrize("limit", [1, 3, 4, 4096])
def test_lines_are_the_identity_and_keep_newlines(pipe_of: PipeOf, data: bytes, limit: int) -> None:
    pieces = list(wire.lines(pipe_of(data), limit))
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert all(b"\n" not in piece[:-1] for piece in pieces)


def test_lines_are_whole_when_they_fit(pipe_of: PipeOf) -> None:
    assert list(wire.lines(pipe_of(b"a\nbc\n\nd"), 100)) == [b"a\n", b"bc\n", b"\n", b"d"]


def test_chunks_are_bounded(pipe_of: PipeOf) -> None:
    pieces = list(wire.chunks(pipe_of(b"z" * 100), 33))
    assert [len(piece) for piece in pieces] == [33, 33, 33, 1]


def test_length_prefixed_frames() -> None:
    frames = [b"", b"a", b"\0" * 300]
    data = b"".join(wire.LENGTH.pack(len(frame)) + frame for frame in frames)
    assert list(wire.length_prefixed(io.BytesIO(data))) == frames


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"\1\0", "2 of 4 bytes"), (struct.pack("<I", 10) + b"abc", "announces 10 bytes, but only 3")],
)
def test_truncated_frames_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(wire.WireError, match=words):
        list(wire.length_prefixed(io.BytesIO(data)))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype="<f4").reshape(3, 4),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(7, dtype=">u2"),
        np.zeros((0, 5)),
        np.array([(1, 2.0)], dtype=[("a", "<i4"), ("b", "<f8")]),
    ],
    ids=["c", "fortran", "scalar", "empty", "records"],
)
def test_arrays_survive_npy(array: np.ndarray) -> None:
    data = wire.npy_bytes(array)
    read = list(wire.arrays(io.BytesIO(data * 2)))
    assert len(read) == 2
    for one in read:
        assert one.dtype == array.dtype
        assert one.shape == array.shape
        assert np.array_equal(one, array)


def test_numpy_reads_what_npy_bytes_writes() -> None:
    array = np.arange(10)
    assert np.array_equal(np.load(io.BytesIO(wire.npy_bytes(array))), array)


@pytest.mark.parametrize(
    "data",
    [b"not an array", wire.npy_bytes(np.arange(10))[:-1], wire.npy_bytes(np.arange(10))[:20]],
    ids=["garbage", "data cut", "header cut"],
)
def test_bad_npy_is_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError, match="array 0"):
        list(wire.arrays(io.BytesIO(data)))


def test_pickled_arrays_are_refused() -> None:
    out = io.BytesIO()
    np.save(out, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(wire.WireError, match="Python objects"):
        list(wire.arrays(io.BytesIO(out.getvalue())))


def test_write_all_takes_everything(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("wb") as file:
        wire.write_all(file.fileno(), b"")
        wire.write_all(file.fileno(), np.arange(5, dtype="<u4").data)
    assert path.read_bytes() == np.arange(5, dtype="<u4").tobytes()


def test_default_format_follows_the_kind_of_input(tmp_path: Path, pipe_of: PipeOf) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        assert wire.default_format(file.fileno()) == "raw"
    assert wire.default_format(pipe_of(b"")) == "lines"
