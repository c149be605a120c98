"""Who may shut a driver down: requests signed with the driver's token. Both sides use this module.

The signature is HMAC-SHA256, keyed with the token, over the driver's boot id and every byte of the
request, with four fields zeroed: the signature itself, and what the C core fills in when it sends
(checksum, position, deadline). A replay is refused by the nonce, which only grows.
"""

from __future__ import annotations

import hashlib
import hmac
import stat
from pathlib import Path
from typing import Any, Final

from shmdriver._native import ffi, lib
from shmdriver.errors import ConfigError

TOKEN_BYTES_MIN: Final = 16
_MAC_BYTES: Final = int(lib.SHMD_HMAC_BYTES)
_UNSIGNED: Final = ("checksum", "position", "deadline_ns")


def read_token(path: Path) -> bytes:
    """The token in a file, without surrounding white space.

    Raises ConfigError when it cannot be read, is too short, or is open to others than its owner and group.
    """
    try:
        mode = path.stat().st_mode
        token = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"shutdown token {path}: {error.strerror or error}; only who may read it may stop the driver",
            key="policies.shutdown_token_file",
        ) from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(
            f"shutdown token {path} is open to everybody (mode {stat.S_IMODE(mode):04o}): chmod 600 it",
            key="policies.shutdown_token_file",
        )
    if len(token) < TOKEN_BYTES_MIN:
        raise ConfigError(
            f"shutdown token {path} has {len(token)} bytes, expected {TOKEN_BYTES_MIN} or more",
            key="policies.shutdown_token_file",
        )
    return token


def signature(token: bytes, boot_id: int, request: Any) -> bytes:
    """The signature that belongs to ``request`` (``shmd_request_t *``), which is not changed."""
    size = ffi.sizeof("shmd_request_t")
    copy = ffi.new("shmd_request_t *")
    ffi.memmove(copy, request, size)
    for field in _UNSIGNED:
        setattr(copy, field, 0)
    ffi.memmove(copy.hmac, bytes(_MAC_BYTES), _MAC_BYTES)
    message = boot_id.to_bytes(8, "little") + bytes(ffi.buffer(copy))
    return hmac.new(token, message, hashlib.sha256).digest()


def sign(token: bytes, boot_id: int, request: Any) -> None:
    """Put the signature into ``request``. Everything but checksum, position and deadline must stand in it."""
    ffi.memmove(request.hmac, signature(token, boot_id, request), _MAC_BYTES)


def verify(token: bytes, boot_id: int, request: Any) -> bool:
    """Whether the signature in ``request`` is right; takes as long when it is wrong."""
    return hmac.compare_digest(bytes(ffi.buffer(request.hmac)), signature(token, boot_id, request))
