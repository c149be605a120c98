"""A C client's whole life against a real driver, plain and under valgrind's memory checker."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmdriver
from tests.c_program import c_program

PATIENCE_S = 400


@pytest.fixture(scope="module")
def life_cycle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return c_program("life_cycle", tmp_path_factory.mktemp("c"), "-O1", "-g")


@pytest.fixture
def instance() -> Iterator[str]:
    with shmdriver.embedded() as client:
        yield client.instance
        assert [lease for lease in client.leases() if lease.live] == []


def test_c_client_lives_and_leaves_nothing_behind(life_cycle: Path, instance: str) -> None:
    done = subprocess.run(
        [life_cycle, instance, "20"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_c_client_is_clean_under_valgrind(life_cycle: Path, instance: str) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed (Debian: apt-get install valgrind)")
    checker = ["valgrind", "-q", "--error-exitcode=99", "--leak-check=full", "--show-leak-kinds=all"]
    checker += ["--errors-for-leak-kinds=all", "--track-fds=no"]
    done = subprocess.run(
        [*checker, life_cycle, instance, "2"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-4000:]
