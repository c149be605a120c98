"""Every program in examples/ runs as it stands and prints what its docstring says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
PAGE_LINES = 100


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 6


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_prints_what_it_says(example: Path, tmp_path: Path) -> None:
    source = example.read_text()
    assert source.count("\n") <= PAGE_LINES
    promised = (ast.get_docstring(ast.parse(source)) or "").rpartition("Prints: ")[2]
    assert promised
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", str(example)],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.strip().endswith(promised.strip())
