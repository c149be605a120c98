"""Builds a program of tests/c as a user builds one: header, library, nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pthread")


def c_program(name: str, folder: Path, *flags: str) -> Path:
    """The program that tests/c/``name``.c makes, in ``folder``. Skips where there is no C compiler."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    subprocess.run(["make", "-s", "-f", ROOT / "native.mk", "lib"], check=True, cwd=ROOT)
    program, source = folder / name, ROOT / "tests" / "c" / f"{name}.c"
    library = ROOT / "build" / "release" / "libshmdriver.a"
    command: list[str | Path] = [
        "cc",
        *FLAGS,
        *flags,
        f"-I{ROOT / 'csrc'}",
        source,
        library,
        "-lrt",
        "-o",
        program,
    ]
    subprocess.run(command, check=True)
    return program
