"""The API reference, from the docstrings, by pdoc: `make docs`, or `python scripts/make_docs.py FOLDER`."""

from __future__ import annotations

import argparse
import pkgutil
import sys
from pathlib import Path

import pdoc

import shmdriver
import shmdriver.pytest_plugin

MODULES = ("shmdriver", "shmdriver.observe", "shmdriver.pytest_plugin")


def submodules() -> list[str]:
    """Of the package, without importing any."""
    return [f"shmdriver.{found.name}" for found in pkgutil.iter_modules(shmdriver.__path__)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/docs"), help="of the pages")
    folder = parser.parse_args().folder
    for name in shmdriver.__all__:
        vars(shmdriver)[name] = getattr(
            shmdriver, name
        )  # made at first use: pdoc looks only at what is there
    pdoc.render.configure(
        docformat="google", show_source=False, footer_text=f"shmdriver {shmdriver.__version__}"
    )
    inside = [f"!{name}" for name in submodules() if name not in MODULES]
    pdoc.pdoc(*MODULES, *inside, output_directory=folder)
    print(f"wrote {folder}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
