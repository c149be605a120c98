"""What handles import late, kept in memory: the package may be replaced on the disk while a client runs.

What is imported then must be of the version that runs. Importing all of it at once would cost a program that
uses little of it a tenth of a second. Reading the sources takes a fraction of a millisecond, and they are
used only when the files have changed. The driver's modules are not kept: no handle needs them.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NamedTuple

__all__ = ["keep_sources"]


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
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    if not os.path.isdir(root):  # noqa: PTH112 -- in an archive
        return
    kept = _KeptSources()
    kept.keep("shmdriver", root)
    for package in ("client", "observe"):
        kept.keep(f"shmdriver.{package}", f"{root}/{package}")
    sys.meta_path.insert(0, kept)
