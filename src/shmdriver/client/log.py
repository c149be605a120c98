"""What a client tells ``logging``, by the logger "shmdriver": never once a message.

Connections and attaches, what was attached anew and why, what was lost. A program that has not imported
logging listens to nothing. Nothing is told of the streams of queues, because a queue's locks are held then: a
handler that puts into that queue would wait for a lock of its own caller.
"""

from __future__ import annotations

import sys
import threading

from shmdriver import names

__all__ = ["tell", "tell_apart", "tell_of"]


def tell(level: str, text: str, *values: object) -> None:
    """One line; ``level`` as logging calls it. The text has logging's own placeholders."""
    logging = sys.modules.get("logging")
    if logging is None:
        return
    logger = logging.getLogger("shmdriver")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # nobody has set up logging: then nothing goes to stderr
    logger.log(getattr(logging, level), text, *values)


def tell_of(stream: str, level: str, text: str, *values: object) -> None:
    """Of a stream, by name; nothing of a queue's."""
    if not stream.startswith(names.QUEUE_PREFIX):
        tell(level, f"stream %r: {text}", stream, *values)


def tell_apart(level: str, text: str, *values: object) -> None:
    """From a thread of its own, because the caller may hold a queue's lock. Rare events only."""
    if "logging" in sys.modules:
        thread = threading.Thread(target=tell, args=(level, text, *values), name="shmdriver-log", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter exits: nobody starts a thread any more, or listens
            pass
