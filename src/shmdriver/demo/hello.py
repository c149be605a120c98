"""The six lines that every document begins with, run as they stand."""

from __future__ import annotations

import subprocess
import sys

from shmdriver.demo.stage import DemoFailed, Stage

__all__ = ["PROGRAM", "run"]

PROGRAM = """\
import shmdriver
with shmdriver.embedded() as client:
    reader = client.consumer("greetings")
    with client.producer("greetings") as writer:
        writer.publish(b"hello, shared memory")
    print(bytes(reader.read()).decode())
"""


def run(stage: Stage) -> None:
    """Shows the program and what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode != 0 or done.stdout != "hello, shared memory\n":
        raise DemoFailed(f"the hello-world program ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    stage.screen.heading("Hello, world: six lines, driver included")
    for line in PROGRAM.splitlines():
        stage.screen.line(line, " ")
    stage.screen.line(done.stdout.strip(), ">")
