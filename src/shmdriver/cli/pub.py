"""``shmdriver pub``: stdin or files into a stream."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shmdriver.cli import wire
from shmdriver.cli.options import (
    ConnectOption,
    InstanceOption,
    JsonOption,
    OwnerOption,
    StreamArgument,
    TimeoutOption,
    client_name,
)
from shmdriver.cli.output import bytes_text, note, print_json
from shmdriver.cli.signals import exit_code, stoppable
from shmdriver.errors import BackPressured
from shmdriver.hints import command

if TYPE_CHECKING:
    from shmdriver.client import Producer

_NOTICE_S = 2.0
_LOOK_S = 0.2
_ARRAY_HEAD_BYTES = 4096  # more than shape, dtype and padding of any sane array take

_HELP = """Publish stdin, or files, into a stream; close it cleanly at the end of the input.

    $ tail -F app.log | shmdriver pub log          # lines, each as soon as it is there
    $ shmdriver pub backup < disk.img              # a file, in chunks
    $ shmdriver sub backup > copy.img              # ... arrives bit for bit
    $ shmdriver pub frames --npy *.npy             # arrays
    $ ./maker | shmdriver pub s --length-prefixed  # u32 little endian, then that many bytes

Without a format, files go in as raw chunks, terminals and pipes as lines that keep their newline (long ones
in pieces): [bold]sub[/bold] writes the payloads one after the other, so what comes out is what went in.

