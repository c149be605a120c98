"""The tables that ``python -m benchmarks`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.series import Series


def native_table(
    native: dict[str, Series], over_floor: dict[str, Series], floor_ns: Series, memcpy_gb_s: Series
) -> str:
    rows = [("native, two processes", "", "x floor (or memcpy)")]
    rows.append(("cache line there and back", f"{floor_ns.text()} ns", ""))
    rows.append(("memcpy of 1 MiB", f"{memcpy_gb_s.text()} GB/s", ""))
    for name, series in native.items():
        ratio = over_floor[name].text() if name in over_floor else ""
        if series.unit == "GB/s":
            ratio = f"{series.median / memcpy_gb_s.median:.2f}"
        rows.append((name, f"{series.text()} {series.unit}", ratio))
    return _aligned(rows)


def python_table(python: dict[str, dict[str, Series]]) -> str:
    peers = list(dict.fromkeys(peer for row in python.values() for peer in row))
    ours, others = peers[0], peers[1:]
    rows = [("Python, two processes", "unit", *peers, *(f"x {peer}" for peer in others))]
    for title, row in python.items():
        unit = next(iter(row.values())).unit
        cells = [row[peer].text() if peer in row else "-" for peer in peers]
        ratios = [
            row[ours].advantage_over(row[peer]).text() if peer in row and ours in row else "-"
            for peer in others
        ]
        rows.append((title, unit, *cells, *ratios))
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join(("", lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]))
