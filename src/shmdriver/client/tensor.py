"""Arrays of any shape and dtype as messages: a head that says what follows, then the elements.

    shmd_tensor (16 bytes) | u64 shape[ndim] | dtype text | meta | zeros up to a multiple of 64 | elements

The head of the last few kinds of arrays is kept, because a camera sends the same one every time.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from shmdriver._native import lib
from shmdriver.client.records import check_unmasked, description_of, dtype_of
from shmdriver.errors import ShmDriverError

__all__ = ["FLAG", "HEAD_BYTES_MAX", "check_unmasked", "decode", "head_of", "view_of"]

FLAG = int(lib.SHMD_FLAG_TENSOR)
_FIXED = struct.Struct("<IHHBBB5x")
_VERSION = 1
_ALIGN = 64
_DIMS_MAX = int(lib.SHMD_TENSOR_DIMS_MAX)
_META_MAX = int(lib.SHMD_TENSOR_META_MAX)
_DTYPE_MAX = int(lib.SHMD_TENSOR_DTYPE_MAX)
# What a producer adds to its max_message, so that an array of max_message bytes fits with an ordinary head.
HEAD_BYTES_MAX = 512


@lru_cache(maxsize=64)
def head_of(shape: tuple[int, ...], dtype: np.dtype[Any], fortran: bool, meta: bytes) -> bytes:
    """The head for an array. TypeError and ValueError for what cannot be sent."""
    if len(shape) > _DIMS_MAX:
        raise ValueError(f"array of {len(shape)} dimensions: at most {_DIMS_MAX}")
    if len(meta) > _META_MAX:
        raise ValueError(f"meta of {len(meta)} bytes: at most {_META_MAX}")
    text = description_of(dtype).encode()
    if len(text) > _DTYPE_MAX:
        raise ValueError(f"dtype description of {len(text)} bytes: at most {_DTYPE_MAX}")
    body = struct.pack(f"<{len(shape)}Q", *shape) + text + meta
    total = -(-(_FIXED.size + len(body)) // _ALIGN) * _ALIGN
    fixed = _FIXED.pack(total, len(text), len(meta), _VERSION, len(shape), fortran)
    return (fixed + body).ljust(total, b"\0")


def decode(head: bytes, data: memoryview) -> tuple[np.ndarray[Any, np.dtype[Any]], bytes]:
    """The array whose elements are ``data``, in place, and its meta. ShmDriverError: it is no array.

    The C core has cut the payload there; an empty ``head`` says that it could not.
    """
    if not head:
        raise ShmDriverError(f"array message of {len(data)} bytes: its head is impossible")
    try:
        shape, dtype, order, meta, count = _layout(head)
        if len(data) != count * dtype.itemsize:
            raise ShmDriverError(
                f"array message with {len(data)} bytes of elements: "
                f"shape {shape} of {dtype} has {count * dtype.itemsize}"
            )
        return view_of(data, shape, dtype, order), meta
    except (ValueError, TypeError, SyntaxError, OverflowError) as error:  # a dtype or a shape that is none
        raise ShmDriverError(f"array message whose head makes no array: {error}") from error


def view_of(
    data: memoryview, shape: tuple[int, ...], dtype: np.dtype[Any], order: str, start: int = 0
) -> np.ndarray[Any, np.dtype[Any]]:
    """An array over ``data`` from its byte ``start`` on, as writable as that is.

    By way of frombuffer, which keeps the memoryview itself: an array made directly would keep what is
    behind it, and let ``flags.writeable = True`` undo the protection.
    """
    layout: Literal["C", "F"] = "F" if order == "F" else "C"
    if len(data) == start:
        empty = np.empty(shape, dtype, layout)
        empty.flags.writeable = not data.readonly
        return empty
    return np.ndarray(shape, dtype, np.frombuffer(data, np.uint8), start, None, layout)


@lru_cache(maxsize=64)
def _layout(head: bytes) -> tuple[tuple[int, ...], np.dtype[Any], str, bytes, int]:
    _, dtype_bytes, meta_bytes, version, ndim, fortran = _FIXED.unpack_from(head)
    if version != _VERSION:
        raise ShmDriverError(f"array message of version {version}: this build reads version {_VERSION}")
    shape_end = _FIXED.size + 8 * ndim
    meta_start = shape_end + dtype_bytes
    if ndim > _DIMS_MAX or meta_bytes > _META_MAX or meta_start + meta_bytes > len(head):
        raise ShmDriverError(
            f"array message with a head of {len(head)} bytes that does not hold what it announces"
        )
    shape = struct.unpack_from(f"<{ndim}Q", head, _FIXED.size)
    dtype = dtype_of(head[shape_end:meta_start].decode())
    if dtype.hasobject:
        raise ShmDriverError(f"array message with dtype {dtype}: Python objects are refused")
    count = 1
    for extent in shape:
        count *= extent
    return shape, dtype, "F" if fortran else "C", head[meta_start : meta_start + meta_bytes], count
