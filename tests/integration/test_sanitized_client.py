"""The Python client's tests once more: its C under ASAN and UBSAN, each object in a block of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.zygote import NATIVE_VARIABLE

TESTS = Path(__file__).parent
SUITES = (
    "hotpath", "views", "messages", "room", "shard", "fileno", "asyncio", "close", "signals",
    "arrays", "records",
)  # fmt: skip
# Only what C itself does is of interest: the time of an import, a child of fork, a service in Python are not.
LEFT_OUT = "not nothing_stays_allocated and not import and not one_service_reads"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The folder in which each process writes what ASAN finds in it."""
    return tmp_path_factory.mktemp("asan")


@pytest.fixture(scope="module")
def environment(sanitized, reports):
    asan = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(asan).is_absolute():
        pytest.skip("this compiler has no libasan")
    return {
        **os.environ,
        "LD_PRELOAD": str(Path(asan).resolve()),
        # No leaks: the interpreter itself keeps much to its end.
        "ASAN_OPTIONS": f"detect_leaks=0:abort_on_error=1:log_path={reports}/pid",
        "PYTHONMALLOC": "malloc",
        NATIVE_VARIABLE: str(sanitized),
    }


@pytest.mark.slow
@pytest.mark.timeout(0)  # each test in there has a limit of its own
def test_the_client_under_asan(environment, reports):
    files = [str(TESTS / f"test_client_{suite}.py") for suite in SUITES]
    done = subprocess.run(  # its output is captured as this test's own: a failure shows all of it
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", LEFT_OUT, *files],
        env=environment,
        cwd=TESTS.parent.parent,
        check=False,
    )
    found = "".join(report.read_text(errors="replace") for report in sorted(reports.iterdir()))
    assert not found, found
    assert done.returncode == 0  # pytest says 5 when it has run no test
