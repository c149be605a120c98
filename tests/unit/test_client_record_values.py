"""What may be published as records: it arrives as what it was, or it is refused; nothing is ever invented."""

from __future__ import annotations

import array
import datetime as dt
import decimal
import math
import mmap
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shmdriver.client import tensor
from shmdriver.client.message import Message
from shmdriver.client.record_values import records_of

TICK = np.dtype([("ts", "<i8"), ("px", "<f8"), ("id", "<u4")])
ROWS = [(1, 2.5, 3), (4, 5.5, 6)]
TICKS = np.array(ROWS, TICK)
NESTED = np.dtype([("at", [("x", "<f8"), ("y", "<f8")]), ("v", "<i4", (2,)), ("name", "S4")])
NESTED_ROWS = [((0.5, 1.5), [1, 2], b"ab"), ((2.5, 3.5), [3, 4], b"abcd")]


class Tick(NamedTuple):
    ts: int
    px: float
    id: int


class Turned(NamedTuple):
    px: float
    ts: int
    id: int


class LooksLikeATable:
    """What numpy is told that a table is: its values without the names."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(list(zip(*self.columns.values(), strict=True)), dtype)

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: Any) -> Any:
        return self.columns[index]


class LooksLikeADataFrame(LooksLikeATable):
    def to_records(self) -> Any:
        raise AssertionError("nobody asked")


COLUMNS = {"ts": [1, 4], "px": [2.5, 5.5], "id": [3, 6]}
OTHER_ORDER = np.dtype([("px", "<f8"), ("ts", "<i8"), ("id", "<u4")])
OTHER_NAMES = np.dtype([("a", "<i8"), ("b", "<f8"), ("c", "<u4")])


@pytest.mark.fault(53, how="each form in which a program may have its records")
@pytest.mark.parametrize(
    "data",
    [
        TICKS,
        TICKS[::-1],
        np.repeat(TICKS, 2)[::2],
        TICKS.reshape(2, 1),
        TICKS.view(np.recarray),
        ROWS,
        [Tick(*row) for row in ROWS],
        list(TICKS),
        TICKS.tobytes(),
        bytearray(TICKS.tobytes()),
        memoryview(TICKS.tobytes()),
        Message(0, 0, 0, 0, TICKS.tobytes()),
    ],
    ids=[
        "array", "reversed", "strided", "2-d", "recarray", "tuples", "namedtuples", "voids", "bytes",
        "bytearray", "memoryview", "message",
    ],
)  # fmt: skip
def test_what_is_taken_as_records_means_the_same(data: Any) -> None:
    expected = ROWS[::-1] if isinstance(data, np.ndarray) and data.strides[0] < 0 else ROWS
    found = records_of(data, TICK)
    assert found.dtype == TICK
    assert found.tolist() == expected


@pytest.mark.fault(53, how="each form that numpy would make some records of")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (LooksLikeADataFrame(COLUMNS), r"df\[list\(producer.dtype.names\)\].to_records"),
        (LooksLikeATable(COLUMNS), r"records\[name\] = data\[name\]"),
        (COLUMNS, r"records\[name\] = data\[name\]"),
        ([list(row) for row in ROWS], "row 0 of the stream: found list, expected a tuple of 3"),
        ([1, 2.5, 3], "found int, expected a tuple"),
        ([1, 2, 3, 4], "found int, expected a tuple"),
        (ROWS[0], r"one record is \[row\]"),
        (tuple(ROWS), "a list of tuples"),
        ([ROWS[0], (1, 2.0)], "row 1 of the stream: found 2 values, expected a tuple of 3"),
        ([(1, 2.0, 3, 4)], "found 4 values"),
        ([Turned(1, 2, 3)], "found the fields px, ts, id"),
        (5, "found int"),
        (None, "found NoneType"),
        ("text", "found str"),
        (np.float64(1), "found float64"),
        (np.array([1.0, 2.0]), "found float64, expected"),
        (np.array(ROWS), "found float64"),
        (TICKS.astype(object), "found object"),
        (TICKS.astype(TICK.newbyteorder()), r"convert with array.astype\(producer.dtype\)"),
        (TICKS[["px", "ts", "id"]].astype(OTHER_ORDER), r"array\[list\(producer.dtype.names\)\]"),
        (TICKS.astype(OTHER_NAMES), "field 'ts': found none"),
        (TICKS[["ts", "px"]], "field 'id': found none"),
        (np.ma.masked_array(TICKS, mask=[(True, False, False)] * 2), "would lose its mask"),
        (np.zeros(2, "V20"), "expected"),
        (array.array("d", [1.0] * 5), "found array with elements 'd'"),
        (memoryview(cast("Any", TICKS)), r"memoryview\(data\).cast\('B'\)"),
        (memoryview(cast("Any", np.zeros(5))), "with elements 'd'"),
        (TICKS.tobytes()[:-1], "39 bytes are no whole number"),
        (iter(ROWS), "found list_iterator"),
        (set(ROWS), "found set"),
        (
            Message(0, 0, 0, tensor.FLAG, tensor.head_of((5,), np.dtype("f8"), False, b"") + bytes(40)),
            "array",
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_could_be_something_else_is_refused_with_what_to_do(data: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        records_of(data, TICK)


def test_nothing_is_records_too() -> None:
    nothing: Any
    for nothing in ([], b"", TICKS[:0], memoryview(b"")):
        assert records_of(nothing, TICK).shape == (0,)


def test_fields_of_fields_and_of_several_values() -> None:
    assert records_of(NESTED_ROWS, NESTED).tobytes() == np.array(NESTED_ROWS, NESTED).tobytes()
    for row in (
        ((0.5, 1.5), 7, b""),
        ((0.5, 1.5), [1], b""),
        ((0.5, 1.5), [1, 2, 3], b""),
        (0.5, [1, 2], b""),
    ):
        with pytest.raises(TypeError):
            records_of([row], NESTED)


@pytest.mark.parametrize(
    ("dtype", "data", "words"),
    [
        ("<f8", np.zeros((2, 3)), r"array.reshape\(-1\)"),
        ("<f8", np.zeros(2, "<f4"), "found float32, expected float64"),
        ("<f8", [[1.0, 2.0]], "found values of shape"),
        ("<f8", 1.0, "found float"),
        ("<f8", ["1.0"], "cannot become float64"),
        ("<f4", [1e300], "cannot become float32"),
        ("<f8", [None], "cannot become float64"),
        ("<f8", [2**53 + 1], "cannot become float64"),
        ("<f8", [10**400], "too large"),
        ("<i8", [1.5], "cannot become int64"),
        ("<i8", [math.nan], "NaN"),
        ("<u1", [256], "256"),
        ("<u1", [-1], "-1"),
        ("<i8", [decimal.Decimal("1.5")], "cannot become int64"),
        ("?", [2], "cannot become bool"),
        ("?", ["no"], "cannot become bool"),
        ("S2", [b"abc"], "cannot become"),
        ("S2", [5], "cannot become"),
        ("S2", [b"a\0"], "cannot become"),
        ("U2", ["abc"], "cannot become"),
        ("U9", [b"abc"], "cannot become"),
        ("V2", [b"a"], "cannot become"),
        ("<M8[D]", ["2026-01-01"], "cannot become"),
        ("<M8[D]", [dt.datetime(2026, 1, 1, 5)], "cannot become"),  # noqa: DTZ001
        ("<M8[us]", [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)], "cannot become"),
        ("<M8[ns]", [np.datetime64("3000-01-01")], "cannot become"),
        ("<m8[s]", [dt.timedelta(milliseconds=5)], "cannot become"),
    ],
)
@pytest.mark.filterwarnings("ignore:parsing timezone", "ignore:no explicit representation")
def test_plain_values_that_would_change_are_refused(dtype: str, data: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        records_of(data, np.dtype(dtype))


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("<f8", [1, 2.5, True, np.float32(0.5), math.inf]),
        ("<f4", [0.1, 1e-50, -math.inf]),
        ("<c8", [0.1 + 1j]),
        ("<i8", [1, 2.0, np.int8(3), -(2**63)]),
        ("<u8", [2**64 - 1]),
        ("?", [True, False, 1]),
        ("S4", [b"ab", "abcd", b""]),
        ("U4", ["ab", "ä€😀x"]),
        ("V2", [b"ab"]),
        ("<M8[us]", [dt.datetime(2026, 1, 1, 5), np.datetime64("2026-01-01"), 7]),  # noqa: DTZ001
        ("<M8[ns]", [np.datetime64("NaT"), np.datetime64("2026-01-01T00:00:01.000000005"), 7]),
        ("<M8[D]", [dt.date(2026, 1, 1)]),
        ("<m8[ms]", [dt.timedelta(milliseconds=5), 7]),
    ],
)
def test_plain_values_that_keep_their_meaning_are_taken(dtype: str, data: list[Any]) -> None:
    for value in data:
        found = records_of([value], np.dtype(dtype))
        assert found.tobytes() == np.array([value], dtype).tobytes()
    assert np.isnan(records_of([math.nan], np.dtype("<f4"))).all()
    assert records_of(data, np.dtype(dtype)).shape == (len(data),)


def test_a_buffer_is_not_kept_by_the_exception_that_refuses_it() -> None:
    data, file = bytearray(7), mmap.mmap(-1, 4096)
    kept = []
    for buffer in (data, file):
        with pytest.raises(ValueError, match="whole number") as caught:
            records_of(buffer, TICK)
        kept.append(caught.value)
    data.append(1)  # BufferError while somebody exports it
    file.close()


# ---- properties: what is read is what was meant, or it was refused

FIELDS = [
    "?",
    "<i1",
    "<u2",
    "<i4",
    "<i8",
    "<u8",
    "<f2",
    "<f4",
    "<f8",
    "<c8",
    "S3",
    "U2",
    "V2",
    "<M8[D]",
    "<m8[s]",
]
VALUES = st.one_of(
    st.booleans(), st.integers(-(2**65), 2**65), st.integers(-3, 300), st.floats(), st.floats(width=16),
    st.complex_numbers(), st.binary(max_size=5), st.text(max_size=4), st.none(), st.dates(), st.datetimes(),
    st.timedeltas(), st.lists(st.integers(0, 3), max_size=3), st.just(np.datetime64("NaT")),
)  # fmt: skip


def means(value: Any, read: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a reader who gets ``read`` was told ``value``. Written anew, from what values are."""
    if isinstance(value, str) and isinstance(read, bytes):
        return value.encode("ascii") == read
    if isinstance(value, dt.datetime) and isinstance(read, dt.date) and not isinstance(read, dt.datetime):
        return value == dt.datetime.combine(read, dt.time())
    if isinstance(value, int) and isinstance(read, dt.date | dt.timedelta):
        epoch: Any = dt.timedelta() if isinstance(read, dt.timedelta) else dt.date(1970, 1, 1)
        unit = dt.timedelta(seconds=1) if isinstance(read, dt.timedelta) else dt.timedelta(days=1)
        return bool((read - epoch) == value * unit)
    if isinstance(value, np.datetime64):
        return read is None
    if isinstance(value, float | complex) and dtype.kind in "fc":
        parts, got = complex(value), complex(read)
        return all(
            a == b or (a != a and b != b) or abs(a - b) <= max(abs(a) * float(np.finfo(dtype).eps), 1e-4)
            for a, b in ((parts.real, got.real), (parts.imag, got.imag))
        )
    return bool(read == value)


