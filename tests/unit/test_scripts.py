"""Each script says how it is called, and takes no option for the name of a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = [
    path.relative_to(ROOT)
    for folder in ("scripts", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if '__name__ == "__main__"' in path.read_text()
]


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_help_is_printed_and_nothing_is_run_or_written(program: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / program, "--help"],
        capture_output=True, text=True, timeout=60, check=False,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert (done.returncode, done.stdout[:7]) == (0, "usage: "), done.stderr
    assert list(tmp_path.iterdir()) == []
