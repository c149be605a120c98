"""Writes the generated tables of docs/RELIABILITY.md from what the tests noted in build/reliability.json.

Outcomes and cycles of tests that were not run here are kept from the page as it is. `--check` writes nothing
and compares only what is true without running anything: which test covers which row, and how.
`--passed FOLDER` says that the programs in it (C tests, models) were run just now and passed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.chaos.plan import names_in_sources  # noqa: E402
from tests.fault_rows import ROWS, Marked, Row, marked  # noqa: E402  scripts run from any folder

DOCUMENT = ROOT / "docs" / "RELIABILITY.md"
NOTES = ROOT / "build" / "reliability.json"
END = "<!-- end -->"
NOT_RUN = "not run yet"
HEAD = "| row | fault | how injected | test | cycles | outcome |\n|---|---|---|---|---:|---|"
KILLS_HEAD = "| failpoint | who | kills | stops | torn | duplicated | reordered | lost |"
CELL = re.compile(r"(?<!\\)\|")


def cells(line: str) -> list[str]:
    """The cells of a table's line."""
    return [cell.strip() for cell in CELL.split(line)[1:-1]]


def part(text: str, name: str) -> str:
    """A generated part of the page."""
    begin = f"<!-- generated: {name} -->\n"
    before, found, rest = text.partition(begin)
    inner, ended, _ = rest.partition(END)
    if not found or not ended:
        raise SystemExit(
            f"{DOCUMENT.name}: found no part {begin.strip()} ... {END}: put one there ({before[:40]}...)"
        )
    return inner.rstrip("\n")


def with_part(text: str, name: str, content: str) -> str:
    """The page with that part replaced."""
    return text.replace(
        f"<!-- generated: {name} -->\n{part(text, name)}\n{END}",
        f"<!-- generated: {name} -->\n{content}\n{END}",
    )


def link(mark: Marked) -> str:
    """How the page names a test."""
    path, _, function = mark.test.partition("::")
    name = function.rpartition("::")[2].removeprefix("test_").replace("_", " ") or Path(path).name
    return f"[{name}](../{path}){' (stress)' if mark.stress else ''}"


def lines(row: Row, marks: list[Marked]) -> list[tuple[list[str], str]]:
    """The lines of a row as cells, outcome left out, and the test of each."""
    title = f"**{row.fault}** → {row.expected}"
    if not marks:
        return [([str(row.number), title, row.injection, "none"], "")]
    return [
        ([str(row.number), title if index == 0 else "", mark.how or row.injection, link(mark)], mark.test)
        for index, mark in enumerate(marks)
    ]


def faults(marks: list[Marked], notes: dict[str, Any], old: str) -> str:
    """The table of rows, with what is known of each test."""
    known = {tuple(line[:1] + line[3:4]): line[4:] for line in map(cells, old.splitlines()) if len(line) == 6}
    out = [HEAD]
    for row in ROWS:
        for line, test in lines(row, [mark for mark in marks if mark.row == row.number]):
            note = notes.get(test)
            result = (
                [f"{note['cycles']:,}", f"{note['outcome']} {note.get('date', '')}".strip()]
                if note
                else known.get((line[0], line[3]), ["", NOT_RUN if test else "no test"])
            )
            out.append("| " + " | ".join(line + result) + " |")
    return "\n".join(out)


def mapping(table: str) -> list[list[str]]:
    """What of the table of rows is true without running anything."""
    return [line[:4] for line in map(cells, table.splitlines()) if len(line) == 6]


def kills(notes: dict[str, Any], old: str) -> str:
    """The kill matrix by failpoint; the page's own when none was run here."""
    if not notes:
        return old
    out = [KILLS_HEAD, "|---|---|---:|---:|---:|---:|---:|---:|"]
    total = [0] * 6
    known = names_in_sources()
    for label, note in sorted(notes.items()):
        name = label.partition(" ")[0]
        if name not in known:  # noted before it was renamed
            continue
        figures = [note[key] for key in ("kills", "stops", "torn", "duplicated", "reordered", "lost")]
        total = [a + b for a, b in zip(total, figures, strict=True)]
        out.append(f"| `{name}` | {note['who']} | " + " | ".join(f"{figure:,}" for figure in figures) + " |")
    out.append("| **all** | | " + " | ".join(f"**{figure:,}**" for figure in total) + " |")
    return "\n".join(out)


def main() -> int:
    """0: done, or up to date; 1: out of date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when it is out of date")
    parser.add_argument("--passed", action="append", default=[], metavar="FOLDER")
    options = parser.parse_args()
    text = DOCUMENT.read_text(encoding="utf-8")
    notes: dict[str, Any] = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    marks = marked()
    tests = dict(notes.get("tests", {}))
    for mark in marks:
        if any(mark.test.startswith(f"{folder}/") for folder in options.passed):
            tests[mark.test] = {"cycles": 1, "outcome": "passed", "date": time.strftime("%Y-%m-%d")}
    table = faults(marks, {} if options.check else tests, part(text, "faults"))
    name = DOCUMENT.relative_to(ROOT)
    if options.check:
        if mapping(table) == mapping(part(text, "faults")):
            return 0
        print(f"{name} is out of date: run `make reliability-page` and commit the result", file=sys.stderr)
        return 1
    fresh = with_part(text, "faults", table)
    fresh = with_part(fresh, "kills", kills(notes.get("kills", {}), part(text, "kills")))
    if fresh != text:
        DOCUMENT.write_text(fresh, encoding="utf-8")
        print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
