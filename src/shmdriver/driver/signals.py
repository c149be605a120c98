"""Blocks the signals of a driver process until the driver's handlers stand.

A signal that comes early waits in the kernel and is obeyed then. The command line blocks the signals for
every command, before it imports anything else; for all commands but ``run`` it unblocks them once the command
begins. Unblocking also undoes a mask that the parent process left behind. This module imports nothing heavy.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmdriver.driver.driver import Driver
    from shmdriver.driver.sleeper import Sleeper

__all__ = ["hold_signals", "obey_signals", "release_signals", "signals_end_sleep"]

HANDLED = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP))


def hold_signals() -> None:
    """Blocks what a driver handles, in this thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def release_signals() -> None:
    """Unblocks them. What has come meanwhile is delivered before this returns."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def obey_signals(driver: Driver, show_config: Callable[[], None]) -> None:
    """SIGTERM and SIGINT end ``driver``, SIGUSR1 hands over, SIGHUP calls ``show_config``.

    In the main thread. Returns with all of them unblocked: those that had been held are obeyed by now.
    """
    from shmdriver.driver.lifecycle import ShutdownMode

    def stop(number: int, _frame: FrameType | None) -> None:
        driver.request_shutdown(ShutdownMode.END, signal.Signals(number).name)

    def hand_over(number: int, _frame: FrameType | None) -> None:
        driver.request_shutdown(ShutdownMode.HANDOVER, signal.Signals(number).name)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGUSR1, hand_over)
    signal.signal(signal.SIGHUP, lambda _number, _frame: show_config())
    release_signals()


@contextmanager
def signals_end_sleep(sleeper: Sleeper) -> Iterator[None]:
    """Every signal that Python handles ends the driver's sleep meanwhile. In the main thread.

    A signal that comes right before the driver falls asleep only leaves a mark for the interpreter, which
    looks when the sleep is over. The byte that it writes here ends the sleep.
    """
    import socket

    from shmdriver._native import lib

    with ExitStack() as undo:
        heard, told = socket.socketpair()
        for end in (heard, told):
            undo.callback(end.close)
            end.setblocking(False)
        sleeper.add(heard.fileno(), lib.SHMD_SLEEPER_SIGNAL)
        undo.callback(sleeper.remove, heard.fileno())
        before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        undo.callback(signal.set_wakeup_fd, before)
        yield
