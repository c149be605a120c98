"""Words for the numbers that stand in shared memory.

The numbers come from the C header (through ``lib``), so this file cannot disagree with it. A number
without a word is shown as ``unknown(n)``: a tool that reads a damaged table must not fail on it.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from shmdriver._native import lib


def _labels(prefix: str, *words: str) -> dict[int, str]:
    return {int(getattr(lib, prefix + word.upper())): word for word in words}


LIFECYCLES: Final = _labels(
    "SHMD_LIFECYCLE_", "init", "healthy", "degraded", "maintenance", "draining", "stopped"
)
EXIT_KINDS: Final = _labels("SHMD_EXIT_", "none", "clean", "handover", "superseded")
SHUTDOWN_MODES: Final = {0: "none"} | _labels("SHMD_SHUTDOWN_", "end", "handover")
CLIENT_STATES: Final = _labels("SHMD_CLIENT_", "free", "alive", "stalled", "gone")
LEASE_STATES: Final = _labels(
    "SHMD_LEASE_", "free", "attached", "active", "stalled", "detached", "expired", "revoked"
)
EPOCH_STATES: Final = _labels("SHMD_EPOCH_", "free", "open", "sealing", "sealed", "retired")
ROLES: Final = {0: "none"} | _labels("SHMD_ROLE_", "producer", "consumer")
DELIVERIES: Final = {0: "none"} | _labels("SHMD_DELIVERY_", "reliable", "lossy", "latest")
STARTS: Final = {0: "none"} | _labels("SHMD_START_", "newest", "oldest")
WAITS: Final = {0: "none"} | _labels("SHMD_WAIT_", "adaptive", "spin", "sleep")
SLOW_CONSUMERS: Final = _labels("SHMD_SLOW_", "default", "block", "evict", "refuse")
CODES: Final = _labels("SHMD_CODE_", "ok", "unsupported", "invalid_params", "rejected", "internal_error")
REASONS: Final = _labels(
    "SHMD_REASON_",
    *("none", "draining", "maintenance", "stopped", "limit", "producer_exists", "unknown_stream"),
    *("schema", "layout", "no_memory", "bad_name", "undrained", "not_owner", "unknown_client"),
    *("refused_reliable", "token", "rate", "size", "closed", "aborted", "died", "expired"),
    *("evicted", "revoked", "bad_gate", "unconfirmed", "shutdown", "delivered", "superseded", "truncated"),
    *("driver_died", "expelled"),
)
EVENT_KINDS: Final = _labels(
    "SHMD_EVENT_",
    *("attach_response", "detach_response", "lease_revoked"),
    *("stream_announce", "lifecycle_changed", "driver_shutdown", "error", "admin_response"),
    "consumers_left",
)
COUNTERS: Final = _labels(
    "SHMD_COUNTER_",
    *("ticks", "requests", "requests_corrupt", "requests_rejected", "requests_expired"),
    *("attaches", "detaches", "leases_expired", "leases_revoked", "clients_died"),
    *("clients_stalled", "epochs_opened", "epochs_sealed", "epochs_unproven", "epochs_retired"),
    *("segments_created", "segments_unlinked", "segment_bytes"),
    *("events", "errors", "tick_overruns", "tick_late_max_ns"),
    *("adoptions", "auth_refused", "evictions", "bad_gates", "idle_checks", "hard_links"),
)

# Bits of shmd_authority.degraded, from bit 0 on; a test compares them with the driver's own list.
DEGRADED_BY: Final = (
    "tick_overrun", "low_memory", "stalled_clients", "lost_events", "lost_lock",
)  # fmt: skip

LIVE_LEASES: Final = frozenset({"attached", "active", "stalled"})


def numbers(table: dict[int, str], words: Container[str]) -> set[int]:
    """The numbers of some words of a table."""
    return {number for number, word in table.items() if word in words}


def words_of_bits(words: tuple[str, ...], bits: int) -> tuple[str, ...]:
    """The words of the bits that are set; a bit without one is ``bit n``."""
    return tuple(
        words[bit] if bit < len(words) else f"bit {bit}"
        for bit in range(bits.bit_length())
        if bits >> bit & 1
    )


def word(table: dict[int, str], number: int) -> str:
    """The word for ``number``, or ``unknown(number)``."""
    return table.get(number, f"unknown({number})")
