"""The names that people choose: which are allowed, and which known one is nearest to a misspelled one.

Shared by the driver, the client and the tools, so that a name is refused in the same words everywhere.
"""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Iterable
from itertools import takewhile

__all__ = ["SEGMENT", "client_problem", "instance_problem", "nearest", "stream_problem"]

INSTANCE_CHARS_MAX = 41
STREAM_BYTES_MAX = 63
COMPARED_MAX = 64
CLIENT_BYTES_MAX = 63
QUEUE_PREFIX = "queue."  # of the streams that queues consist of

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}")
# Of an object in /dev/shm: 128 random bits, and hints at what it is.
SEGMENT = re.compile(
    rf"shmd\.(?P<instance>{_INSTANCE.pattern})\.[0-9a-f]{{32}}\.(?P<kind>authority|control|data|gates)"
)
_STREAM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:/@+-]{0,62}")


def client_problem(name: object) -> str | None:
    """What is wrong with the name that a client gives itself (None: none), or None when it is fine."""
    try:
        if name is None or (isinstance(name, str) and 0 < len(name.encode()) <= CLIENT_BYTES_MAX):
            return None
    except UnicodeEncodeError:  # a lone surrogate, as in an argument that was not text
        pass
    return f"client name {name!r}: expected text of 1 to {CLIENT_BYTES_MAX} bytes in UTF-8"


def instance_problem(name: object) -> str | None:
    """What is wrong with an instance name, or None when it is fine."""
    if isinstance(name, str) and _INSTANCE.fullmatch(name):
        return None
    return (
        f"instance name {name!r}: expected 1 to {INSTANCE_CHARS_MAX} characters out of A-Z a-z 0-9 _ -, "
        "the first a letter or a digit"
    )


def stream_problem(name: object) -> str | None:
    """What is wrong with a stream name, or None when it is fine."""
    if isinstance(name, str) and _STREAM.fullmatch(name):
        return None
    return (
        f"stream name {name!r}: expected 1 to {STREAM_BYTES_MAX} characters out of "
        "A-Z a-z 0-9 . _ : / @ + -, the first a letter, a digit or _"
    )


def nearest(name: str, candidates: Iterable[str], likeness: float = 0.6) -> str | None:
    """The candidate that ``name`` most likely stands for, or None when none is near.

    Of many, only those that begin and end most like ``name`` are compared as a whole: a driver that refuses a
    misspelled stream among thousands serves others, too. ``likeness`` (0 to 1): how much of both must be the
    same.
    """
    wanted = name.casefold()
    folded = {candidate.casefold(): candidate for candidate in candidates}
    near = heapq.nlargest(COMPARED_MAX, folded, key=lambda known: _equal_ends(wanted, known))
    match = difflib.get_close_matches(wanted, near, n=1, cutoff=likeness)
    return folded[match[0]] if match else None


def _equal_ends(one: str, other: str) -> int:
    return _equal_start(one, other) + _equal_start(one[::-1], other[::-1])


def _equal_start(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
