"""One shared-memory segment, mapped read-only."""

from __future__ import annotations

import errno
import os
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.errors import DriverUnavailable, LayoutMismatch, ShmDriverError
from shmdriver.os_errors import last_error
from shmdriver.owners import descriptor, view
from shmdriver.truncation import guard_truncation


class Segment:
    """A read-only mapping of one segment whose header was checked.

    ``map_bytes`` maps only the beginning (what a tool needs of a data segment is its header page).
    ``owner``: the uid that it belongs to; one of another user is refused. ``expected_bytes`` comes from the
    authority's tables: a segment of another size is refused before it is mapped. Raises DriverUnavailable
    when there is no such segment, LayoutMismatch when it is not what it should be, ShmDriverError when
    neither can be told (no descriptor, no permission, no memory).
    """

    __slots__ = ("_view", "base", "bytes", "inode", "name", "owner")

    def __init__(
        self,
        name: str,
        kind: int,
        *,
        owner: int,
        boot_id: int = 0,
        stream_id: int = 0,
        epoch: int = 0,
        expected_bytes: int | None = None,
        map_bytes: int | None = None,
    ) -> None:
        guard_truncation()
        self.name = name
        self.base: Any = None
        self._view = view()
        size = ffi.new("uint64_t *")
        fd = descriptor()
        code = lib.shmd_descriptor_open_segment(name.encode(), owner, size, fd)
        if code < 0:
            raise _not_opened(code, ffi.errno)
        try:
            self.bytes = int(size[0])
            if expected_bytes is not None and self.bytes != expected_bytes:
                raise LayoutMismatch(
                    f"segment {name} has {self.bytes} bytes, the directory says {expected_bytes}: "
                    "something other than the driver changed it"
                )
            found = os.fstat(fd[0])
            self.inode, self.owner = found.st_ino, found.st_uid
            code = lib.shmd_view_map(self._view, fd[0], min(self.bytes, map_bytes or self.bytes))
            if code < 0:
                has_no_bytes = code == lib.SHMD_E_INVALID
                error = LayoutMismatch if has_no_bytes else ShmDriverError
                raise error(f"segment {name}: {last_error()}")
            self.base = self._view.base
        finally:
            lib.shmd_descriptor_close(fd)
        code = lib.shmd_header_check(self.base, self.bytes, kind, boot_id, stream_id, epoch)
        if code < 0:
            text = last_error()
            self.close()
            raise LayoutMismatch(text)

    def close(self) -> None:
        """Unmap. Pointers into the segment are invalid afterwards."""
        self.base = None
        lib.shmd_view_drop(self._view)


def _not_opened(code: int, error: int) -> ShmDriverError:
    """Of all failures only ENOENT says that there is no such segment."""
    if code == lib.SHMD_E_LAYOUT:
        return LayoutMismatch(last_error())
    is_absent = code == lib.SHMD_E_SYSTEM and error == errno.ENOENT
    return (DriverUnavailable if is_absent else ShmDriverError)(last_error())
