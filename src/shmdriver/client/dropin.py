"""shmdriver.Queue(): a queue without a client, for programs that used multiprocessing.Queue().

    from shmdriver import Queue        # was: from multiprocessing import Queue

It uses the instance's driver when one runs; else this process gets one of its own, in a thread, which serves
until the process has waited for its children and exits.
"""

from __future__ import annotations

import multiprocessing.util
import os
import secrets
import threading

from shmdriver.client import exiting
from shmdriver.client.arguments import whole
from shmdriver.client.client import Client, connect
from shmdriver.client.queue import MAX_BYTES, Queue
from shmdriver.errors import DriverUnavailable
from shmdriver.late import LATE_IMPORT

__all__ = ["make_queue"]

AFTER_CHILDREN = -50  # multiprocessing runs exit priorities below 0 after it has joined the children
_lock = threading.Lock()
_client: Client | None = None


def _forked() -> None:
    global _lock  # noqa: PLW0603 -- one a process: a thread that held it is not in the child
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)


def make_queue(maxsize: int = 0, *, max_bytes: int = MAX_BYTES) -> Queue:
    """A new queue, as multiprocessing.Queue(maxsize) makes one: pass it to the processes that use it."""
    maxsize = whole("maxsize", maxsize)  # before a driver is started for it
    return _shared_client().queue(f"{os.getpid()}-{secrets.token_hex(4)}", maxsize, max_bytes=max_bytes)


def _shared_client() -> Client:
    """This process's client: of the driver that runs, or of one that is started here."""
    global _client  # noqa: PLW0603 -- one a process
    with _lock:
        if _client is None:
            try:
                with connect() as there:  # at once, or there is none
                    instance = there.instance
            except DriverUnavailable:
                _client = _embedded_client()
            else:
                # As its model does, it goes on after a stop that was longer than a lease.
                _client = connect(instance, reconnect=True)
        return _client


def _embedded_client() -> Client:
    with LATE_IMPORT:
        from shmdriver.driver.embedded import EmbeddedDriver

    driver = EmbeddedDriver()
    driver.start()
    client = connect(driver.instance, owner=os.geteuid())

    def stop() -> None:
        exiting.begin()
        client.close()
        driver.stop()

    multiprocessing.util.Finalize(None, stop, exitpriority=AFTER_CHILDREN)
    return client
