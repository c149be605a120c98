"""``shmdriver stat``: who is there, and how it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shmdriver.cli.options import InstanceOption, JsonOption, OwnerOption
from shmdriver.cli.output import note, print_json, say
from shmdriver.errors import DriverUnavailable, ShmDriverError
from shmdriver.hints import command

if TYPE_CHECKING:
    from shmdriver.cli.screen import Page
    from shmdriver.observe import DriverStatus, Instance, LeaseStatus, StreamStatus

_BLOCKED_WARNING_NS = 1_000_000_000

_HELP = """Show an instance: its driver, streams, clients, leases, errors, events, counters.

    $ shmdriver stat                               # the overview
    $ shmdriver stat leases                        # who reads what, where, how far behind
    $ shmdriver stat --watch                       # a live screen
    $ shmdriver stat streams --json | jq '.[].name'
    $ shmdriver stat --check                       # for probes: one line

It reads the segments only, so it works with a hung or dead driver and says which. With [bold]--check[/bold]
the exit code is 0: healthy · 1: serving, but something needs a look (degraded, maintenance, draining, a
stalled client, a producer held back for more than a second) · 2: no driver serves.
"""


class What(StrEnum):
    """What to show."""

    streams = "streams"
    clients = "clients"
    leases = "leases"
    errors = "errors"
    events = "events"
    counters = "counters"


def health(
    driver: DriverStatus, streams: tuple[StreamStatus, ...], leases: tuple[LeaseStatus, ...]
) -> tuple[int, str]:
    """Exit code and line of ``stat --check``."""
    if driver.status not in ("running", "starting") or driver.lifecycle == "stopped":
        return 2, "; ".join(filter(None, (driver.explanation, driver.advice)))
    reasons = f" by {', '.join(driver.degraded)}" if driver.degraded else ""
    findings = [] if driver.lifecycle == "healthy" else [f"driver {driver.lifecycle}{reasons}"]
    stalled = {_stalled(lease) for lease in leases if lease.state == "stalled"}
    findings += [f"stalled: {name}" for name in sorted(stalled)]
    for stream in streams:
        blocked = stream.current.blocked if stream.current else None
        if blocked is not None and not blocked.no_consumer and blocked.for_ns > _BLOCKED_WARNING_NS:
            look = command("why", stream.name, instance=driver.instance)
            findings.append(f"{stream.name} held back for {blocked.for_ns / 1e9:.1f} s ({look})")
    unproved = _unproved(driver, leases)
    if findings:
        return 1, "; ".join(findings + unproved)
    return 0, "; ".join([f"healthy, {len(streams)} streams, {len(leases)} leases", *unproved])


def _stalled(lease: LeaseStatus) -> str:
    name, process = lease.client_name or lease.process.label, lease.process
    if process.frozen:
        return f"{name}, which is {process} ({process.resume})"
    return f"{name} ({process.doubt})" if process.doubt and not process.unknown else name


def _unproved(driver: DriverStatus, leases: tuple[LeaseStatus, ...]) -> list[str]:
    """What cannot be proved alive or dead: no fault by itself, but its death would show by silence only."""
    found = [driver.explanation] if driver.process.unknown else []
    whys: dict[str, set[str]] = {}
    for lease in leases:
        if lease.process.unknown:
            whys.setdefault(lease.process.why, set()).add(lease.client_name or lease.process.label)
    for why, clients in sorted(whys.items()):
        found.append(f"cannot be proved alive or dead ({why}): {', '.join(sorted(clients))}")
    return found


def as_data(what: str, instance: Instance) -> Any:
    """What --json prints."""
    parts: dict[str, Callable[[], Any]] = {
        "streams": instance.streams,
        "clients": instance.clients,
        "leases": instance.leases,
        "errors": instance.errors,
        "events": instance.events,
        "counters": instance.counters,
    }
    if what:
        return parts[what]()
    chosen = ("streams", "clients", "leases", "errors", "counters")
    return {"driver": instance.driver()} | {name: parts[name]() for name in chosen}


def _check(instance: str | None, owner: str | None, *, json: bool) -> int:
    from shmdriver.observe import Instance

    try:
        with Instance(instance, owner) as view:
            code, text = health(view.driver(), view.streams(), view.leases())
    except ShmDriverError as error:
        code, text = 2, str(error)
    words = ("ok", "warning", "critical")
    if json:
        print_json({"code": code, "status": words[code], "text": text})
    else:
        say(f"{words[code]}: {text}")
    return code


def _once(what: str, instance: str | None, owner: str | None, sample_s: float) -> None:
    from shmdriver.cli.screen import print_page
    from shmdriver.cli.stat_tables import build
    from shmdriver.observe import Instance, Rates

    with Instance(instance, owner) as view:
        rates, found = Rates(), {}
        streams = view.streams() if what in ("", "streams") else ()
        rates.update(streams)
        if sample_s and any(stream.state == "open" for stream in streams):
            time.sleep(sample_s)
            streams = view.streams()
            found = rates.update(streams)
        print_page(build(what, view, found, streams))


def _pages(what: str, instance: str | None, owner: str | None, interval_s: float) -> Iterator[Page]:
    """What --watch shows, a page an interval; a driver that goes, comes or starts afresh is followed."""
    from shmdriver.cli.screen import Styled
    from shmdriver.cli.stat_tables import build
    from shmdriver.observe import Instance, Rates

    rates, view = Rates(), None
    while True:
        page: Page
        try:
            view = view or Instance(instance, owner)
            view.reopen_if_replaced()
            streams = view.streams()
            page = build(what, view, rates.update(streams), streams)
        except DriverUnavailable as error:
            view, page = None, ((str(error),),)
        yield [*page, (Styled(time.strftime("%H:%M:%S  Ctrl-C ends"), "dim"),)]
        time.sleep(interval_s)


def _watch(what: str, instance: str | None, owner: str | None, interval_s: float) -> None:
    from shmdriver.cli.screen import Screen, is_live, print_page

    if not is_live():
        for page in _pages(what, instance, owner, interval_s):
            print_page(page)
        return
    with Screen() as screen:
        for page in _pages(what, instance, owner, interval_s):
            screen.show(page)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("stat", help=_HELP)
    def stat(
        what: Annotated[
            What | None, typer.Argument(help="Default: the overview.", show_default=False)
        ] = None,
        *,
        watch: Annotated[bool, typer.Option("--watch", "-w", help="Live, until Ctrl-C.")] = False,
        interval: Annotated[
            float,
            typer.Option("--interval", min=0.05, metavar="SECONDS", help="Between two looks of --watch."),
        ] = 1.0,
        sample: Annotated[
            float,
            typer.Option(
                "--sample", min=0.0, max=60.0, metavar="SECONDS", help="To measure rates; 0: do not."
            ),
        ] = 0.2,
        check: Annotated[bool, typer.Option("--check", help="One line; exit code 0, 1 or 2.")] = False,
        instance: InstanceOption = None,
        owner: OwnerOption = None,
        json: JsonOption = False,
    ) -> None:
        chosen = what.value if what else ""
        if check:
            raise typer.Exit(_check(instance, owner, json=json))
        if json:
            from shmdriver.observe import Instance

            with Instance(instance, owner) as view:
                print_json(as_data(chosen, view))
        elif watch:
            try:
                _watch(chosen, instance, owner, interval)
            except KeyboardInterrupt:
                note("ended")
        else:
            _once(chosen, instance, owner, sample)
