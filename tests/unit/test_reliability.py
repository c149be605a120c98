"""docs/RELIABILITY.md: every fault has a test, and the page says which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.fault_rows import ROWS, marked

ROOT = Path(__file__).resolve().parents[2]


def test_rows_are_numbered_in_order_each_once():
    numbers = [row.number for row in ROWS]
    assert numbers == sorted(set(numbers))


def test_every_fault_has_a_test():
    covered = {mark.row for mark in marked()}
    assert {row.number for row in ROWS} - covered == set()


def test_every_mark_is_of_a_row():
    numbers = {row.number for row in ROWS}
    assert [mark for mark in marked() if mark.row not in numbers] == []


def test_the_page_says_which_test_covers_which_row():
    command = [sys.executable, "scripts/reliability.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_marks_are_read_from_functions_classes_parameters_and_comments(tmp_path):
    for folder in ("tests/c", "models"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "tests/test_x.py").write_text(
        "import pytest\n"
        "@pytest.mark.fault(3, 1, how='kill')\n@pytest.mark.stress\ndef test_a(): ...\n"
        "class TestB:\n    @pytest.mark.parametrize('n', [pytest.param(1, marks=pytest.mark.fault(7))])\n"
        "    def test_b(self, n): ...\n"
        "def test_c(): ...\n"
    )
    (tmp_path / "tests/c/test_y.c").write_text("/* fault: 40, 41 (starts there) */\nint main(void) {}\n")
    found = [(mark.row, mark.test, mark.how, mark.stress) for mark in marked(tmp_path)]
    assert found == [
        (1, "tests/test_x.py::test_a", "kill", True),
        (3, "tests/test_x.py::test_a", "kill", True),
        (7, "tests/test_x.py::TestB::test_b", "", False),
        (40, "tests/c/test_y.c", "starts there", False),
        (41, "tests/c/test_y.c", "starts there", False),
    ]
