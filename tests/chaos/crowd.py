"""Actors that go through many attaches: a producer that comes and goes, clients that do everything once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.chaos.ledger import Arguments, Line, error_words
from tests.chaos.payload import Board, TornMessage, check, payload

T = TypeVar("T")
PATIENCE_S = 60.0
DTYPES = ("<u8", "<u4", "<f8")


def insist(attempt: Callable[[], T], line: Line, *, patience_s: float = PATIENCE_S) -> T:
    """Tries until it works: the driver may be away, full of dead clients, draining. Raises its last error."""
    import shmdriver

    deadline = time.monotonic() + patience_s
    while True:
        try:
            return attempt()
        except shmdriver.ShmDriverError:
            if time.monotonic() > deadline:
                raise
            line.wait(0.002)


def arrive(line: Line, arguments: Arguments, name: str, attach: Callable[[Any], Any]) -> tuple[Any, Any]:
    """A client and what it attached. ``patient``: tries again, since drivers come and go meanwhile."""
    import shmdriver

    def attempt() -> tuple[Any, Any]:
        client = shmdriver.connect(arguments["instance"], name=name, timeout=60)
        try:
            return client, attach(client)
        except shmdriver.ShmDriverError:
            client.close()
            raise

    return insist(attempt, line) if arguments.get("patient") else attempt()


def attached(attach: Callable[..., T], stream: str, **options: Any) -> T:
    """A producer or consumer, asked for anew when a driver has died while it served the attach."""
    import shmdriver

    while True:
        try:
            return attach(stream, **options, attach_timeout=PATIENCE_S)
        except shmdriver.AttachRejected as error:
            if error.reason != shmdriver.Reason.DRIVER_DIED:
                raise


def cycle(line: Line, arguments: Arguments) -> int:
    """One epoch after the other of ``count`` numbered messages each, a new writer each, until told to."""
    import shmdriver

    board = Board(Path(arguments["board"]))
    writer, count, size = arguments["writer"], arguments["count"], arguments.get("size")
    client = shmdriver.connect(arguments["instance"], name="cycle", timeout=60)
    heard = ""
    while heard != "stop":
        try:
            out = client.producer(arguments["stream"], **arguments.get("options", {}), attach_timeout=60)
        except shmdriver.AttachRejected as error:  # all epochs are still read
            line.say(rejected=str(error))
            heard = line.heard(0.005)
            continue
        board[Board.WRITER] = writer
        for number in range(count):
            out.publish(payload(writer, number, size), timeout=60)
            if number % 16 == 15 and heard != "stop":
                heard = line.heard(arguments.get("rest_s", 0))
        out.close()
        board[Board.SENT] = writer
        writer += 1
    client.close()
    line.say(closed=writer)
    return 0


def churn(line: Line, arguments: Arguments) -> int:
    """Clients, streams, producers and consumers of every kind, made and closed again, until told to stop.

    Every request that a client can make and every edge of the tables is passed again and again. The driver
    may die under any of it; whatever fails is tried again, and counted.
    """
    import shmdriver

    board = Board(Path(arguments["board"]))
    turn = arguments.get("turn", 0)
    heard = ""
    while heard != "stop":
        try:
            _one_of_everything(line, arguments, turn)
            board[Board.SENT] += 1
        except shmdriver.ShmDriverError as error:
            board[Board.FAILURES] += 1
            if board[Board.FAILURES] % 64 == 0:
                line.say(**error_words(error))
            line.wait(0.001)
        turn += 1
        heard = line.heard()
    line.say(closed=board[Board.SENT], failed=board[Board.FAILURES])
    return 0


def _one_of_everything(line: Line, arguments: Arguments, turn: int) -> None:
    import numpy as np

    import shmdriver

    name = arguments["name"]
    stream = f"{name}-{turn}" if turn % 4 == 0 else f"{name}-{turn % 3}"  # new names push idle streams out
    dtype = np.dtype(DTYPES[turn % len(DTYPES)])
    with shmdriver.connect(arguments["instance"], name=name, timeout=0.5) as client:
        early = client.consumer(stream, follow=True, attach_timeout=0.5)
        out = client.producer(stream, dtype=dtype, slots=64, attach_timeout=0.5)
        late = client.consumer(stream, delivery=("lossy", "reliable")[turn % 2], attach_timeout=0.5)
        out.publish(np.arange(5, dtype=dtype), timeout=1)
        for number in range(5):
            assert early.read(timeout=1) is not None, f"message {number} of {stream} did not come"
        if (
            turn % 7 == 3
        ):  # the driver detaches who has delivered a clean end; its line is free with its client
            out.close()
            for _ in late:
                pass
            line.wait(0.05)
        elif turn % 5 != 0:  # else goodbye ends all of it
            late.close()
            out.close()
            early.close()
    if arguments.get("token") and turn % 2 == 0:
        _snapshot(arguments)


def _snapshot(arguments: Arguments) -> None:
    from shmdriver._native import lib
    from shmdriver.cli.admin import send
    from shmdriver.observe import Instance

    with Instance(arguments["instance"]) as view:
        send(
            view, lib.SHMD_REQUEST_ADMIN, lib.SHMD_ADMIN_SNAPSHOT,
            reason="", token_file=Path(arguments["token"]), timeout_s=0.5,
        )  # fmt: skip


def pair(line: Line, arguments: Arguments) -> int:
    """Rounds of one producer and two consumers in one process: publish, then drain, whatever happens between.

    A round is lossless: what was published is read by the consumers from what they have mapped, also when no
    driver lives, or another one of another boot, which has removed all names.
    """
    writer = arguments["writer"]
    while True:
        if line.heard(60) == "stop":
            return 0
        out, *readers, _client = handles = insist(lambda: _attach(arguments), line)
        for number in range(arguments["count"]):
            out.publish(payload(writer, number), timeout=10)
        verdicts = [_drain(reader, writer, range(1)) for reader in readers]  # so they have the epoch mapped
        line.say(published=writer)
        if line.heard(60) == "stop":
            return 0
        rest = range(1, arguments["count"])
        verdicts = [
            verdict or _drain(reader, writer, rest) for verdict, reader in zip(verdicts, readers, strict=True)
        ]
        _close(handles)
        line.say(drained=writer, reliable=verdicts[0], lossy=verdicts[1])
        writer += 1


def _attach(arguments: Arguments) -> list[Any]:
    """A producer, a reliable and a lossy consumer that get its first message, and their client."""
    import shmdriver

    made: list[Any] = [shmdriver.connect(arguments["instance"], name="pair", timeout=0.5)]
    stream = arguments["stream"]
    try:
        made.insert(0, made[-1].consumer(stream, delivery="lossy", attach_timeout=2))
        made.insert(0, made[-1].consumer(stream, delivery="reliable", attach_timeout=2))
        made.insert(0, made[-1].producer(stream, slots=64, attach_timeout=2))
    except shmdriver.ShmDriverError:
        _close(made)
        raise
    return made


def _close(handles: list[Any]) -> None:
    import shmdriver

    for handle in handles:
        try:
            handle.close()
        except shmdriver.ShmDriverError:
            pass  # its driver is gone, or does not know it any more


def _drain(reader: Any, writer: int, numbers: range) -> str:
    """ "" when these messages came next, once and in order; else what was wrong."""
    import shmdriver

    for number in numbers:
        try:
            message = reader.read(timeout=5)
        except shmdriver.ShmDriverError as error:
            return f"lost: {type(error).__name__} at {number}: {error}"
        if message is None:
            return f"lost: nothing came at {number}"
        try:
            found = check(bytes(message))
        except TornMessage as error:
            return f"torn: {error}"
        if found != (writer, number):
            return f"reordered: {found} instead of {(writer, number)}"
    return ""
