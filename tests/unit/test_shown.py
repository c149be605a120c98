"""What somebody else chose is shown escaped, at each place through which text leaves."""

from __future__ import annotations

import ast
import io
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmdriver import errors
from shmdriver.cli import output
from shmdriver.cli.screen import Page, Styled, Table, render
from shmdriver.cli.sub import _shown_line
from shmdriver.client import log as client_log
from shmdriver.driver.log import Log
from shmdriver.shown import shown

ROOT = Path(__file__).resolve().parents[2] / "src" / "shmdriver"
# Each can move a cursor, retitle a terminal, turn a line around, hide in it, or begin another one.
EVIL = "\n\r\x1b]0;t\x07\x7f\x85\x9b2J\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff\ud800"
PLAIN = "größe → 漢字 e\u0301 \\n 'x'"

# Where text is printed; all else calls these. Data for programs is written by cli/wire.py.
PRINTS = {"cli/output.py", "cli/screen.py"}
# The demo and the benchmarks print only what they have made themselves.
OWN_TEXT = ("demo/", "bench/")


def test_all_that_is_not_printable_is_escaped_and_nothing_else() -> None:
    assert shown(PLAIN) is PLAIN
    escaped = shown(EVIL)
    assert escaped.isprintable()
    assert escaped.startswith(r"\n\r\x1b]0;t\x07\x7f\x85\x9b2J\u061c")
    assert shown(escaped) == escaped
    assert shown("a\nb\tc\x1b", keep="\n\t") == "a\nb\tc\\x1b"


def printing_calls(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each call that could write to a terminal by itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            first = ast.unparse(node.args[0]) if node.args else ""
            is_print = called in ("print", "typer.echo", "typer.secho", "click.echo", "traceback.print_exc")
            is_standard = called.endswith((".write", ".writelines")) and "sys.std" in called
            if is_print or is_standard or (called == "os.write" and first in ("1", "2")):
                yield node.lineno, ast.unparse(node)


@pytest.mark.fault(85, how="all calls that print, in the sources")
def test_text_is_printed_only_where_it_is_escaped() -> None:
    found = {
        f"{name}:{line}: {call}"
        for path in sorted(ROOT.rglob("*.py"))
        if not (name := str(path.relative_to(ROOT))).startswith(OWN_TEXT)
        for line, call in printing_calls(path)
        if name not in PRINTS
    }
    assert not found, "print with say, say_all or note of cli/output.py"
    for line, call in printing_calls(ROOT / "cli/output.py"):
        assert "shown(" in call or "json.dumps(" in call, f"cli/output.py:{line}: {call}"


@pytest.mark.fault(85, how="controls and bidirectional marks through each place that prints")
def test_each_place_that_prints_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(EVIL)
    output.note(EVIL)
    output.say_all(f"one\n{EVIL[1:]}\n")
    output.print_json({"name": EVIL})
    said = capsys.readouterr()
    for line in (said.out + said.err).splitlines():
        assert line.isprintable(), line
    page: Page = [Table("t", ("name",), ((EVIL,), (Styled(EVIL, "red"),))), (EVIL, Styled(EVIL, "bold"))]
    assert all(line.isprintable() for line in render(page, 400, colour=False))
    reading, writing = os.pipe()
    with Log(writing) as log:
        log(EVIL)
    line = os.read(reading, 4096).decode()
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_exceptions_and_what_is_logged_are_escaped(caplog: pytest.LogCaptureFixture) -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, errors.ShmDriverError):
            error = kind(EVIL)
            assert str(error).isprintable(), name
            assert str(pickle.loads(pickle.dumps(error))) == str(error)
    with caplog.at_level(logging.INFO, logger="shmdriver"):
        client_log.tell("INFO", "instance %s: %s", EVIL, errors.DriverUnavailable(EVIL))
    assert caplog.messages[-1].isprintable()


class _Payload(bytes):
    """As much of a message as `sub` writes."""


def test_a_payload_drives_no_terminal() -> None:
    data = b"two\tlines\nof text\x1b[2J \xff\xe2\x80\xae"
    shown_bytes = _shown_line(_Payload(data))  # type: ignore[arg-type]
    assert io.BytesIO(shown_bytes).readlines() == [b"two\tlines\n", b"of text\\x1b[2J \\xff\\u202e\n"]
