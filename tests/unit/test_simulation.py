"""A few seeds of the simulation, and that it can fail (docs/SIMULATION.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from shmdriver._native import lib
from tests.simulation.__main__ import run_seed
from tests.simulation.actors import CREATE, Process
from tests.simulation.handles import FOLLOW
from tests.simulation.leftovers import SHM, collect_dead, instance_of, is_gone
from tests.simulation.mutations import MUTATIONS, applied, mutant
from tests.simulation.rules import Violation
from tests.simulation.world import World

SEEDS = range(12)
FOUND_SOON = (
    "a lease id is given twice",
    "a revoke is not announced",
    "who rings is not looked at",
    "a client's former connection stays open",
    "a process that cannot be looked at is taken for dead",
)
SEEDS_TO_FIND = 8


@pytest.mark.fault(74, how="a lease check right after each idle check that found nothing, in random worlds")
def test_all_rules_hold_for_a_few_seeds():
    messages = leases = crashes = adoptions = 0
    for seed in SEEDS:
        world, report = run_seed(seed)
        assert not report, report
        messages += world.counts["messages"]
        leases += world.counts["leases"]
        crashes += world.counts["crashes"]
        adoptions += world.counts["adoptions"]
    assert min(messages, leases, crashes, adoptions) > len(SEEDS)  # it was a simulation of something


def test_a_seed_replays_exactly():
    assert run_seed(4)[0].trace == run_seed(4)[0].trace


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_fit_the_source_as_it_stands(name):
    assert callable(mutant(name))  # raises where the text is not found; `make simulate-mutations` runs all


@pytest.mark.parametrize("name", FOUND_SOON)
def test_a_broken_driver_is_found_with_its_seed(name):
    with applied(name):
        reports = (run_seed(seed)[1] for seed in range(SEEDS_TO_FIND))
        report = next(filter(None, reports), "")
    assert "Violation" in report
    assert "make simulate SEED=" in report


class Scene:
    """One client and its driver, which is killed where it is told: nothing here is drawn from a seed."""

    def __init__(self) -> None:
        self.world = World(0)
        self.killed_at = ""  # a failpoint
        vars(self.world.kernel)["_failpoint"] = self._failpoint
        vars(self.world)["_deliver"] = Process.receive

    def _failpoint(self, name: bytes) -> None:
        if name.decode() == self.killed_at:
            self.killed_at = ""
            self.world.kernel.crash(name.decode())

    def begin(self) -> None:
        world = self.world
        world.start()
        self.client = Process(world.boot, world.kernel.spawn(), world.rng, world.clock.now_ns)
        world.boot.processes.append(self.client)
        assert self.client.session.begin(world.clock.now_ns)
        world.tick(1)
        world._step(self.client)
        assert self.client.connected

    def ask(self, kind: int, role: int, **fields: Any) -> int:
        """A request about stream a; its correlation id."""
        raw = self.client.request(kind, self.world.clock.now_ns, role=role, stream=b"a", **fields)
        assert self.client.ask(raw)
        self.client.go_on(self.world.clock.now_ns)
        return int(raw.correlation_id)

    def produce(self) -> int:
        return self.ask(lib.SHMD_REQUEST_ATTACH, lib.SHMD_ROLE_PRODUCER, flags=CREATE)

    def consume(self) -> None:
        """Whoever reads an epoch keeps it from being retired as soon as it is sealed."""
        fields = {"delivery": lib.SHMD_DELIVERY_RELIABLE, "start": lib.SHMD_START_NEWEST}
        wait = lib.SHMD_WAIT_SPIN
        self.ask(lib.SHMD_REQUEST_ATTACH, lib.SHMD_ROLE_CONSUMER, flags=CREATE | FOLLOW, wait=wait, **fields)
        self.world.tick(1)

    def kill_driver(self) -> None:
        """Between two ticks."""
        self.world.kernel.where = "rest"
        self.world._killed()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    with scene.world.kernel.installed():
        try:
            scene.begin()
            yield scene
        finally:
            scene.world._clean()


def test_an_end_whose_event_a_kill_took_is_excused_even_if_the_lease_began_in_the_killed_tick(scene):
    world, boot = scene.world, scene.world.boot
    scene.consume()
    attach = scene.produce()
    boot.given_up.add(attach)
    scene.ask(lib.SHMD_REQUEST_DETACH, lib.SHMD_ROLE_PRODUCER, target_correlation_id=attach)
    scene.killed_at = "lease.ended"
    world.tick(1)
    assert world.driver is None
    assert len(boot.leases) == 1, "no scan saw the producer's lease live"
    world.start()  # and announces the seal
    assert boot.epochs[1, 1].state == lib.SHMD_EPOCH_SEALED


def test_an_end_that_comes_after_a_kill_is_not_excused_by_it(scene):
    world = scene.world
    scene.consume()
    scene.produce()
    world.tick(1)
    scene.kill_driver()
    world.start()
    scene.client.die(world.clock.now_ns)
    with applied("a revoke is not announced"), pytest.raises(Violation, match="before the announce"):
        world.tick(200)


def test_leases_of_a_client_that_had_expired_when_its_driver_was_killed_end_with_the_next_one(scene):
    world, boot = scene.world, scene.world.boot
    scene.consume()
    scene.client.beats_not = True
    scene.killed_at = "lease.ending"
    for _ in range(40):
        if world.driver is not None:
            world.tick(100)
    assert world.driver is None
    assert [model.live for model in boot.leases.values()] == [True]
    world.start()
    assert [model.live for model in boot.leases.values()] == [False]


STAYS = """
import sys
from tests.simulation.world import World
world = World(1)
with world.kernel.installed():
    world.start()
print(world.instance, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_simulation_left_is_collected_and_what_a_living_one_uses_is_not():
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", STAYS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    )
    try:
        kept, left = (process.stdout.readline().strip() for process in (first, second) if process.stdout)
        assert [kept, left] == [instance_of(first.pid), instance_of(second.pid)]
        second.kill()
        second.wait()
        removed = collect_dead()
        assert any(name.startswith(f"shmd.{left}.") for name in removed)
        assert not list(SHM.glob(f"shmd.{left}.*"))
        assert list(SHM.glob(f"shmd.{kept}.*"))
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert [name for name in collect_dead() if name.startswith(f"shmd.{kept}.")]


def test_only_a_pid_of_this_namespace_and_its_start_time_prove_a_simulation_gone():
    pid = os.getpid()
    own = [int(number, 16) for number in instance_of(pid).split("-")[2:]]
    started, pid_namespace, time_namespace = own
    assert not is_gone(pid, *own)
    assert is_gone(pid, started + 1, pid_namespace, time_namespace)
    assert not is_gone(pid, started + 1, pid_namespace + 1, time_namespace)
    assert not is_gone(pid, started + 1, pid_namespace, time_namespace + 1)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(ended.pid, *own), "a zombie without a living thread has ended"
    ended.wait()
    assert is_gone(ended.pid, *own)
