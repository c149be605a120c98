"""A pid of another PID namespace means nothing here: texts say so, and nobody is told to send it a signal."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shmdriver.cli.admin import _kill
from shmdriver.cli.stat import health
from shmdriver.client import directory
from shmdriver.liveness import pid_text
from shmdriver.observe import Instance, diagnose
from shmdriver.observe.driver_status import advice_for
from shmdriver.observe.process import ProcessStatus, own_namespace, process_status
from shmdriver.observe.records import BackPressure
from tests.driver_rig import Rig

FOREIGN = "a process of another PID namespace"
SUCCESSORS = "pid 1 in another PID namespace"  # after an adoption by a driver in another one


def test_a_number_is_told_with_its_namespace() -> None:
    assert pid_text(7, own_namespace()) == "pid 7"
    assert pid_text(1, 1) == SUCCESSORS
    assert pid_text(0, own_namespace()) == FOREIGN
    assert pid_text(7, 0) == "pid 7 in a PID namespace that is not known"
    assert ProcessStatus(1, "elsewhere").label == SUCCESSORS
    assert ProcessStatus(0, "elsewhere", uid=7).label == f"{FOREIGN}, uid 7"
    assert ProcessStatus(7, "sleeping").label == "pid 7"


def test_the_holder_of_a_gate_elsewhere_has_no_pid_to_signal(rig: Rig) -> None:
    ours, theirs = rig.client(), rig.client(is_elsewhere=True)
    producer, near, far = ours.produce(), ours.consume(), theirs.consume()
    authority, index = rig.view.authority, producer.stream_index
    assert directory.holder_of_stream(authority, "s") == ("requester", os.getpid(), f"pid {os.getpid()}")
    assert directory.holder_of_gate(authority, index, near.gate) == (
        "requester",
        os.getpid(),
        f"pid {os.getpid()}",
    )
    assert directory.holder_of_gate(authority, index, far.gate) == ("requester", 0, FOREIGN)
    assert directory.holder_of_stream(authority, "nobody") is None


@pytest.mark.fault(68, how="a consumer of another PID namespace")
def test_no_advice_names_a_pid_of_elsewhere(rig: Rig) -> None:
    rig.client().produce()
    far = rig.client(is_elsewhere=True).consume()
    with Instance(rig.instance) as view:
        stream, leases = view.stream("s"), view.leases()
        driver = dataclasses.replace(view.driver(), status="running", advice="")  # its clock is the rig's
    blocked = BackPressure(gate=far.gate, for_ns=2_000_000_000, position=0)
    held = dataclasses.replace(stream, epochs=(dataclasses.replace(stream.epochs[0], blocked=blocked),))
    found = diagnose(_seen(held, driver), "s")
    assert FOREIGN in found.summary
    told = " ".join((found.summary, *found.details, *found.advice))
    assert not re.search(r"\bkill\b|--pid|\(pid 1[,)]", told)
    nameless = tuple(dataclasses.replace(lease, client_name="", state="stalled") for lease in leases)
    assert FOREIGN in health(driver, (), nameless)[1]


def _seen(stream: Any, driver: Any) -> Any:
    return SimpleNamespace(stream=lambda _name: stream, driver=lambda: driver)


def test_the_driver_tells_clients_of_elsewhere_apart(rig: Rig) -> None:
    rig.client(is_elsewhere=True).produce()
    refused = rig.client().produce()
    labels = {client.label for client in rig.driver.tables.clients}
    assert labels == {f"'requester' ({FOREIGN}, uid {os.geteuid()})", f"'requester' (pid {os.getpid()})"}
    assert "(pid 1)" not in refused.text


def test_a_driver_elsewhere_is_not_to_be_killed_by_a_number_of_here() -> None:
    assert _kill(ProcessStatus(42, "sleeping")) == "`kill -TERM 42`"
    text = _kill(ProcessStatus(1, "elsewhere", why="it is in another PID namespace"))
    assert "kill" not in text
    assert "another PID namespace" in text


def test_nothing_is_to_be_killed_whose_start_time_was_not_compared(rig: Rig) -> None:
    """Its number may have passed to another process."""
    sleeper = subprocess.Popen(["sleep", "1000"])
    try:
        sleeper.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
        start_time = int(Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[19])
        known, unknown = process_status(sleeper.pid, start_time), process_status(sleeper.pid)
        elsewhen = process_status(sleeper.pid, start_time, None, 1)
    finally:
        sleeper.kill()
        sleeper.wait()
    assert (known.state, unknown.state, elsewhen.state) == ("stopped", "stopped", "unknown")
    assert _kill(known) == f"let it run again: `kill -CONT {sleeper.pid}`; then `kill -TERM {sleeper.pid}`"
    rig.client().produce()
    client = rig.client()
    client.consume()
    for process in (unknown, elsewhen):
        texts = [_kill(process), process.resume]
        texts += [advice_for(status, "md", process) for status in ("paused", "hung", "silent")]
        texts += _advice_about(rig, process)
        for text in texts:
            assert not re.search(rf"\b(kill|dump) [^`]*{sleeper.pid}", text), text
    assert f"kill -KILL {sleeper.pid}" in " ".join(_advice_about(rig, known))


def _advice_about(rig: Rig, process: ProcessStatus) -> list[str]:
    """What `why` advises about a consumer with this process, of those that can hold a producer back."""
    with Instance(rig.instance) as view:
        stream, driver = view.stream("s"), view.driver()
    (lease,) = stream.consumers
    epoch = stream.epochs[-1]
    found: list[str] = []
    for held in (0, 5):
        gate = dataclasses.replace(epoch.gates[0], process=process, pid=process.pid, lag=5, held=held)
        blocked = BackPressure(gate=gate.gate, for_ns=10**9, position=0)
        seen = dataclasses.replace(
            stream,
            consumers=(dataclasses.replace(lease, process=process),),
            epochs=(dataclasses.replace(epoch, blocked=blocked, gates=(gate,)),),
        )
        found += diagnose(_seen(seen, driver), "s").advice
    return found
