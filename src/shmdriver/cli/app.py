"""The application: all commands under one name, errors as one line."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from shmdriver.cli import admin, config, doctor, gc, options, pub, run_command, stat, sub, tail, why
from shmdriver.cli.output import note, print_plainly, say
from shmdriver.cli.signals import drop_stdout, pipe_closed
from shmdriver.driver.signals import release_signals
from shmdriver.errors import ShmDriverError

# Commands of other parts of the project.
_OTHERS = {
    "demo": "See it work: real data between processes, and what survives kill -9.",
    "bench": "Throughput and latency on this machine, against pipes and queues.",
}

app = typer.Typer(
    name="shmdriver",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Messages between processes at memory speed; a small driver owns the shared memory.

A first look, in three terminals:

    $ shmdriver run                      # the driver
    $ shmdriver sub greetings            # a consumer
    $ echo hello | shmdriver pub greetings

Then: [bold]stat[/bold] shows who is there, [bold]why[/bold] says who holds a producer back,
[bold]doctor[/bold] checks this machine. Every command explains itself with --help and prints --json.
""",
    epilog="Exit codes: 0 fine · 1 error · 2 wrong usage · 3 producer lost · 4 timeout · 130 interrupted",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"shmdriver {version('shmdriver')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    _debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    if context.invoked_subcommand != "run":
        release_signals()


for _module in (run_command, pub, sub, tail, stat, why, doctor, admin, gc, config):
    _module.register(app)


def _register_other(name: str, help_text: str) -> None:
    """Add a command of another part of the project, whose module is imported only when it is called."""

    def command(context: typer.Context) -> None:
        module = import_module(f"shmdriver.cli.{name}")
        own = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        module.register(own)
        own(args=context.args, prog_name=f"shmdriver {name}")

    app.command(
        name,
        help=help_text,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(command)


for _name, _help in _OTHERS.items():
    if find_spec(f"shmdriver.cli.{_name}") is not None:
        _register_other(_name, _help)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; its exit code. An error is one line on stderr; --debug: a traceback."""
    warnings.showwarning = lambda message, *_: note(str(message))
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    debug = "--debug" in given[:end]
    given = [word for position, word in enumerate(given) if word != "--debug" or position > end]
    try:
        code = _run(given)
        sys.stdout.flush()  # here, where a failure can still be told
    except BrokenPipeError:
        return pipe_closed()
    except (ShmDriverError, OSError, ValueError, TypeError, MemoryError) as error:
        if debug:
            raise
        from shmdriver._native import lib
        from shmdriver.os_errors import remedy

        told = f"{error}{remedy(error, lib.SHMD_CALL_FILE)}"
        note(" ".join(told.split()) or type(error).__name__)
        drop_stdout()
        return options.ERROR
    except ImportError as error:
        if debug or "_native" not in str(error):
            raise
        note(f"the native module is not built ({error}); run: make build")
        return options.ERROR
    return code


def _run(given: list[str]) -> int:
    from shmdriver.standard_descriptors import open_standard_streams

    open_standard_streams()
    print_plainly()
    try:
        app(args=given, prog_name="shmdriver", standalone_mode=True)
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else options.ERROR
    return options.OK
