"""``shmdriver tail``: look at a stream without ever holding anybody back."""

from __future__ import annotations

import json as json_module
import string
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from shmdriver.cli.output import bytes_text, note, say
from shmdriver.cli.signals import exit_code, pipe_closed, stoppable
from shmdriver.cli.sub import Start, as_json
from shmdriver.errors import EndOfStream, ProducerLost, SchemaMismatch

if TYPE_CHECKING:
    from shmdriver.client import Consumer, Message

_PRINTABLE = frozenset(string.printable.encode()) - frozenset(b"\x0b\x0c\x7f")

_HELP = """Show a stream's messages as they pass: seq, time, type, size, and a preview of the payload.

    $ shmdriver tail quotes
    $ shmdriver tail quotes --count 20 --json
    $ shmdriver tail camera --start oldest         # what the ring still holds, then what comes

tail attaches as a lossy consumer, for which a driver must answer. It can miss messages, and says how many,
but it can never stall a producer. It goes on with the stream's next producer until Ctrl-C. Records show
their fields, arrays their shape, text and bytes their first --width characters.
"""


def text_preview(data: bytes, width: int) -> str:
    """The beginning of a payload: quoted text when it is printable, else hex."""
    part = data[:width]
    try:
        part.decode("utf-8")
        printable = all(byte >= 0x80 or byte in _PRINTABLE for byte in part)
    except UnicodeDecodeError as error:
        printable = error.start >= len(part) - 3 and len(part) < len(data) and error.start > 0
        part = part[: error.start] if printable else part
        printable = printable and all(byte >= 0x80 or byte in _PRINTABLE for byte in part)
    more = "..." if len(data) > len(part) else ""
    if printable:
        return repr(part.decode("utf-8")) + more
    half = data[: max(1, width // 2)]
    return half.hex(" ", 4) + ("..." if len(data) > len(half) else "")


def record_preview(data: bytes, dtype: Any) -> str:
    """The fields of one record: name=value."""
    import numpy as np

    record = np.frombuffer(data, dtype=dtype, count=1)[0]
    if dtype.names is None:
        return str(record)
    return " ".join(f"{name}={record[name]}" for name in dtype.names)


def preview(message: Message, dtype: Any, width: int) -> str:
    """What a person wants to see of a payload."""
    try:
        array = message.array
    except TypeError:
        data = bytes(message)
        if dtype is not None and len(data) == dtype.itemsize:
            return record_preview(data, dtype)
        return text_preview(data, width)
    return f"array {array.dtype}{list(array.shape)}"


def _clock(timestamp_ns: int, offset_ns: int) -> str:
    if not timestamp_ns:
        return "-"
    import datetime as dt

    moment = dt.datetime.fromtimestamp((timestamp_ns + offset_ns) / 1e9, tz=dt.UTC).astimezone()
    return moment.strftime("%H:%M:%S.%f")


def _dtype_of(consumer: Consumer) -> Any:
    """Of the records that it has just read; None: bytes, or that cannot be told any more."""
    try:
        return consumer.dtype
    except SchemaMismatch:
        return None


def _show(
    consumer: Consumer, stream: str, count: int | None, timeout: float | None, width: int, *, json: bool
) -> int:
    """Print until the end, the count or the timeout; the exit code."""
    import time

    offset_ns = time.time_ns() - time.monotonic_ns()
    shown, lost = 0, 0
    if not json:
        say(f"{'seq':>12}  {'time':15}  {'type':>5}  {'size':>10}  payload")
    while count is None or shown < count:
        message = consumer.read(timeout=timeout)
        if message is None:
            return TIMEOUT
        if consumer.lost > lost and not json:
            say(f"{'':>12}  ... {consumer.lost - lost} messages missed ...")
        lost = consumer.lost
        if json:
            say(json_module.dumps(as_json(message) | {"stream": stream, "lost": lost}))
        else:
            when = _clock(message.timestamp_ns, offset_ns)
            size, text = bytes_text(len(message)), preview(message, _dtype_of(consumer), width)
            say(f"{message.seq:>12}  {when:15}  {message.type:>5}  {size:>10}  {text}")
        shown += 1
    return 0


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("tail", help=_HELP)
    def tail(
        stream: StreamArgument,
        *,
        count: Annotated[
            int | None,
            typer.Option("--count", "-n", min=1, metavar="N", help="Stop after N.", show_default=False),
        ] = None,
        start: Annotated[Start, typer.Option("--start", help="Where to begin.")] = Start.newest,
        width: Annotated[
            int, typer.Option("--width", min=8, metavar="N", help="Characters of preview.")
        ] = 60,
        timeout: TimeoutOption = None,
        instance: InstanceOption = None,
        owner: OwnerOption = None,
        connect_timeout: ConnectOption = 5.0,
        json: JsonOption = False,
    ) -> None:
        from shmdriver.client import connect

        try:
            with (
                stoppable(),
                connect(
                    instance, name=client_name("tail", stream), timeout=connect_timeout, owner=owner
                ) as client,
                client.consumer(
                    stream, delivery="lossy", start=start.value, follow=True, attach_timeout=connect_timeout
                ) as consumer,
            ):
                code = _show(consumer, stream, count, timeout, width, json=json)
        except EndOfStream:
            code = 0
        except ProducerLost as error:
            note(f"{stream}: {error}")
            code = LOST
        except BrokenPipeError:
            code = pipe_closed()
        except KeyboardInterrupt as stopped:
            code = exit_code(stopped)
        raise typer.Exit(code)
