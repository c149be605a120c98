"""``shmdriver why``: who holds a producer back."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from shmdriver.cli.options import InstanceOption, JsonOption, OwnerOption, StreamArgument
from shmdriver.cli.output import print_json, say

_HELP = """Say who holds a stream's producer back, since when, what that process is doing, and what to do.

    $ shmdriver why quotes
    'quotes' is held back for 12.3 s by consumer model (pid 4711, python model.py), which is stopped
      8192 messages behind (of 8192 slots), 0 of them read and held
      ...
      → let it run again: kill -CONT 4711

Needs no driver: it reads the segments only. The verdict (--json: "verdict") is one of consumer_stopped,
consumer_slow, consumer_gone, views_held, no_consumer, no_producer, producer_stopped, producer_gone, idle,
flowing, sealed, unreadable. The exit code is 0 whatever the verdict.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("why", help=_HELP)
    def why(
        stream: StreamArgument,
        *,
        sample: Annotated[
            float,
            typer.Option(
                "--sample", metavar="SECONDS", min=0.0, max=60.0, help="How long to watch the rate."
            ),
        ] = 0.2,
        instance: InstanceOption = None,
        owner: OwnerOption = None,
        json: JsonOption = False,
    ) -> None:
        from shmdriver.observe import Instance, diagnose

        with Instance(instance, owner) as view:
            before = view.stream(stream)
            started = time.monotonic()
            if before.current is not None and before.current.state == "open":
                time.sleep(sample)
            found = diagnose(view, stream, before=before, elapsed_s=time.monotonic() - started)
        if json:
            print_json(found)
            return
        say(found.summary)
        for line in found.details:
            say(f"  {line}")
        for line in found.advice:
            say(f"  → {line}")
