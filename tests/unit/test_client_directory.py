"""Looking streams up in the directory: by one call for all of them, and Python reads only those that fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmdriver._native import ffi, lib
from shmdriver.client import directory
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


def test_a_found_stream_tells_its_producer_and_its_consumers(rig):
    found = directory.streams_with_prefix(rig.view.authority, "queue.a.")
    assert sorted(found) == [("queue.a.0", False, 1), ("queue.a.1", True, 1)]


def test_a_lookup_reads_no_other_stream_in_python(rig, monkeypatch):
    read: list[object] = []
    name_of = directory._name_of

    def note(record: object) -> str:
        read.append(record)
        return name_of(record)

    monkeypatch.setattr(directory, "_name_of", note)
    assert len(names_of(rig, "queue.a.")) == len(read) == 2


def test_a_lookup_fills_no_more_than_it_is_given_room_for(rig):
    out = ffi.new("uint32_t[]", [9, 9, 9])
    assert lib.shmd_streams_named(rig.view.authority, b"queue.", out, 2) == 2
    assert list(out) == [0, 1, 9]
