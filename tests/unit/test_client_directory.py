"""Looking streams up in the directory: by one call for all of them, and Python reads only those that fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmdriver._native import ffi, lib
from shmdriver.client import directory
from shmdriver.driver import clients, streams
from tests.driver_rig import Rig

NAMES = ("queue.a.0", "queue.a.1", "queue.ab.0", "ticks", "a" * 63)


@pytest.fixture
def rig(instance_name: str) -> Iterator[Rig]:
    rig = Rig(instance_name)
    client = rig.client()
    for name in NAMES:
        client.consume(name)
    client.produce("queue.a.1")
    yield rig
    rig.close()


def names_of(rig: Rig, prefix: str) -> set[str]:
    return {slot.name for slot in directory.streams_with_prefix(rig.view.authority, prefix)}


@pytest.mark.parametrize("prefix", ["", "queue.", "queue.a.", "ticks", "ticks.", "a" * 63, "b", "a" * 64])
def test_streams_are_found_by_how_their_names_begin(rig, prefix):
    assert names_of(rig, prefix) == {name for name in NAMES if name.startswith(prefix)}


def test_a_found_stream_tells_its_producer_its_consumers_and_its_epochs(rig):
    found = directory.streams_with_prefix(rig.view.authority, "queue.a.")
    assert sorted(found) == [("queue.a.0", False, 1, 0), ("queue.a.1", True, 1, 1)]


def test_a_lookup_reads_no_other_stream_in_python(rig, monkeypatch):
    read: list[object] = []
    copy = directory._copy

    def note(kind: str, record: object) -> object:
        read.append(record)
        return copy(kind, record)

    monkeypatch.setattr(directory, "_copy", note)
    assert len(names_of(rig, "queue.a.")) == len(read) == 2


def test_a_lookup_fills_no_more_than_it_is_given_room_for(rig):
    out = ffi.new("uint32_t[]", [9, 9, 9])
    assert lib.shmd_streams_named(rig.view.authority, b"queue.", out, 2) == 2
    assert list(out) == [0, 1, 9]


# ---- records that are rewritten


def copies_at(monkeypatch, module, point, record) -> list[int]:
    """Whether a record can be copied at each step of that name."""
    copied: list[int] = []
    out = ffi.new("char[]", 4096)

    def look(name: str) -> None:
        if name.startswith(point):
            copied.append(int(lib.shmd_record_copy(out, record, ffi.sizeof(record[0]))))

    monkeypatch.setattr(module, "failpoint", look)
    return copied


@pytest.mark.fault(46, how="a copy within the replacement of a schema")
def test_a_schema_that_is_being_replaced_is_not_read(rig, monkeypatch):
    client = rig.client()
    first = client.produce("t", schema=b"[('a', '<i8')]")
    client.detach(first)
    copied = copies_at(
        monkeypatch, streams, "schema.", lib.shmd_authority_stream(rig.view.authority, first.stream_index)
    )
    client.produce("t", schema=b"[('b', '<f8')]")
    assert copied == [0, 0]
    assert directory.schema_of_stream(rig.view.authority, first.stream_index) == "[('b', '<f8')]"


@pytest.mark.fault(46, how="a copy of a client record that is filled")
def test_a_client_record_that_is_being_filled_is_not_read(rig, monkeypatch):
    index = rig.client().index + 1
    copied = copies_at(
        monkeypatch, clients, "client.filled", lib.shmd_authority_client(rig.view.authority, index)
    )
    assert rig.client().index == index
    assert copied == [0]


@pytest.mark.fault(46, how="a look back at a record that is filled for the next epoch")
def test_an_epoch_record_tells_its_end_until_it_is_filled_for_another_epoch(rig, monkeypatch):
    client = rig.client()
    told: list[tuple[int, int]] = []
    reason, seal = ffi.new("uint32_t *"), ffi.new("uint64_t *")
    out = ffi.new("shmd_epoch_record_t *")

    def look(name: str) -> None:
        if name == "epoch.filled":
            record = ffi.addressof(lib.shmd_authority_stream(rig.view.authority, index).epochs[0])
            told.append(
                (int(lib.shmd_epoch_end(record, 1, seal, reason)), int(lib.shmd_epoch_copy(out, record)))
            )

    monkeypatch.setattr(streams, "failpoint", look)
    index = client.consume("t", delivery=lib.SHMD_DELIVERY_LOSSY).stream_index
    for _ in range(lib.SHMD_EPOCH_RECORDS + 1):
        client.detach(client.produce("t"))
        for _ in range(20):  # until it is retired
            client.beat()
            rig.tick(500)
    assert told[0] == (0, 0)  # the first epoch is being filled
    assert told[1:-1] == [(1, 1)] * (lib.SHMD_EPOCH_RECORDS - 1)
    assert told[-1] == (0, 0)