It waits for --min-consumers reliable consumers before it publishes, and says so; 0 publishes to nobody.
Ctrl-C ends the stream as aborted: consumers get what was published and then exit with 3.
"""


def chosen_format(*, lines: bool, raw: bool, length_prefixed: bool, npy: bool, records: bool = False) -> str:
    """The one format that was asked for, "" when none. Raises typer.BadParameter."""
    flags = {
        "lines": lines,
        "raw": raw,
        "length-prefixed": length_prefixed,
        "npy": npy,
        "records": records,
    }
    chosen = [name for name, given in flags.items() if given]
    if len(chosen) > 1:
        raise typer.BadParameter(f"choose one format: --{' or --'.join(chosen)}")
    return chosen[0] if chosen else ""


class _Feed:
    """Publishes pieces, counts them, and says on stderr who it waits for."""

    def __init__(self, producer: Producer, message_type: int, timeout: float | None) -> None:
        self.producer, self.message_type, self.timeout = producer, message_type, timeout
        self.messages = self.bytes = 0
        self._noticed = False

    def put(self, piece: Any, *, as_array: bool = False) -> None:
        """One message. Raises BackPressured at the timeout."""
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            wait = left if self._noticed else min(_NOTICE_S, _NOTICE_S if left is None else left)
            try:
                if as_array:
                    self.producer.publish_array(piece, type=self.message_type, timeout=wait)
                else:
                    self.producer.publish(piece, type=self.message_type, timeout=wait)
            except BackPressured as error:
                if self._noticed or (deadline is not None and time.monotonic() >= deadline):
                    raise
                self._noticed = True
                note(f"held back, still trying: {error}")
            else:
                break
        self._noticed = False
        self.messages += 1
        self.bytes += piece.nbytes if as_array else len(piece)


def _inputs(files: list[Path], stack: ExitStack) -> Iterator[Any]:
    if not files:
        yield sys.stdin.buffer
    for path in files:
        yield sys.stdin.buffer if str(path) == "-" else stack.enter_context(path.open("rb"))


def _pieces(source: Any, form: str, chunk: int) -> Iterator[Any]:
    form = form or wire.default_format(source.fileno())
    if form == "lines":
        return wire.lines(source.fileno(), chunk)
    if form == "raw":
        return wire.chunks(source.fileno(), chunk)
    if form == "length-prefixed":
        return wire.length_prefixed(source)
    return wire.arrays(source)


def _await_consumers(
    producer: Producer, stream: str, wanted: int, timeout: float | None, instance: str
) -> None:
    """Wait for reliable consumers: an empty input, too, is delivered to somebody. Raises BackPressured."""
    if producer.consumers >= wanted:
        return
    who = "a reliable consumer" if wanted == 1 else f"{wanted} reliable consumers"
    attach = command("sub", stream, instance=instance)
    note(f"waiting for {who} of stream {stream!r} ({attach}); --min-consumers 0 goes on at once")
    deadline = None if timeout is None else time.monotonic() + timeout
    while (have := producer.consumers) < wanted:
        left = _NOTICE_S if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise BackPressured(
                f"stream {stream!r} has {have} of {wanted} reliable consumers after {timeout:g} s: attach "
                f"one with {attach}, wait longer (--timeout), or pass --min-consumers 0",
                stream=stream,
            )
        # One more than there are, of whatever delivery: a newcomer ends the wait, then it is looked at.
        attached = producer.wait_for_consumers(wanted, timeout=0)
        producer.wait_for_consumers(max(wanted, attached + 1), timeout=min(left, _LOOK_S))


def _publish(stack: ExitStack, client: Any, stream: str, files: list[Path], form: str, options: Any) -> _Feed:
    """Everything, until the end of the input; the producer is open while pieces come."""
    sources = _inputs(files, stack)
    first_source = next(sources)
    first, sizes = None, {"max_message": options["max_message"]}
    pieces = _pieces(first_source, form, options["chunk"])
    if form == "npy":
        # The first array says how large the stream's messages are, unless --max-message does.
        first = next(pieces, None)
        if first is not None and not sizes["max_message"]:
            sizes["max_message"] = first.nbytes + _ARRAY_HEAD_BYTES
    elif not sizes["max_message"] and options["chunk"] > 1 << 20:
        sizes["max_message"] = options["chunk"]
    with client.producer(
        stream,
        max_message=sizes["max_message"],
        slots=options["slots"],
        min_consumers=options["min_consumers"],
        timestamps=options["timestamps"],
        attach_timeout=options["connect_timeout"],
    ) as producer:
        feed = _Feed(producer, options["type"], options["timeout"])
        _await_consumers(producer, stream, options["min_consumers"], options["timeout"], client.instance)
        if first is not None:
            feed.put(first, as_array=True)
        for piece in pieces:
            feed.put(piece, as_array=form == "npy")
        for source in sources:
            for piece in _pieces(source, form, options["chunk"]):
                feed.put(piece, as_array=form == "npy")
    return feed


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("pub", help=_HELP)
    def pub(
        stream: StreamArgument,
        files: Annotated[
            list[Path] | None, typer.Argument(metavar="[FILE]...", help="Instead of stdin; - is stdin.")
        ] = None,
        *,
        lines: Annotated[bool, typer.Option("--lines", help="A message a line, newline kept.")] = False,
        raw: Annotated[bool, typer.Option("--raw", help="Chunks of up to --chunk bytes.")] = False,
        length_prefixed: Annotated[
            bool, typer.Option("--length-prefixed", help="u32 little endian, then that many bytes.")
        ] = False,
        npy: Annotated[
            bool, typer.Option("--npy", help="Arrays, from .npy files one after the other.")
        ] = False,
        min_consumers: Annotated[
            int,
            typer.Option(
                "--min-consumers", min=0, max=64, metavar="N", help="Reliable consumers to wait for."
            ),
        ] = 1,
        message_type: Annotated[
            int, typer.Option("--type", min=0, max=65535, metavar="N", help="Message type of all messages.")
        ] = 0,
        chunk: Annotated[
            int,
            typer.Option(
                "--chunk", min=1, max=1 << 30, metavar="BYTES", help="Largest piece of raw or lines."
            ),
        ] = wire.READ_BYTES,
        max_message: Annotated[
            int | None,
            typer.Option(
                "--max-message",
                min=1,
                metavar="BYTES",
                help="Largest message of the stream.",
                show_default=False,
            ),
        ] = None,
        slots: Annotated[
            int | None,
            typer.Option("--slots", min=2, metavar="N", help="Messages in the ring.", show_default=False),
        ] = None,
        timestamps: Annotated[bool, typer.Option("--timestamps", help="Stamp messages.")] = False,
        timeout: TimeoutOption = None,
        instance: InstanceOption = None,
        owner: OwnerOption = None,
        connect_timeout: ConnectOption = 5.0,
        json: JsonOption = False,
    ) -> None:
        from shmdriver.client import connect

        form = chosen_format(lines=lines, raw=raw, length_prefixed=length_prefixed, npy=npy)
        options = {
            "chunk": chunk,
            "max_message": max_message,
            "slots": slots,
            "min_consumers": min_consumers,
            "timestamps": timestamps,
            "type": message_type,
            "timeout": timeout,
            "connect_timeout": connect_timeout,
        }
        started = time.monotonic()
        try:
            with stoppable(), ExitStack() as stack:
                client = stack.enter_context(
                    connect(instance, name=client_name("pub", stream), timeout=connect_timeout, owner=owner)
                )
                feed = _publish(stack, client, stream, files or [], form, options)
        except KeyboardInterrupt as stopped:
            note(
                f"interrupted: the end of {stream!r} is marked aborted; what was published will be delivered"
            )
            raise typer.Exit(exit_code(stopped)) from None
        seconds = time.monotonic() - started
        if json:
            print_json({"stream": stream, "messages": feed.messages, "bytes": feed.bytes, "seconds": seconds})
        elif sys.stderr.isatty():
            note(f"{feed.messages} messages, {bytes_text(feed.bytes)} in {seconds:.2f} s")
