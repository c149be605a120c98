"""The kill matrix: every failpoint, with real processes, checksummed and numbered messages, and witnesses.

0 torn, 0 duplicated, 0 reordered, 0 committed messages lost to the reliable consumer; nothing left behind.
`make test` strikes once at each place, `make stress` ten thousand times (or CHAOS_KILLS). CHAOS_SEED repeats
where it struck.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.driver_lanes import DriverLane, EndsLane
from tests.chaos.lanes import DEFECTS, ConsumerLane, ProducerLane, Tally
from tests.chaos.plan import CONSUMER, DRIVER, ENDS, PLACES, PRODUCER, Place, names_in_sources
from tests.chaos.stage import Stage, Zygote
from tests.fault_plugin import save

SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
KILLS = int(os.environ.get("CHAOS_KILLS", "10000"))
LaneType = type[ProducerLane | ConsumerLane | DriverLane | EndsLane]


class Matrix:
    """Lanes at once, each with an instance of its own."""

    def __init__(self, zygote: Zygote, folder: Path, make_instance_name: Callable[[], str]) -> None:
        self._zygote, self._folder, self._name = zygote, folder, make_instance_name
        self.tally = Tally()

    def play(self, *lanes: tuple[LaneType, list[Place]]) -> None:
        """Strikes at every place of every lane. Fails when a message was torn, repeated, late or lost."""
        print(f"CHAOS_SEED={SEED}")
        with ThreadPoolExecutor(len(lanes)) as pool:
            seeds = [random.Random(SEED + number) for number in range(len(lanes))]
            running = [
                pool.submit(self._lane, lane, places, rng)
                for (lane, places), rng in zip(lanes, seeds, strict=True)
            ]
        for lane in running:
            lane.result()
        assert self.tally.texts == []
        assert {place.label for _, places in lanes for place in places} == set(self.tally.rows)

    def _lane(self, lane: LaneType, places: list[Place], rng: random.Random) -> None:
        name = self._name()
        folder = self._folder / name
        folder.mkdir()
        with Stage(name, folder, self._zygote, **lane.SETTINGS) as stage:
            stage.start_driver()
            lane(stage, "s", self.tally, rng).run(rng.sample(places, len(places)))
            if stage.driver in stage.actors:  # it has not ended yet: it does, and nothing is left
                assert stage.driver is not None
                stage.driver.send_signal(signal.SIGTERM)
                assert stage.driver.join() == 0, stage.driver.log_text()
                assert stage.segments() == []


@pytest.fixture
def matrix(striking: Zygote, tmp_path: Path, make_instance_name: Callable[[], str]) -> Matrix:
    return Matrix(striking, tmp_path, make_instance_name)


def test_every_failpoint_of_the_sources_is_in_the_matrix() -> None:
    names = names_in_sources()
    assert len(names) >= 25
    assert {place.name for place in PLACES} == names


@pytest.mark.fault(1, 2, 3, how="failpoint kill at every store of a publish and a claim")
@pytest.mark.fault(4, how="failpoint kill at every step of a producer's attach")
def test_producer_killed_anywhere(matrix: Matrix, fault_cycles: Callable[[int], None]) -> None:
    matrix.play((ProducerLane, list(PRODUCER)))
    fault_cycles(matrix.tally.total("kills"))


@pytest.mark.fault(4, how="failpoint kill at every step of a consumer's attach")
@pytest.mark.fault(7, how="failpoint kill at every store of a gate")
def test_consumer_killed_anywhere(matrix: Matrix, fault_cycles: Callable[[int], None]) -> None:
    matrix.play((ConsumerLane, list(CONSUMER)))
    fault_cycles(matrix.tally.total("kills"))


@pytest.mark.fault(13, how="failpoint kill between any two stores of a table, under load")
@pytest.mark.fault(12, how="failpoint kill, the next driver adopts, under load")
def test_driver_killed_anywhere_under_load(matrix: Matrix, fault_cycles: Callable[[int], None]) -> None:
    matrix.play((DriverLane, list(DRIVER[::2])), (DriverLane, list(DRIVER[1::2])))
    fault_cycles(matrix.tally.total("kills"))


@pytest.mark.fault(13, how="failpoint kill at its first start, in draining, at its end, in `--fresh`")
@pytest.mark.fault(20, how="failpoint kill at its end, the next start cleans up")
def test_driver_killed_at_a_beginning_or_an_end(matrix: Matrix, fault_cycles: Callable[[int], None]) -> None:
    matrix.play((EndsLane, list(ENDS)))
    fault_cycles(matrix.tally.total("kills"))


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.fault(1, 2, 3, 4, 7, 12, 13, 20, how="10,000 failpoint kills at once on five instances")
def test_ten_thousand_kills(matrix: Matrix, fault_cycles: Callable[[int], None]) -> None:
    began = time.monotonic()

    def times(places: tuple[Place, ...], of_ten_thousand: int) -> list[Place]:
        return list(places) * -(-of_ten_thousand * KILLS // 10_000)

    matrix.play(
        (ProducerLane, times(PRODUCER, 125)), (ProducerLane, times(PRODUCER, 125)),
        (ConsumerLane, times(CONSUMER, 130)), (DriverLane, times(DRIVER, 20)), (EndsLane, times(ENDS, 30)),
    )  # fmt: skip
    kills = matrix.tally.total("kills")
    print(matrix.tally.table())
    print(f"{kills:,} kills in {time.monotonic() - began:.0f} s, seed {SEED}")
    assert kills >= KILLS
    assert [matrix.tally.total(defect) for defect in DEFECTS] == [0, 0, 0, 0]
    save("kills", matrix.tally.rows)
    fault_cycles(kills)
