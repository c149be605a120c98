"""What may be published as records: only what can become nothing else on the way.

numpy makes an array of almost anything: it spreads one value over all fields, cuts texts, parses numbers
and casts structures by position. Here an array has the stream's dtype, or is refused with how to convert
it; rows are converted value by value, and each must come out as what went in.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np

from shmdriver._native import lib
from shmdriver.client.message import Message
from shmdriver.client.records import check_unmasked, difference

__all__ = ["records_of"]

_Array = np.ndarray[Any, np.dtype[Any]]
_BYTES = ("B", "b", "c")
_TIMES = (dt.date, dt.timedelta, np.datetime64, np.timedelta64)
_TENSOR = int(lib.SHMD_FLAG_TENSOR)


def records_of(data: Any, dtype: np.dtype[Any]) -> _Array:
    """``data`` as a one-dimensional array of ``dtype``.

    Taken are arrays and numpy scalars of that dtype, lists of tuples with exactly its fields (of plain
    values where it has none), and bytes that are whole records. TypeError, ValueError: everything else.
    """
    if isinstance(data, np.ndarray | np.generic):
        check_unmasked(data)
        array = np.asarray(data)
        if array.dtype != dtype:
            raise TypeError(f"{difference(array.dtype, dtype)}; {_how_to_convert(array.dtype, dtype)}")
        if array.ndim > 1 and dtype.names is None:
            raise ValueError(
                f"an array of shape {array.shape}, where each element is a message: pass array.reshape(-1), "
                "or make its rows the records, as dtype=[('values', ...)]"
            )
        return array.reshape(-1)
    if isinstance(data, list):
        return _rows(data, dtype)
    return _raw(data, dtype)


def _raw(data: Any, dtype: np.dtype[Any]) -> _Array:
    """Bytes as the memory of records."""
    if isinstance(data, Message) and data.flags & _TENSOR:
        raise TypeError("a message that is an array: pass message.array")
    try:
        with memoryview(data) as view:  # released before anything is raised: exceptions keep no buffers
            form, size = view.format, view.nbytes
    except TypeError:
        form, size = "", 0
    if not form:
        raise TypeError(f"found {type(data).__name__}, expected records: {_how_to_make(data, dtype)}")
    if form not in _BYTES:
        raise TypeError(
            f"found {type(data).__name__} with elements {form!r}, expected records or bytes: pass an array "
            "of the stream's dtype, or memoryview(data).cast('B') if its memory is records"
        )
    if size % dtype.itemsize:
        raise ValueError(f"{size} bytes are no whole number of records of {dtype.itemsize} bytes")
    return np.frombuffer(data, dtype) if size else np.empty(0, dtype)


# ---- rows


def _rows(rows: list[Any], dtype: np.dtype[Any]) -> _Array:
    if rows and all(isinstance(row, np.void) and row.dtype == dtype for row in rows):
        return np.array(rows, dtype)
    return _column(rows, dtype, "the stream")


def _column(values: list[Any], dtype: np.dtype[Any], name: str) -> _Array:
    """The values of one field, or of all when ``dtype`` has fields."""
    if dtype.names is None:
        return _plain_column(values, dtype, name)
    for number, row in enumerate(values):
        _check_row(row, dtype.names, f"row {number} of {name}")
    column = np.empty(len(values), dtype)
    for index, field in enumerate(dtype.names):
        column[field] = _column([row[index] for row in values], dtype[field], f"field {field!r}")
    return column


def _check_row(row: Any, names: tuple[str, ...], where: str) -> None:
    expected = f"expected a tuple of {len(names)} values ({', '.join(names)})"
    if not isinstance(row, tuple):
        raise TypeError(f"{where}: found {type(row).__name__}, {expected}")
    if len(row) != len(names):
        raise TypeError(f"{where}: found {len(row)} values, {expected}")
    found = tuple(getattr(row, "_fields", names))  # of a namedtuple
    if found != names:
        raise TypeError(f"{where}: found the fields {', '.join(found)}, {expected}")


def _plain_column(values: list[Any], dtype: np.dtype[Any], name: str) -> _Array:
    base, shape = dtype.subdtype or (dtype, ())
    given = np.array(values, object)  # as they are, only to see their shape
    if given.shape != (len(values), *shape) and values:
        raise TypeError(f"{name}: found values of shape {given.shape[1:]}, expected {shape} of {base}")
    flat = given.reshape(-1).tolist()
    try:
        with np.errstate(all="ignore"):
            column: _Array = np.array(flat, base)
            odd = None if column.tolist() == flat else _differing(flat, column)
    except OverflowError as error:
        raise ValueError(f"{name}: {error}") from error
    if odd is not None:
        raise ValueError(f"{name}: {flat[odd]!r} cannot become {base} unchanged; convert it first")
    return column.reshape(len(values), *shape)


def _differing(values: list[Any], column: _Array) -> int | None:
    return next((n for n, value in enumerate(values) if not _is_kept(value, column[n])), None)


def _is_kept(value: Any, made: np.generic) -> bool:
    """Whether what numpy made of ``value`` means the same. Floats may be rounded, not become infinite."""
    kind = made.dtype.kind
    if isinstance(value, float | complex) and kind in "fc":
        parts = ((value.real, made.real), (value.imag, made.imag))
        return all(not np.isfinite(was) or bool(np.isfinite(now)) for was, now in parts)
    if isinstance(value, str) and kind == "S":
        return bool(made == value.encode())
    if kind in "mM" and isinstance(value, _TIMES) and getattr(value, "tzinfo", None) is None:
        time = np.array(value, f"{kind}8")  # in its own unit
        return bool(made.astype(time.dtype) == time or (np.isnat(made) and np.isnat(time)))
    if kind in "mM" and isinstance(value, int | np.integer):
        return int(made.astype("i8")) == value
    return bool(made.item() == value)


# ---- what to do instead


def _how_to_convert(found: np.dtype[Any], expected: np.dtype[Any]) -> str:
    if found.names is None or expected.names is None or found.names == expected.names:
        return "convert with array.astype(producer.dtype)"
    if set(found.names) == set(expected.names):
        return "convert with array[list(producer.dtype.names)].astype(producer.dtype)"
    return "make records = np.empty(n, producer.dtype), and fill it field by field: records[name] = ..."


def _how_to_make(data: Any, dtype: np.dtype[Any]) -> str:
    if dtype.names is None:
        return "pass np.asarray(data, producer.dtype) if that is what you mean"
    if hasattr(data, "to_records"):  # pandas
        return "pass df[list(producer.dtype.names)].to_records(index=False).astype(producer.dtype)"
    if isinstance(data, tuple):
        return "one record is [row], several are a list of tuples"
    return (
        "make records = np.empty(len(data), producer.dtype), fill it field by field, as records[name] = "
        f"data[name] for each of {', '.join(dtype.names)}, and pass that"
    )
