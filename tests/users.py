"""Other users of this machine, for tests of who may do what: children that have become one.

Becoming another user takes root. Uids without a name will do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import shmdriver

__all__ = ["IS_ROOT", "MEMBER", "STRANGER", "as_user", "become", "exchange", "needs_root"]

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
