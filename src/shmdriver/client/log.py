"""Writes a client's rare events to the logger "shmdriver": nothing is logged for each message.

These are connections, attaches, handles that were attached anew with the reason, and lost messages. Where
the program has not imported logging, nothing is logged. Nothing is logged of a queue's streams: the caller
holds the queue's lock then, and a handler that puts into that queue would wait for that lock.
"""

from __future__ import annotations

import sys
import threading
from collections import deque

from shmdriver import names
from shmdriver.shown import shown

__all__ = ["tell", "tell_apart", "tell_of"]


_untold: deque[tuple[str, str, tuple[object, ...]]] = deque(maxlen=64)


def tell(level: str, text: str, *values: object) -> None:
    """One line; ``level`` as logging calls it. The text has logging's own placeholders."""
    _untold.append((level, text, tuple(shown(each) if isinstance(each, str) else each for each in values)))
    _tell_all()


def _tell_all() -> None:
    logging = sys.modules.get("logging")
    if logging is None:
        _untold.clear()
        return
    logger = logging.getLogger("shmdriver")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # nobody has set up logging: then nothing goes to stderr
    while _untold:
        try:
            level, text, values = _untold.popleft()
        except IndexError:  # another thread has taken the last one
            return
        logger.log(getattr(logging, level), text, *values)


def tell_of(stream: str, level: str, text: str, *values: object) -> None:
    """Of a stream, by name; nothing of a queue's."""
    if not stream.startswith(names.QUEUE_PREFIX):
        tell(level, f"stream %r: {text}", stream, *values)


def tell_apart(level: str, text: str, *values: object) -> None:
    """From a thread of its own, because the caller may hold a queue's lock. Rare events only."""
    if "logging" in sys.modules:
        _untold.append((level, text, values))
        thread = threading.Thread(target=_tell_all, name="shmdriver-log", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be made: this line is told with the next one
            pass
