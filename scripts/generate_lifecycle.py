"""Writes the generated parts of docs/LIFECYCLE.md; `--check` only says whether they are current.

The parts stand between `<!-- generated: NAME -->` and `<!-- end -->`; the prose around them is left alone.
They are read from the built machine rather than from the table, so that they show what really happens.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from unittest.mock import MagicMock

from lifecycle_map import lifecycle_map
from transitions.extensions import HierarchicalMachine

from shmdriver.driver import lifecycle
from shmdriver.driver.lifecycle import TABLE, Event, Lifecycle, Row, State

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "LIFECYCLE.md"
LEAVES = [state for state in State if state is not State.RUNNING]


def rows_of(machine: HierarchicalMachine, event: Event, state: State) -> list[Row]:
    """The table rows that the machine would try for this event in this state, in its order."""
    transitions = machine.events[event.value].transitions
    path = state.value.split(lifecycle.SEPARATOR)
    for depth in range(len(path), 0, -1):
        source = lifecycle.SEPARATOR.join(path[:depth])
        if source in transitions:
            targets = [transition.dest for transition in transitions[source]]
            rows = [row for row in TABLE if row.event is event and row.state == source]
            if [row.to for row in rows] != targets:
                raise SystemExit(f"{event} in {source}: the machine goes to {targets}, the table says {rows}")
            return rows
    return []


def words(row: Row, state: State) -> str:
    """What a row does, in a cell."""
    if row.action == "_reject":
        return f"reject: “{lifecycle.REFUSALS[state][1].partition(':')[0]}”"
    parts = [f"to `{row.to}`"] if row.to else []
    if row.note == "_add_reason":
        parts.append("reason added")
    elif row.note == "_drop_reason":
        parts.append("reason removed")
    if row.action.startswith("on_"):
        parts.append(f"`{row.action}`")
    cell = ", ".join(parts) or "handled, no change"
    return f"if {row.guard.strip('_').replace('_', ' ')}: {cell}" if row.guard else cell


def cell(machine: HierarchicalMachine, event: Event, state: State) -> str:
    """One cell of the matrix."""
    return "; else ".join(words(row, state) for row in rows_of(machine, event, state)) or "\N{EN DASH}"


def matrix(machine: HierarchicalMachine) -> str:
    """Every event in every state."""
    lines = [
        "| event | " + " | ".join(f"`{state}`" for state in LEAVES) + " |",
        "|---" * (len(LEAVES) + 1) + "|",
    ]
    lines += [
        f"| `{event}` | " + " | ".join(cell(machine, event, state) for state in LEAVES) + " |"
        for event in Event
    ]
    return "\n".join(lines)


def diagram(machine: HierarchicalMachine) -> str:
    """The changes of state, as a mermaid state diagram."""
    edges: dict[tuple[str, str], list[str]] = {}
    for name, event in machine.events.items():
        for source, transitions in event.transitions.items():
            for transition in transitions:
                if transition.dest is not None:
                    edges.setdefault((source, transition.dest), []).append(name)
    arrows = {
        key: f"{short(key[0])} --> {short(key[1])} : {' | '.join(names)}" for key, names in edges.items()
    }
    inner = [text for (source, dest), text in arrows.items() if source.count(".") and dest.count(".")]
    outer = [text for text in arrows.values() if text not in inner]
    running = machine.states[State.RUNNING.value]
    lines = [
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {machine.initial}",
        f"    state {running.name} {{",
    ]
    lines += [f"        [*] --> {running.initial}", *(f"        {text}" for text in inner), "    }"]
    lines += [*(f"    {text}" for text in outer), f"    {State.STOPPED} --> [*]", "```"]
    return "\n".join(lines)


def short(state: str) -> str:
    """A state's name within its parent."""
    return state.rpartition(lifecycle.SEPARATOR)[2]


def codes() -> str:
    """The numbers that the authority segment shows."""
    lines = ["| state | `SHMD_LIFECYCLE_*` | new attaches |", "|---|---|---|"]
    for state in LEAVES:
        refusal = lifecycle.REFUSALS.get(state)
        answer = f"refused, `{refusal[0].name}`: “{refusal[1]}”" if refusal else "admitted, policy decides"
        lines.append(f"| `{state}` | {lifecycle.CODES[state]} | {answer} |")
    return "\n".join(lines)


def renewed(text: str) -> str:
    """The document with its generated parts as they should be."""
    machine = Lifecycle(MagicMock(spec=lifecycle.Hooks))._machine  # noqa: SLF001 -- what is documented
    parts = {"diagram": diagram(machine), "matrix": matrix(machine), "codes": codes(), "map": lifecycle_map()}
    for name, part in parts.items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise SystemExit(f"{DOCUMENT.name}: found no part {begin.strip()} ... {end}: put one there")
        text = f"{before}{begin}{part}\n{end}{after}"
    return text


def main() -> int:
    """0: done, or up to date; 1: out of date."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when it is out of date")
    options = parser.parse_args()
    current = DOCUMENT.read_text(encoding="utf-8")
    text = renewed(current)
    if text == current:
        return 0
    name = DOCUMENT.relative_to(ROOT)
    if options.check:
        print(f"{name} is out of date: run `make generate` and commit the result", file=sys.stderr)
        return 1
    DOCUMENT.write_text(text, encoding="utf-8")
    print(f"wrote {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
