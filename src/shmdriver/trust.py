"""Whose drivers this process trusts, and the owner that its user names (csrc/core/shmd_trust.c).

Used by the client and the tools. A name of a segment proves nothing, because anybody may choose it. The owner
of the file does.
"""

from __future__ import annotations

import pwd

from shmdriver._native import ffi, lib
from shmdriver.errors import ConfigError
from shmdriver.os_errors import last_error
from shmdriver.runtime_folder import ANY_OWNER, find

__all__ = ["ANY_OWNER", "is_trusted", "owner_text", "owner_uid", "user_name"]


def owner_text(owner: object) -> str | None:
    """What names an owner, as text: a user's name or number. None: nobody is named. Raises ConfigError."""
    if owner is None:
        return None
    if isinstance(owner, bool) or not isinstance(owner, (str, int)) or owner == "":
        raise ConfigError(
            f"owner {owner!r}: expected the name or the number of the user that the driver runs as, or None",
            key="owner",
        )
    text = str(owner)
    owner_uid(text)
    return text


def owner_uid(owner: str | None) -> int:
    """The uid that ``owner`` names; ANY_OWNER for None. Raises ConfigError when there is no such user."""
    if owner is None:
        return ANY_OWNER
    uid = ffi.new("uint32_t *")
    if "\0" in owner or lib.shmd_owner_named(owner.encode(errors="surrogateescape"), uid) != 0:
        raise ConfigError(f"owner {owner!r}: {last_error()}", key="owner")
    return int(uid[0])


def user_name(uid: int) -> str:
    """The user's name; its number where it has none, as in containers."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def is_trusted(instance: str, owner: int, named: int = ANY_OWNER) -> bool:
    """Whether this process would attach to a driver of ``instance`` that runs as ``owner``.

    ``named``: the owner that its user names. Raises ShmDriverError when a place of runtime folders cannot be
    looked at.
    """
    if lib.shmd_trusts(owner, named, ffi.NULL) == 1:
        return True
    for folder in find(instance):
        with folder:
            if folder.owner == owner and lib.shmd_trusts(owner, named, folder.native) == 1:
                return True
    return False
