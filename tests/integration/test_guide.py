"""The user guide runs: blocks print what they say, C compiles, errors have the words that it quotes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import shmdriver
from tests.forks import FORK_OF_THREADS, told_of_forks

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[tuple[str, str]]:
    """Page and number, and the text, of every block in a language."""
    return [
        (f"{page.stem}-{number}", text)
        for page in PAGES
        for number, (kind, text) in enumerate(FENCED.findall(page.read_text()))
        if kind == language
    ]


Running = Future[subprocess.CompletedProcess[str]]
PYTHON = blocks("python")
PROGRAMS = [(name, text) for name, text in PYTHON if "def test_" not in text]
TESTS = [(name, text) for name, text in PYTHON if "def test_" in text]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Running]]:
    """All programs of the pages, two at a time."""
    place = tmp_path_factory.mktemp("blocks")

    def run(name: str, text: str) -> subprocess.CompletedProcess[str]:
        folder = place / name
        folder.mkdir()
        (folder / "block.py").write_text(text)
        return subprocess.run(
            [sys.executable, "block.py"],
            capture_output=True, text=True, timeout=400, check=False, cwd=folder, env=told_of_forks(folder),
        )  # fmt: skip

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, name, text) for name, text in PROGRAMS}


def test_every_page_is_listed_and_every_link_leads_somewhere() -> None:
    index = (GUIDE / "README.md").read_text()
    assert [page.name for page in PAGES if page.name != "README.md" and f"]({page.name})" not in index] == []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (GUIDE / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize(("name", "text"), PROGRAMS, ids=[name for name, _ in PROGRAMS])
def test_a_block_prints_what_it_says(name: str, text: str, running: dict[str, Running]) -> None:
    promised = re.findall(r"# prints: (.*)", text)
    assert promised, "a block that prints nothing cannot fail"
    done = running[name].result()
    assert FORK_OF_THREADS not in done.stderr
    if done.returncode == 1 and done.stderr.startswith("this example needs "):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert [line for line in promised if line not in printed] == [], done.stdout


@pytest.mark.parametrize(("name", "text"), TESTS, ids=[name for name, _ in TESTS])
def test_a_block_of_tests_passes(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "test_block.py").write_text(text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert f"{text.count('def test_')} passed" in done.stdout


def test_the_c_program_compiles_and_runs(instance_name: str, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no cc here")
    sources = []
    for name, text in blocks("c"):  # the program, and functions that one may add to it
        sources.append(tmp_path / f"{name}.c")
        sources[-1].write_text(text)
    flags = subprocess.run(
        [sys.executable, "-m", "shmdriver", "config", "--cflags", "--libs"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout.split()  # fmt: skip
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    app = tmp_path / "app"
    subprocess.run(["cc", *strict, *sources, "-o", app, *flags], check=True, timeout=60)
    with shmdriver.embedded(instance_name):
        done = subprocess.run(
            [str(app), instance_name], capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stdout) == (0, "2475.0 end\n"), done.stderr


def test_troubleshooting_quotes_words_that_the_code_says() -> None:
    sources = [*(ROOT / "src" / "shmdriver").rglob("*.py"), *(ROOT / "csrc").rglob("*.[ch]")]
    # Texts are split over lines and have fields in them: compared without quotes, breaks and blanks.
    said = re.sub(r'["\s]|\bf(?=")', "", "\n".join(path.read_text().replace(' f"', ' "') for path in sources))
    quoted = [
        words
        for paragraph in re.findall(r"^\*\*`.*", (GUIDE / "troubleshooting.md").read_text(), re.MULTILINE)
        for words in re.findall(r"\*\*`([^`]+)`\*\*", paragraph)
    ]
    assert len(quoted) > 15
    assert [words for words in quoted if re.sub(r"\s", "", words) not in said] == []


def test_the_systemd_unit_and_the_configuration_are_what_the_driver_takes(tmp_path: Path) -> None:
    ((_, text),) = blocks("toml")
    (tmp_path / "shmdriver.toml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "shmdriver", "config", "--config", str(tmp_path / "shmdriver.toml")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "65536" in done.stdout
