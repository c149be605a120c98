"""dtypes as schemas: canonical texts that come back as the same dtype, differences told by field."""

from __future__ import annotations

import numpy as np
import pytest

from shmdriver.client import records
from shmdriver.driver.schema import schema_difference
from shmdriver.errors import SchemaMismatch

TICK = np.dtype([("ts", "<i8"), ("px", "<f8"), ("qty", "<f8"), ("id", "<u8")])


@pytest.mark.parametrize(
    "dtype",
    [
        TICK,
        np.dtype("f4"),
        np.dtype([("name", "S8"), ("values", "<f4", (3, 2)), ("when", "<M8[ns]")]),
        np.dtype({"names": ["a", "b"], "formats": ["u1", "<f8"], "offsets": [0, 16], "itemsize": 32}),
        np.dtype([("inner", TICK), ("flag", "?")]),
    ],
)
def test_schema_text_comes_back_as_the_same_dtype(dtype):
    back = records.dtype_of(records.schema_of(dtype))
    assert back.itemsize == dtype.itemsize
    assert records.schema_of(back) == records.schema_of(dtype)
    for name in dtype.names or ():
        assert (back.fields or {})[name][1] == (dtype.fields or {})[name][1]


def test_native_and_explicit_byte_order_have_one_text():
    assert records.schema_of(np.dtype([("x", "=f8")])) == records.schema_of(np.dtype([("x", "<f8")]))


def test_python_objects_are_refused():
    with pytest.raises(TypeError, match="Python objects"):
        records.as_dtype([("a", "O")])


def test_empty_records_are_refused():
    with pytest.raises(TypeError, match="at least one byte"):
        records.as_dtype([])


def test_a_record_larger_than_a_slot_is_refused_with_the_limit():
    with pytest.raises(ValueError, match="65512"):
        records.as_dtype([("a", "u1", 70000)])


def test_a_schema_longer_than_the_directory_keeps_is_refused():
    wide = np.dtype([(f"a_rather_long_field_name_{i}", "u1") for i in range(100)])
    with pytest.raises(ValueError, match="1535"):
        records.schema_of(wide)


@pytest.mark.parametrize("text", ["", "[(", "[('a', 'nonsense')]", "{'a': 1}", "__import__('os')"])
def test_a_text_that_is_no_dtype_is_refused(text):
    with pytest.raises(SchemaMismatch, match="no numpy dtype"):
        records.dtype_of(text)


@pytest.mark.parametrize("text", ["(('a', 'b'),)", "('<f8',)", "()", "[('a',)]", "[()]"])
def test_tuple_schema_is_refused_in_words(text):
    with pytest.raises(SchemaMismatch, match="no numpy dtype") as refused:
        records.dtype_of(text)
    assert text in str(refused.value)
    assert f"carries {text}" in schema_difference(text, "bytes")


def test_difference_names_the_fields():
    found = np.dtype([("ts", "<i8"), ("px", "<f4"), ("venue", "u1")])
    words = records.difference(found, TICK)
    assert "'px': found float32 at byte 8, expected float64 at byte 8" in words
    assert "'venue': found uint8 at byte 12, expected none" in words
    assert "'id': found none" in words
    assert "'ts'" not in words
