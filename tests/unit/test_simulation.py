"""A few seeds of the simulation, and that it can fail (docs/SIMULATION.md)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.__main__ import run_seed
from tests.simulation.leftovers import SHM, collect_dead, instance_of, is_gone
from tests.simulation.mutations import MUTATIONS, applied, mutant

SEEDS = range(12)
FOUND_SOON = (
    "a lease id is given twice",
    "a revoke is not announced",
    "a gate is free before its owner is proved gone",
)
SEEDS_TO_FIND = 8


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
    pid, started, namespace = (int(number) for number in instance_of(os.getpid()).split("-")[1:])
    assert not is_gone(pid, started, namespace)
    assert is_gone(pid, started + 1, namespace)
    assert not is_gone(pid, started + 1, namespace + 1)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert not is_gone(ended.pid, started, namespace), "a zombie's number is taken yet"
    ended.wait()
    assert is_gone(ended.pid, started, namespace)
