"""What the demo prints: bars and a live line on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.status import Status
from rich.table import Table

__all__ = ["Bar", "Screen"]


class Bar:
    """Progress of one measurement."""

    def __init__(self, progress: Progress | None, label: str) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=1.0, note="") if progress else None

    def update(self, fraction: float, note: str = "") -> None:
        """Shows how much is done (0 to 1)."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=min(1.0, fraction), note=note)


class Screen:
    """Where the demo prints to."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.console = Console(highlight=False, width=None if self.is_terminal else 132, soft_wrap=False)

    def heading(self, text: str) -> None:
        """The title of a part."""
        self.console.print()
        self.console.print(f"[bold]{text}[/bold]")

    def line(self, text: str, mark: str = " ") -> None:
        """A finding. ``mark``: one character before it."""
        self.console.print(f"  {mark} {text}", markup=False, soft_wrap=True)

    def print(self, what: str | Table = "") -> None:
        """Anything else."""
        self.console.print(what)

    @contextmanager
    def bar(self, label: str) -> Iterator[Bar]:
        """A bar that is gone when the measurement is over; in a pipe nothing."""
        if not self.is_terminal:
            yield Bar(None, label)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(30),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True, refresh_per_second=4) as progress:
            yield Bar(progress, label)

    @contextmanager
    def live(self, text: str) -> Iterator[Status | None]:
        """One line that changes in place; in a pipe nothing."""
        if not self.is_terminal:
            yield None
            return
        with self.console.status(text, refresh_per_second=8) as status:
            yield status
