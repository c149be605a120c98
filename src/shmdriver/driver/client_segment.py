"""The control segment of one client, as its driver has it: made at the Hello, read, found again, removed.

Only its client writes it. So whatever stands there harms that client alone. The driver maps it without
permission to write, copies each request once, and keeps its own cursor in the client's record. Nothing in the
segment is an offset or a size. Nobody else opens it: its client gets a descriptor in the welcome, the mode is
0600 whatever ``shm.mode`` says, and a successor finds it by the name in the record.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.authority import Authority, put_text, text_of
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.segment_names import draw, is_name_of
from shmdriver.driver.shm import Modes, SegmentMap, create_segment, open_segment, unlink_segment
from shmdriver.errors import LayoutMismatch, ShmDriverError
from shmdriver.os_errors import last_error

__all__ = ["ClientSegment"]

PRIVATE = Modes()  # of this user alone


class ClientSegment:
    """One client's control segment, mapped, with the driver's reader of its ring."""

    __slots__ = ("_record", "control", "map", "reader")

    def __init__(self, record: Any, mapped: SegmentMap) -> None:
        self._record, self.map = record, mapped
        self.control = mapped.view("shmd_control_t *")
        self.reader = ffi.new("shmd_client_ring_reader_t *")
        lib.shmd_client_ring_reader_init(
            self.reader,
            self.control,
            ffi.addressof(record, "control_cursor"),
            record.client_id,
            record.index,
            record.nonce,
        )

    @classmethod
    def create(cls, authority: Authority, record: Any, now_ns: int) -> ClientSegment:
        """For a client record that is filled but for this, and not published. Its name stands there first.

        Raises ShmSpaceError, ShmDriverError; then nothing of it is left.
        """
        size = int(lib.shmd_client_ring_footprint())

        def make(name: str) -> int:
            put_text(record.control_name, name)  # an adopting driver removes what no client's record names
            return create_segment(name, size, PRIVATE)

        name, fd = draw(authority.instance, "control", make, lambda text: authority.log_error(text, now_ns))
        with ExitStack() as undo:
            undo.callback(unlink_segment, name)
            try:
                failpoint("client.segment")
                blank = SegmentMap.of(fd, size, writable=True)
                try:
                    client_id, boot_id = record.client_id, authority.boot_id
                    if lib.shmd_client_ring_init(blank.base, size, client_id, boot_id, now_ns) != 0:
                        raise ShmDriverError(last_error())
                    lib.shmd_segment_complete(blank.base)
                finally:
                    blank.close()
                mapped = SegmentMap.of(fd, size, writable=False)
            finally:
                os.close(fd)
            undo.callback(mapped.close)
            record.control_bytes, record.control_cursor = size, 0
            made = cls(record, mapped)
            undo.pop_all()
        return made

    @classmethod
    def open(cls, authority: Authority, record: Any) -> ClientSegment:
        """The one that a former driver made. Raises LayoutMismatch (it is lost), ShmDriverError."""
        name, size = text_of(record.control_name), int(lib.shmd_client_ring_footprint())
        if not is_name_of(name, authority.instance, "control"):
            raise LayoutMismatch(f"{name!r} is no name of a control segment", segment=name)
        try:
            fd, found = open_segment(name, writable=False)
        except FileNotFoundError:
            raise LayoutMismatch(f"{name} was removed", segment=name) from None
        mapped = None
        try:
            if found != size:
                raise LayoutMismatch(f"{name} has {found} bytes, expected {size}", segment=name)
            mapped = SegmentMap.of(fd, size, writable=False)
            if lib.shmd_client_ring_check(mapped.base, size, record.client_id, authority.boot_id) != 0:
                raise LayoutMismatch(f"{name}: {last_error()}", segment=name)
            return cls(record, mapped)
        except BaseException:
            if mapped is not None:
                mapped.close()
            raise
        finally:
            os.close(fd)

    @property
    def name(self) -> str:
        """Its POSIX name."""
        return text_of(self._record.control_name)

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.map.size

    @property
    def address(self) -> int:
        """Where it is mapped."""
        return self.map.address

    @property
    def is_damaged(self) -> bool:
        """Whether pages of it were missing when this process read them."""
        return bool(lib.shmd_segment_is_damaged(self.control))

    def descriptor(self) -> int:
        """One for its client, to write; the caller closes it. Raises LayoutMismatch, ShmDriverError."""
        try:
            fd, _ = open_segment(self.name, writable=True)
        except FileNotFoundError:
            raise LayoutMismatch(f"{self.name} was removed", segment=self.name) from None
        if os.fstat(fd).st_ino != self.map.inode:
            os.close(fd)
            raise LayoutMismatch(f"{self.name} is not the segment any more that was made", segment=self.name)
        return fd

    def look(self, entry: int, lease_id: int) -> int:
        """What its client says of one of its leases: ``SHMD_ENTRY_*``; negative: nothing that it can say."""
        return int(lib.shmd_client_ring_look(self.control, entry, lease_id))

    def remove(self) -> None:
        """Its client is gone: no name and no mapping is left."""
        unlink_segment(self.name)
        self.close()

    def close(self) -> None:
        """Unmaps it; the name stays."""
        self.map.close()
