"""The log of a driver process: lines on stderr, written by a thread, so that no tick waits for them.

A reader that stalls (a full pipe, a stopped terminal, a hung file system) holds up that thread alone.
Lines that come meanwhile wait, up to ``LINES_MAX`` of them. Those beyond are lost. The log says how
many, as soon as it takes lines again.
"""

from __future__ import annotations

import os
import queue
import select
import threading
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from shmdriver.shown import shown

__all__ = ["LINES_MAX", "Log"]

LINES_MAX = 1024
END_S = 1.0  # so long a driver that ends waits until its last lines are written


class Log:
    """Call it with the text of a line, from any thread or signal handler. ``fd``: where it is written."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # its put() may interrupt itself
        self._lost = 0
        self._thread = threading.Thread(target=self._write_lines, name="shmdriver-log", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __call__(self, text: str) -> None:
        """Never waits. What is not printable is escaped, so that nobody forges lines."""
        if self._lines.qsize() >= LINES_MAX:
            self._lost += 1
        else:
            self._lines.put(_line(text))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits until the last lines are written, for ``END_S`` at most: a reader may stall."""
        self._lines.put(None)
        self._thread.join(END_S)

    def _write_lines(self) -> None:
        told = failed = 0
        while (line := self._lines.get()) is not None:
            if not self._write(line):
                failed += 1
                continue
            lost = self._lost + failed
            text = f"{lost - told} lines of this log are lost: its reader stalled, or was gone"
            if lost > told and self._write(_line(text)):
                told = lost

    def _write(self, line: str) -> bool:
        """Whether the whole line was written."""
        data = line.encode(errors="replace")
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody who shares this file has made it non-blocking
                select.select((), (self._fd,), ())
            except OSError:  # nobody reads any more, or the disk is full: the line is counted as lost
                return False
        return True


def _line(text: str) -> str:
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return f"{stamp} shmdriver {shown(text)}\n"
