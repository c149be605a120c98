"""Queues whose driver is killed and removed, superseded or stopped, and whose leases all end at once."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmdriver.driver.collect import collect
from tests.chaos.stage import PATIENCE_S, ROOT, Stage, wait_until
from tests.chaos.test_liveness import SHORT

GET_S = 20
MEMBER = """
import json, sys, shmdriver
instance, reconnects, maxsize = json.loads(sys.argv[1])
client = shmdriver.connect(instance, reconnect=reconnects, timeout=60)
queue = client.queue("q", maxsize)
print(json.dumps("attached"), flush=True)
for line in sys.stdin:
    act, *arguments = json.loads(line)
    try:
        answer = getattr(queue, act)(*arguments)
    except Exception as error:
        answer = {"error": type(error).__name__, "text": str(error), "lost": getattr(error, "lost", 0)}
    print(json.dumps(answer), flush=True)
"""


class Member:
    """A process with the queue ``q``, which does what it is told."""

    def __init__(self, instance: str, *, reconnects: bool, maxsize: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", MEMBER, json.dumps([instance, reconnects, maxsize])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self.answer() == "attached"

    def begin(self, act: str, *arguments: Any) -> None:
        """Has it call a method of its queue."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([act, *arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """What that returned, or the error that it raised."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], PATIENCE_S)[0], "no answer"
        line = self.process.stdout.readline()
        assert line, "it is gone"
        return json.loads(line)

    def ask(self, act: str, *arguments: Any) -> Any:
        self.begin(act, *arguments)
        return self.answer()

    def put(self, *items: Any) -> None:
        for item in items:
            assert self.ask("put", item) is None

    def get(self) -> Any:
        return self.ask("get", True, GET_S)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def leave(self) -> None:
        """Ends as programs do."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(PATIENCE_S) == 0


@pytest.fixture
def member(instance_name: str) -> Iterator[Callable[..., Member]]:
    made: list[Member] = []

    def make(*, reconnects: bool = True, maxsize: int = 0) -> Member:
        made.append(Member(instance_name, reconnects=reconnects, maxsize=maxsize))
        return made[-1]

    yield make
    for each in made:
        each.kill()


def remove_driver(stage: Stage) -> None:
    """As an administrator's ``kill -9`` and ``gc --force``."""
    assert stage.driver is not None
    stage.driver.kill()
    assert collect(stage.instance)


def replace_driver(stage: Stage, how: str) -> None:
    if how == "removed":
        remove_driver(stage)
        stage.start_driver()
    else:
        assert stage.driver is not None
        stage.driver.kill()
        stage.start_driver(**{"driver.boot": "fresh"})


def expire_all(stage: Stage, *members: Member) -> None:
    """Stops all of them until their leases are over, and lets them go on."""
    for each in members:
        each.stop()
    pids = {each.process.pid for each in members}
    wait_until(lambda: not any(lease.pid in pids for lease in stage.leases()), "their leases to expire")
    for each in members:
        each.go_on()


def rest_of(getter: Member, last: Any) -> tuple[list[Any], int]:
    """What it gets up to ``last``, and how many objects errors said are lost."""
    got: list[Any] = []
    lost = 0
    while not got or got[-1] != last:
        found = getter.get()
        if isinstance(found, dict):
            assert found["error"] == "ObjectsLost", found
            lost += found["lost"]
        else:
            got.append(found)
    return got, lost


# ---- the driver is killed, and another one serves


@pytest.mark.fault(12, how="kill -9 under a queue; segments removed, or --fresh")
@pytest.mark.parametrize("how", ["removed", "fresh"])
def test_blocked_getter_goes_over_to_the_next_driver(
    stage: Stage, member: Callable[..., Member], how: str
) -> None:
    getter = member()
    getter.put("to itself")
    assert getter.get() == "to itself"
    getter.begin("get", True, GET_S)
    replace_driver(stage, how)
    member().put("by the new driver")
    assert getter.answer() == "by the new driver"


