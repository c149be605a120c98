"""The texts that are derived from the ABI header, as pure functions of its model."""

from __future__ import annotations

from typing import Any

from abi_header import Field, Function, Header, Struct

GENERATED = "generated from csrc/shmd_abi.h by scripts/generate_abi.py; do not edit"


# ---- docs/ABI.md ---------------------------------------------------------------------------------


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _row(entry: Field) -> str:
    who = ("", "") if entry.is_pad else (entry.written_by, entry.read_by)
    cells = (
        str(entry.offset),
        str(entry.bytes),
        f"`{entry.name}`",
        f"`{entry.declared_type}`",
        *who,
        entry.note,
    )
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _struct_document(struct: Struct) -> list[str]:
    lines = [f"### `{struct.name}`", "", f"{struct.bytes} bytes."]
    if struct.note and struct.note != f"{struct.bytes} bytes":
        lines[-1] += f" Header: {struct.note}."
    if struct.shared:
        lines += [
            "",
            "| offset | bytes | field | type | written by | read by | |",
            "|--:|--:|---|---|---|---|---|",
        ]
        lines += [_row(entry) for entry in struct.fields]
    else:
        lines += ["", "| offset | bytes | field | type | |", "|--:|--:|---|---|---|"]
        lines += [
            f"| {e.offset} | {e.bytes} | `{e.name}` | `{e.declared_type}` | {_cell(e.note)} |"
            for e in struct.fields
        ]
    return [*lines, ""]


def document(header: Header) -> str:
    """docs/ABI.md."""
    lines = [
        "# The layouts",
        "",
        f"<!-- {GENERATED} -->",
        "",
        f"Layout version {header.constants['SHMD_LAYOUT_VERSION']}. Little-endian, LP64, no hidden padding.",
        "A line is 128 bytes; what different processes write never shares one (a test checks it), except",
        "for the words that `docs/ARCHITECTURE.md` names: a control slot's turn, and a gate's position,",
        "which is the driver's until it has answered the attach. Orders stand in parentheses; their partners",
        "are in `docs/MEMORY_MODEL.md`. Every size and offset is asserted at compile time",
        "(`csrc/shmd_abi_check.c`) and compared with a golden table through cffi (`tests/unit/test_abi.py`).",
        "",
        "## Shared memory",
        "",
    ]
    for struct in header.structs:
        if struct.shared:
            lines += _struct_document(struct)
    lines += [
        "## Private structures",
        "",
        "They cross the border between C and Python and never stand in shared memory.",
        "",
    ]
    for struct in header.structs:
        if not struct.shared:
            lines += _struct_document(struct)
    lines += ["## Constants", "", "| constant | value |", "|---|--:|"]
    lines += [f"| `{name}` | {value} |" for name, value in header.constants.items()]
    return "\n".join(lines) + "\n"


# ---- csrc/shmd_abi_check.c -----------------------------------------------------------------------


def check_source(header: Header) -> str:
    """csrc/shmd_abi_check.c: compiles only when the compiler agrees with every size and offset."""
    lines = [
        f"/* shmd_abi_check.c: {GENERATED}. */",
        '#include "shmd_abi.h"',
        "",
        '#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type " is not " #bytes " bytes")',
        "#define AT(type, field, offset) \\",
        '    _Static_assert(offsetof(type, field) == (offset), #type "." #field " is not at " #offset)',
        "",
        '_Static_assert(sizeof(void *) == 8, "shmdriver needs a 64-bit platform");',
        '_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "layouts are little-endian");',
    ]
    for struct in header.structs:
        if not struct.shared:
            continue
        lines += ["", f"SIZE({struct.name}, {struct.bytes});"]
        lines += [f"AT({struct.name}, {entry.name}, {entry.offset});" for entry in struct.fields]
    return "\n".join(lines) + "\n"


# ---- src/shmdriver/_native.pyi -------------------------------------------------------------------

_INTEGERS = {"uint8_t", "uint16_t", "uint32_t", "uint64_t", "int64_t", "size_t", "int"}

