"""The folder in which a driver keeps its lock, its token and a hint for tools (csrc/core/shmd_folder.c).

The driver makes the folder of its instance. Clients and tools find it. Files in it are opened by
``dir_fd=folder.fd`` and never by path: the path was checked once, when the folder was opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from shmdriver._native import ffi, lib
from shmdriver.errors import ShmDriverError
from shmdriver.os_errors import last_error

__all__ = ["ANY_OWNER", "RuntimeFolder", "find", "make", "notes"]

ANY_OWNER: Final = 0xFFFFFFFF  # this user's folders first, then those of the system


class RuntimeFolder:
    """An open runtime folder of one instance. It owns its descriptor, until :meth:`close`."""

    __slots__ = ("_native",)

    def __init__(self) -> None:
        self._native = ffi.gc(ffi.new("shmd_folder_t *", {"fd": -1}), lib.shmd_folder_close)

    @property
    def fd(self) -> int:
        """An ``O_PATH`` descriptor of the folder; -1 once closed."""
        return int(self._native.fd)

    @property
    def path(self) -> Path:
        """Where it stands, resolved. For texts, and to see whether it still stands there."""
        return Path(bytes(ffi.string(self._native.path)).decode(errors="surrogateescape"))

    @property
    def owner(self) -> int:
        """The uid that it belongs to."""
        return int(self._native.owner)

    @property
    def place(self) -> int:
        """Which kind of place it stands in: SHMD_PLACE_*."""
        return int(self._native.place)

    @property
    def native(self) -> object:
        """The ``shmd_folder_t *``, for C functions."""
        return self._native

    def close(self) -> None:
        """Gives the descriptor back; a second time nothing."""
        lib.shmd_folder_close(self._native)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make(instance: str, *, for_group: bool) -> RuntimeFolder:
    """The instance's folder in the first usable place, made when it is not there. For drivers.

    ``for_group``: members of ``shm.group`` have to reach it. Raises ShmDriverError, which names each place
    and why it cannot be used.
    """
    folder = RuntimeFolder()
    if lib.shmd_folder_make(instance.encode(), int(for_group), folder.native) < 0:
        raise ShmDriverError(last_error())
    return folder


def find(instance: str, owner: int | None = None) -> Iterator[RuntimeFolder]:
    """The folders of that instance that exist and can be trusted, this user's before the system's.

    ``owner``: only those of that uid. The receiver closes each. Raises ShmDriverError when a place cannot be
    looked at.
    """
    uid, place = ANY_OWNER if owner is None else owner, ffi.new("uint32_t *")
    while True:
        folder = RuntimeFolder()
        code = lib.shmd_folder_find(instance.encode(), uid, place, folder.native)
        if code < 0:
            raise ShmDriverError(last_error())
        if code == 0:
            return
        yield folder


def notes() -> str:
    """Which places the last call of this thread has passed over, and why; "" for none."""
    return bytes(ffi.string(lib.shmd_folder_notes())).decode(errors="replace")
