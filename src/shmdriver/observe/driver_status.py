"""Is there a driver, and does it work?

Decided from what it said at its end, else from its process, else from its heartbeat. A driver stores
its heartbeat at each tick, and at each idle check that takes the place of one.
"""

from __future__ import annotations

from typing import Final

from shmdriver.hints import command
from shmdriver.observe.process import ProcessStatus

HUNG_AFTER_NS: Final = 3_000_000_000

_ADVICE: Final = {
    "running": "",
    "starting": "wait a moment; if it stays so, look at the driver's log",
    "paused": "{resume}",
    "hung": "look at what the process does ({look}); if it is beyond help, "
    "{kill} and start it again with {run}: it adopts everything",
    "silent": "look at it where its process can be seen: in its own namespaces, as its user or as root",
    "dead": "start it again: {run} (it adopts all segments and leases)",
    "stopped": "start it: {run}",
    "handover": "start its successor: {run}",
    "superseded": "open the instance again: a newer driver has replaced these segments",
}


def judge(
    process: ProcessStatus, exit_kind: str, lifecycle: str, heartbeat_age_ns: int, hung_after_ns: int
) -> tuple[str, str]:
    """The driver's status and one sentence that explains it."""
    seconds, pid = heartbeat_age_ns / 1e9, process.label
    if exit_kind == "clean":
        return "stopped", "the driver ended cleanly"
    if exit_kind == "handover":
        return "handover", "the driver ended and left everything to its successor, which has not started yet"
    if exit_kind == "superseded":
        return "superseded", "a fresh driver has replaced this instance's segments"
    if process.dead:
        return (
            "dead",
            f"the driver ({pid}) is {process.state}, its last heartbeat was {seconds:.1f} s ago",
        )
    late = heartbeat_age_ns > hung_after_ns
    if process.unknown:
        where = f"whether the driver ({pid}) lives cannot be proved: {process.why}"
        if late:
            return "silent", f"{where}; its last heartbeat was {seconds:.1f} s ago"
        return "running", f"{where}; its last heartbeat was {seconds:.1f} s ago"
    if process.frozen:
        return "paused", f"the driver ({pid}) is {process}: messages flow, nobody can attach"
    if late:
        doubt = f"; {process.doubt}" if process.doubt else ""
        return "hung", f"the driver ({pid}) lives, but its last heartbeat was {seconds:.1f} s ago{doubt}"
    if lifecycle == "init":
        return "starting", f"the driver ({pid}) is starting"
    return "running", f"the driver ({pid}) runs"


def advice_for(status: str, instance: str, process: ProcessStatus) -> str:
    """What to do about a driver in this status, "" when nothing."""
    text = _ADVICE.get(status, "").format(
        run=command("run", instance=instance),
        resume=process.resume,
        kill=process.kill("KILL"),
        look=process.mistakable or f"`py-spy dump --pid {process.pid}`",
    )
    if status == "hung" and process.frozen is None:
        first = "look first whether its cgroup is frozen, where that can be read (as root, on the host)"
        return f"{first}; then {text}"
    return text
