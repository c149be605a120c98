"""Steps that undo themselves: what undoes a step is registered before the step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["undone_on_error"]


@contextmanager
def undone_on_error() -> Iterator[ExitStack]:
    """Calls what is registered, the last first, when the block raises an Exception.

    What ends the process (KeyboardInterrupt, SystemExit) leaves the tables as a kill does: an adopting driver
    mends them.
    """
    with ExitStack() as undo:
        try:
            yield undo
        except Exception:
            raise
        except BaseException:
            undo.pop_all()
            raise
        undo.pop_all()
