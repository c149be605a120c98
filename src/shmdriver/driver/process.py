"""The driver as a process: signals, the shutdown token, the supervisor, the log."""

from __future__ import annotations

import resource
from collections.abc import Callable

from shmdriver.driver.authentication import FolderToken, read_token
from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver
from shmdriver.driver.identity import DESCRIPTORS_EACH, RESERVED_DESCRIPTORS
from shmdriver.driver.log import Log
from shmdriver.driver.notify import Notifier
from shmdriver.driver.signals import hold_signals, obey_signals
from shmdriver.errors import DriverAlreadyRunning, ShmDriverError
from shmdriver.os_errors import explained
from shmdriver.standard_descriptors import keep_standard_descriptors

__all__ = ["EXIT_FAILED", "EXIT_RUNNING", "run_driver"]

EXIT_FAILED = 1
EXIT_RUNNING = 3


def run_driver(config: Config) -> int:
    """Runs one driver in this process until it is shut down; the exit code.

    0 after a clean stop, 3 when a driver of this instance runs already, 1 for any other refusal (the
    log says which). SIGTERM and SIGINT drain, the second one stops at once; SIGUSR1 hands over; SIGHUP logs
    the effective configuration. Call it in the main thread of a process that is for this alone: its
    signal handlers stay. Raises ShmDriverError when a standard descriptor is closed and /dev/null cannot
    be opened.
    """
    keep_standard_descriptors()
    hold_signals()
    with Log() as log:
        return _run(config, log)


def _run(config: Config, log: Callable[[str], None]) -> int:
    def show_config() -> None:
        for line in config.effective_text().splitlines():
            if line and not line.startswith("#"):
                log(f"config: {line}")

    raise_descriptor_limit(config.policies.limits.clients, log)
    try:
        driver = Driver(config, log=log, token=_token(config), notifier=Notifier())
        obey_signals(driver, show_config)  # before it starts: a signal meanwhile is obeyed, not fatal
        driver.start()
    except DriverAlreadyRunning as error:
        log(str(error))
        return EXIT_RUNNING
    except (ShmDriverError, OSError) as error:
        log(f"cannot start: {explained(error)}")
        return EXIT_FAILED
    driver.run(catches_signals=True)
    return EXIT_FAILED if driver.is_lost else 0


def raise_descriptor_limit(clients: int, log: Callable[[str], None]) -> None:
    """Raises this process's soft limit of descriptors to its hard one: each client takes two.

    The log is told when that is too little for ``clients``: those beyond are refused.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (OSError, ValueError) as error:
        log(f"RLIMIT_NOFILE stays at {soft}, it cannot be raised to {hard}: {error}")
    need = clients * DESCRIPTORS_EACH + RESERVED_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < need:
        log(
            f"RLIMIT_NOFILE is {soft}, and {clients} clients (policies.limits.clients) need {need}: those "
            f"beyond {max((soft - RESERVED_DESCRIPTORS) // DESCRIPTORS_EACH, 0)} are refused. Raise the hard "
            "limit (LimitNOFILE= in the unit, ulimit -Hn)"
        )


def _token(config: Config) -> FolderToken | bytes:
    configured = config.policies.shutdown_token_file
    return FolderToken() if configured is None else read_token(configured)
