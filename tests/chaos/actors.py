"""What the processes of the chaos tests do. Each role runs in a forked child of the zygote."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.payload import LARGEST, Board, TornMessage, check, payload

Arguments = dict[str, Any]


def preload() -> None:
    """Imports all that a role needs, once, in the zygote."""
    import shmdriver.driver.config
    import shmdriver.driver.process
    import shmdriver.observe

    for name in shmdriver.__all__:
        getattr(shmdriver, name)


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


def error_words(error: BaseException) -> Arguments:
    """What a test wants to know of an exception, as JSON."""
    known = ("reason", "sealed_seq", "consumer", "pid", "lag", "stream", "epoch")
    return {
        "error": type(error).__name__,
        "text": str(error),
        **{name: getattr(error, name) for name in known if hasattr(error, name)},
    }


def drive(_line: Line, arguments: Arguments) -> int:
    """A driver, until it is shut down."""
    from shmdriver.driver.config import Config
    from shmdriver.driver.process import run_driver

    return run_driver(Config.load(overrides=arguments["settings"], env={}))


def produce(line: Line, arguments: Arguments) -> int:
    """Publishes numbered messages until told to stop. SENT follows every publish that returned."""
    import shmdriver

    board = Board(Path(arguments["board"]))
    writer, limit = arguments["writer"], arguments.get("count", 1 << 60)
    size, every = arguments.get("size"), arguments.get("listen_every", 64)
    timeout = arguments.get("timeout", 60)
    client = shmdriver.connect(arguments["instance"], name=f"producer-{writer}", timeout=60)
    out = client.producer(arguments["stream"], **arguments.get("options", {}), attach_timeout=60)
    line.say(attached=writer, epoch=out.epoch if hasattr(out, "epoch") else 0)
    number, heard = 0, ""
    try:
        while number < limit and heard != "stop":
            send(out, payload(writer, number, size), number, arguments.get("how", "publish"), timeout)
            number += 1
            board[Board.SENT] = number
            if number % every == 0:
                heard = line.heard()
        if heard != "stop" and arguments.get("linger"):
            while line.heard(1) != "stop":
                pass
        out.close()
        client.close()
        line.say(closed=number)
    except shmdriver.ShmDriverError as error:
        line.say(published=number, **error_words(error))
        if arguments.get("linger"):
            while line.heard(1) != "stop":
                pass
    return 0


def send(out: Any, data: bytes, number: int, how: str, timeout: float) -> None:
    """One message, in one of the ways there are; "mixed" takes turns, with an aborted claim now and then."""
    if how == "mixed":
        how = ("publish", "claim", "publish", "abort")[number % 4]
    if how == "abort":
        claim = out.claim(LARGEST, timeout=timeout)
        claim.view[: len(data)] = bytes(len(data))
        claim.abort()
    if how == "claim":
        with out.claim(len(data), timeout=timeout) as claim:
            claim.view[:] = data
    else:
        out.publish(data, timeout=timeout)


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

    def enter(self, data: bytes) -> None:
        try:
            writer, number = check(data)
        except TornMessage as error:
            self._fail(f"torn: {error}")
            return
        if writer != self.writer:
            self.close_run()
            self.writer, self.next, self.first = writer, number, number
            self._board[Board.WRITER] = writer
            self._board[Board.RECEIVED] = 0
        if number < self.next:
            self._fail(f"duplicated or reordered: {number} of {writer} after {self.next - 1}")
        elif number > self.next and self._lossless:
            self._fail(f"lost: {number} of {writer} after {self.next - 1}")
        self.next = number + 1
        self.received += 1
        self._board[Board.RECEIVED] = number + 1

    def close_run(self) -> None:
        if self.writer:
            self._line.say(writer=self.writer, first=self.first, next=self.next)

    def _fail(self, text: str) -> None:
        self._board[Board.FAILURES] += 1
        self._line.say(failure=text)


def consume(line: Line, arguments: Arguments) -> int:
    """Reads and checks until told to stop, or until the stream is over for it."""
    import shmdriver

    board = Board(Path(arguments["board"]))
    options = arguments.get("options", {})
    client = shmdriver.connect(arguments["instance"], name=arguments.get("name", "consumer"), timeout=60)
    consumer = client.consumer(arguments["stream"], **options, attach_timeout=60)
    line.say(attached=True)
    ledger = Ledger(line, board, lossless=options.get("delivery", "reliable") == "reliable")
    heard = line.heard(60) if arguments.get("hold") else ""  # reads nothing before it is told to
    try:
        while heard != "stop":
            message = consumer.read(timeout=0.05)
            while message is not None:
                ledger.enter(bytes(message))
                message = consumer.read(timeout=0) if ledger.received % 512 else None
            heard = line.heard()
        ledger.close_run()
        lost = consumer.lost
        consumer.close()
        client.close()
        line.say(closed=ledger.received, lost=lost)
    except shmdriver.ShmDriverError as error:
        ledger.close_run()
        line.say(received=ledger.received, lost=consumer.lost, **error_words(error))
    return 0


ROLES: dict[str, Callable[[Line, Arguments], int]] = {
    "driver": drive,
    "producer": produce,
    "consumer": consume,
}


def play(role: str, arguments: Arguments, sock: socket.socket) -> int:
    """A role's exit code."""
    return ROLES[role](Line(sock), arguments)
