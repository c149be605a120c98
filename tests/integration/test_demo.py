"""``shmdriver demo --quick``: every part, verified by the demo itself, and what it leaves behind."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = (sys.executable, "-m", "shmdriver", "demo", "--quick")
LIVE_LINE = """
import sys
from shmdriver.cli.app import run
from shmdriver.demo import show
show._measure = lambda stage: None  # the other test sees these parts
sys.exit(run(["demo", "--quick", "--stay"]))
"""


def left_in_shm(pid: int) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"shmd.demo-{pid}*")]


@pytest.mark.slow
def test_quick_demo_shows_every_part_and_loses_nothing():
    process = subprocess.Popen(DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, errors = process.communicate(timeout=400)
    assert process.returncode == 0, out + errors
    assert errors == ""
    assert "✗" not in out
    for finding in (
        "SHA-256 equal: 800 of 800",
        "kill -9 driver",
        "adopted 2 leases",
        "lost 0: of",
        "hello, shared",
    ):
        assert finding in out
    assert re.search(r"freeze consumer (\d+) .*\n.*pid \1\).*stopped", out)
    assert left_in_shm(process.pid) == []


@pytest.mark.slow
def test_demo_that_stays_ends_with_ctrl_c_and_still_counts():
    command = (sys.executable, "-c", LIVE_LINE)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "shmdriver tail" in line:
            break
    instance = f"demo-{process.pid}-survive"
    stat = subprocess.run(
        (sys.executable, "-m", "shmdriver", "stat", "-i", instance),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "live" in stat.stdout
    os.kill(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, "".join(lines) + out + errors
    assert "lost 0: of" in out
    assert left_in_shm(process.pid) == []


def test_quotes_that_cannot_be_read_end_the_demo_with_a_reason(tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("nothing\nhere\n")
    done = subprocess.run((*DEMO, "--quotes", bad), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "bad.csv, line 2" in done.stdout
