"""``shmdriver demo``: see it work."""

from __future__ import annotations

from glob import glob
from pathlib import Path
from typing import Annotated

import typer

_HELP = """See it work: real data between processes, and what survives kill -9. Under a minute.

1. Every file of the Python standard library to two processes, SHA-256 compared.
2. Market quotes one by one, in batches and as round trips; Pipe and Queue do the same work.
3. 1080p frames, copied and written in place.
4. A live line of records while the driver, a producer and a consumer are killed or frozen.

    $ shmdriver demo
    $ shmdriver demo --stay            # then, in another terminal: shmdriver stat --watch -i ...
    $ shmdriver demo --quotes ticks.csv

Starts drivers and processes of its own, takes at most 48 MiB of /dev/shm and leaves nothing there. The
exit code is 1 when anything was lost.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("demo", help=_HELP)
    def demo(
        quotes: Annotated[
            list[str] | None,
            typer.Option(
                "--quotes",
                metavar="CSV",
                envvar="SHMDRIVER_DEMO_QUOTES",
                help="Files of quotes: time,bid,ask[,volume]; patterns are expanded. Default: a sample.",
                show_default=False,
            ),
        ] = None,
        *,
        stay: Annotated[
            bool, typer.Option("--stay", help="Leave the driver and the live line running until Ctrl-C.")
        ] = False,
        quick: Annotated[bool, typer.Option("--quick", help="A short run of every part.")] = False,
    ) -> None:
        from shmdriver.demo import show

        paths = [Path(name) for pattern in quotes or [] for name in sorted(glob(pattern)) or [pattern]]  # noqa: PTH207
        raise typer.Exit(show.run(quote_files=paths, quick=quick, stay=stay))
