"""Options that several commands share, and the exit codes of all of them."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from shmdriver.names import CLIENT_BYTES_MAX

OK: Final = 0
ERROR: Final = 1
USAGE: Final = 2  # typer's own
LOST: Final = 3
TIMEOUT: Final = 4
INTERRUPTED: Final = 130
TERMINATED: Final = 143
PIPE_CLOSED: Final = 141

InstanceOption = Annotated[
    str | None,
    typer.Option(
        "--instance",
        "-i",
        metavar="NAME",
        help="Driver instance. Default: $SHMDRIVER_DRIVER_INSTANCE, else 'default'.",
        show_default=False,
    ),
]
OwnerOption = Annotated[
    str | None,
    typer.Option(
        "--owner",
        metavar="USER",
        help="The user whose driver is meant. Default: one's own, else root's or the system's.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ConnectOption = Annotated[
    float,
    typer.Option("--connect-timeout", metavar="SECONDS", help="How long the driver may take to answer."),
]
StreamArgument = Annotated[
    str, typer.Argument(metavar="STREAM", help="Name of the stream.", show_default=False)
]
TimeoutOption = Annotated[
    float | None,
    typer.Option("--timeout", "-t", metavar="SECONDS", help="Give up after this long.", show_default=False),
]


def client_name(tool: str, stream: str) -> str:
    """The client name of a tool that reads or writes ``stream``; other tools show it."""
    return f"{tool} {stream}".encode(errors="replace")[:CLIENT_BYTES_MAX].decode(errors="ignore")
