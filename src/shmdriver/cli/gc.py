"""``shmdriver gc``: remove segments whose driver is provably gone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from shmdriver.cli.options import ERROR, OK, InstanceOption, JsonOption
from shmdriver.cli.output import bytes_text, print_json, say
from shmdriver.errors import DriverAlreadyRunning, DriverUnavailable, ShmDriverError
from shmdriver.hints import command

_HELP = """Remove shared memory that a killed driver left behind.

    $ shmdriver gc --dry-run
    $ shmdriver gc                                 # all instances
    $ shmdriver gc -i md --force

An instance whose driver lives is left alone. So is one that a new driver is to take over: where clients still
live and exchange messages, or cannot be proved dead, or after a handover. [bold]--force[/bold] removes
those too: their streams cannot be adopted any more. Segments of an unknown layout version are never touched.
An instance that cannot be looked at is removed only if its lock is free and nobody shows a driver's sign of
life. A dry run takes no lock, so it says "may remove". Only what this user owns is removed: for another
user's run it as that user.
Exit code 1: something could not be removed.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one instance."""

    instance: str
    action: str
    segments: int
    bytes: int
    reason: str


def _keep_reason(instance: str, *, force: bool) -> str:
    """Why an instance should not be removed, "" when nothing speaks for it. Raises ShmDriverError.

    With ``force`` only a driver that lives speaks for it.
    """
    from shmdriver.observe import Instance

    with Instance(instance, os.geteuid()) as view:
        driver = view.driver()
        if driver.alive:
            return driver.explanation
        if force:
            return ""
        if driver.status == "handover":
            return "its driver handed over and its successor has not started yet (--force removes it)"
        kept = [client for client in view.clients() if not client.process.dead]
        unproved = sorted({client.process.why for client in kept if client.process.unknown})
        if kept:
            pids = ", ".join(client.process.label for client in kept[:5])
            why = f", or cannot be proved dead: {'; '.join(unproved)}" if unproved else ""
            return (
                f"{len(kept)} of its clients live ({pids}){why}; start the driver and it adopts "
                f"them: {command('run', instance=instance)} (--force removes it)"
            )
    return ""


def _collect(instance: str, *, dry_run: bool, force: bool) -> Outcome:
    from shmdriver.driver.collect import collect
    from shmdriver.observe.objects import segments_of
    from shmdriver.os_errors import remedy

    found = segments_of(instance, os.geteuid())
    size = sum(found.values())
    try:
        reason = "" if force and not dry_run else _keep_reason(instance, force=force)
    except DriverUnavailable:
        reason = ""  # without an authority there is no driver
    except ShmDriverError as error:  # half made, of another version or user: collect() decides and explains
        reason = ""
        if dry_run:
            return Outcome(instance, "may remove", len(found), size, f"cannot be looked at: {error}")
    if reason:
        return Outcome(instance, "left", len(found), size, reason)
    if dry_run:
        return Outcome(instance, "would remove", len(found), size, "no driver holds it")
    try:
        removed = collect(instance)
    except DriverAlreadyRunning as error:
        return Outcome(instance, "left", len(found), size, str(error))
    except (ShmDriverError, OSError) as error:
        return Outcome(instance, "failed", len(found), size, f"{error}{remedy(error)}")
    size = sum(found.get(name.removeprefix("/"), 0) for name in removed)
    return Outcome(instance, "removed", len(removed), size, "no driver held it")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("gc", help=_HELP)
    def gc(
        instance: InstanceOption = None,
        *,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", "-n", help="Only say what would be removed.")
        ] = False,
        force: Annotated[
            bool, typer.Option("--force", help="Also what a new driver could still adopt.")
        ] = False,
        json: JsonOption = False,
    ) -> None:
        from shmdriver.observe.objects import instances_with_segments

        wanted = [instance] if instance else instances_with_segments(os.geteuid())
        outcomes = [_collect(name, dry_run=dry_run, force=force) for name in wanted]
        if json:
            print_json(outcomes)
        else:
            for one in outcomes:
                what = f"{one.segments} segments, {bytes_text(one.bytes)}"
                say(f"{one.instance}: {one.action} {what}: {one.reason}")
            if not outcomes:
                say("nothing to do: no instance of this user has segments on this machine")
        raise typer.Exit(ERROR if any(one.action == "failed" for one in outcomes) else OK)
