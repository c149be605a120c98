"""The driver in a thread of a process that wants no other: same code, a private instance name."""

from __future__ import annotations

import os
import re
import secrets
import threading
from pathlib import Path

from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver
from shmdriver.driver.lifecycle import ShutdownMode
from shmdriver.driver.segments import collect
from shmdriver.driver.shm import MOUNT
from shmdriver.errors import DriverUnavailable, ShmDriverError

__all__ = ["EmbeddedDriver", "collect_dead_embedded"]

_EMBEDDED = re.compile(r"shmd\.(embedded-\d+-[0-9a-f]+)\.(?:authority|control|[0-9a-f]{16}\..+)")
STOP_NOW_S = 2.0


class EmbeddedDriver:
    """A driver in a daemon thread. ``instance`` None: a private name that nobody else has.

    ``config`` None: the defaults and the environment. Its own ``driver.instance`` is replaced.
    """

    def __init__(self, instance: str | None = None, config: Config | None = None) -> None:
        self.instance = instance or f"embedded-{os.getpid()}-{secrets.token_hex(4)}"
        base = config if config is not None else Config.load()
        section = base.driver.model_copy(update={"instance": self.instance})
        self._config = base.model_copy(update={"driver": section})
        self._driver: Driver | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def start(self) -> None:
        """Serves when it returns. Raises DriverAlreadyRunning, ShmSpaceError, ShmDriverError."""
        if self._driver is not None:
            raise ShmDriverError(f"embedded driver {self.instance!r} runs already")
        collect_dead_embedded()
        self._pid = os.getpid()
        driver = self._driver = Driver(self._config)  # owned before it has anything
        try:
            driver.start()
            self._thread = threading.Thread(target=driver.run, name=f"shmdriver-{self.instance}", daemon=True)
            self._thread.start()
        except BaseException:
            self._undo_start(driver)
            raise

    def _undo_start(self, driver: Driver) -> None:
        """Nobody has this driver: ends it, in its thread if there is one, else here."""
        thread, self._driver, self._thread = self._thread, None, None
        driver.request_shutdown(ShutdownMode.END, "embedded driver not started")
        if driver.is_started and (thread is None or thread.ident is None):
            driver.run()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Drains, seals and unlinks. In a child of the process that started it, it does nothing.

        Raises DriverUnavailable when the thread does not end in time.
        """
        driver, thread = self._driver, self._thread
        if driver is None or thread is None or os.getpid() != self._pid:
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


def collect_dead_embedded() -> list[str]:
    """Removes what embedded drivers left whose lock is free; the names removed."""
    removed = []
    instances = {match[1] for path in Path(MOUNT).iterdir() if (match := _EMBEDDED.fullmatch(path.name))}
    for instance in sorted(instances):
        try:
            removed += collect(instance)
        except (ShmDriverError, OSError):
            continue  # it lives, or is not ours
    return removed
