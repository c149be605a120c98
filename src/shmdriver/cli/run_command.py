"""``shmdriver run``: the driver, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from shmdriver.cli.options import InstanceOption
from shmdriver.errors import ConfigError

_HELP = """Run the driver in the foreground, until SIGTERM or Ctrl-C.

The driver owns the shared memory and decides who may attach; messages never pass through it. If it dies,
messages keep flowing; start it again and it adopts everything.

    $ shmdriver run
    $ shmdriver run -i md --set policies.lease_timeout_ms=3000
    $ shmdriver run --config driver.toml --fresh

Signals: SIGTERM and SIGINT drain, seal and unlink (a second one does it at once), SIGUSR1 hands over to
the next driver, SIGHUP logs the effective configuration. One line a log event, on stderr.

Exit codes: 0 ended cleanly · 1 could not start, the log says why · 3 a driver of this instance runs already.
"""


def overrides_of(settings: list[str], instance: str | None, *, fresh: bool) -> dict[str, Any]:
    """Options of the command line as configuration overrides. Raises ConfigError."""
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"--set {setting!r}: expected section.key=value, for example policies.grace_ms=5000"
            )
        overrides[key.strip()] = value.strip()
    if instance is not None:
        overrides["driver.instance"] = instance
    if fresh:
        overrides["driver.boot"] = "fresh"
    return overrides


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("run", help=_HELP)
    def run(
        config: Annotated[
            Path | None, typer.Option("--config", "-c", metavar="FILE", help="TOML file.", show_default=False)
        ] = None,
        instance: InstanceOption = None,
        *,
        fresh: Annotated[
            bool, typer.Option("--fresh", help="Do not adopt: seal what a former driver left, start anew.")
        ] = False,
        settings: Annotated[
            list[str] | None,
            typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Set one value; repeat it for more."),
        ] = None,
    ) -> None:
        from shmdriver.driver.config import Config
        from shmdriver.driver.process import run_driver

        loaded = Config.load(config, overrides=overrides_of(settings or [], instance, fresh=fresh))
        raise typer.Exit(run_driver(loaded))
