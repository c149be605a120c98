"""How large an epoch is: from a producer's wishes, the stream's profile and the limits.

Every number here is the driver's own: it is stored in the authority, and nobody reads it back from a
segment that others write.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shmdriver._native import ffi, lib
from shmdriver.driver.config import Profile
from shmdriver.driver.rejection import Rejection
from shmdriver.errors import Code, Reason

__all__ = ["Geometry", "derive_geometry"]

UNSET_ARENA = 2**64 - 1
INLINE_SLOT_BYTES_MAX = 512  # up to here a max_message makes the slot larger instead of using an arena
DEFAULT_RING_BYTES = 4 << 20  # a ring whose slot count nobody chose is not larger than this
DEFAULT_SLOTS_MIN = 64


@dataclass(slots=True)
class Geometry:
    """Sizes of one epoch; it does not change. ``flags``: ``SHMD_ATTACH_*``, as in its record.

    ``data_bytes``: size of the data segment; 0 when the sizes are out of the layout's range. ``gates_bytes``:
    size of the gates segment.
    """

    slots: int
    slot_bytes: int
    arena_bytes: int
    gate_count: int
    flags: int
    data_bytes: int = field(init=False)
    gates_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.data_bytes = int(lib.shmd_data_footprint(self.native(boot_id=0, stream_id=0, epoch=0)))
        self.gates_bytes = int(lib.shmd_gates_footprint(self.gate_count))

    @classmethod
    def of_record(cls, record: Any) -> Geometry:
        """From an epoch record in the authority."""
        return cls(
            int(record.slots),
            int(record.slot_bytes),
            int(record.arena_bytes),
            int(record.gate_count),
            int(record.flags),
        )

    def native(self, *, boot_id: int, stream_id: int, epoch: int, now_ns: int = 0) -> Any:
        """``shmd_geometry_t *`` in private memory."""
        native = ffi.new("shmd_geometry_t *")
        native.slots, native.slot_bytes, native.arena_bytes = self.slots, self.slot_bytes, self.arena_bytes
        native.gate_count, native.flags = self.gate_count, self.flags
        native.boot_id, native.stream_id, native.epoch, native.now_ns = boot_id, stream_id, epoch, now_ns
        return native

    @property
    def max_message(self) -> int:
        """Largest message in bytes."""
        return max(self.slot_bytes - lib.SHMD_SLOT_HEADER_BYTES, self.arena_bytes // 2)


def derive_geometry(request: Any, profile: Profile, *, gate_count: int, stream_bytes_max: int) -> Geometry:
    """The sizes that a producer's checked request gets. Explicit values win. Raises Rejection (SIZE)."""
    slots, slot_bytes, arena = _wanted(
        int(request.slots),
        int(request.slot_bytes),
        int(request.max_message),
        int(request.arena_bytes),
        profile,
    )
    out = ffi.new("uint32_t[2]", [slots, slot_bytes])
    arena_out = ffi.new("uint64_t *", arena)
    lib.shmd_geometry_round(out, out + 1, arena_out)
    flags = int(request.flags) & (lib.SHMD_ATTACH_NO_WAKEUPS | lib.SHMD_ATTACH_TIMESTAMPS)
    flags |= 0 if profile.wakeups else lib.SHMD_ATTACH_NO_WAKEUPS
    flags |= lib.SHMD_ATTACH_TIMESTAMPS if profile.timestamps else 0
    geometry = Geometry(int(out[0]), int(out[1]), int(arena_out[0]), gate_count, flags)
    size = geometry.data_bytes + geometry.gates_bytes
    if geometry.data_bytes == 0 or size > stream_bytes_max:
        raise Rejection(
            Reason.SIZE,
            f"{geometry.slots} slots of {geometry.slot_bytes} bytes and an arena of {geometry.arena_bytes} "
            "take "
            f"{size} bytes, and one epoch may take {stream_bytes_max} (policies.limits.stream_bytes): ask "
            "for fewer "
            "slots or a smaller max_message, or raise the limit",
        )
    if int(request.max_message) > geometry.max_message:
        raise Rejection(
            Reason.SIZE,
            f"max_message={int(request.max_message)} does not fit slot_bytes={geometry.slot_bytes} and "
            f"arena={geometry.arena_bytes}, which carry {geometry.max_message}: leave them out, or make "
            "the arena at "
            "least twice the largest message",
            Code.INVALID_PARAMS,
        )
    return geometry


def _wanted(
    slots: int, slot_bytes: int, max_message: int, arena: int, profile: Profile
) -> tuple[int, int, int]:
    inline = _round_up(lib.SHMD_SLOT_HEADER_BYTES + max_message, 64)
    if slot_bytes == 0:
        slot_bytes = inline if max_message > 0 and inline <= INLINE_SLOT_BYTES_MAX else profile.slot_bytes
    if arena == UNSET_ARENA:
        arena = _arena(slots, slot_bytes, max_message, profile)
    if slots == 0:
        slots = profile.slots
        ring_max = max(DEFAULT_RING_BYTES, profile.slots * profile.slot_bytes)
        while slots > DEFAULT_SLOTS_MIN and slots * slot_bytes > ring_max:
            slots //= 2
    return slots, slot_bytes, arena


def _arena(slots: int, slot_bytes: int, max_message: int, profile: Profile) -> int:
    if max_message == 0:
        return profile.arena
    if max_message <= slot_bytes - lib.SHMD_SLOT_HEADER_BYTES:
        return 0
    block = _round_up(max_message, lib.SHMD_ARENA_ALIGN)
    return max(slots, 2) * block if slots else max(profile.arena, 4 * block)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
