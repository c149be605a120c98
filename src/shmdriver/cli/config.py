"""``shmdriver config``: the effective configuration, and flags for C compilers."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import typer

from shmdriver.cli.options import InstanceOption, JsonOption, OwnerOption
from shmdriver.cli.output import note, print_json, say, say_all
from shmdriver.cli.run_command import overrides_of
from shmdriver.errors import DriverUnavailable, ShmDriverError

_HELP = """Print the effective configuration: of the running driver, else what `run` would start with.

    $ shmdriver config                             # TOML; what is not a default says where it came from
    $ shmdriver config --local --config driver.toml --set policies.grace_ms=0
    $ cc app.c $(shmdriver config --cflags --libs) # build C against the installed package
    $ SHMDRIVER_POLICIES_LEASE_TIMEOUT_MS=3000 shmdriver config --local

File, environment (SHMDRIVER_SECTION_KEY) and command line override the defaults, in this order. An unknown
key is an error that names the nearest known one; an unknown variable that resembles one of ours is warned of.
"""


def native_folder() -> Path:
    """Where headers and libraries of the installed package stand. Raises ShmDriverError."""
    folder = Path(__file__).resolve().parent.parent / "native"
    if not (folder / "include" / "shmdriver.h").exists():
        raise ShmDriverError(
            f"the native library is not built: {folder} has no include/shmdriver.h; run make build"
        )
    return folder


def compiler_flags(*, cflags: bool, libs: bool) -> str:
    """What a C compiler needs to build against this installation."""
    folder = native_folder()
    flags = [f"-I{folder / 'include'}"] if cflags else []
    if libs:
        lib = folder / "lib"
        flags += [f"-L{lib}", f"-Wl,-rpath,{lib}", "-lshmdriver", "-pthread", "-lrt"]
    return " ".join(flags)


def _running_text(instance: str | None, owner: str | None) -> str | None:
    from shmdriver.observe import Instance

    try:
        with Instance(instance, owner) as view:
            driver = view.driver()
            note(f"configuration of instance {view.name!r}: {driver.explanation}")
            text = view.config_text()
            last = text.splitlines()[-1] if text else ""
            if last.startswith("# cut"):
                note(last.removeprefix("# "))
            return text
    except DriverUnavailable:
        return None


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("config", help=_HELP)
    def config(
        *,
        local: Annotated[
            bool, typer.Option("--local", help="What `run` would start with here, not the running driver's.")
        ] = False,
        file: Annotated[
            Path | None, typer.Option("--config", "-c", metavar="FILE", help="TOML file.", show_default=False)
        ] = None,
        settings: Annotated[
            list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value.")
        ] = None,
        cflags: Annotated[bool, typer.Option("--cflags", help="Compiler flags for C and C++.")] = False,
        libs: Annotated[bool, typer.Option("--libs", help="Linker flags.")] = False,
        instance: InstanceOption = None,
        owner: OwnerOption = None,
        json: JsonOption = False,
    ) -> None:
        if cflags or libs:
            flags = compiler_flags(cflags=cflags, libs=libs)
            print_json({"flags": flags.split()}) if json else say(flags)
            return
        text = None if local or file or settings else _running_text(instance, owner)
        if text is None:
            from shmdriver.driver.config import Config

            text = Config.load(
                file, overrides=overrides_of(settings or [], instance, fresh=False)
            ).effective_text()
        if json:
            print_json(tomllib.loads(text))
        else:
            say_all(text)
