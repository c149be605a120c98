"""What the simulation's rules are made of."""

from __future__ import annotations

from typing import Any, NamedTuple

from shmdriver._native import ffi, lib
from tests.simulation.tables import phase


class Greeting(NamedTuple):
    """A Hello in work, as far as model.Boot.died_at asks."""

    correlation_id: int
    kind: int = 0


class Violation(AssertionError):
    """A rule is broken."""


def demand(holds: object, rule: str, *found: object) -> None:
    if not holds:
        raise Violation(f"{rule}: {' '.join(map(str, found))}")


def key_of(record: Any) -> tuple[int, bytes]:
    """Nonce and digest of the secret: whose client record it is."""
    return int(record.nonce), bytes(record.secret_sha256)


def is_alive(record: Any) -> bool:
    """Of a client: whether it has not expired."""
    return phase(record) in (lib.SHMD_CLIENT_ALIVE, lib.SHMD_CLIENT_STALLED)


def text_of(event: Any) -> str:
    """What an event says to a person."""
    return bytes(ffi.string(event.text)).decode(errors="replace")
