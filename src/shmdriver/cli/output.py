"""How tools print: JSON for programs, short numbers for people, on a terminal of any encoding."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import io
import json
import sys
from typing import TYPE_CHECKING, Any

from shmdriver.shown import shown

if TYPE_CHECKING:
    from rich.console import Console

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_PLAIN = {"→": "->", "─": "-", "µ": "u", "✓": "+", "✗": "x", "…": "..."}
_ERRORS = "shmdriver.plain"


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """The tools' own signs in ASCII, and all else escaped, where an encoding lacks it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    words = [_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs]
    return "".join(words), error.end


codecs.register_error(_ERRORS, _plainly)


def print_plainly() -> None:
    """From now on nothing that is printed fails for the encoding of stdout or stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def plain(value: Any) -> Any:
    """Dataclasses, tuples and sets as what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        extra = {name: plain(getattr(value, name)) for name in _properties(type(value))}
        return fields | extra
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _properties(kind: type) -> list[str]:
    simple = ("alive", "serving", "live", "dead", "frozen", "no_consumer", "held_back", "state", "shm_bytes")
    return [name for name in simple if isinstance(getattr(kind, name, None), property)]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(plain(value), indent=2))


def say(text: str) -> None:
    """A line for people on stdout."""
    print(shown(text), flush=True)


def say_all(text: str) -> None:
    """A text of several lines for people on stdout."""
    print(shown(text, keep="\n").removesuffix("\n"))


def note(text: str) -> None:
    """A line for people on stderr, where it cannot mix with data."""
    with contextlib.suppress(OSError):  # nobody reads stderr: then there is nowhere to say anything
        print(f"shmdriver: {shown(text)}", file=sys.stderr, flush=True)


def count_text(number: float) -> str:
    """12, 4.2 k, 1.3 M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= limit:
            return f"{number / (limit if unit != 'k' else 1e3):.1f} {unit}"
    return f"{number:.0f}"


def bytes_text(number: float) -> str:
    """512 B, 4.0 MiB."""
    for unit in _UNITS:
        if abs(number) < 1024 or unit == _UNITS[-1]:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def span_text(span_ns: float) -> str:
    """350 ns, 12 µs, 4.5 ms, 3.2 s, 5 min, 2.1 h."""
    if span_ns < 0:
        return "never"
    for limit, divisor, unit in ((1e3, 1, "ns"), (1e6, 1e3, "µs"), (1e9, 1e6, "ms"), (120e9, 1e9, "s")):
        if span_ns < limit:
            number = span_ns / divisor
            return f"{number:.0f} {unit}" if number >= 100 or divisor == 1 else f"{number:.1f} {unit}"
    return f"{span_ns / 60e9:.0f} min" if span_ns < 7200e9 else f"{span_ns / 3600e9:.1f} h"


def console() -> Console:
    """Rich's console on stdout; in a pipe as wide as its content needs, without colours."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
