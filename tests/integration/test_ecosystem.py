"""What other libraries make of our arrays: where they take them without a copy, and where they cannot.

`make ecosystem` installs what is missing and runs this; `make test` skips what is not installed. The table
in docs/guide/ecosystem.md says the same in words.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import shmdriver

TICK = np.dtype([("ts", "<i8"), ("px", "<f8"), ("qty", "<f8")])
NAMES = ["ts", "px", "qty"]


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


@pytest.fixture
def vector(client):
    """A message with a 1-d array in place, and its consumer."""
    with client.consumer("v") as into, client.producer("v", slots=4, max_message=1 << 20) as out:
        out.publish_array(np.arange(100_000, dtype=np.float64))
        yield into.read(timeout=5), into


@pytest.fixture
def batch(client):
    """A batch of records in place, and its consumer."""
    with client.consumer("b") as into, client.producer("b", dtype=TICK, slots=1024) as out:
        records = np.zeros(300, TICK)
        records["px"] = np.arange(300)
        out.publish(records)
        yield into.read_batch(timeout=5), into


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.ctypes.data)


def test_elements_are_aligned_for_vector_units(vector):
    message, _ = vector
    assert address(message.array) % 64 == 0


def test_a_batch_is_strided_by_the_slot_and_its_columns_too(batch):
    records, _ = batch
    assert records.strides == (64,)
    assert records["px"].strides == (64,)
    assert records.copy().strides == (TICK.itemsize,)
    assert records["px"].copy().strides == (8,)


def test_numpy_takes_a_message_by_dlpack_without_a_copy(vector):
    message, _ = vector
    try:
        taken = np.from_dlpack(message.array)
    except BufferError:
        pytest.skip(f"numpy {np.__version__} exports no read-only arrays by DLPack")
    assert address(taken) == address(message.array)
    assert not taken.flags.writeable


def test_pyarrow_takes_an_array_without_a_copy_and_keeps_its_place(client):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: make ecosystem")
    with client.consumer("v") as into, client.producer("v", slots=4, max_message=1 << 20) as out:
        out.publish_array(np.arange(100_000, dtype=np.float64))
        array = into.read(timeout=5).array
        taken = pa.array(array)
        assert taken.buffers()[1].address == address(array)
        del array
        assert into.held == 1
        assert taken[99_999].as_py() == 99_999.0
        del taken
        assert into.held == 0


def test_pyarrow_reads_a_payload_without_a_copy(client):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: make ecosystem")
    table = pa.table({"id": list(range(5000)), "name": ["x"] * 5000})
    with client.consumer("t") as into, client.producer("t", slots=4, max_message=1 << 20) as out:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        out.publish(sink.getvalue())
        buffer = pa.py_buffer(into.read(timeout=5).data)
        got = pa.ipc.open_stream(buffer).read_all()
        assert got.equals(table)
        column = got["id"].chunk(0).buffers()[1]
        assert buffer.address <= column.address < buffer.address + buffer.size  # in place
        assert into.held == 1
        del got, buffer, column
        assert into.held == 0


def test_pyarrow_copies_strided_columns(batch):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: make ecosystem")
    records, _ = batch
    taken = pa.array(records["px"])
    assert taken.buffers()[1].address != address(records["px"])
    assert taken.to_pylist() == records["px"].tolist()


def test_pandas_takes_arrays_and_even_strided_columns_without_a_copy(vector, batch):
    pd = pytest.importorskip("pandas", reason="pandas is not installed: make ecosystem")
    message, _ = vector
    assert np.shares_memory(pd.Series(message.array, copy=False).to_numpy(), message.array)
    matrix = message.array.reshape(1000, 100)
    assert np.shares_memory(pd.DataFrame(matrix, copy=False).to_numpy(), matrix)
    records, _ = batch
    assert np.shares_memory(pd.Series(records["px"], copy=False).to_numpy(), records)
    frame = pd.DataFrame(records)  # a structured array becomes columns, copied
    assert not any(np.shares_memory(frame[name].to_numpy(), records) for name in NAMES)
    assert frame["px"].tolist() == records["px"].tolist()


def test_polars_takes_an_array_by_way_of_arrow_without_a_copy(vector):
    pl = pytest.importorskip("polars", reason="polars is not installed: make ecosystem")
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: make ecosystem")
    message, _ = vector
    series = pl.from_arrow(pa.array(message.array))
    assert series.to_arrow().buffers()[1].address == address(message.array)
    assert series.sum() == message.array.sum()


def test_polars_takes_records_column_by_column_copied(batch):
    pl = pytest.importorskip("polars", reason="polars is not installed: make ecosystem")
    records, _ = batch
    frame = pl.DataFrame({name: records[name].copy() for name in NAMES})
    assert frame["px"].to_list() == records["px"].tolist()
    assert frame.columns == NAMES


def test_torch_takes_an_array_and_a_strided_column_without_a_copy(vector, batch):
    torch = pytest.importorskip("torch", reason="torch is not installed (large; install it yourself)")
    message, _ = vector
    with pytest.warns(UserWarning, match="not writable"):  # torch has no read-only tensors: do not write
        tensor = torch.from_numpy(message.array)
    assert tensor.data_ptr() == address(message.array)
    assert float(tensor.sum()) == message.array.sum()
    records, _ = batch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns once a process
        column = torch.from_numpy(records["px"])
    assert (column.data_ptr(), column.stride()) == (address(records["px"]), (8,))


def test_jax_takes_an_array_in_place_by_device_put_only(vector):
    jax = pytest.importorskip("jax", reason="jax is not installed (large; install it yourself)")
    message, _ = vector
    array = message.array[1024:].view(np.float32)  # jax has no float64 by default
    taken = jax.device_put(array, jax.devices("cpu")[0])
    assert taken.unsafe_buffer_pointer() == address(array)
    copied = jax.numpy.asarray(array)
    assert copied.unsafe_buffer_pointer() != address(array)


def test_meta_travels_with_an_array(client):
    with client.consumer("m") as into, client.producer("m", slots=4, max_message=1 << 16) as out:
        out.publish_array(np.eye(3), meta=b'{"frame": 7}')
        message = into.read(timeout=5)
        assert message.meta == b'{"frame": 7}'
        with pytest.raises(ValueError, match="meta of 257 bytes"):
            out.publish_array(np.eye(3), meta=b"x" * 257)
