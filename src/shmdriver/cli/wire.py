"""What stands between messages on a pipe or in a file.

Each format is a pair: a function that cuts a byte stream into messages, and one that puts messages back.

=================  ===========================================  =======================================
format             pub cuts                                     sub writes
=================  ===========================================  =======================================
raw                chunks of whatever size is there             the payloads, one after the other
lines              after each newline, which it keeps           the same, so both together are the identity
length-prefixed    u32 little endian, then that many bytes      the same
npy                one array a message (a series of .npy)       the same
=================  ===========================================  =======================================

The default of pub is lines for terminals and pipes, raw for files; whichever it is, ``sub`` writes the
payloads one after the other, and what comes out is what went in, to the bit.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from shmdriver.errors import ShmDriverError

LENGTH = struct.Struct("<I")
READ_BYTES = 1 << 16


class WireError(ShmDriverError):
    """The input does not follow the chosen format."""


def default_format(fd: int) -> str:
    """``raw`` for a regular file or a block device, ``lines`` for everything that trickles."""
    mode = os.fstat(fd).st_mode
    return "raw" if stat.S_ISREG(mode) or stat.S_ISBLK(mode) else "lines"


def chunks(fd: int, chunk_bytes: int) -> Iterator[bytes]:
    """Whatever is there, at most ``chunk_bytes`` at a time, without waiting for more."""
    while data := os.read(fd, chunk_bytes):
        yield data


def lines(fd: int, line_bytes_max: int) -> Iterator[bytes]:
    """Lines with their newline, as soon as they are complete; longer ones in pieces of ``line_bytes_max``."""
    pending = b""
    while data := os.read(fd, READ_BYTES):
        *complete, pending = (pending + data).split(b"\n")
        for line in complete:
            yield from _pieces(line + b"\n", line_bytes_max)
        while len(pending) >= line_bytes_max:
            yield pending[:line_bytes_max]
            pending = pending[line_bytes_max:]
    if pending:
        yield from _pieces(pending, line_bytes_max)


def _pieces(line: bytes, size: int) -> Iterator[bytes]:
    if len(line) <= size:
        yield line
        return
    for start in range(0, len(line), size):
        yield line[start : start + size]


def length_prefixed(source: BinaryIO) -> Iterator[bytes]:
    """Frames of a u32 (little endian) and that many bytes. Raises WireError at a truncated one."""
    count = 0
    while head := source.read(LENGTH.size):
        if len(head) < LENGTH.size:
            raise WireError(f"the input ends inside the length of message {count}: {len(head)} of 4 bytes")
        (size,) = LENGTH.unpack(head)
        body = source.read(size)
        if len(body) < size:
            raise WireError(
                f"message {count} announces {size} bytes, but only {len(body)} follow: truncated input, "
                "or not length-prefixed (u32, little endian) at all"
            )
        yield body
        count += 1


def arrays(source: BinaryIO) -> Iterator[Any]:
    """Arrays of one .npy file or of several, one after the other. Raises WireError."""
    import numpy as np

    stream: Any = source if isinstance(source, io.BufferedReader) else io.BufferedReader(cast("Any", source))
    count = 0
    while stream.peek(1):
        try:
            yield _array(np, stream)
        except (ValueError, EOFError) as error:
            raise WireError(f"array {count} of the input is not a .npy array: {error}") from error
        count += 1


def _array(np: Any, stream: Any) -> Any:
    # numpy.load wants to seek and to use the file descriptor; a pipe can do neither.
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which cannot be shared")
    count = 1
    for length in shape:
        count *= length
    data = stream.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise EOFError(f"{len(data)} of {count * dtype.itemsize} bytes")
    array = np.frombuffer(data, dtype=dtype, count=count)
    return array.reshape(shape, order="F" if fortran else "C")


def npy_bytes(array: Any) -> bytes:
    """One array as a .npy file."""
    import numpy as np

    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=False)
    return out.getvalue()


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Everything, also into a pipe that takes it in pieces. Raises BrokenPipeError."""
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while view.nbytes:
        view = view[os.write(fd, view) :]
