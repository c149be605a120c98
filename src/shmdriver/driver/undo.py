"""Steps that undo themselves: what undoes a step is registered before the step."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

__all__ = ["UndoneOnError"]


class UndoneOnError(ExitStack):
    """Calls what is registered, the last first, when the block raises an Exception.

    What ends the process (KeyboardInterrupt, SystemExit) leaves the tables as a kill does: an adopting driver
    mends them.
    """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Undoes, or forgets what was registered."""
        if kind is None or not issubclass(kind, Exception):
            self.pop_all()
        return super().__exit__(kind, error, trace)
