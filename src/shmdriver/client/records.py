"""numpy dtypes as schemas: one canonical text for each, and the difference of two in words.

What has no text that means just it is refused: another process would take it for something else.
"""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from shmdriver._native import lib
from shmdriver.errors import SchemaMismatch

__all__ = ["as_dtype", "check_unmasked", "description_of", "difference", "dtype_of", "schema_of"]

_SCHEMA_BYTES_MAX = int(lib.SHMD_SCHEMA_BYTES) - 1
_RECORD_BYTES_MAX = int(lib.SHMD_SLOT_BYTES_MAX) - int(lib.SHMD_SLOT_HEADER_BYTES)


def as_dtype(dtype: Any) -> np.dtype[Any]:
    """A dtype that records can have. TypeError: Python objects, empty records; ValueError: too large."""
    result: np.dtype[Any] = np.dtype(dtype)
    if result.hasobject:
        raise TypeError(
            f"dtype {result}: Python objects cannot live in shared memory; use numbers and fixed-size bytes"
        )
    if result.itemsize == 0:
        raise TypeError(f"dtype {result}: a record must have at least one byte")
    if result.itemsize > _RECORD_BYTES_MAX:
        raise ValueError(
            f"dtype of {result.itemsize} bytes: records are at most {_RECORD_BYTES_MAX} bytes; "
            "publish larger things with publish_array"
        )
    return result


def schema_of(dtype: np.dtype[Any]) -> str:
    """:func:`description_of`, as long as the directory keeps it."""
    text = description_of(dtype)
    if len(text.encode()) > _SCHEMA_BYTES_MAX:
        raise ValueError(
            f"schema of {len(text.encode())} bytes: the directory keeps at most {_SCHEMA_BYTES_MAX}; "
            "use shorter or fewer field names"
        )
    return text


def description_of(dtype: np.dtype[Any]) -> str:
    """The canonical text of ``dtype``, the same on every machine and in every process. TypeError: none."""
    if dtype.hasobject:
        raise TypeError(f"dtype {dtype}: Python objects cannot live in shared memory")
    if dtype.subdtype is not None:
        raise TypeError(
            f"dtype {dtype}: numpy describes a bare subarray without its shape; make it a field, as "
            f"[('values', {dtype.subdtype[0].str!r}, {dtype.subdtype[1]})], or part of the array's shape"
        )
    try:
        text = repr(np.lib.format.dtype_to_descr(dtype))
    except ValueError as error:
        raise TypeError(f"dtype {dtype}: numpy has no description of it: {error}") from error
    if dtype_of(text) != dtype:
        raise TypeError(
            f"dtype {dtype}: numpy describes it only as {text}, which is something else in another process; "
            "publish its bits, as array.view('u1') or 'u2', and read them as what they are"
        )
    return text


def check_unmasked(array: Any) -> None:
    """TypeError for a masked array: its mask would not travel, and its hidden values would."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            "a masked array would lose its mask: publish array.filled(value), or its data and "
            "np.ma.getmaskarray(array) each by themselves"
        )


def dtype_of(schema: str) -> np.dtype[Any]:
    """The dtype that a canonical text describes. SchemaMismatch when it is none."""
    try:
        return np.dtype(np.lib.format.descr_to_dtype(ast.literal_eval(schema)))
    except (ValueError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError) as error:
        raise SchemaMismatch(
            f"the stream's schema is no numpy dtype description: {schema!r}", found=schema
        ) from error


def difference(found: np.dtype[Any], expected: np.dtype[Any]) -> str:
    """Field by field, what ``found`` has that ``expected`` has not, and the other way round."""
    if found.names is None or expected.names is None:
        return f"found {found}, expected {expected}"
    lines = []
    for name in dict.fromkeys((*expected.names, *found.names)):
        ours = _field(expected, name)
        theirs = _field(found, name)
        if ours != theirs:
            lines.append(f"field {name!r}: found {theirs}, expected {ours}")
    if not lines and found.itemsize != expected.itemsize:
        lines.append(f"size: found {found.itemsize} bytes, expected {expected.itemsize}")
    return "; ".join(lines) or "the fields are in another order"


def _field(dtype: np.dtype[Any], name: str) -> str:
    if dtype.fields is None or name not in dtype.fields:
        return "none"
    kind, offset = dtype.fields[name][:2]
    return f"{kind} at byte {offset}"
