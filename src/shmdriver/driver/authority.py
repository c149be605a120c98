"""The tables of one instance, mapped: its authority.

The tables are the truth. What else a driver keeps in Python its successor builds from them again,
or can do without (how an attach that is not repeated has ended, the text of a schema that a
consumer declared). This module gives access to the records and has the steps of every transition: a
record is filled first (``clear_record``, ``rewrite_record``), and then published by one release
store of its word (``publish_word``).
"""

from __future__ import annotations

import os
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.authority_file import AuthorityFile
from shmdriver.driver.failpoints import failpoint
from shmdriver.driver.instance_lock import HINT_NAME, InstanceLock
from shmdriver.driver.shm import (
    Modes,
    SegmentMap,
    set_modes,
    told_links,
)
from shmdriver.errors import ShmDriverError
from shmdriver.hints import command
from shmdriver.os_errors import errno_text

__all__ = [
    "Authority",
    "TableSizes",
    "publish_word",
    "put_text",
    "record_state",
    "room_advice",
    "text_of",
]

CUT = "# cut"  # a configuration's last line that begins so says that there is more
CUT_BYTES = 200  # of that line, at most
_STATE_BITS = 0xFF


def text_of(field: Any) -> str:
    """A NUL-terminated char array as text."""
    return bytes(ffi.string(field)).decode(errors="replace")


def put_text(field: Any, text: str) -> int:
    """Fills a char array: cut to fit (never inside a character), zeros to its end. How many bytes stand."""
    size, data = ffi.sizeof(field), text.encode()
    if len(data) >= size:
        data = data[: size - 1].decode(errors="ignore").encode()
    ffi.memmove(field, data.ljust(size, b"\0"), size)
    return len(data)


def record_state(record: Any) -> int:
    """The low byte of a record's word: ``SHMD_CLIENT_*``, ``SHMD_LEASE_*`` or ``SHMD_RECORD_*``."""
    return int(record.word) & _STATE_BITS


def publish_word(record: Any, state: int, *, reuse: bool = False) -> None:
    """Makes a filled record visible in ``state`` (release); ``reuse`` ends what ``rewrite_record`` began."""
    generation = int(record.word) >> 8
    if reuse:
        generation = (generation | 1) + 1
    lib.shmd_word_store(ffi.addressof(record, "word"), (generation << 8 | state) & (2**64 - 1))


def rewrite_record(record: Any, state: int) -> None:
    """Begins a new generation, an odd one: no reader takes what it finds, until the record is published."""
    generation = (int(record.word) >> 8) + 1 | 1
    lib.shmd_record_rewrite(ffi.addressof(record, "word"), (generation << 8 | state) & (2**64 - 1))


def is_rewritten(record: Any) -> bool:
    """Whether a driver was killed between ``rewrite_record`` and ``publish_word``."""
    return bool(int(record.word) >> 8 & 1)


def clear_record(record: Any, *, size: int = 0) -> None:
    """Begins to fill a FREE record: nothing is in its first ``size`` bytes (0: in it) but its word."""
    rewrite_record(record, 0)
    rest = (size or ffi.sizeof(record[0])) - ffi.sizeof("uint64_t")
    ffi.memmove(ffi.cast("char *", record) + ffi.sizeof("uint64_t"), bytes(rest), rest)


@dataclass(frozen=True, slots=True)
class TableSizes:
    """How many records each table has."""

    clients: int
    leases: int
    streams: int


def room_advice(key: str, limit: int, room: int, instance: str) -> str:
    """How to get more than ``limit`` records of a table that was made for ``room``: the end of a refusal."""
    if limit < room:
        return f"close some, or raise {key} (up to {room}) and restart the driver"
    end, begin = command("shutdown", instance=instance), command("run", instance=instance)
    return (
        f"close some. More need a higher {key} and a new instance, because tables keep their size: "
        f"{end}, then {begin}"
    )


