"""Ending in order when a signal asks for it, and which exceptions are such an end."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["ends_in_order", "raising", "stop_on_signals"]

_stops: list[int] = []  # the signals that stop_on_signals() is answering


@contextmanager
def raising(signals: Sequence[int], error: Callable[[int], BaseException]) -> Iterator[None]:
    """Inside, the first of ``signals`` that comes raises ``error(signal)`` in the main thread.

    From then on each of them does again what it did before, so that a second one ends a program that does not
    stop. Signals that are ignored stay so. Blocked ones are unblocked, and stay unblocked afterwards. Raises
    ValueError outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("Python runs handlers of signals in the main thread only: set them up there")
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, former in before.items():
            signal.signal(number, signal.SIG_DFL if former is None else former)

    def handle(number: int, _frame: FrameType | None) -> None:
        restore()
        raise error(number)

    try:
        for number in signals:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.getsignal(number)
                signal.signal(number, handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        yield
    finally:
        restore()


@contextmanager
def stop_on_signals(*signals: int) -> Iterator[None]:
    """Inside, SIGTERM and SIGINT (or ``signals``) end the program in order, as ``sys.exit(0)`` does.

    Clients, producers and consumers are closed on the way out of their ``with`` blocks: streams end cleanly.
    A second signal does what it did before. For the main thread (ValueError in others).
    """

    def stop(number: int) -> SystemExit:
        _stops.append(number)
        return SystemExit(0)

    try:
        with raising(signals or (signal.SIGTERM, signal.SIGINT), stop):
            yield
    finally:
        _stops.clear()


def ends_in_order(kind: type[BaseException] | None, error: BaseException | None) -> bool:
    """Whether a ``with`` block that is left by ``error``, of that kind, ends what it made cleanly.

    ``sys.exit()`` with no code, or 0, does; so does a task that :func:`stop_on_signals` has had cancelled.
    """
    if kind is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return True
    asyncio = sys.modules.get("asyncio")
    return bool(_stops) and asyncio is not None and isinstance(error, asyncio.CancelledError)
