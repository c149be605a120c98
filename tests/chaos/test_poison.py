"""Attaches that kill their driver: one of them kills at most one, and everybody else goes on.

The memory cgroup is a real one where this user may make one (v1, or v2 with the controller handed down);
the same is shown with a failpoint in any case.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver.errors import AttachRejected, Reason
from tests.chaos.stage import PATIENCE_S, Actor, Stage, Zygote, moves_on, wait_until
from tests.real_cgroups import new_cgroup

MIB = 1 << 20
ALLOWED = 128 * MIB  # of the cgroup: a driver has 30 MiB of its own
POISON = 512 * MIB
SMALL = {"slots": 256}


AttachCall = Callable[[shmdriver.Client], Any]


class Attach:
    """An attach in a thread of its own, by a client that waits for the next driver."""

    def __init__(self, instance: str, name: str, attach: AttachCall) -> None:
        self._instance, self._name, self._attach = instance, name, attach
        self._made: Any = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            client = shmdriver.connect(self._instance, name=self._name, timeout=PATIENCE_S, reconnect=True)
            with client:
                self._made = int(self._attach(client)._info().lease_id)
        except Exception as error:
            self._error = error

    def result(self) -> int:
        """The lease that it got, which has ended since; raises what it raised."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "it is not answered"
        if self._error is not None:
            raise self._error
        return int(self._made)


def producing(stream: str, arena: int) -> AttachCall:
    return lambda client: client.producer(stream, slots=16, arena=arena, attach_timeout=PATIENCE_S)


def attach(instance: str, stream: str, arena: int) -> Attach:
    """A producer's."""
    return Attach(instance, stream, producing(stream, arena))


large, small = producing("large", 16 * MIB), producing("small", 0)  # made by the helper thread, and at once


def reader(client: shmdriver.Client) -> Any:
    return client.consumer("s", delivery="lossy", attach_timeout=PATIENCE_S)


class Bystanders:
    """A producer and a consumer that nothing of it concerns."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.consumer = stage.consumer("s")
        self._producer = stage.producer("s", 1, options=SMALL, rest_s=0.001, listen_every=64)
        self._leases = self._present()

    def _present(self) -> set[int]:
        return {lease.lease_id for lease in self._stage.leases() if lease.pid != os.getpid()}

    def check(self) -> None:
        """Messages flow, and nobody's lease has ended."""
        moves_on(self.consumer)
        assert self._present() == self._leases
        assert self.consumer.words("failure") == []

    def end(self) -> None:
        """Nothing was lost."""
        self._producer.say("stop")
        sent = self._producer.wait_for("closed")["closed"]
        over = self.consumer.wait_for("error")
        assert (over["error"], over["lost"], over["received"]) == ("EndOfStream", 0, sent)


def killed(driver: Actor) -> None:
    wait_until(lambda: not driver.alive, "the driver to be killed")
    assert driver.join() == -9, driver.log_text()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup below this process's own, of ALLOWED bytes; skips where none can be made."""
    with new_cgroup("memory", {True: "memory.limit_in_bytes", False: "memory.max"}, str(ALLOWED)) as made:
        yield made


def oom_kills(cgroup: Path) -> int:
    for name in ("memory.oom_control", "memory.events"):
        if (cgroup / name).exists():
            words = dict(line.split() for line in (cgroup / name).read_text().splitlines())
            return int(words["oom_kill"])
    return 0


@pytest.mark.fault(66, how="a real memory cgroup whose out-of-memory killer takes the driver")
def test_attach_that_has_a_driver_killed_for_its_memory_kills_no_second_one(
    zygote: Zygote, tmp_path: Path, instance_name: str, cgroup: Path
) -> None:
    with Stage(instance_name, tmp_path, zygote) as stage:
        stage.driver_arguments = {"cgroup": str(cgroup), "blind": True}
        first = stage.start_driver()
        crowd = Bystanders(stage)
        poison = attach(instance_name, "poison", POISON)
        killed(first)
        assert oom_kills(cgroup) == 1
        innocent = attach(instance_name, "innocent", 0)
        crowd.check()
        second = stage.start_driver()
        told = rf"\(pid {first.pid}\) died while it made 5\d+ bytes"
        with pytest.raises(AttachRejected, match=told) as refused:
            poison.result()
        assert refused.value.reason == Reason.DRIVER_DIED
        assert innocent.result()
        crowd.check()
        assert second.alive
        assert (oom_kills(cgroup), stage.driver_status().adoptions) == (1, 1)
        crowd.end()


