"""No name drives a terminal: all that others can write, through each tool, log and exception."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shmdriver
from shmdriver.driver.collect import collect
from shmdriver.errors import BackPressured, SchemaMismatch
from shmdriver.observe import Instance
from tests.tool import tool

SHM = Path("/dev/shm")
# Names and reasons may have these: a driver accepts UTF-8 without C0 controls, but for newline and tab.
NAME = "n\nforged 0\t\x9b2J\x85\u202e\u2028\u2066"
# What a command line, a file name and the names of a dtype's fields can contain besides.
WILD = "w\nforged\x1b]0;owned\x07\r\x7f\x9b2J\u202e"
CONSUMER = """
import sys, shmdriver
with shmdriver.connect(sys.argv[1], name=sys.argv[2]) as client, client.consumer("s") as consumer:
    print("attached", flush=True)
    sys.stdin.read()
"""


def check(text: str, where: str) -> None:
    """That nothing but newlines moves a cursor, and that no name has begun a line."""
    for line in text.split("\n"):
        assert line.isprintable(), (where, line)
        assert not line.lstrip().startswith("forged"), (where, line)


@pytest.fixture
def driver(instance_name: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = tmp_path / "log"
    patient = {**os.environ, "SHMDRIVER_POLICIES_LEASE_TIMEOUT_MS": "600000"}
    command = [sys.executable, "-m", "shmdriver", "run", "-i", instance_name]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, env=patient)
    yield process, log
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    collect(instance_name)


@pytest.fixture
def evil_consumer(driver: object, instance_name: str) -> Iterator[subprocess.Popen[str]]:
    """A consumer whose name and command line are hostile."""
    with shmdriver.connect(instance_name, reconnect=True, timeout=60):
        pass  # the driver serves
    words = [sys.executable, "-c", CONSUMER, instance_name, NAME, WILD]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "attached\n"
    yield process
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)


@pytest.mark.fault(85, how="hostile names, reasons, schemas, command lines and file names through all tools")
def test_names_cannot_drive_a_terminal(
    driver: tuple[subprocess.Popen[bytes], Path], evil_consumer: subprocess.Popen[str], instance_name: str
) -> None:
    linked = SHM / WILD  # doctor lists hard links to segments by their names
    record = np.dtype([(f"f{WILD}", "<i4"), ("text", "S60")])
    try:
        with shmdriver.connect(instance_name, name=NAME) as client:
            out = client.producer("s", dtype=record, slots=2)
            out.publish(np.array([(1, WILD.encode())], record))
            with pytest.raises(BackPressured) as held_back:
                while True:
                    out.publish(np.zeros(1, record), timeout=0)
            check(str(held_back.value), "BackPressured")
            assert held_back.value.consumer == NAME, "programs get the name as it is"
            with pytest.raises(SchemaMismatch) as differs:
                client.consumer("s", dtype=[("other", "<i4")])
            check(str(differs.value), "SchemaMismatch")
            commands = [
                ["stat"], *(["stat", what] for what in ("clients", "leases", "streams", "events", "errors")),
                ["maintenance", "on", "--reason", NAME], ["stat", "--check"], ["why", "s", "--sample", "0"],
                ["maintenance", "off", "--reason", NAME],
                ["tail", "s", "--start", "oldest", "--count", "1", "--width", "400"],
            ]  # fmt: skip
            for words in commands:
                done = tool(*words, "-i", instance_name)
                assert done.returncode in (0, 1), (words, done.stderr)
                check(done.stdout + done.stderr, " ".join(words[:2]))
            os.kill(evil_consumer.pid, signal.SIGSTOP)
            for words in (["why", "s", "--sample", "0"], ["stat", "clients"], ["stat", "--check"]):
                check(tool(*words, "-i", instance_name).stdout, words[0])
            why = tool("why", "s", "--sample", "0", "-i", instance_name).stdout
            assert r"n\nforged" in why, "shown, and escaped"
            with Instance(instance_name) as view:
                linked.hardlink_to(SHM / view.stream("s").epochs[-1].data_name.removeprefix("/"))
            done = tool("doctor")
            check(done.stdout + done.stderr, "doctor")
            assert r"\nforged" in done.stdout + done.stderr
            out.close()
    finally:
        linked.unlink(missing_ok=True)
    check(driver[1].read_text(), "the driver's log")
    assert r"n\nforged" in driver[1].read_text()


@pytest.mark.fault(85, how="a payload on a terminal")
def test_payloads_cannot_drive_a_terminal(instance_name: str) -> None:
    ours, theirs = pty.openpty()
    with shmdriver.embedded(instance_name) as client, client.producer("s") as out, client.consumer("s"):
        out.publish(WILD.encode())
        words = ["sub", "s", "--start", "oldest", "--count", "1", "--delivery", "lossy", "-i", instance_name]
        command = [sys.executable, "-m", "shmdriver", *words]
        done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, timeout=400, check=False)
        os.close(theirs)
        shown = os.read(ours, 65536).decode().replace("\r\n", "\n")
        os.close(ours)
        assert done.returncode == 0, done.stderr
        assert all(line.isprintable() for line in shown.split("\n")), shown
        piped = subprocess.run(command, stdout=subprocess.PIPE, timeout=400, check=True).stdout
        assert piped == WILD.encode(), "a pipe gets it as it is"
