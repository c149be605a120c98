"""shm.prefault: with it no message meets a page fault in shared memory; without it pages come one by one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import shmdriver
from shmdriver.driver.config import Config
from shmdriver.driver.shm import ShmSpace
from tests.c_program import c_program

PATIENCE_S = 400
NEED_BYTES = 256 << 20
FEW = 16  # page faults: the kernel may move pages at any time

pytestmark = pytest.mark.skipif(ShmSpace.now().free < NEED_BYTES, reason="/dev/shm has less than 256 MiB")


@pytest.fixture(scope="module")
def first_lap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return c_program("first_lap", tmp_path_factory.mktemp("c"), "-O2")


@contextmanager
def driver(*, prefault: bool) -> Iterator[shmdriver.Client]:
    with shmdriver.embedded(config=Config.load(env={}, overrides={"shm.prefault": prefault})) as client:
        yield client


@pytest.mark.fault(61, how="page faults counted over a ring and an arena of 32 MiB each")
@pytest.mark.parametrize("prefault", [True, False])
def test_first_lap_of_large_rings_and_arenas_meets_page_faults_only_without_prefault(
    first_lap: Path, prefault: bool
) -> None:
    with driver(prefault=prefault) as client:
        done = subprocess.run(
            [first_lap, client.instance], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    assert done.returncode == 0, done.stderr
    faults = int(done.stdout)
    assert faults <= FEW if prefault else faults > 1000


def unpopulated() -> list[str]:
    """This process's writable mappings of data segments of which not every page is there."""
    found, mapping, size = [], "", ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mapping = line
        elif line.startswith("Size:"):
            size = line.split()[1]
        elif line.startswith("Rss:") and line.split()[1] != size:
            found.append(mapping)
    return [mapping for mapping in found if " rw-s " in mapping and mapping.endswith(".data")]


@pytest.mark.parametrize("prefault", [True, False])
def test_claims_are_written_in_populated_memory_only_with_prefault(prefault: bool) -> None:
    with driver(prefault=prefault) as client, client.producer("s", slots=64, arena=20 << 20) as out:
        assert bool(unpopulated()) is not prefault
        with out.claim_array(1 << 20, "u1") as array:
            array[0] = 1
        assert bool(unpopulated()) is not prefault
