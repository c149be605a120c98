"""Which places in shared memory live Python objects still refer to.

Everything that is handed out in place (a message's payload, an array, a batch) is a view of one
*exporter*: an ``ffi.buffer`` of the payload. memoryviews, their slices, and numpy arrays with all
that is derived from them keep the exporter alive, so a weak reference to it tells whether the place
is still in use. A reliable consumer's gate never passes the oldest such place.

A Mapping owns one epoch's mapped memory for Python. When its consumer goes on or closes while
exporters live, it stays, and the last exporter to die unmaps it.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from shmdriver._native import ffi, lib
from shmdriver.client.directory import Gate

if TYPE_CHECKING:
    from shmdriver.client.consumer import Consumer

__all__ = ["NOTHING_HELD", "Mapping", "SpareBuffers", "keep_mapped"]

NOTHING_HELD = 2**64 - 1

_buffer = ffi.buffer
_reference = weakref.ref


class Mapping:
    """One epoch's memory and the live views in it, oldest first."""

    __slots__ = ("_consumer", "_gate", "_pointer", "_protected", "live", "serial")

    def __init__(self, consumer: Consumer, serial: int) -> None:
        """Of the epoch that ``consumer`` has mapped now."""
        info = consumer._info()
        pointer = lib.shmd_consumer_mapping(consumer._handle)
        lib.shmd_mapping_hold(pointer)
        self._consumer = weakref.ref(consumer)
        self._gate = Gate(consumer._link.authority, info.stream_index, info.epoch, info.gate_index)
        self._pointer: Any = pointer
        self.serial = serial
        self.live: deque[tuple[int, weakref.ref[Any]]] = deque()
        self._protected = True

    def place(self, seq: int, data: Any, length: int) -> Any:
        """An exporter of ``length`` bytes at ``data``, the place of message ``seq``."""
        exporter = _buffer(data, length)
        self.live.append((seq, _reference(exporter)))
        return exporter

    def hold_seq(self) -> int:
        """The oldest seq that is still referred to; NOTHING_HELD when there is none."""
        live = self.live
        while live:
            seq, reference = live[0]
            if reference() is not None:
                return seq
            live.popleft()
        return NOTHING_HELD

    def held(self) -> int:
        """How many places are referred to."""
        return sum(reference() is not None for _, reference in self.live)

    def protected(self) -> bool:
        """Whether no producer can overwrite what was handed out; all places lose protection together."""
        consumer = self._consumer()
        if self._protected and consumer is not None and not consumer.closed and not self._gate.stands():
            self._protected = False
        return self._protected

    def expose(self) -> None:
        """The gate is gone while the epoch goes on: what is handed out may be overwritten."""
        self._protected = False

    def let_go(self) -> None:
        """The consumer needs it no more; unmaps now, or when the last live view dies."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            keep_mapped(pointer, [reference for _, reference in self.live])
        self.live.clear()


class _Orphan:
    """Mapped memory without a handle, while live views of it remain."""

    __slots__ = ("_pointer", "_watches")

    def __init__(self, pointer: Any) -> None:
        self._pointer = pointer
        self._watches: dict[int, weakref.ref[Any]] = {}  # by identity: buffers have no hash

    def watch(self, exporter: Any) -> None:
        reference = weakref.ref(exporter, self._view_gone)
        self._watches[id(reference)] = reference

    def settle(self) -> None:
        """All exporters are watched. One that died since has been counted by its callback."""
        if self._watches:
            _ORPHANS.add(self)
        if not self._watches:
            self._free()

    def _view_gone(self, reference: weakref.ref[Any]) -> None:
        self._watches.pop(id(reference), None)
        if not self._watches and self in _ORPHANS:
            self._free()

    def _free(self) -> None:
        _ORPHANS.discard(self)
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            lib.shmd_mapping_free(pointer)


# Memory whose handle has let go and that live views still need.
_ORPHANS: set[_Orphan] = set()


def keep_mapped(pointer: Any, exporters: Iterable[weakref.ref[Any]]) -> None:
    """Gives up one hold of a mapping: now, or when the last of ``exporters`` that lives has died."""
    orphan = _Orphan(pointer)
    for reference in exporters:
        exporter = reference()
        if exporter is not None:
            orphan.watch(exporter)
        del exporter
    orphan.settle()


class SpareBuffers:
    """Private buffers that went out with large copies, to be used again when nothing refers to them."""

    __slots__ = ("_out",)

    _KEPT = 4

    def __init__(self) -> None:
        self._out: list[tuple[Any, weakref.ref[Any]]] = []

    def exchange(self, buffer: Any, exporter: Any) -> Any:
        """Gives ``buffer`` out while ``exporter`` lives. One of its size that came back, else None."""
        self._out = [(other, user) for other, user in self._out if len(other) == len(buffer)][-self._KEPT :]
        free = next((index for index, (_, user) in enumerate(self._out) if user() is None), None)
        spare = None if free is None else self._out.pop(free)[0]
        self._out.append((buffer, weakref.ref(exporter)))
        return spare
