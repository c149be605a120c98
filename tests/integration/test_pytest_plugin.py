"""The pytest plugin, used as a user would: its fixtures in a test, from the installed package."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import textwrap
from importlib.metadata import entry_points
from pathlib import Path

import pytest

TESTS = """
import multiprocessing, os
import pytest, shmdriver


def test_embedded(shmdriver_client):
    with shmdriver_client.consumer("s") as into, shmdriver_client.producer("s") as out:
        out.publish(b"x")
        assert bytes(into.read(timeout=60)) == b"x"


def test_a_killed_driver_stops_nothing(shmdriver_process):
    with shmdriver_process.connect() as client:
        with client.consumer("s") as into, client.producer("s") as out:
            shmdriver_process.kill()
            out.publish(b"no driver")
            assert bytes(into.read(timeout=60)) == b"no driver"
            shmdriver_process.start()
            out.publish(b"adopted")
            assert bytes(into.read(timeout=60)) == b"adopted"


def test_lap(shmdriver_client, shmdriver_faults):
    client = shmdriver_client
    with client.consumer("s", delivery="lossy") as into, client.producer("s", slots=64) as out:
        assert shmdriver_faults.lap(out, into) == 2 * out.slots
        into.read(timeout=60)
        assert into.lost > 0
    with shmdriver_client.consumer("t") as into, shmdriver_client.producer("t") as out:
        with pytest.raises(ValueError, match="reliable"):
            shmdriver_faults.lap(out, into)


def read(client, ready):
    with client.consumer("s") as into:
        ready.set()
        for message in into:
            pass


def test_stall_and_kill(shmdriver_client, shmdriver_faults):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    reader = context.Process(target=read, args=(shmdriver_client, ready))
    reader.start()
    ready.wait(60)
    with shmdriver_client.producer("s", slots=64) as out:
        with shmdriver_faults.stall(reader):
            with pytest.raises(shmdriver.BackPressured) as error:
                for _ in range(200):
                    out.publish(b"", timeout=0.2)
            assert error.value.pid == reader.pid
        out.publish(b"thawed", timeout=60)
        shmdriver_faults.kill(reader)
        for _ in range(200):
            out.publish(b"its gate is free", timeout=60)
    reader.join()
    assert os.WIFSIGNALED is not None and reader.exitcode == -9
"""


def test_the_plugin_is_found_by_pytest():
    (found,) = [point for point in entry_points(group="pytest11") if point.name == "shmdriver"]
    assert found.value == "shmdriver.pytest_plugin"


def test_fixtures_and_faults_work_in_a_users_tests(tmp_path: Path):
    (tmp_path / "test_user.py").write_text(textwrap.dedent(TESTS))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark", str(tmp_path)],
        capture_output=True, text=True, timeout=400, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_a_process_that_has_ended_is_no_target(shmdriver_faults):
    child = multiprocessing.get_context("fork").Process(target=int)
    with pytest.raises(ValueError, match="no pid"):
        shmdriver_faults.kill(child)


def test_a_free_threaded_python_is_refused_in_words():
    code = "import sys; sys.abiflags = 't'; import shmdriver"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "ImportError: shmdriver needs a Python with the GIL" in done.stderr