@pytest.mark.fault(66, 70, how="a real memory cgroup, seen before memory is touched")
def test_attach_past_a_cgroups_limit_is_refused_by_its_name_and_kills_nobody(
    zygote: Zygote, tmp_path: Path, instance_name: str, cgroup: Path
) -> None:
    with Stage(instance_name, tmp_path, zygote) as stage:
        stage.driver_arguments = {"cgroup": str(cgroup)}
        driver = stage.start_driver()
        with shmdriver.connect(instance_name, timeout=PATIENCE_S) as client:
            told = r"memory\.(max|limit_in_bytes) leaves \d+ bytes"
            with pytest.raises(AttachRejected, match=told) as refused:
                client.producer("large", slots=16, arena=POISON)
            assert refused.value.reason == Reason.NO_MEMORY
            assert str(cgroup) in str(refused.value)
            client.producer("small", slots=16, arena=MIB).close()
        assert driver.alive
        assert oom_kills(cgroup) == 0


@pytest.mark.parametrize(
    ("where", "poisoned"),
    [
        pytest.param("provision.gates", large, id="memory"),
        pytest.param("epoch.filled", large, id="grant"),
        pytest.param("epoch.filled", small, id="grant, memory made at once"),
        pytest.param("gate.taken", reader, id="consumer"),
        pytest.param("attach.joined", reader, id="wired consumer"),
        pytest.param("client.filled", reader, id="hello"),
    ],
)
@pytest.mark.fault(66, how="failpoint kill in the middle of an attach, in each driver that would serve it")
def test_attach_that_kills_each_driver_that_serves_it_kills_one(
    striking: Zygote, tmp_path: Path, instance_name: str, where: str, poisoned: AttachCall
) -> None:
    strikes = f"{where}:1:kill"
    innocent: AttachCall = small if poisoned is reader else reader
    with Stage(instance_name, tmp_path, striking) as stage:
        stage.start_driver()
        crowd = Bystanders(stage)
        assert stage.driver is not None
        with shmdriver.connect(instance_name, timeout=PATIENCE_S, reconnect=True) as other:
            stage.driver.kill()
            first = stage.start_driver(failpoint=strikes)
            poison = Attach(instance_name, "poison", poisoned)
            killed(first)
            crowd.check()
            second = stage.start_driver(failpoint=strikes)
            with pytest.raises(AttachRejected, match=rf"a driver \(pid {first.pid}\) died") as refused:
                poison.result()
            assert refused.value.reason == Reason.DRIVER_DIED
            innocent(other).close()
        crowd.check()
        assert second.alive
        crowd.end()


@pytest.mark.fault(66, how="kill -9 in the middle of one attach's memory, others wait")
def test_attaches_that_wait_behind_the_one_that_kills_are_served_by_the_next_driver(
    striking: Zygote, tmp_path: Path, instance_name: str
) -> None:
    with Stage(instance_name, tmp_path, striking) as stage:
        first = stage.start_driver(failpoint="provision.data:1:stop")
        poison = attach(instance_name, "poison", 16 * MIB)
        wait_until(lambda: first.is_stopped, "the driver to be in the middle of it")
        innocents = [attach(instance_name, f"innocent{number}", 16 * MIB) for number in range(3)]
        first.kill()
        stage.start_driver()
        with pytest.raises(AttachRejected) as refused:
            poison.result()
        assert refused.value.reason == Reason.DRIVER_DIED
        assert all(innocent.result() for innocent in innocents)


@pytest.mark.parametrize(
    ("where", "call"),
    [("lease.published", reader), ("attach.granted", small), ("client.published", reader)],
)
@pytest.mark.fault(66, how="failpoint kill when an attach is granted and not answered")
def test_attach_that_was_granted_when_its_driver_died_is_answered(
    striking: Zygote, tmp_path: Path, instance_name: str, where: str, call: AttachCall
) -> None:
    with Stage(instance_name, tmp_path, striking) as stage:
        first = stage.start_driver(failpoint=f"{where}:1:kill")
        innocent = Attach(instance_name, "innocent", call)
        killed(first)
        stage.start_driver()
        assert innocent.result()