@given(dtype=st.sampled_from(FIELDS), values=st.lists(VALUES, min_size=1, max_size=4))
@settings(max_examples=600, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_values_of_a_field_are_read_as_what_they_were_or_refused(dtype: str, values: list[Any]) -> None:
    kind = np.dtype([("first", "<i4"), ("field", dtype)])
    try:
        found = records_of([(number, value) for number, value in enumerate(values)], kind)
    except (TypeError, ValueError):
        return
    assert found["first"].tolist() == list(range(len(values)))
    for value, read in zip(values, found["field"].tolist(), strict=True):
        assert means(value, read, np.dtype(dtype)), (value, read)


@given(
    names=st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True),
    kinds=st.lists(st.sampled_from(["<i4", ">i4", "<i8", "<f4", "<f8"]), min_size=4, max_size=4),
    other=st.lists(st.sampled_from("abcde"), min_size=1, max_size=4, unique=True),
    other_kinds=st.lists(st.sampled_from(["<i4", ">i4", "<i8", "<f4", "<f8"]), min_size=4, max_size=4),
    form=st.sampled_from(
        ["array", "tuples", "lists", "flat", "plain array", "masked", "object", "void", "tuple"]
    ),
)
@settings(max_examples=400, deadline=None)
def test_any_form_of_any_fields_is_read_as_what_it_was_or_refused(
    names: list[str], kinds: list[str], other: list[str], other_kinds: list[str], form: str
) -> None:
    kind = np.dtype(list(zip(names, kinds, strict=False)))
    given = np.dtype(list(zip(other, other_kinds, strict=False)))
    records = np.array([tuple(range(n, n + len(other))) for n in (1, 5)], given)
    meant = [dict(zip(other, row, strict=True)) for row in records.tolist()]
    forms: dict[str, Any] = {
        "array": records,
        "tuples": records.tolist(),
        "lists": [list(row) for row in records.tolist()],
        "flat": [value for row in records.tolist() for value in row],
        "plain array": np.array([list(row) for row in records.tolist()]),
        "masked": np.ma.masked_array(records),
        "object": records.astype(object),
        "void": records[0],
        "tuple": records.tolist()[0],
    }
    data = forms[form]
    # A tuple has no names: its fields are the stream's, in order, if there are as many.
    assume(form != "tuples" or len(other) == len(names))
    try:
        found = records_of(data, kind)
    except (TypeError, ValueError):
        return
    if form == "tuples":
        assert found.tolist() == records.tolist()
    else:
        read = [dict(zip(names, row, strict=True)) for row in found.tolist()]
        assert read == meant[: len(read)]
