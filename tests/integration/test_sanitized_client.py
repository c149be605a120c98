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
def environment(sanitized):
    asan = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(asan).is_absolute():
        pytest.skip("this compiler has no libasan")
    return {
        **os.environ,
        "LD_PRELOAD": str(Path(asan).resolve()),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # the interpreter itself keeps much to its end
        "PYTHONMALLOC": "malloc",
        NATIVE_VARIABLE: str(sanitized),
    }


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_client_under_asan(environment):
    files = [str(TESTS / f"test_client_{suite}.py") for suite in SUITES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", LEFT_OUT, *files],
        env=environment,
        cwd=TESTS.parent.parent,
        capture_output=True,
        text=True,
        timeout=1400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "AddressSanitizer" not in done.stderr
    assert " passed" in done.stdout
