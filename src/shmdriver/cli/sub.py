"""``shmdriver sub``: a stream onto stdout."""

from __future__ import annotations

import base64
import json as json_module
import sys
import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shmdriver.cli import wire
from shmdriver.cli.options import (
    LOST,
    TIMEOUT,
    ConnectOption,
    InstanceOption,
    JsonOption,
    OwnerOption,
    StreamArgument,
    TimeoutOption,
    client_name,
)
from shmdriver.cli.output import note
from shmdriver.cli.pub import chosen_format
from shmdriver.cli.signals import exit_code, pipe_closed, stoppable
from shmdriver.errors import EndOfStream, ProducerLost
from shmdriver.shown import shown

if TYPE_CHECKING:
    from shmdriver.client import Consumer, Message

_BATCH = 256

_HELP = """Write a stream's messages to stdout, until its producer closes it.

    $ shmdriver sub log                            # as they come
    $ shmdriver sub backup > copy.img              # next to: shmdriver pub backup < disk.img
    $ shmdriver sub s --length-prefixed | ./user   # u32 little endian, then that many bytes
    $ shmdriver sub quotes --delivery latest --count 1 --json

Payloads are written one after the other, unchanged. On a terminal each ends with a newline, and what is not
printable is escaped; --raw writes it as it is.
As a reliable consumer, sub holds the producer back rather than miss anything: [bold]tail[/bold] just looks.
It may be started before its producer; a stream that has just been closed is there with --start oldest.

Exit codes: 0 clean end, or --count reached · 3 the producer was lost (what it committed has been written; the
reason is on stderr) · 4 --timeout passed without a message · 130 Ctrl-C.
"""


class Delivery(StrEnum):
    """How a consumer wants its messages."""

    reliable = "reliable"
    lossy = "lossy"
    latest = "latest"


class Pace(StrEnum):
    """Whether a consumer holds still for a moment when it has caught up with a fast flow."""

    auto = "auto"
    eager = "eager"


class Start(StrEnum):
    """Where a consumer begins."""

    newest = "newest"
    oldest = "oldest"


def _length_prefixed(message: Message) -> bytes:
    return wire.LENGTH.pack(len(message)) + bytes(message)


def _line(message: Message) -> bytes:
    data = bytes(message)
    return data if data.endswith(b"\n") else data + b"\n"


def _shown_line(message: Message) -> bytes:
    """For a terminal, which no payload shall drive."""
    text = _line(message).decode(errors="backslashreplace")
    return shown(text, keep="\n\t").encode()


def _npy(message: Message) -> bytes:
    return wire.npy_bytes(message.array)


def as_json(message: Message) -> dict[str, Any]:
    """A message as JSON has it: text when it is UTF-8, else base64."""
    data = bytes(message)
    fields: dict[str, Any] = {
        "seq": message.seq,
        "type": message.type,
        "timestamp_ns": message.timestamp_ns,
        "length": len(data),
    }
    try:
        return fields | {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return fields | {"base64": base64.b64encode(data).decode("ascii")}


def _json_line(message: Message) -> bytes:
    return json_module.dumps(as_json(message)).encode() + b"\n"


def _encoder(form: str, *, json: bool) -> Callable[[Message], bytes]:
    if json:
        return _json_line
    if form in ("", "lines") and sys.stdout.isatty():
        return _shown_line
    encoders: dict[str, Callable[[Message], bytes]] = {
        "lines": _line,
        "length-prefixed": _length_prefixed,
        "npy": _npy,
    }
    return encoders.get(form, bytes)


def _write(messages: Iterable[Message], encode: Callable[[Message], bytes]) -> None:
    small: list[bytes] = []
    for message in messages:
        if encode is bytes and len(message) > wire.READ_BYTES:
            wire.write_all(1, b"".join(small))
            small.clear()
            wire.write_all(1, message.data)  # large payloads go out of shared memory directly
        else:
            small.append(encode(message))
    wire.write_all(1, b"".join(small))


def _copy(
    consumer: Consumer, encode: Callable[[Message], bytes], count: int | None, timeout: float | None
) -> tuple[int, bool]:
    """Until the end, ``count`` messages or the timeout: how many were written, and whether time was up."""
    written = 0
    while count is None or written < count:
        try:
            first = consumer.read(timeout=timeout)
        except EndOfStream:
            break
        if first is None:
            return written, True
        rest = min(consumer.buffered, (_BATCH if count is None else count - written) - 1)
        messages = [
            first,
            *(message for _ in range(rest) if (message := consumer.read(timeout=0)) is not None),
        ]
        _write(messages, encode)
        written += len(messages)
        del first, messages  # a view that is kept here would hold its place in the ring
    return written, False


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("sub", help=_HELP)
    def sub(
        stream: StreamArgument,
        *,
        raw: Annotated[bool, typer.Option("--raw", help="Payloads unchanged, also on a terminal.")] = False,
        lines: Annotated[bool, typer.Option("--lines", help="Add a newline where none is.")] = False,
        length_prefixed: Annotated[
            bool, typer.Option("--length-prefixed", help="u32 little endian before each payload.")
        ] = False,
        npy: Annotated[
            bool, typer.Option("--npy", help="Each array as a .npy file, one after the other.")
        ] = False,
        delivery: Annotated[
            Delivery, typer.Option("--delivery", help="What may be missed.")
        ] = Delivery.reliable,
        start: Annotated[
            Start, typer.Option("--start", help="Where to begin in a running stream.")
        ] = Start.newest,
        pace: Annotated[
            Pace, typer.Option("--pace", help="auto holds still for 2 us at the end of a fast flow.")
        ] = Pace.auto,
        follow: Annotated[
            bool, typer.Option("--follow", "-f", help="Go on with the stream's next producer.")
        ] = False,
        count: Annotated[
            int | None,
            typer.Option("--count", "-n", min=1, metavar="N", help="Stop after N.", show_default=False),
        ] = None,
        timeout: TimeoutOption = None,
        instance: InstanceOption = None,
        owner: OwnerOption = None,
        connect_timeout: ConnectOption = 5.0,
        json: JsonOption = False,
    ) -> None:
        from shmdriver.client import connect

        encode = _encoder(
            chosen_format(lines=lines, raw=raw, length_prefixed=length_prefixed, npy=npy), json=json
        )
        try:
            with (
                stoppable(),
                connect(
                    instance, name=client_name("sub", stream), timeout=connect_timeout, owner=owner
                ) as client,
                client.consumer(
                    stream,
                    delivery=delivery.value,
                    start=start.value,
                    pace=pace.value,
                    follow=follow,
                    attach_timeout=connect_timeout,
                ) as consumer,
            ):
                started = time.monotonic()
                written, late = _copy(consumer, encode, count, timeout)
                lost = consumer.lost
        except ProducerLost as error:
            note(f"{stream}: {error}")
            raise typer.Exit(LOST) from None
        except BrokenPipeError:
            raise typer.Exit(pipe_closed()) from None
        except KeyboardInterrupt as stopped:
            note("interrupted")
            raise typer.Exit(exit_code(stopped)) from None
        if lost:
            note(f"{lost} messages were missed (delivery {delivery.value})")
        if late:
            note(
                f"no message for {timeout:g} s; {written} were written in {time.monotonic() - started:.1f} s"
            )
            raise typer.Exit(TIMEOUT)


__all__ = ["as_json", "register"]
