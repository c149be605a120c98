"""Waiting for several consumers, and the patience of one that waits for a producer."""

# ruff: noqa: SLF001 - the pieces of the client know each other's insides; users see none of them

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shmdriver._native import ffi, lib
from shmdriver.client import directory
from shmdriver.client._raise import raise_for
from shmdriver.client.attempts import news
from shmdriver.client.boundary import boundary
from shmdriver.client.link import Deadline

if TYPE_CHECKING:
    from shmdriver.client.consumer import Consumer

__all__ = ["Patience", "wait", "wait_for_any"]

_WARN_AFTER_NS = 5_000_000_000
_PACKAGE = "shmdriver."
_INTERRUPTED = int(lib.SHMD_E_INTERRUPTED)


class Patience:
    """Warns once when a consumer has waited long for a first producer, with the nearest stream name."""

    __slots__ = ("_over", "_since_ns")

    def __init__(self) -> None:
        self._since_ns = 0
        self._over = False  # it has seen a producer, or has warned

    def look(self, consumer: Consumer) -> None:
        """Called after every slice of a wait in which nothing came."""
        if self._over:
            return
        now_ns = time.monotonic_ns()
        info = consumer._info()
        if info.epoch or info.consumed:  # between two epochs none is mapped
            self._over = True
        elif self._since_ns == 0:
            self._since_ns = now_ns
        elif now_ns - self._since_ns >= _WARN_AFTER_NS:
            self._over = True
            near = directory.nearest_stream(consumer._link.authority, consumer.stream)
            hint = f"; did you mean {near!r}?" if near else ""
            warnings.warn(
                f"stream {consumer.stream!r}: no producer for {_WARN_AFTER_NS // 10**9} s{hint}",
                stacklevel=_callers_level(),
            )


def _callers_level() -> int:
    """The stacklevel, for a warning of who calls this, of the frame that called this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level


@boundary
def wait(consumers: Sequence[Consumer], timeout: float | None = None) -> list[Consumer]:
    """Waits until one of several consumers has something to read: a message, or its stream's end.

    Those that do, in the order given; none when that took longer than ``timeout`` seconds.
    """
    for consumer in consumers:
        consumer._check_open()
    attached = news()  # before the looks at those that wait for a driver (H3)
    ready = [each for each in consumers if each.buffered or (each._is_away and _has_something(each))]
    deadline = Deadline(timeout)
    different = list(dict.fromkeys(consumers))
    while not ready:
        slice_ns = deadline.slice_ns()
        there = [consumer for consumer in different if not consumer._is_away]
        wait_for_any(there, slice_ns, [attached], doing="waiting for several consumers")
        attached = news()
        ready = [consumer for consumer in consumers if _has_something(consumer)]
        if slice_ns == 0:
            break
        if not ready:
            for consumer in there:
                consumer._leave_a_dead_driver()
    return ready


def wait_for_any(
    consumers: Sequence[Consumer], slice_ns: int, words: Sequence[tuple[Any, int]], **context: str
) -> int:
    """Sleeps until one of ``consumers`` has something; 0: none had. Raises by ``context`` what ended one.

    Also until one of ``words``, futex words and what was seen there, is another.
    """
    # Of its own: none is freed before the call is over, whoever closes a consumer meanwhile.
    handles = [consumer._open_handle for consumer in consumers]
    native, others = ffi.new("shmd_consumer *[]", handles), ffi.new("shmd_word_t[]", list(words))
    code = int(lib.shmd_guarded_wait_many(native, len(handles), slice_ns, others, len(words)))
    if code < 0 and code != _INTERRUPTED:
        raise_for(code, **context)
    return code


def _has_something(consumer: Consumer) -> bool:
    code = consumer._look()
    if code < 0 and not consumer._comes_back(code):
        return True  # the next read raises
    return not consumer._is_away and bool(lib.shmd_guarded_wait(consumer._open_handle, 0))
