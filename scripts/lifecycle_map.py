"""Where the driver touches its lifecycle: found in the source, explained here, printed in docs/LIFECYCLE.md.

Everything in `src/shmdriver/driver` but the machine's own file is searched for five kinds of traces: events
that are dispatched, states and shutdown modes that are compared, what the machine is asked, words of the
authority that publish the lifecycle, and flags (attributes that are set to True or False). A function with a
trace and no explanation below stops `make generate`: say which state it belongs to, or take it away.
"""

from __future__ import annotations

import ast
from pathlib import Path

DRIVER = Path(__file__).resolve().parent.parent / "src" / "shmdriver" / "driver"
NOT_SEARCHED = {"lifecycle", "config", "shm"}  # the machine itself; settings, which never change
PUBLISHED = {"lifecycle", "exit_kind", "shutdown_mode", "shutdown_deadline_ns", "degraded"}
ASKED = {
    "may_serve", "attach_refusal", "lifecycle_code", "shutdown_reason", "shutdown_mode", "reasons",
    "exit_kind",
}  # fmt: skip

# function: (states in which it runs, what it is)
MEANING = {
    "admission._Waiting": ("any", "the client gave up on this attach; per request, gone with it"),
    "admission.Admission.cancel": ("`running`, `draining`", "as above"),
    "authority.Authority.introduce": ("`init`", "a driver lives again: `SHMD_EXIT_NONE`"),
    "boot._former": ("before `init` ends", "how the predecessor ended: adopt, or make new segments"),
    "boot._end_former": (
        "before `init` ends",
        "published for the *predecessor's* clients (`--fresh`, or killed in its last steps)",
    ),
    "clients.ClientTable.__init__": ("any", "whether new control segments are locked in memory: a setting"),
    "connections.Connections.__init__": (
        "any",
        "whether accepting failed in the last tick, so that the next one tries again: no decision",
    ),
    "damage.DamageWatch.__init__": ("`init`", "which damage was told; a reminder, it decides nothing"),
    "desk.RequestDesk.shutdown": ("`running`, `draining`", "the mode that a signed request asks for"),
    "driver.Driver.__init__": (
        "`init`",
        "nobody has truncated the authority yet",
    ),
    "driver.Driver._begin": ("`init`", "segments are there and locked; an inherited draining is kept"),
    "driver.Driver.is_draining": ("any", "asks the machine for the request desk"),
    "driver.Driver.tick": (
        "`running`, `draining`",
        "the duty cycle; after `stopped` nothing more is published",
    ),
    "driver.Driver._goes_on": ("`running`, `draining`", "the loop ends with `stopped`"),
    "driver.Driver.request_shutdown": ("any", "leaves an order for the loop, from any thread"),
    "driver.Driver.set_maintenance": ("`running`, `draining`", "a signed admin request"),
    "driver.Driver.on_tick": (
        "`running`, `draining`",
        "deaths that woke it are looked at; a truncated authority ends the loop like a crash, with no state",
    ),
    "driver.Driver._poll": (
        "`running`, `draining`",
        "expired timers become events; the shutdown timer an order",
    ),
    "driver.Driver.on_reasons_changed": ("`running`", "publishes the reasons"),
    "driver.Driver.on_lifecycle_changed": (
        "any change",
        "publishes the state, except to the clients of a handover",
    ),
    "driver.Driver.on_enter_draining": ("entering `draining`", "publishes mode and deadline"),
    "driver.Driver.on_enter_stopped": ("entering `stopped`", "the end by its mode"),
    "driver.Driver._serve": ("`running`, `draining`", "requests become events"),
    "driver.Driver._finish_attach": ("`running`, `draining`", "asks the machine again: memory took its time"),
    "driver.Driver._obey": ("`running`, `draining`", "orders become events; the second `end` means now"),
    "driver.Driver._finish_draining": ("`draining`", "raises `drained`"),
    "driver.Driver._is_drained": ("`draining`", "nothing is left to wait for, by the mode"),
    "driver.Driver._set_degraded": ("`running`", "dispatches only what differs from the machine's reasons"),
    "driver.Driver._may_rest": (
        "`running.healthy`",
        "only there does C look in place of ticks: elsewhere time alone may be an event",
    ),
    "driver._mode_code": ("any", "the mode as a number for the authority"),
    "embedded.EmbeddedDriver.start": ("before `init`", "orders the end when its caller is interrupted"),
    "embedded.EmbeddedDriver.__del__": ("any", "orders the end of a dropped driver; waits for nothing"),
    "embedded.EmbeddedDriver.stop": ("any", "orders the end; again, when patience is over"),
    "inheritance.Inheritance.of": ("`init`", "reads the state that the predecessor published last"),
    "leasewatch.LeaseWatch.look_for_deaths": ("`running`, `draining`", "a proved death becomes an event"),
    "leasewatch.LeaseWatch._note_unconfirmed": (
        "`running`, `draining`",
        "an unconfirmed lease becomes an event",
    ),
    "leasewatch.LeaseWatch._note_client": ("`running`, `draining`", "silence or recovery becomes an event"),
    "memory.Provision": ("any", "this attach was short of memory before an unmapping; gone with it"),
    "oversight.HealthWatch.__init__": (
        "`running`",
        "hysteresis of `low_memory`: which threshold counts next",
    ),
    "rest.Rest.__init__": ("any", "what the look in C needs is noted once a tick; it decides nothing"),
    "rest.Rest.end": ("`running`, `draining`", "as above: a tick may change it"),
    "rest.Rest.checked": ("`running`, `draining`", "as above, set by the lease check"),
    "rest.Rest._note": ("`running.healthy`", "as above"),
    "signals.obey_signals.stop": ("any", "SIGTERM, SIGINT"),
    "signals.obey_signals.hand_over": ("any", "SIGUSR1"),
    "sleeper.Sleeper.__init__": ("any", "whether a doorbell is off until the next time for it: no decision"),
    "sleeper.Sleeper.disarm": ("any", "as above"),
}


