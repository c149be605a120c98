"""``shmdriver doctor``: is this machine fit, and what to do where it is not."""

from __future__ import annotations

import typer

from shmdriver.cli.options import ERROR, OK, JsonOption, OwnerOption
from shmdriver.cli.output import print_json
from shmdriver.shown import shown

_MARKS = {"ok": "[green]ok[/green]  ", "warn": "[yellow]warn[/yellow]", "fail": "[bold red]FAIL[/bold red]"}

_HELP = """Check this machine: shared memory, limits, namespaces, kernel, cores, folders, segments.

    $ shmdriver doctor
    $ shmdriver doctor --json | jq '.[] | select(.level != "ok")'

It changes nothing. [green]ok[/green]: fine. [yellow]warn[/yellow]: works, could be better or surprise you.
[bold red]FAIL[/bold red]: something will not work. Exit code 1 when anything fails, else 0.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("doctor", help=_HELP)
    def doctor(*, owner: OwnerOption = None, json: JsonOption = False) -> None:
        from shmdriver.observe.host import check_host

        checks = check_host(owner)
        if json:
            print_json(checks)
        else:
            from rich.markup import escape

            from shmdriver.cli.output import console

            screen = console()
            for check in checks:
                screen.print(
                    f"{_MARKS[check.level]}  [bold]{check.name:<18}[/bold] {escape(shown(check.found))}",
                    soft_wrap=True,
                )
                if check.advice:
                    screen.print(f"      {'':<18} → {escape(shown(check.advice))}", soft_wrap=True)
        raise typer.Exit(ERROR if any(check.level == "fail" for check in checks) else OK)
