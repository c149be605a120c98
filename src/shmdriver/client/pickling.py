"""Objects as messages, for queues: a pickle, and beside it the large buffers that it refers to.

    without buffers   the pickle
    with buffers      u64 count | u64 pickle bytes | u64 bytes of each buffer | pickle | buffers at 64s

Buffers (numpy's elements, protocol 5) are copied once into shared memory and once out of it, past the pickle.
An array arrives writable, also one that was read-only: it is its getter's. Both formats are private to one
version of this package.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

__all__ = ["Encoder", "decode", "decode_with_buffers"]

PROTOCOL = 5
BESIDE_FROM_BYTES = 4096  # smaller buffers are cheaper inside the pickle
ALIGN = 64
_HEAD = struct.Struct("<QQ")

NO_BUFFERS: list[memoryview] = []
decode = pickle.loads


class _Out:
    """What a pickler writes into: a small pickle is one piece, which is taken as it is."""

    __slots__ = ("write", "written")

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.write = self.written.append


class _Reducers(dict[type, Callable[[Any], Any]]):
    """multiprocessing's reducers, and ours for numpy's arrays, which are found without an import of numpy."""

    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        if kind.__module__ == "numpy" and kind.__qualname__ == "ndarray":
            return _reduce_array
        raise KeyError(kind)


def _reduce_array(array: Any) -> Any:
    """As numpy does it. A read-only array's memory would arrive as read-only memory: that is undone there."""
    reduced = array.__reduce_ex__(PROTOCOL)
    make, arguments = reduced[:2]
    if array.flags.writeable or not arguments or not isinstance(arguments[0], pickle.PickleBuffer):
        return reduced
    return _array_of_own_memory, (make, *arguments)


def _array_of_own_memory(make: Callable[..., Any], memory: Any, *rest: Any) -> Any:
    """Where it arrives: nobody else has ``memory``, a part of the payload or a small copy."""
    if isinstance(memory, memoryview) and isinstance(memory.obj, bytearray):
        import numpy as np

        whole = np.frombuffer(memory.obj, np.uint8)
        start = np.frombuffer(memory, np.uint8).ctypes.data - whole.ctypes.data
        return make(whole[start : start + memory.nbytes], *rest)
    return make(bytearray(memory), *rest)


class Encoder:
    """Pickles objects one by one as multiprocessing does (its reducers count), without a new pickler each."""

    __slots__ = ("_buffers", "_clear_memo", "_dump", "_written")

    def __init__(self) -> None:
        out = _Out()
        self._written = out.written
        self._buffers: list[pickle.PickleBuffer] = []
        pickler: Any = ForkingPickler(out, PROTOCOL, True, self._beside)
        pickler.dispatch_table = _Reducers(pickler.dispatch_table)
        self._dump = pickler.dump
        self._clear_memo = pickler.clear_memo

    def encode(self, obj: object) -> tuple[bytes, list[memoryview]]:
        """The pickle of ``obj``, or a head and the pickle; and the buffers that follow it.

        The buffers are the object's own memory: use them before it can change.
        """
        written = self._written
        try:
            self._clear_memo()
            self._dump(obj)
            if len(written) == 1 and not self._buffers:
                return written.pop(), NO_BUFFERS
            pickled = b"".join(written)
            buffers = [buffer.raw() for buffer in self._buffers]
        except BaseException:
            written.clear()
            self._buffers.clear()
            raise
        written.clear()
        self._buffers.clear()
        if not buffers:
            return pickled, NO_BUFFERS
        head = _HEAD.pack(len(buffers), len(pickled)) + struct.pack(
            f"<{len(buffers)}Q", *(len(buffer) for buffer in buffers)
        )
        return head + pickled, buffers

    def _beside(self, buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < BESIDE_FROM_BYTES:
            return True  # into the pickle
        self._buffers.append(buffer)
        return False


def chunks_of(head: bytes, buffers: list[memoryview]) -> Iterator[memoryview]:
    """What stands in the message, piece by piece, with the gaps before buffers."""
    at = len(head)
    yield memoryview(head)
    for buffer in buffers:
        gap = -at % ALIGN
        if gap:
            yield memoryview(bytes(gap))
        yield buffer
        at += gap + len(buffer)


def size_of(head: bytes, buffers: list[memoryview]) -> int:
    """How long the message is, in bytes."""
    at = len(head)
    for buffer in buffers:
        at += -at % ALIGN + len(buffer)
    return at


def decode_with_buffers(payload: bytearray) -> Any:
    """The object; its buffers are parts of ``payload``, which becomes theirs: writable, not copied again."""
    whole = memoryview(payload)
    count, pickled = _HEAD.unpack_from(whole)
    sizes = struct.unpack_from(f"<{count}Q", whole, _HEAD.size)
    start = _HEAD.size + 8 * count
    at = start + pickled
    buffers = []
    for size in sizes:
        at += -at % ALIGN
        buffers.append(whole[at : at + size])
        at += size
    return pickle.loads(whole[start : start + pickled], buffers=buffers)  # noqa: S301 -- from processes that share this instance
