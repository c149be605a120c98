"""The driver in a thread of a process that wants no other: same code, by default a name of its own."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Mapping
from typing import Any

from shmdriver._native import lib
from shmdriver.driver.collect import collect, collect_dead_embedded
from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver
from shmdriver.driver.lifecycle import ShutdownMode
from shmdriver.errors import DriverUnavailable, ShmDriverError
from shmdriver.os_errors import explained
from shmdriver.threads import check_threads

__all__ = ["EmbeddedDriver"]

STOP_NOW_S = 2.0


class _Outcome:
    """Of a start: it serves, or an error, once that is known: then ``unknown`` is free.

    A lock, and no Event: an Event whose wait() a signal handler has ended by an exception may stay locked,
    and its set() would never return. The release of a lock never waits.
    """

    def __init__(self) -> None:
        self.unknown = threading.Lock()
        self.unknown.acquire()
        self.error: BaseException | None = None


def _serve(driver: Driver, outcome: _Outcome) -> None:
    """The thread: the driver's whole life. Whoever asked for its end before it began is obeyed then."""
    lib.shmd_thread_settle()  # the program's thread may be pinned, or under SCHED_FIFO
    try:
        collect_dead_embedded()
        driver.start()
    except BaseException as error:
        outcome.error = explained(error)
        return
    finally:
        outcome.unknown.release()
    try:
        driver.run()
    except BaseException:
        if lib.shmd_instance_is_embedded(driver.instance.encode()):  # nobody takes over what it leaves
            collect(driver.instance)
        raise


class EmbeddedDriver:
    """A driver in a daemon thread. ``instance`` None: a private name that nobody else has.

    ``config``: see :meth:`Config.of`; its ``driver.instance`` is replaced. A driver that crashes shows its
    traceback as any thread does; its clients are told DriverUnavailable.
    """

    def __init__(
        self,
        instance: str | None = None,
        config: Config | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    ) -> None:
        self.instance = instance or f"embedded-{os.getpid()}-{secrets.token_hex(4)}"
        base = Config.of(config)
        section = base.driver.model_copy(update={"instance": self.instance})
        self._config = base.model_copy(update={"driver": section})
        self._driver: Driver | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def start(self) -> None:
        """Serves when it returns. Raises DriverAlreadyRunning, ShmSpaceError, ShmDriverError.

        All that a driver acquires it acquires in its own thread, where no signal handler raises.
        """
        if self._driver is not None:
            raise ShmDriverError(f"embedded driver {self.instance!r} runs already")
        check_threads(for_driver=True)
        self._pid = os.getpid()
        outcome = _Outcome()
        driver = self._driver = Driver(self._config)
        self._thread = threading.Thread(
            target=_serve, args=(driver, outcome), name=f"shmdriver-{self.instance}", daemon=True
        )
        try:
            self._thread.start()
            outcome.unknown.acquire()
        except BaseException:
            driver.request_shutdown(ShutdownMode.END, "embedded driver not started")
            raise
        if outcome.error is not None:
            self._driver = self._thread = None
            raise outcome.error

    def stop(self, timeout_s: float = 10.0) -> None:
        """Drains, seals and unlinks. In a child of the process that started it, it does nothing.

        Raises DriverUnavailable when the thread does not end in time.
        """
        driver, thread = self._driver, self._thread
        if driver is None or thread is None or thread.ident is None or os.getpid() != self._pid:
            return
        driver.request_shutdown(ShutdownMode.END, "embedded driver stopped")
        self._driver = self._thread = None
        for patience_s in (timeout_s, STOP_NOW_S):
            thread.join(patience_s)
            if not thread.is_alive():
                return
            driver.request_shutdown(ShutdownMode.END, "embedded driver stopped: now")  # whoever is attached
        raise DriverUnavailable(
            f"embedded driver {self.instance!r} did not stop in {timeout_s + STOP_NOW_S} s",
            instance=self.instance,
        )

    def __del__(self) -> None:
        """Asks the thread to end; it is not waited for, and may be the one that runs this."""
        driver = getattr(self, "_driver", None)
        if driver is not None and os.getpid() == self._pid:
            driver.request_shutdown(ShutdownMode.END, "embedded driver dropped")
