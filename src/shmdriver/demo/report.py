"""The table at the end."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from shmdriver.demo.stage import Row

__all__ = ["table"]


def table(rows: Sequence[Row]) -> Table:
    """One line a measurement: ours, Pipe, Queue, how many times better, and what was lost."""
    made = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        title="shmdriver against multiprocessing, this run",
        title_justify="left",
    )
    made.add_column("", no_wrap=True)
    made.add_column("unit")
    for name in ("shmdriver", "Pipe", "Queue", "x Pipe", "x Queue", "lost"):
        made.add_column(name, justify="right")
    for row in rows:
        made.add_row(
            row.what,
            row.unit,
            f"[bold]{_number(row.ours)}[/bold]",
            _number(row.pipe),
            _number(row.queue),
            _ratio(row, row.pipe),
            _ratio(row, row.queue),
            f"[green]{row.lost}[/green]" if row.lost == 0 else f"[red]{row.lost}[/red]",
        )
    return made


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def _ratio(row: Row, other: float | None) -> str:
    if other is None or not other or not row.ours:
        return "-"
    ratio = other / row.ours if row.lower else row.ours / other
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"
