"""Every example runs as it stands, and prints what its page says that it prints.

Its docstring ends with a line ``Prints: ...``. One that needs a package which is not installed says so and is
skipped (`make ecosystem` installs those that are not large).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.forks import told_of_forks

Running = Future[subprocess.CompletedProcess[str]]
EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))


def promised(path: Path) -> str:
    last = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[-1]
    assert last.startswith("Prints: "), f"{path.name}: its docstring ends with no line 'Prints: ...'"
    return last.removeprefix("Prints: ")


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 11


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Running]]:
    """All examples, two at a time."""
    place = tmp_path_factory.mktemp("examples")

    def run(path: Path) -> subprocess.CompletedProcess[str]:
        folder = place / path.stem
        folder.mkdir()
        return subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", str(path)],
            cwd=folder, capture_output=True, text=True, timeout=400, check=False, env=told_of_forks(folder),
        )  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        yield {path: pool.submit(run, path) for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_its_page_says(path: Path, running: dict[Path, Running]) -> None:
    done = running[path].result()
    if done.returncode == 1 and done.stderr.startswith("this example needs "):
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().endswith(promised(path))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_page(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 120