_STUB_HEAD = """\
# {generated}
from collections.abc import Callable
from typing import Any, TypeAlias

# cffi's objects: a pointer, struct or array. Their attributes are the C fields.
_CData: TypeAlias = Any
_CType: TypeAlias = Any

class _FFI:
    NULL: _CData
    CData: type
    CType: type
    buffer: type
    error: type[Exception]
    errno: int
    def new(self, cdecl: str | _CType, init: Any = ...) -> _CData: ...
    def new_allocator(
        self,
        alloc: Callable[[int], _CData] | None = ...,
        free: Callable[[_CData], None] | None = ...,
        should_clear_after_alloc: bool = ...,
    ) -> Callable[..., _CData]: ...
    def cast(self, cdecl: str | _CType, value: Any) -> _CData: ...
    def string(self, cdata: _CData, maxlen: int = ...) -> bytes: ...
    def unpack(self, cdata: _CData, length: int) -> Any: ...
    def from_buffer(self, *args: Any, require_writable: bool = ...) -> _CData: ...
    def memmove(self, dest: Any, src: Any, n: int) -> None: ...
    def typeof(self, cdecl: str | _CData) -> _CType: ...
    def sizeof(self, cdecl: str | _CData) -> int: ...
    def alignof(self, cdecl: str | _CData) -> int: ...
    def offsetof(self, cdecl: str | _CType, *fields: str | int) -> int: ...
    def getctype(self, cdecl: str | _CType, extra: str = ...) -> str: ...
    def addressof(self, cdata: _CData, *fields: str | int) -> _CData: ...
    def gc(self, cdata: _CData, destructor: Callable[[_CData], object] | None, size: int = ...) -> _CData: ...
    def release(self, cdata: _CData) -> None: ...
    def new_handle(self, value: object) -> _CData: ...
    def from_handle(self, handle: _CData) -> Any: ...
    def list_types(self) -> tuple[list[str], list[str], list[str]]: ...
    def init_once(self, function: Callable[[], Any], tag: object) -> Any: ...

class _Lib:
"""


def _python_type(kind: str, *, result: bool) -> str:
    if kind == "void":
        return "None"
    if kind in _INTEGERS:
        return "int"
    if result:
        return "_CData"
    return (
        "bytes | _CData"
        if kind.replace(" ", "") in ("constchar*", "constuint8_t*", "constvoid*")
        else "_CData"
    )


def _function_stub(function: Function) -> str:
    parameters = "".join(
        f", {name}: {_python_type(kind, result=False)}" for kind, name in function.parameters
    )
    slash = ", /" if parameters else ""
    returns = _python_type(function.returns, result=True)
    return f"    def {function.name}(self{parameters}{slash}) -> {returns}: ..."


def stub(header: Header) -> str:
    """src/shmdriver/_native.pyi."""
    head = _STUB_HEAD.replace("{generated}", GENERATED)
    lines = [f"    {name}: int" for name in header.constants]
    lines += [_function_stub(function) for function in header.functions]
    return head + "\n".join(lines) + "\n\nffi: _FFI\nlib: _Lib\n"


# ---- tests/unit/abi_golden.json ------------------------------------------------------------------


def _table(struct: Struct) -> dict[str, Any]:
    fields = {entry.name: [entry.offset, entry.bytes] for entry in struct.fields}
    return {"bytes": struct.bytes, "fields": fields}


def golden(header: Header) -> dict[str, Any]:
    """What a layout version promises: shared structs and constants; private structs beside them."""
    return {
        "layout_version": header.constants["SHMD_LAYOUT_VERSION"],
        "shared": {struct.tag: _table(struct) for struct in header.structs if struct.shared},
        "private": {struct.tag: _table(struct) for struct in header.structs if not struct.shared},
        "constants": dict(header.constants),
    }


def broken_promises(promised: dict[str, Any], header: Header) -> list[str]:
    """What the header changes of a golden table without changing the layout version."""
    now = golden(header)
    if promised["layout_version"] != now["layout_version"]:
        return []
    advice = "raise SHMD_LAYOUT_VERSION (or --same-version while it is unreleased)"
    problems = []
    for tag, table in promised["shared"].items():
        if now["shared"].get(tag) != table:
            problems.append(f"the layout of {tag} changed: {advice}")
    for name, value in promised["constants"].items():
        if now["constants"].get(name) != value:
            problems.append(f"{name} was {value}, is {now['constants'].get(name)}: {advice}")
    return problems
