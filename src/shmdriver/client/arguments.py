"""Checks the arguments of public calls: counts, sizes, shapes, choices. Each error names its argument.

Whole numbers are what ``operator.index`` takes (an int, numpy's integers), so that nothing is cut. Timeouts
are read by :class:`~shmdriver.client.link.Deadline`; the type of a message and the length of a claim in C,
which takes them once a message (csrc/python/shmd_py_producer.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

from shmdriver import names
from shmdriver._native import lib

__all__ = ["choice", "extents_of", "limit_of", "meta_of", "shard_of", "size", "whole"]

_EXTENT_MAX = 2**63 - 1


def whole(argument: str, value: Any, expected: str = "an int") -> int:
    """A whole number. Raises TypeError."""
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{argument}={value!r}: expected {expected}") from None


def size(argument: str, value: int | None, default: int, limit: int, least: int = 0) -> int:
    """A count or a number of bytes from ``least`` to ``limit``. Raises TypeError, ValueError."""
    if value is None:
        return default
    number = whole(argument, value, f"an int from {least} to {limit}")
    if not least <= number <= limit:
        raise ValueError(f"{argument}={number}: expected {least} to {limit}")
    return number


def limit_of(limit: int | None) -> int | None:
    """The most records that a batch may have; None: no limit. Raises TypeError, ValueError."""
    if limit is None:
        return None
    number = whole("limit", limit, "an int of 1 or more, or None")
    if number < 1:
        raise ValueError(f"limit of {number} records: expected 1 or more")
    return number


def shard_of(shard: tuple[int, int]) -> tuple[int, int]:
    """``shard`` as (k, n). Raises TypeError, ValueError."""
    try:
        part, count = (index(number) for number in shard)
    except (TypeError, ValueError):
        raise TypeError(f"shard={shard!r}: expected (k, n), as (0, 4) for the first of four") from None
    if not 0 <= part < count <= lib.SHMD_GATE_MAX:
        raise ValueError(f"shard={shard!r}: expected (k, n) with 0 <= k < n <= {int(lib.SHMD_GATE_MAX)}")
    return part, count


def extents_of(shape: int | Sequence[int]) -> tuple[int, ...]:
    """The shape of an array. Raises TypeError, ValueError."""
    extents: tuple[int, ...]
    try:
        extents = (index(shape),)  # type: ignore[arg-type]
    except TypeError:
        try:
            extents = tuple(index(each) for each in shape)  # type: ignore[union-attr]
        except TypeError:
            raise TypeError(f"shape={shape!r}: expected an int, or a sequence of ints") from None
    if extents and not 0 <= min(extents) <= max(extents) <= _EXTENT_MAX:
        raise ValueError(f"shape {extents}: extents are at least 0, and at most {_EXTENT_MAX}")
    return extents


def meta_of(meta: Any) -> bytes:
    """The bytes that go with an array. Raises TypeError."""
    if isinstance(meta, bytes):
        return meta
    try:
        return memoryview(meta).tobytes()
    except TypeError:
        hint = "; encode text first: text.encode()" if isinstance(meta, str) else ""
        raise TypeError(f"meta={meta!r}: expected bytes or another buffer{hint}") from None


def choice(argument: str, value: str | None, known: dict[Any, int]) -> int:
    """The number that ``value`` stands for. Raises ValueError, which names the nearest that is known."""
    try:
        return known[value]
    except (KeyError, TypeError):
        near = names.nearest(str(value), [name for name in known if name])
        hint = f"; did you mean {near!r}?" if near else ""
        raise ValueError(
            f"{argument}={value!r}: expected one of {', '.join(repr(name) for name in known if name)}{hint}"
        ) from None
