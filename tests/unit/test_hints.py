"""Every command that a text tells its reader to run is one that the command line takes, with its instance."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from shmdriver.cli.app import app
from shmdriver.hints import command

ROOT = Path(__file__).resolve().parents[2]
CLI: Any = typer.main.get_command(app)
NAMES = "|".join(sorted(CLI.commands))
BACKQUOTED = re.compile(rf"`(shmdriver (?:{NAMES})\b[^`]*)`")
LOOSE = re.compile(rf"(?<![`$] )(?<![`$])\bshmdriver (?:{NAMES})\b")
EXAMPLE = re.compile(rf"\bshmdriver (?:{NAMES})\b[^|<>#&;)\n]*")  # on a line that begins with "$ "
ABOUT_ALL = ("gc", "doctor", "demo", "bench")  # without -i they are about all instances, or about none

# Texts that are pages of their own, not hints of an error or a tool.
TUTORIALS = {"src/shmdriver/demo/show.py"}


def parsed(words: str) -> Any:
    """The context of a command line that is parsed and not run. Fails on one that is refused."""
    top = CLI.make_context("shmdriver", ["config"], resilient_parsing=True)
    name, found, rest = CLI.resolve_command(top, shlex.split(words)[1:])
    assert found is not None
    return found.make_context(name, list(rest), parent=top)


def check(words: str, where: str, *, names_instance: bool = True) -> None:
    """That ``words`` are a command that the command line takes; if it can name an instance, it does."""
    try:
        context = parsed(words)
    except Exception as error:  # typer's own kinds of usage errors
        pytest.fail(f"{where}: `{words}` is refused: {error}")
    takes = any(parameter.name == "instance" for parameter in context.command.params)
    if takes and names_instance and context.info_name not in ABOUT_ALL:
        assert context.params["instance"], f"{where}: `{words}` names no instance"


def python_sources() -> list[tuple[str, ast.Module]]:
    return [
        (str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8")))
        for path in sorted((ROOT / "src").rglob("*.py"))
    ]


def text_of(node: ast.expr) -> str:
    """A string, with an x for what stands there at run time."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return "x"


def c_texts(source: str) -> Iterator[str]:
    """The string literals of a C file, adjacent ones joined, with an x for each conversion."""
    code = re.sub(r"/\*.*?\*/", " ", source, flags=re.DOTALL)
    for run in re.findall(r'"(?:[^"\\\n]|\\.)*"(?:\s*"(?:[^"\\\n]|\\.)*")*', code):
        joined = "".join(re.findall(r'"((?:[^"\\\n]|\\.)*)"', run))
        yield re.sub(r"%[.\d]*(?:ll|z)?[a-z]", "x", joined)


@pytest.mark.fault(68, how="every hint of the package, parsed")
def test_hints_of_the_package_are_made_by_one_function_and_parse() -> None:
    seen = 0
    for path, tree in python_sources():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)):
                continue
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            instance = [word for word in node.keywords if word.arg == "instance"]
            if called != "command" or not instance:
                continue
            wanted = None if text_of(instance[0].value) == "None" else "x"
            words = [text_of(argument) for argument in node.args]
            hint = command(words[0], *words[1:], instance=wanted)
            check(hint.strip("`"), f"{path}:{node.lineno}")
            seen += 1
    assert seen > 10


def test_no_hint_of_the_package_is_written_by_hand() -> None:
    found = []
    for path, tree in python_sources():
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in documentation:
                text = text_of(node) if isinstance(node, ast.JoinedStr) else node.value
                if isinstance(text, str) and path not in TUTORIALS and "    $ shmdriver" not in text:
                    found += [f"{path}:{node.lineno}: {hit}" for hit in LOOSE.findall(text)]
                    found += [f"{path}:{node.lineno}: {hit}" for hit in BACKQUOTED.findall(text)]
    assert found == [], "use shmdriver.hints.command"


@pytest.mark.fault(68, how="every hint of the C core, parsed")
def test_hints_of_the_core_parse_and_name_their_instance() -> None:
    seen = 0
    for path in sorted((ROOT / "csrc").rglob("*.[ch]")):
        for text in c_texts(path.read_text(encoding="utf-8")):
            for hint in BACKQUOTED.findall(text):
                check(hint, str(path.relative_to(ROOT)))
                seen += 1
            assert not LOOSE.search(text), f"{path}: a command without backquotes: {text!r}"
    assert seen >= 5


def test_examples_in_help_texts_and_tutorials_parse() -> None:
    seen = 0
    for path, tree in python_sources():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            lines = [line for line in node.value.splitlines() if line.strip().startswith("$ ")]
            if path in TUTORIALS:
                lines += [line for line in node.value.splitlines() if line.startswith("shmdriver ")]
            for line in lines:
                for example in EXAMPLE.findall(line):
                    check(example, f"{path}:{node.lineno}", names_instance=False)
                    seen += 1
    assert seen > 30


def test_commands_in_documents_parse() -> None:
    seen = 0
    for path in (
        ROOT / "README.md",
        ROOT / "docs/OPERATIONS.md",
        *sorted((ROOT / "docs/guide").glob("*.md")),
    ):
        for hint in BACKQUOTED.findall(path.read_text(encoding="utf-8")):
            for example in EXAMPLE.findall(hint.replace("[", "").replace("]", "")):
                if len(example.split()) > 2:  # not a command that is only mentioned
                    check(example, str(path.relative_to(ROOT)), names_instance=False)
                    seen += 1
    assert seen >= 10


def test_a_hint_is_quoted_for_a_shell() -> None:
    hint = command("why", "a b; rm", instance="md")
    assert hint == "`shmdriver why 'a b; rm' -i md`"
    assert shlex.split(hint.strip("`")) == ["shmdriver", "why", "a b; rm", "-i", "md"]