class _Search(ast.NodeVisitor):
    """Traces by function, as ``module.Class.function``."""

    def __init__(self, module: str) -> None:
        self._path = [module]
        self.found: dict[str, set[str]] = {}

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._below(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._below(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id in ("State", "Event", "ShutdownMode"):
            name = node.attr.lower()
            self._note({"State": "state", "Event": "event", "ShutdownMode": "mode"}[node.value.id], name)
        elif node.attr in ASKED and isinstance(node.ctx, ast.Load):
            self._note("asks", node.attr)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool):
            for target in node.targets:
                if isinstance(target, ast.Attribute):
                    self._note("flag", target.attr)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool):
            self._note("flag", ast.unparse(node.target).removeprefix("self."))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "store" and node.args:
            word = node.args[0]
            if isinstance(word, ast.Constant) and word.value in PUBLISHED:
                self._note("publishes", str(word.value))
        self.generic_visit(node)

    def _below(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        self._path.append(node.name)
        self.generic_visit(node)
        self._path.pop()

    def _note(self, kind: str, name: str) -> None:
        self.found.setdefault(".".join(self._path), set()).add(f"{kind} `{name}`")


def traces() -> dict[str, set[str]]:
    """What the driver's source has to do with its lifecycle, by function."""
    found: dict[str, set[str]] = {}
    for path in sorted(DRIVER.glob("*.py")):
        if path.stem not in NOT_SEARCHED:
            search = _Search(path.stem)
            search.visit(ast.parse(path.read_text(encoding="utf-8")))
            found |= search.found
    return found


def lifecycle_map() -> str:
    """The table. SystemExit for a function that nobody has explained, and for an explanation of nothing."""
    found = traces()
    unknown, idle = sorted(found.keys() - MEANING.keys()), sorted(MEANING.keys() - found.keys())
    if unknown or idle:
        raise SystemExit(
            f"scripts/lifecycle_map.py: not explained: {', '.join(unknown) or 'nothing'}; explained but "
            f"without any trace of the lifecycle: {', '.join(idle) or 'nothing'}. Correct MEANING there"
        )
    lines = ["| where | trace | state | what it is |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {', '.join(sorted(marks))} | {MEANING[name][0]} | {MEANING[name][1]} |"
        for name, marks in found.items()
    ]
    return "\n".join(lines)
