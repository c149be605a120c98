"""The API reference, from the docstrings, by pdoc: `make docs`, or `python scripts/make_docs.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

import shmdriver
import shmdriver.pytest_plugin

MODULES = ("shmdriver", "shmdriver.observe", "shmdriver.pytest_plugin")


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs")
    for name in shmdriver.__all__:
        vars(shmdriver)[name] = getattr(shmdriver, name)  # made at first use: pdoc looks only at what is there
    pdoc.render.configure(docformat="google", show_source=False, footer_text=f"shmdriver {shmdriver.__version__}")
    # Of each module what its __all__ names, and nothing below it.
    pdoc.pdoc(*(f"{name}" for name in MODULES), "!shmdriver.", output_directory=folder)
    print(f"wrote {folder}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
