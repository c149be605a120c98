"""A process that has everything imported and forks actors on request, so that a kill costs milliseconds.

It is started by :class:`tests.chaos.stage.Zygote` with one end of a socket: each request is a JSON object
with one descriptor (the actor's own line to the test); the answer is the actor's pid. When the test goes,
so do the zygote and all its actors. ``SHMDRIVER_TEST_NATIVE`` names their native module:
the one with failpoints compiled in.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import socket
import sys
from typing import Any

PR_SET_PDEATHSIG = 1
NATIVE_VARIABLE = "SHMDRIVER_TEST_NATIVE"


def use_native(path: str) -> None:
    """Makes another build of ``shmdriver._native`` the one that everything imports from now on."""
    name = "shmdriver._native"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def die_with(parent: int) -> None:
    """SIGKILL for this process as soon as its parent is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def become_actor(request: dict[str, Any], fd: int, parent: int) -> None:
    """The child's whole life; never returns."""
    code = 70
    try:
        die_with(parent)
        os.environ.update(request["environment"])
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        from tests.chaos import actors, ledger

        line = ledger.Line(socket.socket(fileno=fd))
        code = actors.play(request["role"], request["arguments"], line)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            sys.stderr.flush()
            sys.stdout.flush()
        finally:
            os._exit(code)


def serve(line: socket.socket) -> None:
    """Forks, and tells exit statuses, until the test closes its end."""
    while True:
        data, fds, _, _ = socket.recv_fds(line, 65536, 1)
        if not data:
            return
        request = json.loads(data)
        if request["do"] == "status":
            pid, status = os.waitpid(request["pid"], 0)  # the test has seen by its pidfd that it is dead
            line.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
            continue
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            line.close()
            become_actor(request, fds[0], parent)
        os.close(fds[0])
        line.send(json.dumps(pid).encode())


def main() -> None:
    die_with(int(sys.argv[2]))
    if os.environ.get(NATIVE_VARIABLE):
        use_native(os.environ[NATIVE_VARIABLE])
    from tests.chaos import actors

    actors.preload()
    line = socket.socket(fileno=int(sys.argv[1]))
    line.send(b"ready")
    serve(line)


if __name__ == "__main__":
    main()
