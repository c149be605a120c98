"""Where the segments and runtime folders of an instance stand. Their names are drawn at random: tests scan.

Names that tests plant are made here, too.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

from shmdriver._native import ffi, lib
from shmdriver.observe import Instance

SHM = Path("/dev/shm")


def paths_of(instance: str, kind: str = "*") -> list[Path]:
    """The objects in /dev/shm under names of this instance's segments of this kind, whoever made them."""
    return sorted(SHM.glob(f"shmd.{instance}.{'[0-9a-f]' * 32}.{kind}"))


def path_of(instance: str, kind: str) -> Path:
    """The one segment of this kind: ``authority``, ``control``, or of the only epoch ``data``, ``gates``."""
    found = paths_of(instance, kind)
    assert len(found) == 1, f"expected one {kind} segment of {instance}, found {found}"
    return found[0]


def segment_name(path: Path) -> str:
    """The POSIX name of an object in /dev/shm."""
    return f"/{path.name}"


def plantable(instance: str, kind: str) -> Path:
    """A path that no driver has drawn, for a test to plant something there."""
    return SHM / f"shmd.{instance}.{secrets.token_hex(16)}.{kind}"


def places() -> list[Path]:
    """The folders in which this user's drivers may make runtime folders; not all of them exist."""
    uid = os.geteuid()
    named = [os.environ.get("SHMDRIVER_RUNTIME_DIR"), os.environ.get("XDG_RUNTIME_DIR")]
    found = [Path("/run/shmdriver"), Path(f"/run/user/{uid}/shmdriver"), *SHM.glob(f"shmdriver-{uid}.*")]
    found += [Path(named[0])] if named[0] else []
    found += [Path(named[1]) / "shmdriver"] if named[1] else []
    return found


def runtime_folders(is_ours: Callable[[str], bool], among: Iterable[Path] | None = None) -> list[Path]:
    """The runtime folders of the instances whose name ``is_ours``."""
    found = []
    for place in places() if among is None else among:
        try:
            found += [folder for folder in place.iterdir() if is_ours(folder.name)]
        except FileNotFoundError:
            continue
    return sorted(set(found))


def runtime_folder_of(instance: str, runtime: Path | None = None) -> Path:
    """The one runtime folder of an instance. ``runtime``: the $XDG_RUNTIME_DIR that its driver had."""
    among = [*places(), *([] if runtime is None else [runtime / "shmdriver"])]
    (found,) = runtime_folders(lambda name: name == instance, among)
    return found


def remove(paths: Iterable[Path]) -> None:
    """Removes files, links and empty folders."""
    for path in paths:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def control_of(view: Instance, client_id: int) -> Path:
    """The control segment of that client."""
    authority = view._mapped()
    records = (lib.shmd_authority_client(authority, index) for index in range(authority.client_max))
    (name,) = (ffi.string(each.control_name).decode() for each in records if each.client_id == client_id)
    return SHM / name.lstrip("/")
