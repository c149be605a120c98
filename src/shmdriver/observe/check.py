"""One finding of ``shmdriver doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["MIB", "Check", "bytes_text"]

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: ``level`` is ok, warn or fail; ``advice`` says what to do, "" when nothing."""

    name: str
    level: str
    found: str
    advice: str = ""


def bytes_text(number: float) -> str:
    """A large number of bytes, for people."""
    return f"{number / MIB:.0f} MiB" if number < 10240 * MIB else f"{number / MIB / 1024:.0f} GiB"