@pytest.mark.parametrize("how", ["removed", "fresh"])
def test_holder_goes_over_to_the_next_driver_and_holds_what_ended_putters_put(
    stage: Stage, member: Callable[..., Member], how: str
) -> None:
    holder = member()
    replace_driver(stage, how)
    wait_until(lambda: any(lease.pid == holder.process.pid for lease in stage.leases()), "it to come over")
    putter = member()
    putter.put(1, 2, 3)
    putter.leave()
    getter = member()
    assert [getter.get() for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("how", ["removed", "fresh"])
def test_nothing_is_lost_between_a_getter_and_a_putter_that_go_over(
    stage: Stage, member: Callable[..., Member], how: str
) -> None:
    getter, putter = member(), member()
    putter.put(0)
    assert getter.get() == 0
    putter.put(*range(1, 10))
    replace_driver(stage, how)
    putter.put(*range(10, 20))
    assert rest_of(getter, 19) == (list(range(1, 20)), 0)
    member().put("of a new putter")
    assert getter.get() == "of a new putter"
    putter.put("still there")
    assert getter.get() == "still there"


def test_putter_with_room_notices_that_its_driver_was_removed(
    stage: Stage, member: Callable[..., Member]
) -> None:
    getter, putter = member(), member()
    putter.put(0)
    assert getter.get() == 0
    getter.kill()
    replace_driver(stage, "removed")
    getter = member()
    getter.begin("get", True, GET_S)
    numbers = iter(range(1, 1_000_000))

    def puts_until_it_is_heard() -> bool:
        putter.put(next(numbers))
        assert getter.process.stdout is not None
        return bool(select.select([getter.process.stdout], [], [], 0)[0])

    wait_until(puts_until_it_is_heard, "the putter to go over")
    assert isinstance(getter.answer(), int)


def test_getter_that_does_not_reconnect_is_told_that_its_driver_was_removed(
    stage: Stage, member: Callable[..., Member]
) -> None:
    getter = member(reconnects=False)
    putter = member(reconnects=False)
    putter.put(1)
    assert getter.get() == 1
    putter.put(2)
    getter.begin("get", True, GET_S)
    assert getter.answer() == 2
    getter.begin("get", True, GET_S)
    remove_driver(stage)
    told = getter.answer()
    assert told["error"] == "DriverUnavailable"
    assert "removed" in told["text"]
    assert "reconnect=True" in told["text"]


def test_blocked_putter_that_does_not_reconnect_is_told_that_its_driver_was_removed(
    stage: Stage, member: Callable[..., Member]
) -> None:
    member(reconnects=False)
    putter = member(reconnects=False, maxsize=2)
    putter.put(1, 2)
    putter.begin("put", 3, True, GET_S)
    remove_driver(stage)
    assert putter.answer()["error"] == "DriverUnavailable"


# ---- all leases end at once


@pytest.mark.parametrize("reconnects", [True, False])
def test_what_was_put_when_all_leases_expired_is_delivered(
    make_stage: Callable[..., Stage], member: Callable[..., Member], *, reconnects: bool
) -> None:
    stage = make_stage(SHORT)
    getter, putter = member(reconnects=reconnects), member(reconnects=reconnects)
    putter.put(0)
    assert getter.get() == 0
    putter.put(*range(1, 6))
    expire_all(stage, getter, putter)
    if reconnects:
        putter.put("after")
        assert rest_of(getter, "after") == ([1, 2, 3, 4, 5, "after"], 0)
        return
    assert putter.ask("put", "refused")["error"] == "LeaseRevoked"
    assert [getter.get() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert getter.get()["error"] == "LeaseRevoked"
    assert getter.ask("get_nowait")["error"] == "LeaseRevoked"
    assert putter.ask("put", "refused again")["error"] == "LeaseRevoked"


def test_holder_hands_over_or_tells_what_was_put_when_all_leases_expired(
    make_stage: Callable[..., Stage], member: Callable[..., Member]
) -> None:
    stage = make_stage(SHORT)
    holder, putter = member(), member()
    putter.put(1, 2, 3)
    expire_all(stage, holder, putter)
    wait_until(lambda: any(lease.pid == holder.process.pid for lease in stage.leases()), "it to come back")
    getter = member()
    lost = 0
    while lost < 3:
        told = getter.get()
        lost += 1 if isinstance(told, int) else told["lost"]
    assert lost == 3
    putter.put("after")
    assert getter.get() == "after"


def test_every_lane_is_drained_when_the_driver_is_stopped(
    make_stage: Callable[..., Stage], member: Callable[..., Member]
) -> None:
    stage = make_stage({"policies.shutdown_timeout_ms": 100})
    getter = member(reconnects=False)
    putters = [member(reconnects=False) for _ in range(3)]
    for number, putter in enumerate(putters):
        putter.put(number)
    assert sorted(getter.get() for _ in putters) == [0, 1, 2]
    for number, putter in enumerate(putters):
        putter.put(*range(10 * number, 10 * number + 5))
    assert stage.driver is not None
    stage.driver.send_signal(signal.SIGTERM)
    assert stage.driver.join() == 0
    got = [getter.get() for _ in range(15)]
    assert sorted(got) == [*range(5), *range(10, 15), *range(20, 25)]
    assert getter.get()["error"] in ("LeaseRevoked", "ProducerLost")
    assert getter.ask("get_nowait")["error"] in ("LeaseRevoked", "ProducerLost")


@pytest.mark.parametrize("has_heard", [True, False])
def test_what_came_by_a_lane_that_was_never_looked_at_is_told(
    stage: Stage, member: Callable[..., Member], *, has_heard: bool
) -> None:
    getter = member(reconnects=False)
    first, second = member(reconnects=False), member(reconnects=False)
    first.put(0)
    assert getter.get() == 0  # it has lanes ready, and looks at none of them now
    if not has_heard:
        getter.stop()  # so its driver is gone before it wants another spare lane
    second.put(1, 2, 3)
    replace_driver(stage, "fresh")
    getter.go_on()
    told = getter.get()
    got = []
    while isinstance(told, int):
        got.append(told)
        told = getter.get()
    assert len(got) + told["lost"] == 3, told


@pytest.mark.parametrize("reconnects", [True, False])
def test_getter_reads_what_its_lanes_have_while_no_driver_attaches_it_to_another(
    stage: Stage, member: Callable[..., Member], *, reconnects: bool
) -> None:
    getter, first, second = (member(reconnects=reconnects) for _ in range(3))
    first.put(0)
    assert getter.get() == 0
    getter.stop()
    second.put(1, 2, 3)  # by the spare lane: another one is wanted in its place
    assert stage.driver is not None
    stage.driver.kill()
    getter.go_on()
    assert [getter.ask("get_nowait") for _ in range(3)] == [1, 2, 3]
    stage.start_driver()
    member().put("of a new putter")
    assert getter.get() == "of a new putter"


PROGRAM = """
import sys
from multiprocessing import Process
from shmdriver import ObjectsLost, Queue

def work(numbers, answers):
    while (number := numbers.get()) is not None:
        answers.put(number)
    answers.put(None)

if __name__ == "__main__":
    numbers, answers = Queue(), Queue()
    worker = Process(target=work, args=(numbers, answers))
    worker.start()
    numbers.put(0)
    numbers.put(1)
    while answers.qsize() < 2:
        pass
    print(answers.get(), worker.pid, flush=True)
    sys.stdin.readline()
    for number in [*range(2, 100), None]:
        numbers.put(number)
    print(*iter(answers.get, None))
    worker.join()
"""


def test_program_with_the_drop_in_goes_on_after_a_stop_that_was_longer_than_a_lease(
    make_stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = make_stage(SHORT)
    monkeypatch.setenv("SHMDRIVER_DRIVER_INSTANCE", stage.instance)
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        first, worker = program.stdout.readline().split()
        assert first == "0"
        pids = {program.pid, int(worker)}
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: not any(lease.pid in pids for lease in stage.leases()), "their leases to expire")
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        said, _ = program.communicate("go on\n", timeout=PATIENCE_S)
        assert said.split() == [str(number) for number in range(1, 100)]
        assert program.returncode == 0
