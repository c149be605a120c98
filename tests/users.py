"""Other users of this machine, for tests of who may do what: children that have become one.

Becoming another user takes root. Uids without a name will do.
"""

from __future__ import annotations

import grp
import json
import os
import select
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

import shmdriver
from shmdriver._native import ffi, lib
from shmdriver.driver.config import Config
from shmdriver.driver.process import run_driver
from tests.chaos.stage import wait_until
from tests.segments import path_of

__all__ = [
    "GROUP",
    "IS_ROOT",
    "MEMBER",
    "SHARED",
    "STRANGER",
    "UsersDriver",
    "as_user",
    "become",
    "copy_of_an_authority",
    "exchange",
    "needs_root",
    "relabelled",
]

PATIENCE_S = 60
GROUP = grp.getgrgid(os.getegid())
SHARED: dict[str, Any] = {"shm.mode": "0660", "shm.group": GROUP.gr_name}

IS_ROOT = os.geteuid() == 0
STRANGER, MEMBER = 65532, 65533  # not 65534, which stands for nobody in user namespaces
needs_root = pytest.mark.skipif(not IS_ROOT, reason="NOT LOOKED AT: becoming another user takes root")


def as_user(uid: int, groups: Sequence[int], work: Callable[[], Any]) -> Any:
    """What ``work`` returns, or ``[name of the exception, text]``, in a child that has become this user."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            become(uid, groups)
            try:
                answer = work()
            except Exception as error:
                answer = [type(error).__name__, str(error)]
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def become(uid: int, groups: Sequence[int]) -> None:
    """This process is that user from now on."""
    os.setgroups(list(groups))
    os.setgid(uid)
    os.setuid(uid)


def exchange(client: shmdriver.Client, stream: str = "shared") -> str | None:
    """Produces and consumes once; what came."""
    with client.producer(stream) as out, client.consumer(stream) as consumer:
        out.publish(b"hello")
        message = consumer.read(timeout=60)
        return bytes(message).decode() if message else None


def relabelled(authority: bytes, instance: str) -> bytes:
    """The bytes of an authority segment, made to say that it is of ``instance``."""
    at, size = int(ffi.offsetof("shmd_authority_t", "instance")), int(lib.SHMD_NAME_BYTES)
    return authority[:at] + instance.encode().ljust(size, b"\0") + authority[at + size :]


def copy_of_an_authority(instance: str) -> bytes:
    """A real one, of an embedded driver, made to say that it is of ``instance``."""
    with shmdriver.embedded() as client:
        return relabelled(path_of(client.instance, "authority").read_bytes(), instance)


class UsersDriver:
    """``shmdriver run`` in a child that has become another user. It serves inside the ``with`` block."""

    def __init__(
        self,
        instance: str,
        uid: int,
        log: Path,
        *,
        groups: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.instance = instance
        self.uid = uid
        self.log = log
        self._groups = groups
        self._environment = environment or {}
        self._settings = {"driver.instance": instance, **settings}
        self.pid = 0
        self._pidfd = -1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pid:
            self.end(signal.SIGTERM)

    def start(self) -> None:
        """Serves on return."""
        self.launch()
        wait_until(
            lambda: " serves: " in self.log_text() or not self.alive, f"{self.log} to say that it serves"
        )
        assert self.alive, self.log_text()

    def launch(self) -> None:
        self.log.write_text("")
        self.pid = os.fork()
        if self.pid == 0:
            self._drive()
        self._pidfd = os.pidfd_open(self.pid)

    def _drive(self) -> None:
        code = 70
        try:
            os.dup2(os.open(self.log, os.O_WRONLY | os.O_APPEND), 2)
            if self.uid != os.geteuid():
                become(self.uid, self._groups)
            os.environ.update(self._environment)
            code = run_driver(Config.load(env={}, overrides=self._settings))
        finally:
            os._exit(code)

    @property
    def alive(self) -> bool:
        return not select.select([self._pidfd], [], [], 0)[0]

    def log_text(self) -> str:
        return self.log.read_text()

    def end(self, number: int) -> int:
        """Sends a signal and waits for the end; the exit code."""
        signal.pidfd_send_signal(self._pidfd, number)
        return self.join()

    def join(self) -> int:
        """Waits for its end; the exit code."""
        assert select.select([self._pidfd], [], [], PATIENCE_S)[0], self.log_text()
        _, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)
