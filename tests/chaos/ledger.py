"""An actor's line to its test, and what a consumer keeps of what it saw."""

from __future__ import annotations

import json
import select
import socket
from collections import deque
from typing import Any

from tests.chaos.payload import Board, TornMessage, check

Arguments = dict[str, Any]


class Line:
    """An actor's end of the line to its test."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def say(self, **words: Any) -> None:
        self._sock.send(json.dumps(words).encode())

    def heard(self, timeout_s: float = 0) -> str:
        """What the test has said: "" when nothing (yet), "stop" also when it is gone."""
        if not select.select([self._sock], [], [], timeout_s)[0]:
            return ""
        return self._sock.recv(4096).decode() or "stop"

    def wait(self, timeout_s: float) -> None:
        """Lets that time pass, or less when the test says something (which stays to be heard)."""
        select.select([self._sock], [], [], timeout_s)


def error_words(error: BaseException) -> Arguments:
    """What a test wants to know of an exception, as JSON."""
    known = ("reason", "sealed_seq", "consumer", "pid", "lag", "stream", "epoch")
    return {
        "error": type(error).__name__,
        "text": str(error),
        **{name: getattr(error, name) for name in known if hasattr(error, name)},
    }


class Ledger:
    """What one consumer saw: runs of numbers, one a writer; anything that is no such run is a failure."""

    def __init__(self, line: Line, board: Board, *, lossless: bool) -> None:
        self._line = line
        self._board = board
        self._lossless = lossless
        self.writer = 0
        self.next = 0
        self.first = 0
        self.received = 0
        self._latest: deque[int] = deque(maxlen=4096)  # tells what came twice from what came late

    def enter(self, data: bytes) -> None:
        try:
            writer, number = check(data)
        except TornMessage as error:
            self._fail("torn", str(error))
            return
        if writer != self.writer:
            self.close_run()
            self.writer, self.next, self.first = writer, number, number
            self._latest.clear()
            self._board[Board.WRITER] = writer
            self._board[Board.RECEIVED] = 0
        if number < self.next:
            kind = "duplicated" if self._lossless or number in self._latest else "reordered"
            self._fail(kind, f"{number} of {writer} after {self.next - 1}")
        elif number > self.next and self._lossless:
            self._fail("lost", f"{number} of {writer} after {self.next - 1}")
        self._latest.append(number)
        self.next = number + 1
        self.received += 1
        self._board[Board.RECEIVED] = number + 1

    def close_run(self) -> None:
        if self.writer:
            self._line.say(writer=self.writer, first=self.first, next=self.next)

    def _fail(self, kind: str, text: str) -> None:
        self._board[Board.FAILURES] += 1
        self._line.say(failure=kind, text=text, by=self.writer)
