"""What Python decodes of other processes' bytes: anything may come, and only our own errors come of it."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import shmdriver
from shmdriver._native import ffi, lib
from shmdriver.client.message import Message
from shmdriver.client.tensor import FLAG, head_of
from shmdriver.errors import ShmDriverError
from shmdriver.observe import Instance
from tests.segments import path_of, plantable
from tests.users import relabelled

HEAD = head_of((2, 3), np.dtype("f4"), False, b"meta")
ARRAY = HEAD + bytes(24)


@given(st.binary(max_size=300))
@example(b"")
@example(ARRAY)
def test_any_payload_as_an_array_is_an_array_or_refused(payload: bytes) -> None:
    with contextlib.suppress(ShmDriverError):
        _ = Message(0, 0, 0, FLAG, payload).array


@given(at=st.integers(0, len(ARRAY) - 1), value=st.binary(min_size=1, max_size=8))
@example(at=10, value=b"\xff")
@example(at=32, value=b"\xff\xfe")  # no UTF-8
@example(at=32, value=b"'O' ")  # Python objects
@example(at=16, value=bytes(8))  # no elements at all
@example(at=24, value=b"\xff" * 8)
@settings(max_examples=300)
def test_any_change_of_an_array_message_is_an_array_or_refused(at: int, value: bytes) -> None:
    changed = (ARRAY[:at] + value + ARRAY[at + len(value) :])[: len(ARRAY)]
    with contextlib.suppress(ShmDriverError):
        message = Message(0, 0, 0, FLAG, changed)
        assert message.array.nbytes <= len(ARRAY)
        assert len(message.meta) <= lib.SHMD_TENSOR_META_MAX


def look_at_everything(instance: str) -> None:
    with Instance(instance) as view:
        view.driver()
        view.clients(gone=True)
        view.leases(ended=True)
        view.streams()
        view.events()
        view.errors()
        view.counters()
        view.config_text()


@pytest.mark.fault(17, how="bytes changed anywhere in an authority, as tools and clients see it")
def test_tools_and_clients_survive_any_authority(instance_name: str, fault_cycles) -> None:
    """A good authority with bytes changed, and files of plain garbage, under the name of an instance."""
    path = plantable(instance_name, "authority")
    chance = random.Random(1)
    with shmdriver.embedded() as client:
        out = client.producer("s")
        out.publish(b"x")
        good = relabelled(path_of(client.instance, "authority").read_bytes(), instance_name)
        start = ffi.offsetof("shmd_authority_t", "client_max")
        cycles = 150
        try:
            for cycle in range(cycles):
                data = bytearray(good)
                for _ in range(chance.randint(1, 200)):
                    at = chance.randrange(start if cycle % 2 else 0, len(data) if cycle % 3 else 4096)
                    data[at : at + 8] = chance.choice(
                        (chance.randbytes(8), bytes(8), b"\xff" * 8, (1 << 31).to_bytes(8, "little"))
                    )
                garbage = chance.randbytes(chance.randrange(1 << 16))
                path.write_bytes(data if cycle % 10 else garbage)
                with contextlib.suppress(ShmDriverError):
                    look_at_everything(instance_name)
                if cycle % 10 == 0:
                    with pytest.raises(ShmDriverError):
                        shmdriver.connect(instance_name, timeout=0.01)
        finally:
            path.unlink()
    fault_cycles(cycles)
