"""Which places in shared memory live Python objects still refer to.

Everything that is handed out in place (a message, an array, a batch) is a view of one Message object
that lies there: memoryviews, their slices, and numpy arrays with all that is derived from them keep it
alive, and its end tells the mapping (csrc/python/shmd_py_mapping.c) that the place is free. A reliable
consumer's gate never passes the oldest such place.

A Mapping owns one epoch's mapped memory for Python. When its consumer goes on or closes while such
messages live, they keep it, and the last of them to die unmaps it.
"""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Self

from shmdriver._native import ffi, lib
from shmdriver.client.directory import epoch_hot
from shmdriver.client.hotpath import MappingCore

if TYPE_CHECKING:
    from shmdriver.client.consumer import Consumer

__all__ = ["Mapping"]


class Mapping(MappingCore):
    """One epoch's memory and the live views in it."""

    __slots__ = ("_consumer", "_gate", "_hot", "_lease_id", "_native", "_protected")

    _consumer: weakref.ref[Consumer]
    _native: Any
    _hot: Any
    _gate: int
    _lease_id: int
    _protected: bool

    @classmethod
    def of(cls, consumer: Consumer, serial: int) -> Self:
        """Of the epoch that ``consumer`` has mapped now."""
        info = consumer._info()
        held = ffi.gc(ffi.new("shmd_mapping **"), lib.shmd_mapping_drop)  # owns the hold until `self` does
        code = lib.shmd_guarded_consumer_mapping(consumer._open_handle, held)
        if code != 0:
            raise consumer._failure(code)
        native = held[0]
        self = cls(int(ffi.cast("uintptr_t", held)), serial)
        self._native = native
        self._consumer = weakref.ref(consumer)
        self._hot = epoch_hot(consumer._link.authority, info.stream_index, info.epoch) or ffi.NULL
        self._gate, self._lease_id = int(info.gate_index), int(info.lease_id)
        self._protected = True
        return self

    def protected(self) -> bool:
        """Whether what was handed out is still what was published; all places lose protection together."""
        consumer = self._consumer()  # keeps the authority mapped, also while it closes
        if self._protected and (
            consumer is None
            or not lib.shmd_mapping_protects(self._native, self._hot, self._gate, self._lease_id)
        ):
            self._protected = False
        return self._protected

    def expose(self) -> None:
        """The gate is gone while the epoch goes on: what is handed out may be overwritten."""
        self._protected = False
