"""Processes that run with stdin, stdout or stderr closed: none of these numbers ever leads to a segment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmdriver
from shmdriver.driver.collect import collect
from shmdriver.errors import DriverUnavailable, LayoutMismatch
from shmdriver.observe import Instance
from tests.chaos.stage import wait_until

PATIENCE_S = 60
REPORT = """
import json, os, sys
import shmdriver

def opened():
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # the folder's own
    return found

with shmdriver.embedded() as first, shmdriver.connect(first.instance) as client:
    out, consumer = client.producer("s", max_message=1 << 20), client.consumer("s", start="oldest")
    consumer.fileno()
    out.publish(b"x" * (1 << 20))
    os.write(1, b"a line for nobody" * 100)
    whole = bytes(consumer.read(timeout=60)) == b"x" * (1 << 20)
    with open(sys.argv[1], "w") as file:
        json.dump({"opened": opened(), "whole": whole}, file)
"""


def without(closed: str, *command: str) -> list[str]:
    """A command that begins with these descriptors closed."""
    shut = " ".join(f"{fd}>&-" for fd in closed)
    return ["sh", "-c", f'exec "$0" "$@" {shut}', *command]


@pytest.fixture
def instance(instance_name: str) -> Iterator[str]:
    yield instance_name
    collect(instance_name)


def serves(instance: str) -> bool:
    try:
        with Instance(instance) as view:
            return view.driver().serving
    except (DriverUnavailable, LayoutMismatch):  # not there yet, or not complete
        return False


def check(opened: dict[str, str], closed: str) -> None:
    assert {opened[fd] for fd in closed} == {"/dev/null"}, opened
    assert not [target for fd, target in opened.items() if int(fd) < 3 and "shmd" in target]


@pytest.mark.fault(62, how="descriptors closed")
@pytest.mark.parametrize("closed", ["0", "1", "2", "012"])
def test_a_driver_without_standard_descriptors_serves_and_ends(
    instance: str, closed: str, tmp_path: Path
) -> None:
    command = without(closed, sys.executable, "-m", "shmdriver", "run", "-i", instance)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        wait_until(lambda: serves(instance), "the driver to serve")
        folder = Path(f"/proc/{driver.pid}/fd")
        check({fd: str((folder / fd).readlink()) for fd in ("0", "1", "2")}, closed)
        with shmdriver.connect(instance) as client, client.producer("s") as out:
            consumer = client.consumer("s")
            out.publish(b"x")
            assert bytes(consumer.read(timeout=PATIENCE_S) or b"") == b"x"
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(PATIENCE_S) == 0
    finally:
        driver.kill()
        driver.wait()


@pytest.mark.fault(62, how="descriptors closed")
def test_clients_and_embedded_drivers_never_take_standard_descriptors(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    subprocess.run(without("012", sys.executable, "-c", REPORT, str(report)), timeout=PATIENCE_S, check=True)
    found = json.loads(report.read_text())
    check(found["opened"], "012")
    assert [target for target in found["opened"].values() if "shmd" in target], "it has segments open"
    assert found["whole"]


@pytest.mark.fault(62, how="descriptors closed")
@pytest.mark.parametrize("closed", ["1", "012"])
def test_tools_without_standard_descriptors_do_their_work(closed: str) -> None:
    with shmdriver.embedded() as client:
        client.producer("s").close()
        for words in (("stat",), ("config", "--json")):
            command = without(closed, sys.executable, "-m", "shmdriver", *words, "-i", client.instance)
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
            assert (done.returncode, "Traceback" in done.stderr) == (0, False), (words, done.stderr)