class Authority:
    """The authority, mapped for writing. Only the holder of the instance's lock makes one, and owns both."""

    def __init__(self, lock: InstanceLock, file: AuthorityFile, authority: SegmentMap) -> None:
        self.lock = lock
        self.file = file
        self.instance = lock.instance
        self.map = authority
        self.base = authority.view("shmd_authority_t *")
        self.boot_id = int(self.base.header.boot_id)
        self.sizes = TableSizes(
            int(self.base.client_max), int(self.base.lease_max), int(self.base.stream_max)
        )

    # -- letting clients in

    def complete(self, modes: Modes) -> None:
        """Lets others open the authority and stores its magic: from now on clients find this driver.

        Nobody else could show life on it before: one that was left half made keeps no driver from starting.
        """
        set_modes(self.file.fd, self.file.name, modes, write_group=False)
        lib.shmd_segment_complete(self.map.base)

    def introduce(self, now_ns: int, *, keep_shutdown: bool = False) -> None:
        """Says which process drives from now on; the exit kind last, which is what says that one does.

        ``keep_shutdown``: a shutdown that was under way goes on, its mode and deadline stay.
        """
        process = ffi.new("shmd_process_t *")
        lib.shmd_process_self(process)
        failpoint("introduce.began")
        self.note_folder()
        self.base.driver_pid = process.pid
        self.base.driver_start_time = process.start_time
        self.base.driver_pid_namespace = process.pid_namespace
        self.base.driver_time_namespace = process.time_namespace
        self.base.started_ns = now_ns
        for field in ("degraded", *(() if keep_shutdown else ("shutdown_deadline_ns", "shutdown_mode"))):
            self.store(field, 0)
        self.store("heartbeat_ns", now_ns)
        self.store("claim", (int(self.base.claim) | 1) + 1 & 2**64 - 1)
        failpoint("introduce.exit")
        self.store("exit_kind", lib.SHMD_EXIT_NONE)

    def note_folder(self) -> None:
        """Says in which runtime folder the lock is: with it a successor proves that nobody drives."""
        device, folder, lock = self.lock.identity
        path = os.fsencode(self.lock.folder.path)
        ffi.memmove(
            self.base.folder, path.ljust(ffi.sizeof(self.base.folder), b"\0"), ffi.sizeof(self.base.folder)
        )
        self.store("folder_device", device)
        self.store("folder_inode", folder)
        self.store("lock_inode", lock)

    def note_instance(self) -> None:
        """Tells tools, in the runtime folder, where to look. Raises ShmDriverError."""
        hint = {
            "authority": self.file.name,
            "boot_id": f"{self.boot_id:016x}",
            "pid": os.getpid(),
            "layout": int(lib.SHMD_LAYOUT_VERSION),
        }
        try:
            self.lock.note(hint)
        except OSError as error:
            text = errno_text(error, lib.SHMD_CALL_RUNTIME)
            raise ShmDriverError(f"{self.lock.folder.path}/{HINT_NAME} cannot be written: {text}") from error

    # -- records

    def client(self, index: int) -> Any:
        """``shmd_client_record_t *``."""
        return lib.shmd_authority_client(self.base, index)

    def lease(self, index: int) -> Any:
        """``shmd_lease_record_t *``."""
        return lib.shmd_authority_lease(self.base, index)

    def stream(self, index: int) -> Any:
        """``shmd_stream_record_t *``."""
        return lib.shmd_authority_stream(self.base, index)

    def take_id(self, field: str) -> int:
        """The next number of ``next_client_id``, ``next_lease_id`` or ``next_stream_id``, never given twice.

        Stored before it is used, so that a successor cannot give it again.
        """
        number = int(getattr(self.base, field))
        lib.shmd_word_store(ffi.addressof(self.base, field), number + 1)
        failpoint("id.taken")
        return number

    # -- small words

    def store(self, field: str, value: int) -> None:
        """One 64-bit word of the header, with release."""
        lib.shmd_word_store(ffi.addressof(self.base, field), value)

    def count(self, counter: int, n: int = 1) -> None:
        """Adds to a counter (``SHMD_COUNTER_*``)."""
        lib.shmd_counter_add(self.base, counter, n)

    def counter(self, counter: int) -> int:
        """A counter's value."""
        return int(lib.shmd_counter_get(self.base, counter))

    def log_error(self, text: str, now_ns: int) -> None:
        """Notes an error once, counted, where tools show it."""
        lib.shmd_error_log_add(self.base, text.encode()[: lib.SHMD_ERROR_TEXT_BYTES - 1], now_ns)

    def tell_links(self, *names: str) -> list[str]:
        """Notes and counts which of these segments have hard links, and will outlive their end; in words."""
        texts = [text for text in map(told_links, names) if text]
        for text in texts:
            self.count(lib.SHMD_COUNTER_HARD_LINKS)
            self.log_error(text, int(self.base.heartbeat_ns))
        return texts

    def store_config(self, text: str) -> int:
        """Replaces the effective configuration that tools read; how many of its lines there was no room for.

        It is cut between two lines, so it stays TOML. Its last line then says so.
        """
        room, lines, cut = int(self.base.config_bytes), text.encode().splitlines(keepends=True), 0
        if sum(map(len, lines)) >= room:
            ends = list(accumulate(map(len, lines)))
            kept = bisect_left(ends, room - CUT_BYTES)
            cut = len(lines) - kept
            said = (
                f"{CUT}: {cut} more lines do not fit into the {room} bytes that this instance has for them; "
                "the driver has read them all the same\n"
            )
            lines = [*lines[:kept], said.encode()]
        data = b"".join(lines)
        ffi.memmove(lib.shmd_authority_config(self.base), data.ljust(room, b"\0"), room)
        return cut

    # -- the end

    def changed(self) -> None:
        """Wakes all who wait for messages, for room or for an epoch: those have changed."""
        lib.shmd_authority_changed(self.base)

    def wake_everybody(self) -> None:
        """Wakes all who sleep on a word of the driver's."""
        lib.shmd_futex_wake(ffi.addressof(self.base, "event_word"))
        self.changed()

    def unlink(self) -> None:
        """Removes its name, under the lock. It is the last one of the instance's segments."""
        self.file.remove()

    def give_up(self) -> None:
        """The authority was truncated. The next driver finds nothing to adopt, and begins anew.

        Nor does it find a name on which somebody who reads might show life.
        """
        os.ftruncate(self.file.fd, 0)
        self.file.remove()

    def unmap(self) -> None:
        """Unmaps it; the lock and the sign of life are kept."""
        self.map.close()

    def close(self) -> None:
        """Unmaps it, ends the sign of life and gives the lock up."""
        self.unmap()
        self.file.close()
        self.lock.release()
