"""A few seeds of the simulation, and that it can fail (docs/SIMULATION.md)."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import run_seed
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
