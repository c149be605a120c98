"""What a failed system call or C call says: its text, what its error number means here, what to do about it.

The hints are those of the C core (csrc/core/shmd_errno.c), so C and Python say the same. ``call`` is an
``SHMD_CALL_*``: what the system call was for. Used wherever an OSError ends in a text.
"""

from __future__ import annotations

from typing import TypeVar

from shmdriver._native import ffi, lib

__all__ = ["errno_hint", "errno_text", "explained", "last_error", "remedy", "system_error"]

_Raised = TypeVar("_Raised", bound=BaseException)


def errno_hint(number: int, call: int = lib.SHMD_CALL_OTHER) -> str:
    """The hint alone; "" when there is nothing to say."""
    return str(ffi.string(lib.shmd_errno_hint(call, number)).decode())


def errno_text(error: OSError, call: int = lib.SHMD_CALL_OTHER) -> str:
    """The system's words for an error, then the hint."""
    return f"{error.strerror or error}{remedy(error, call)}"


def remedy(error: BaseException, call: int = lib.SHMD_CALL_OTHER) -> str:
    """A colon and the hint, to stand behind the text of ``error``. "" for other errors, or if it has it."""
    number = error.errno if isinstance(error, OSError) else None
    hint = errno_hint(number, call) if number else ""
    return f": {hint}" if hint and hint not in str(error) else ""


def explained(error: _Raised) -> _Raised:
    """The same exception; an OSError's ``strerror`` ends with the hint. Its ``errno`` stays."""
    if isinstance(error, OSError) and error.strerror:
        error.strerror = errno_text(error)
    return error


def last_error() -> str:
    """The C core's text of this thread's last failure; "" when it left none."""
    return bytes(ffi.string(lib.shmd_last_error())).decode(errors="replace")


def system_error() -> OSError:
    """The OSError of this thread's C call that has just failed, with the C core's text."""
    return OSError(ffi.errno, last_error())
