"""The layouts as cffi sees them, against the golden table that the layout version promises.

cffi checks lazily, so every type and constant is touched here. When a test of this file fails after a
change of csrc/shmd_abi.h: run `make generate`; it refuses what needs a new SHMD_LAYOUT_VERSION.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import abi_outputs
import generate_abi
import pytest
from abi_header import Header, layout_problems, read_header

from shmdriver import errors
from shmdriver._native import ffi, lib

GOLDEN = json.loads((Path(__file__).parent / "abi_golden.json").read_text(encoding="utf-8"))
TABLES = {**GOLDEN["shared"], **GOLDEN["private"]}


@pytest.fixture(scope="module")
def header() -> Header:
    return read_header()


def _tags(opaque: list[str]) -> set[str]:
    """Every struct that the native module knows with its fields.

    cffi 2.1 aborts the process when it is asked for the fields of an opaque one: left out by name.
    """
    typedefs, structs, _unions = ffi.list_types()
    kinds = {ffi.typeof(name) for name in [*typedefs, *(f"struct {tag}" for tag in structs)]}
    tags = {re.sub(r"^struct |_t$", "", kind.cname) for kind in kinds if kind.kind == "struct"}
    return {tag for tag in tags if tag not in opaque}


def test_module_and_golden_table_know_the_same_structs(header):
    assert _tags(header.opaque) == {re.sub(r"_t$", "", tag) for tag in TABLES}


@pytest.mark.parametrize("tag", sorted(TABLES))
def test_offsets_and_sizes_are_as_promised(tag):
    kind = ffi.typeof(f"struct {tag}")
    found = {name: [entry.offset, ffi.sizeof(entry.type)] for name, entry in kind.fields}
    assert found == TABLES[tag]["fields"]
    assert ffi.sizeof(kind) == TABLES[tag]["bytes"]
    assert ffi.alignof(kind) <= 8


@pytest.mark.parametrize("name", sorted(GOLDEN["constants"]))
def test_constant_is_as_promised(name):
    assert getattr(lib, name) == GOLDEN["constants"][name]


def test_no_constant_escapes_the_golden_table():
    constants = {name for name in dir(lib) if name.startswith("SHMD_")}
    assert constants == set(GOLDEN["constants"])


def test_every_function_is_linked(header):
    functions = {function.name for function in header.functions}
    assert functions == {name for name in dir(lib) if name.startswith("shmd_")}
    for name in functions:
        assert ffi.typeof(getattr(lib, name)).kind == "function"


def test_layout_version_of_the_golden_table_is_the_compiled_one():
    assert GOLDEN["layout_version"] == lib.SHMD_LAYOUT_VERSION


def test_header_agrees_with_itself_and_no_line_has_two_writers(header):
    assert layout_problems(header) == []


def test_a_line_with_two_writers_is_found(header):
    gate = header.struct("shmd_gate")
    fields = [copy.copy(entry) for entry in gate.fields]
    consumed = next(entry for entry in fields if entry.name == "consumed")
    object.__setattr__(consumed, "written_by", "driver")
    object.__setattr__(gate, "fields", tuple(fields))
    try:
        assert any("shmd_gate: line 3" in problem for problem in layout_problems(header))
    finally:
        header.structs[:] = read_header().structs


@pytest.mark.parametrize("path", [path.name for path in generate_abi.texts(read_header())])
def test_derived_file_is_up_to_date(path, header):
    for target, text in generate_abi.texts(header).items():
        if target.name == path:
            assert target.read_text(encoding="utf-8") == text, "run `make generate`"


def test_a_moved_field_needs_a_new_layout_version(header):
    promised = copy.deepcopy(GOLDEN)
    promised["shared"]["shmd_gate"]["fields"]["left"][0] += 8
    assert abi_outputs.broken_promises(promised, header)
    promised["layout_version"] -= 1
    assert abi_outputs.broken_promises(promised, header) == []


def test_new_constants_need_no_new_layout_version(header):
    promised = copy.deepcopy(GOLDEN)
    del promised["constants"]["SHMD_E_OVERRUN"]
    assert abi_outputs.broken_promises(promised, header) == []


@pytest.mark.parametrize(("mirror", "prefix"), [("Code", "SHMD_CODE_"), ("Reason", "SHMD_REASON_")])
def test_python_enumerations_mirror_the_header(mirror, prefix):
    enum = getattr(errors, mirror)
    mirrored = {member.name: int(member) for member in enum}
    declared = {
        name.removeprefix(prefix): value
        for name, value in GOLDEN["constants"].items()
        if name.startswith(prefix) and name != "SHMD_REASON_BYTES"
    }
    assert mirrored == declared
