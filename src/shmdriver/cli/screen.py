"""Pages of lines and tables for a terminal, made to cost little: on few cores it takes one from a stream.

A cell is text, or text with a style; a page is laid out for a width and becomes lines. :class:`Screen` shows
one page after another and writes what has changed.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import NamedTuple, Self, TextIO
from unicodedata import combining, east_asian_width

from shmdriver.shown import shown

__all__ = ["Cell", "Line", "Page", "Screen", "Styled", "Table", "is_live", "print_page", "render"]

PIPE_WIDTH = 160  # where there is no terminal
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
_GAP, _GAP_NARROW = 3, 1
_COLUMN_MIN = 4


class Styled(NamedTuple):
    """Text in a style: some of bold, dim, red, green, yellow."""

    text: str
    style: str


Cell = str | Styled
Line = tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a title and a head; columns named ">..." are right-aligned. Without rows: "TITLE: none"."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


Page = Sequence[Line | Table]


def render(page: Page, width: int, *, colour: bool) -> list[str]:
    """The page's lines, for ``width`` columns: cells of tables are folded, lines broken between words."""
    found: list[str] = []
    for part in page:
        if isinstance(part, Table):
            found += _table(part, width, colour=colour)
        else:
            found += _line(part, width, colour=colour)
    return found


def print_page(page: Page) -> None:
    """On stdout, coloured on a terminal."""
    live = sys.stdout.isatty()
    lines = render(page, _size().columns if live else PIPE_WIDTH, colour=live and _has_colours())
    sys.stdout.write("\n".join([*lines, ""]))
    sys.stdout.flush()


def is_live() -> bool:
    """Whether stdout is a terminal on which a page can be redrawn."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


class Screen:
    """The terminal's alternate screen, as long as the block lasts."""

    def __init__(self, out: TextIO | None = None, size: tuple[int, int] | None = None) -> None:
        self._out = out or sys.stdout
        self._fixed = size
        self._size = (0, 0)
        self._shown: list[str] = []

    def __enter__(self) -> Self:
        self._write("\x1b[?1049h\x1b[?25l")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write("\x1b[?25h\x1b[?1049l")

    def show(self, page: Page) -> None:
        """Replaces what is shown; what does not fit below is left out."""
        size = self._fixed or (_size().columns, _size().lines)
        words = []
        if size != self._size:
            self._size, self._shown = size, []
            words.append("\x1b[2J")
        lines = render(page, size[0], colour=_has_colours())[: size[1]]
        for number in range(max(len(lines), len(self._shown))):
            line = lines[number] if number < len(lines) else ""
            if number >= len(self._shown) or line != self._shown[number]:
                words.append(f"\x1b[{number + 1}H{line}\x1b[K")
        self._shown = lines
        self._write("".join(words))

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _size() -> os.terminal_size:
    return shutil.get_terminal_size((PIPE_WIDTH, 50))


def _has_colours() -> bool:
    return not os.environ.get("NO_COLOR")


def _parts(cell: Cell) -> tuple[str, str]:
    text, style = cell if isinstance(cell, Styled) else (cell, "")
    return shown(text), style  # names are whatever their owners chose


def _paint(cell: Cell, text: str, style: str, *, colour: bool) -> str:
    if not colour or not isinstance(cell, Styled) or not text.strip():
        return text
    return f"\x1b[{_code(style)}m{text}\x1b[0m"


@cache
def _code(style: str) -> str:
    return ";".join(_CODES[word] for word in style.split())


def _columns_of(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _line(line: Line, width: int, *, colour: bool) -> list[str]:
    rows, room = [""], width
    for cell in line:
        rest, style = _parts(cell)
        while rest:
            piece = _cut(rest, room, width)
            rows[-1] += _paint(cell, piece, style, colour=colour)
            rest, room = rest[len(piece) :], room - _columns_of(piece)
            if rest:
                rows, room = [*rows, ""], width
    return rows


def _cut(text: str, room: int, width: int) -> str:
    """The beginning of ``text`` that fits; not inside a word when that would fit into a line of its own."""
    if _columns_of(text) <= room:
        return text
    end = 0
    while _columns_of(text[: end + 1]) <= room:
        end += 1
    space = text.rfind(" ", 0, end + 1)
    if space >= 0:
        return text[: space + 1]
    return text[: end or (1 if room == width else 0)]


def _table(table: Table, width: int, *, colour: bool) -> list[str]:
    if not table.rows:
        return [_paint(Styled("", "bold"), table.title, "bold", colour=colour) + ": none"]
    head = [Styled(name.removeprefix(">"), "bold") for name in table.columns]
    right = [name.startswith(">") for name in table.columns]
    natural = [
        max(_columns_of(_parts(cell)[0]) for cell in column) for column in zip(head, *table.rows, strict=True)
    ]
    widths, gap = _fit(natural, width)
    lines = [_paint(Styled("", "bold"), table.title, "bold", colour=colour), ""]
    lines += _row(head, widths, right, gap, colour=colour)
    lines.append(" " + "─" * (sum(widths) + gap * (len(widths) - 1)))
    for row in table.rows:
        lines += _row(row, widths, right, gap, colour=colour)
    return [*lines, ""]


def _fit(natural: list[int], width: int) -> tuple[list[int], int]:
    """Widths of columns, the widest ones cut until all fit, and of the gaps between them."""
    widths, count = list(natural), len(natural)
    for gap in (_GAP, _GAP_NARROW):
        if 1 + sum(widths) + gap * (count - 1) <= width:
            return widths, gap
    over = 1 + sum(widths) + _GAP_NARROW * (count - 1) - width
    while over > 0 and max(widths) > _COLUMN_MIN:
        widths[widths.index(max(widths))] -= 1
        over -= 1
    return widths, _GAP_NARROW


def _row(cells: Iterable[Cell], widths: list[int], right: list[bool], gap: int, *, colour: bool) -> list[str]:
    folded = [_folded(cell, width) for cell, width in zip(cells, widths, strict=True)]
    lines = []
    for number in range(max(len(pieces) for _, pieces in folded)):
        words = []
        for (cell, pieces), width, is_right in zip(folded, widths, right, strict=True):
            piece = pieces[number] if number < len(pieces) else ""
            blank = " " * (width - _columns_of(piece))
            style = cell.style if isinstance(cell, Styled) else ""
            painted = _paint(cell, piece, style, colour=colour)
            words.append(blank + painted if is_right else painted + blank)
        lines.append((" " + (" " * gap).join(words)).rstrip())
    return lines


def _folded(cell: Cell, width: int) -> tuple[Cell, list[str]]:
    text = _parts(cell)[0]
    if _columns_of(text) <= width:
        return cell, [text]
    pieces = []
    while text:
        end = 1
        while end < len(text) and _columns_of(text[: end + 1]) <= width:
            end += 1
        pieces.append(text[:end])
        text = text[end:]
    return cell, pieces
