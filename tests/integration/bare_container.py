"""A program that drives, connects and asks as in a bare container: only /dev/shm can be written.

``python bare_container.py UID``. test_places.py runs it in a mount namespace, without an environment. It
prints what it found, a line each; any failure is a traceback.
"""

from __future__ import annotations

import os
import signal
import sys

import shmdriver
from tests.segments import SHM
from tests.tool import tool, tool_json
from tests.users import UsersDriver, become, exchange

INSTANCE = "bare"
MESSAGES = 1000


def consume(ready: int) -> int:
    """In a child: reads all messages in order; its exit code."""
    with shmdriver.connect(INSTANCE) as client, client.consumer("s") as consumer:
        os.write(ready, b"x")
        got = [int(bytes(message)) for message in consumer]
    return 0 if got == list(range(MESSAGES)) else 1


def between_processes() -> None:
    """One process publishes, another one reads."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = consume(writing)
        finally:
            os._exit(code)
    os.read(reading, 1)
    with shmdriver.connect(INSTANCE) as client, client.producer("s", slots=64) as out:
        for number in range(MESSAGES):
            out.publish(b"%d" % number, timeout=60)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def main(uid: int) -> None:
    for words in (("stat", "--check"), ("doctor",), ("shutdown",)):
        tool(*words)  # imports all of it as long as this user may read it
    if uid != os.geteuid():
        become(uid, [])
    assert not any(os.access(folder, os.W_OK) for folder in ("/run", "/tmp"))
    assert not {"HOME", "XDG_RUNTIME_DIR"} & os.environ.keys()
    log = SHM / "log"
    driver = UsersDriver(INSTANCE, uid, log)
    driver.start()
    between_processes()
    with shmdriver.connect(INSTANCE, reconnect=True) as client:
        boot_id = client.boot_id
        driver.end(signal.SIGKILL)
        driver.start()
        assert exchange(client) == "hello"
        assert client.boot_id == boot_id
    (check,) = (each for each in tool_json("doctor") if each["name"] == "runtime folder")
    print(check["level"], check["found"])
    print(tool("stat", "--check", "-i", INSTANCE).returncode)
    done = tool("shutdown", "-i", INSTANCE)
    assert (done.returncode, driver.join()) == (0, 0), done.stderr
    with shmdriver.embedded() as client:
        assert exchange(client) == "hello"
    log.unlink()
    print(list(SHM.iterdir()))


main(int(sys.argv[1]))
