"""Raises an exception at the n-th step of what the main thread does inside this package.

A step is a line of a shmdriver file, or the return of a call to a frame of one (or to a frame of the
caller's own file). That is where a signal handler may raise, and some places more.
"""

from __future__ import annotations

import dis
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import shmdriver

PACKAGE = str(Path(shmdriver.__file__).parent) + os.sep

# The instructions that call, also by way of C (`with` and `for` call methods).
CALLS = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX", "BEFORE_WITH", "FOR_ITER"})


class Interruption(BaseException):
    """What is raised, once."""


NEVER = 0  # no step has that number


@cache
def returns(code: CodeType) -> frozenset[int]:
    """The offsets of the instructions to which calls return."""
    follows = pairwise(dis.get_instructions(code))
    return frozenset(after.offset for call, after in follows if call.opname in CALLS)


@cache
def exits(code: CodeType) -> frozenset[int]:
    """Where the end of a `with` block calls ``__exit__``: no handler runs just before it."""
    loads = [(i.offset, i.opname == "LOAD_CONST" and i.argval is None) for i in dis.get_instructions(code)]
    return frozenset(
        a[0] for a, b, c in zip(loads, loads[1:], loads[2:], strict=False) if a[1] and b[1] and c[1]
    )


class Steps:
    """Counts steps, and raises at one of them."""

    def __init__(self, own_file: str, at: int, skipped: tuple[str, ...] = ()) -> None:
        self.count = 0
        self.where = ""
        self._at = at
        self._own_file = own_file
        self._skipped = tuple(PACKAGE + folder for folder in skipped)

    def _step(self, frame: FrameType, what: str) -> None:
        self.count += 1
        if self.count == self._at:
            name = frame.f_code.co_filename.removeprefix(PACKAGE)
            self.where = f"{name}:{frame.f_lineno} ({frame.f_code.co_name}), {what}"
            raise Interruption(self.where)

    def _is_ours(self, file: str) -> bool:
        return file.startswith(PACKAGE) and not file.startswith(self._skipped)

    def trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        file = frame.f_code.co_filename
        is_ours = self._is_ours(file)
        if not is_ours and file != self._own_file:
            return None
        if event == "call":
            frame.f_trace_opcodes = True
        elif event == "line" and is_ours and frame.f_lasti not in exits(frame.f_code):
            self._step(frame, "line")
        elif event == "opcode" and frame.f_lasti in returns(frame.f_code):
            self._step(frame, "return of a call")
        return self.trace


@contextmanager
def _nothing_printed() -> Iterator[None]:
    """Exceptions that finalisers swallow are part of this."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda _unraisable: None
    try:
        yield
    finally:
        sys.unraisablehook = before


def run_until(act: Callable[[], object], at: int, skipped: tuple[str, ...] = ()) -> Steps:
    """Runs ``act``, with an Interruption at step ``at`` (or NEVER); then all that it made is collected."""
    steps = Steps(act.__code__.co_filename, at, skipped)
    with _nothing_printed():
        try:
            sys.settrace(steps.trace)
            act()
        except Interruption:
            pass
        finally:
            sys.settrace(None)
        gc.collect()
    return steps


def run_until_signal(act: Callable[[], object], took_s: float) -> bool:
    """Runs ``act``, with a signal whose handler raises, at a random time of the ``took_s`` that it takes.

    Whether the handler ran. Afterwards all that ``act`` made is collected.
    """
    came: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise Interruption

    before = signal.signal(signal.SIGALRM, handle)
    with _nothing_printed():
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-6, random.random() * took_s))
                act()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Interruption:
            pass
        signal.signal(signal.SIGALRM, before)
        gc.collect()
    return bool(came)


def seconds_of(act: Callable[[], object]) -> float:
    """How long ``act`` takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
