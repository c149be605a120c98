"""Rules of docs/STYLE.md that a program can check. An exception is listed here, with its reason."""

from __future__ import annotations

import ast
import re
import subprocess
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES = 400
FUNCTION_LINES = 70

# path: why it may be longer. Every other file that passes the limit is a warning that names it.
LONG_FILES = {
    "csrc/shmd_abi.h": "every shared layout, in one place on purpose",
    "csrc/shmd_abi_check.c": "generated",
    "src/shmdriver/_native.pyi": "generated",
    "docs/ABI.md": "generated",
}
LONG_FUNCTIONS: dict[str, str] = {}

LIBRARY = ("src/shmdriver/driver/", "src/shmdriver/client/", "src/shmdriver/observe/")

# (what, where it is looked for, why)
FORBIDDEN = [
    (r"multiprocessing\.shared_memory|from multiprocessing import shared_memory", ("src/", "csrc/"),
     "its resource tracker unlinks other processes' memory"),
    (r"\btime\.sleep\b|\basyncio\.sleep\((?!0\))", LIBRARY,
     "sleeping is no synchronisation: wait on a futex word with a timeout"),
    (r"\b(usleep|nanosleep|sleep)\(", ("csrc/",), "wait on a futex word with a timeout"),
    (r"\b(killall|pkill)\b", ("",), "ends other people's processes: use a pid"),
    (r"resource_tracker", ("src/",), "segments belong to the driver"),
    (r"/home/\w|/root/|/work/|/tmp/\w+/bin", ("",), "a path of one machine"),
    (r"https?://[\w.]*(pypi|pythonhosted|crates|npmjs)\.", ("",), "package clients know their registry"),
]  # fmt: skip
ATOMICS_ONLY_IN = "csrc/shmd_atomic.h"


def _tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if listed.returncode != 0:  # an unpacked source distribution
        return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def _sources(*suffixes: str) -> list[tuple[str, str]]:
    """(path within the repository, text) of our own files with one of these suffixes."""
    paths = [path for path in _tracked() if path.suffix in suffixes]
    return [(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in paths]


def _long_c_functions(text: str) -> list[tuple[str, int]]:
    """Functions whose braces stand in the first column."""
    found, name, start = [], "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"[A-Za-z_].*\(", line):
            name = line.split("(")[0].split()[-1].lstrip("*")
        elif line == "{":
            start = number
        elif line == "}" and start:
            found.append((name, number - start))
            start = 0
    return found


def _long_python_functions(text: str) -> list[tuple[str, int]]:
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    return [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions]


def test_sizes_of_files_and_functions():
    asking = []
    for path, text in _sources(".c", ".h", ".py"):
        lines = text.count("\n")
        if lines > FILE_LINES and path not in LONG_FILES:
            asking.append(f"{path}: {lines} lines")
        functions = _long_python_functions(text) if path.endswith(".py") else _long_c_functions(text)
        asking += [
            f"{path}: {name} has {length} lines"
            for name, length in functions
            if length > FUNCTION_LINES and f"{path}:{name}" not in LONG_FUNCTIONS
        ]
    if asking:
        warnings.warn(
            "asking for a second thought (tests/unit/test_style.py):\n" + "\n".join(asking), stacklevel=1
        )


def test_listed_exceptions_still_exist():
    assert [path for path in LONG_FILES if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("pattern", "places", "why"), FORBIDDEN, ids=[entry[0] for entry in FORBIDDEN])
def test_forbidden_words(pattern, places, why):
    found = [
        f"{path}:{number}: {line.strip()}"
        for path, text in _sources(".c", ".h", ".py", ".pyi", ".md", ".toml", ".mk", "")
        if path.startswith(places) and path != "tests/unit/test_style.py"
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert found == [], why


def test_atomics_stand_in_one_header():
    found = [
        path
        for path, text in _sources(".c", ".h")
        if path.startswith("csrc/")
        and path != ATOMICS_ONLY_IN
        and re.search(r"__atomic_|__sync_|stdatomic\.h", text)
    ]
    assert found == [], f"atomics belong into {ATOMICS_ONLY_IN}"


def test_units_stand_last_in_names():
    bad = re.compile(r"\b(?:ns|ms|us|bytes)_(?:timeout|deadline|interval|since|age|late)\b")
    found = [
        path
        for path, text in _sources(".c", ".h", ".py")
        if path.startswith(("csrc/", "src/")) and bad.search(text)
    ]
    assert found == []


def test_the_lifecycle_reads_no_clock_and_does_no_io():
    path = ROOT / "src/shmdriver/driver/lifecycle.py"
    modules = {
        name.name.split(".")[0] if isinstance(node, ast.Import) else (node.module or "").split(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }
    assert modules.isdisjoint({"time", "os", "socket", "threading", "posix_ipc", "pathlib", "subprocess"})


def test_every_file_ends_with_one_newline_and_has_no_tabs_in_python():
    found = [
        path
        for path, text in _sources(".c", ".h", ".py", ".md", ".toml")
        if text
        and (not text.endswith("\n") or text.endswith("\n\n") or (path.endswith(".py") and "\t" in text))
    ]
    assert found == []
