"""A reader of csrc/shmd_abi.h: its structs, constants and functions, with what their comments say.

Only the plain subset of C that the header keeps to. Offsets are computed here by the rules of LP64
and natural alignment; the comments' offsets are kept beside them, so that whoever uses the model can
compare the two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "csrc" / "shmd_abi.h"
LINE_BYTES = 128

SCALARS = {
    "char": 1, "uint8_t": 1, "uint16_t": 2, "uint32_t": 4, "uint64_t": 8, "int": 4, "int64_t": 8, "size_t": 8,
}  # fmt: skip
POINTER_BYTES = 8

_COMMENT = r"/\*(?P<{}>.*?)\*/"
_SECTION = re.compile(r"^/\* -{4} (?P<title>.*?) -+ \*/$", re.MULTILINE)
_STRUCT = re.compile(
    r"typedef struct (?P<tag>\w+) \{(?P<body>[^}]*)\} (?P<name>\w+);(?:[ \t]*/\*(?P<after>.*?)\*/)?",
    re.DOTALL,
)
_OPAQUE = re.compile(r"typedef struct (\w+) (\w+);")
_FIELD = re.compile(
    r"(?P<type>(?:const )?\w+ ?\*{0,2}) ?(?P<name>\w+)(?:\[(?P<count>\d+)\])?;"
    r"(?:[ \t]*/\*(?P<comment>.*?)\*/)?"
)
_ENUM = re.compile(r"enum \{(?P<body>.*?)\};", re.DOTALL)
_CONSTANT = re.compile(r"(SHMD_\w+) = (-?\d+)")
_FUNCTION = re.compile(
    r"^(?P<ret>(?:const )?\w+(?: \*|\s)+)(?P<name>shmd_\w+)\((?P<args>[^)]*)\);"
    r"(?P<comment>(?:\s*/\*(?:(?! ----).)*?\*/)?)",
    re.MULTILINE | re.DOTALL,
)
_CPLUSPLUS = re.compile(r"^#ifdef __cplusplus$.*?^#endif$\n?", re.MULTILINE | re.DOTALL)
_PREPROCESSOR = re.compile(r"^[ \t]*#.*$\n?", re.MULTILINE)


@dataclass(frozen=True)
class Field:
    """One field of a struct; `says_offset` is the comment's, None where the comment has none."""

    name: str
    type: str
    count: int | None
    offset: int
    bytes: int
    says_offset: int | None
    written_by: str
    read_by: str
    note: str

    @property
    def is_pad(self) -> bool:
        """Nobody writes it after the segment was made."""
        return re.fullmatch(r"pad\d*|reserved", self.name) is not None

    @property
    def declared_type(self) -> str:
        return self.type if self.count is None else f"{self.type}[{self.count}]"


@dataclass(frozen=True)
class Struct:
    """A struct; `shared` ones stand in shared memory, the others only cross the C/Python border."""

    tag: str
    name: str
    section: str
    note: str
    bytes: int
    says_bytes: int | None
    shared: bool
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Function:
    """An exported function: return type, name, (type, name) of each parameter, comment."""

    returns: str
    name: str
    parameters: tuple[tuple[str, str], ...]
    note: str


@dataclass
class Header:
    """Everything that the header declares, in its order."""

    structs: list[Struct] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)
    constants: dict[str, int] = field(default_factory=dict)
    functions: list[Function] = field(default_factory=list)

    def struct(self, name: str) -> Struct:
        """The struct of this tag or typedef name; KeyError when there is none."""
        for struct in self.structs:
            if name in (struct.tag, struct.name):
                return struct
        raise KeyError(name)


def _squeeze(text: str | None) -> str:
    return " ".join((text or "").split())


