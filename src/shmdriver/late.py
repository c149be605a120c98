"""Imports that wait until something needs them, beside forks.

A child that is forked in the middle of another thread's import can never import that module: its lock belongs
to a thread that does not exist there. So a fork waits for the imports that this package does late:

    with LATE_IMPORT:
        from shmdriver.observe import Instance

The package may also be replaced on the disk while a client runs. What is imported then must be of the version
that runs, so the client keeps its sources in memory (keep_sources): reading them takes a fraction of a
millisecond, importing them a tenth of a second.

No module that is imported so takes, at its import, a lock that another package's hook holds over a fork: the
fork may have that lock already, while it waits here. ``logging.getLogger`` takes one.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock  # threading costs a program that only imports this package more than the rest of it
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NamedTuple

__all__ = ["LATE_IMPORT", "keep_sources"]

LATE_IMPORT = RLock()
os.register_at_fork(
    before=LATE_IMPORT.acquire, after_in_parent=LATE_IMPORT.release, after_in_child=LATE_IMPORT.release
)


class _Source(NamedTuple):
    """A module's source, and what its file was like."""

    path: str
    text: bytes
    stamp: tuple[int, ...] | None


class _KeptSources:
    """Finds and loads modules whose files have been replaced since their sources were kept."""

    def __init__(self) -> None:
        self._sources: dict[str, _Source] = {}

    def keep(self, package: str, folder: str) -> None:
        """The sources of a package of this one that is, or may be, imported late."""
        for entry in os.listdir(folder):  # noqa: PTH208 -- pathlib costs more than all of this
            stem, extension = os.path.splitext(entry)  # noqa: PTH122
            name = package if stem == "__init__" else f"{package}.{stem}"
            if extension == ".py" and name not in sys.modules:
                path = f"{folder}/{entry}"
                with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                    self._sources[name] = _Source(path, file.read(), _stamp(file.fileno()))

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """None: any other module, and one whose file is as it was: Python finds it, with its cache."""
        source = self._sources.get(name)
        if source is None or _stamp(source.path) == source.stamp:
            return None
        is_package = source.path.endswith("/__init__.py")
        spec = ModuleSpec(name, self, origin=source.path, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(source.path.removesuffix("/__init__.py"))
        return spec

    def create_module(self, _spec: ModuleSpec) -> ModuleType | None:
        """As every module is made."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Runs what was kept."""
        source = self._sources[module.__name__]
        exec(compile(source.text, source.path, "exec", dont_inherit=True), module.__dict__)  # noqa: S102


def _stamp(file: str | int) -> tuple[int, ...] | None:
    try:
        status = os.stat(file)  # noqa: PTH116
    except OSError:
        return None  # it has been removed
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def keep_sources() -> None:
    """Keeps what handles of this process import late. Called once, at the client's import."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    if not os.path.isdir(here):  # noqa: PTH112 -- in an archive
        return
    kept = _KeptSources()
    for package in ("client", "observe"):
        kept.keep(f"shmdriver.{package}", f"{here}/{package}")
    sys.meta_path.insert(0, kept)
