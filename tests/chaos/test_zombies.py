"""Stopped processes that wake up too late: producers in mid-write, clients in the middle of a request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.lanes import DEFECTS
from tests.chaos.stage import Stage, Zygote, received, wait_until
from tests.chaos.test_matrix import Matrix, matrix
from tests.chaos.zombies import STOPS, ZombieLane
from tests.fault_plugin import save

__all__ = ["matrix"]

CYCLES = 1000
LANES = 4


@pytest.mark.fault(5)
def test_zombie_producer_learns_that_it_is_revoked_and_writes_nothing(
    matrix: Matrix, fault_cycles: Callable[[int], None]
) -> None:
    matrix.play((ZombieLane, list(STOPS)))
    fault_cycles(matrix.tally.total("stops"))


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.fault(5)
def test_a_thousand_zombies(matrix: Matrix, fault_cycles: Callable[[int], None]) -> None:
    each = list(STOPS) * (CYCLES // LANES // len(STOPS) + 1)
    matrix.play(*[(ZombieLane, each)] * LANES)
    stops = matrix.tally.total("stops")
    print(matrix.tally.table())
    assert stops >= CYCLES
    assert [matrix.tally.total(defect) for defect in DEFECTS] == [0, 0, 0, 0]
    rows = matrix.tally.rows.items()
    save("kills", {f"{name}, stopped": {**row, "who": f"{row['who']}, stopped"} for name, row in rows})
    fault_cycles(stops)


@pytest.mark.fault(27)
@pytest.mark.parametrize("point", ["control.written", "control.committed"])
def test_client_that_stops_in_the_middle_of_a_request_holds_up_nobody_else(
    striking: Zygote, tmp_path: Path, instance_name: str, point: str
) -> None:
    with Stage(instance_name, tmp_path, striking) as stage:
        stage.start_driver()
        sleeper = stage.consumer("s", attached=False, failpoint=f"{point}:1:stop")
        wait_until(lambda: sleeper.is_stopped, "the client to be stopped")
        for writer in range(1, 4):
            stage.producer(f"other{writer}", writer, count=1).wait_for("closed")
        sleeper.go_on()
        sleeper.wait_for("attached")
        producer = stage.producer("s", 9, count=100)
        received(sleeper, 99, 9)
        producer.wait_for("closed")
        assert sleeper.words("failure") == []