class _Reader:
    """Walks the header's text and keeps sizes of what it has seen."""

    def __init__(self, text: str) -> None:
        self.text = _PREPROCESSOR.sub("", _CPLUSPLUS.sub("", text))
        self.sizes = {name: (size, size) for name, size in SCALARS.items()}  # (bytes, alignment)
        self.sections = [(match.start(), match["title"]) for match in _SECTION.finditer(self.text)]
        self.header = Header()

    def section_at(self, position: int) -> str:
        titles = [title for start, title in self.sections if start < position]
        return titles[-1] if titles else ""

    def read(self) -> Header:
        for match in _STRUCT.finditer(self.text):
            self.header.structs.append(self.read_struct(match))
        self.header.opaque = [match[2] for match in _OPAQUE.finditer(self.text)]
        for match in _ENUM.finditer(self.text):
            body = re.sub(r"/\*.*?\*/", "", match["body"], flags=re.DOTALL)
            for name, value in _CONSTANT.findall(body):
                self.header.constants[name] = int(value)
        without_structs = _STRUCT.sub("", self.text)
        for match in _FUNCTION.finditer(without_structs):
            self.header.functions.append(self.read_function(match))
        return self.header

    def read_struct(self, match: re.Match[str]) -> Struct:
        section = self.section_at(match.start())
        body, note = match["body"], ""
        opening = re.match(r"[ \t]*/\*(.*?)\*/", body)
        if opening is not None:
            note, body = _squeeze(opening[1]), body[opening.end() :]
        after = _squeeze(match["after"])
        fields = self.read_fields(body, _default_writers(section))
        end = max((entry.offset + entry.bytes for entry in fields), default=0)
        alignment = max((self.sizes[_base(entry.type)][1] for entry in fields), default=1)
        size = -(-end // alignment) * alignment
        self.sizes[match["name"]] = self.sizes[f"struct {match['tag']}"] = (size, alignment)
        says = re.match(r"(\d+) bytes", note) or re.match(r"(\d+) bytes", after)
        return Struct(
            tag=match["tag"],
            name=match["name"],
            section=section,
            note=" ".join(filter(None, (note, after))),
            bytes=size,
            says_bytes=int(says[1]) if says else None,
            shared=any(entry.says_offset is not None for entry in fields),
            fields=tuple(fields),
        )

    def read_fields(self, body: str, default: tuple[str, str]) -> list[Field]:
        fields: list[Field] = []
        offset, last = 0, default
        for match in _FIELD.finditer(body):
            kind = match["type"].strip()
            size, alignment = self.sizes.setdefault(_base(kind), (POINTER_BYTES, POINTER_BYTES))
            offset = -(-offset // alignment) * alignment
            count = int(match["count"]) if match["count"] else None
            says_offset, writer, reader, note = _read_comment(_squeeze(match["comment"]), default, last)
            last = (writer, reader)
            total = size * (count if count is not None else 1)
            fields.append(Field(match["name"], kind, count, offset, total, says_offset, writer, reader, note))
            offset += total
        return fields

    @staticmethod
    def read_function(match: re.Match[str]) -> Function:
        parameters = []
        for text in match["args"].split(","):
            cleaned = _squeeze(text)
            if cleaned == "void":
                continue
            parts = re.fullmatch(r"(.*?[ *])(\w+)", cleaned)
            if parts is None:
                raise ValueError(f"{match['name']}: cannot read parameter {cleaned!r}; name each parameter")
            parameters.append((parts[1].strip(), parts[2]))
        note = _squeeze(match["comment"]).removeprefix("/*").removesuffix("*/").strip()
        return Function(_squeeze(match["ret"]), match["name"], tuple(parameters), note)


def _base(kind: str) -> str:
    return "pointer" if kind.endswith("*") else kind.removeprefix("const ").strip()


def _default_writers(section: str) -> tuple[str, str]:
    match = re.search(r"W:(?P<writer>.*?) R:(?P<reader>.*)", section)
    return (match["writer"], match["reader"]) if match else ("driver", "all")


def _read_comment(
    comment: str, default: tuple[str, str], last: tuple[str, str]
) -> tuple[int | None, str, str, str]:
    """(offset, written by, read by, the rest) of one field's comment."""
    says = re.match(r"@(\d+)\s*", comment)
    offset = int(says[1]) if says else None
    rest = comment[says.end() :] if says else comment
    if re.match(r"const\b", rest):
        return offset, "driver, before the magic", default[1], rest.removeprefix("const").lstrip("; ")
    if re.match(r"likewise\b", rest):
        return offset, *last, rest.removeprefix("likewise").lstrip("; ")
    match = re.match(
        r"(?:W:(?P<writer>[^;]*?))?\s*(?:(?:^|(?<= ))R:(?P<reader>[^;]*?))?\s*(?:;\s*(?P<note>.*))?$", rest
    )
    if match is None or (match["writer"] is None and match["reader"] is None):
        return offset, *default, rest
    return offset, match["writer"] or default[0], match["reader"] or default[1], match["note"] or ""


def read_header(path: Path = HEADER) -> Header:
    """Parse the header; ValueError when it leaves the plain subset."""
    return _Reader(path.read_text(encoding="utf-8")).read()


# ---- what the rules of the layout demand ---------------------------------------------------------

# The words that more than one process writes.
SHARED_WRITERS = {("shmd_control_slot", "turn"): "clients", ("shmd_gate", "position"): "consumer"}


def _who(struct: Struct, entry: Field) -> str:
    named = SHARED_WRITERS.get((struct.tag, entry.name))
    if named is not None:
        return named
    plain = re.sub(r"\([^)]*\)", "", entry.written_by)
    who = re.split(r",| when | before | likewise", plain)[0].strip()
    return who.removeprefix("its ").removeprefix("that ").removeprefix("one ").removeprefix("all ")


def layout_problems(header: Header) -> list[str]:
    """Where the header contradicts itself: offsets, sizes, or a 128-byte line with two writers."""
    problems: list[str] = []
    for struct in header.structs:
        if (
            struct.says_bytes is not None
            and struct.says_bytes != struct.bytes
            and not struct.note.startswith("the first")
        ):
            problems.append(
                f"{struct.tag}: the comment says {struct.says_bytes} bytes, it has {struct.bytes}"
            )
        if not struct.shared:
            continue
        lines: dict[int, dict[str, str]] = {}
        next_offset = 0
        for entry in struct.fields:
            if entry.says_offset != entry.offset:
                problems.append(
                    f"{struct.tag}.{entry.name}: comment says @{entry.says_offset}, it is at {entry.offset}"
                )
            if entry.offset != next_offset:
                problems.append(
                    f"{struct.tag}.{entry.name}: hidden padding before it, from {next_offset}; spell it out"
                )
            next_offset = entry.offset + entry.bytes
            if entry.is_pad:
                continue
            for line in range(entry.offset // LINE_BYTES, (next_offset - 1) // LINE_BYTES + 1):
                lines.setdefault(line, {})[_who(struct, entry)] = entry.name
        problems.extend(
            f"{struct.tag}: line {line} (@{line * LINE_BYTES}) is written by more than one: {writers}"
            for line, writers in lines.items()
            if len(writers) > 1
        )
        if next_offset != struct.bytes:
            problems.append(
                f"{struct.tag}: hidden padding at its end, from {next_offset} to {struct.bytes}; spell it out"
            )
    return problems
