"""Real cgroups for tests, below this process's own or, where that may not have any, below its parents."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from shmdriver.procfs import OWN_CGROUPS, hierarchies
from tests.chaos.stage import wait_until


@contextmanager
def new_cgroup(controller: str, files: Mapping[bool, str], text: str) -> Iterator[Path]:
    """The folder of a new cgroup in whose file ``text`` stands. Skips where none can be made.

    ``files``: that file's name for v1 (True) and v2 (False); a version that is left out is not tried. At the
    end the cgroup's processes have to end.
    """
    tried = [
        (folder, files[hierarchy.is_v1])
        for hierarchy in hierarchies(Path(OWN_CGROUPS).read_text(), controller)
        if hierarchy.is_v1 in files and hierarchy.is_seen
        for folder in hierarchy.folders
    ]
    for folder, name in tried:
        made = folder / f"shmdriver-test-{secrets.token_hex(4)}"
        try:
            made.mkdir()
        except OSError:
            continue
        try:
            (made / name).write_text(text)
        except OSError:
            made.rmdir()
            continue
        break
    else:
        where = ", ".join(str(folder) for folder, _ in tried) or "none is mounted here"
        pytest.skip(f"no cgroup with {' or '.join(files.values())} can be made ({where})")
    try:
        yield made
    finally:
        wait_until(lambda: not (made / "cgroup.procs").read_text(), "the cgroup to be empty")
        made.rmdir()


FREEZERS = {True: ("freezer.state", "FROZEN", "THAWED"), False: ("cgroup.freeze", "1", "0")}


class FrozenCgroup:
    """A cgroup of the freezer of v1, or of v2, that can be frozen."""

    def __init__(self, folder: Path, *, is_v1: bool) -> None:
        self.folder, self.is_v1 = folder, is_v1
        name, self._frozen, self._thawed = FREEZERS[is_v1]
        self.switch = folder / name

    @property
    def command(self) -> str:
        """What thaws it."""
        return f"echo {self._thawed} > {self.switch}"

    def freeze(self, pid: int) -> None:
        """Takes the process in, and is frozen when this returns."""
        (self.folder / "cgroup.procs").write_text(str(pid))
        self.switch.write_text(self._frozen)
        state = self.folder / ("freezer.state" if self.is_v1 else "cgroup.events")
        told = "FROZEN" if self.is_v1 else "frozen 1"
        wait_until(lambda: told in state.read_text().splitlines(), "the cgroup to be frozen")

    def thaw(self) -> None:
        """Its processes run again."""
        self.switch.write_text(self._thawed)


@contextmanager
def freezable(*, is_v1: bool) -> Iterator[FrozenCgroup]:
    """A cgroup that is thawed at the end; its processes go to its parent. Skips where none can be made."""
    name, _, thawed = FREEZERS[is_v1]
    with new_cgroup("freezer", {is_v1: name}, thawed) as folder:
        cgroup = FrozenCgroup(folder, is_v1=is_v1)
        try:
            yield cgroup
        finally:
            cgroup.thaw()
            for pid in (folder / "cgroup.procs").read_text().split():
                (folder.parent / "cgroup.procs").write_text(pid)
