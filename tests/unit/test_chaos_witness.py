"""The witnesses of the kill matrix: each kind of defect is found, and blamed on the right failpoint."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import pytest

from tests.chaos.lanes import ConsumerLane, ProducerLane, Tally
from tests.chaos.ledger import Ledger
from tests.chaos.payload import Board, payload
from tests.chaos.plan import PLACES, Fate, Place, Scene


class Ear:
    """Instead of the line to a test."""

    def __init__(self) -> None:
        self.heard: list[dict] = []

    def say(self, **words) -> None:
        self.heard.append(words)


@pytest.fixture
def ear() -> Ear:
    return Ear()


def ledger(ear, tmp_path, *, lossless) -> Ledger:
    return Ledger(ear, Board(tmp_path / "board"), lossless=lossless)


def test_a_run_in_order_is_no_failure(ear, tmp_path):
    book = ledger(ear, tmp_path, lossless=True)
    for writer in (1, 2):
        for number in range(40):
            book.enter(payload(writer, number))
    book.close_run()
    assert ear.heard == [{"writer": 1, "first": 0, "next": 40}, {"writer": 2, "first": 0, "next": 40}]


@pytest.mark.parametrize(
    ("numbers", "lossless", "found"),
    [
        ([0, 1, 1], True, ["duplicated"]),
        ([0, 1, 3], True, ["lost"]),
        ([0, 1, 3], False, []),
        ([0, 3, 2], False, ["reordered"]),
        ([0, 3, 3], False, ["duplicated"]),
    ],
)
def test_wrong_orders_are_told_apart(ear, tmp_path, numbers, lossless, found):
    book = ledger(ear, tmp_path, lossless=lossless)
    for number in numbers:
        book.enter(payload(7, number))
    assert [words["failure"] for words in ear.heard] == found


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: bytes(3) + data[3:], lambda _: b""])
def test_torn_messages_are_found(ear, tmp_path, spoil):
    ledger(ear, tmp_path, lossless=True).enter(spoil(payload(7, 3)))
    assert [words["failure"] for words in ear.heard] == ["torn"]


def witness(*runs):
    words = [{"writer": writer, "first": first, "next": end} for writer, first, end in runs]
    return SimpleNamespace(words=lambda key: words if key == "writer" else [])


def lane(kind, reliable, **fields):
    made = object.__new__(kind)
    made.reliable, made.lossy, made.tally, made.rng = reliable, witness(), Tally(), Random(1)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


SEEN = Place("slot.committed", Scene.PRODUCER, fate=Fate.SEEN)


@pytest.mark.parametrize(
    ("runs", "defect"),
    [
        ([(1, 0, 11), (2, 0, 5)], None),
        ([(1, 0, 10), (2, 0, 5)], "lost"),
        ([(1, 0, 12), (2, 0, 5)], "torn"),
        ([(1, 1, 11), (2, 0, 5)], "lost"),
        ([(2, 0, 5)], "lost"),
        ([(2, 0, 5), (1, 0, 11)], "reordered"),
    ],
)
def test_an_account_of_killed_producers_is_exact(runs, defect):
    made = lane(ProducerLane, witness(*runs), last=SEEN, _killed={1: (SEEN, 11, 11), 2: (SEEN, 5, 5)})
    made.account()
    (row,) = made.tally.rows.values() if defect else ({},)
    assert [name for name in ("torn", "duplicated", "reordered", "lost") if row.get(name)] == [
        name for name in (defect,) if name
    ]


def test_an_account_of_killed_consumers_misses_nothing():
    whole = [(writer, 0, ConsumerLane.COUNT) for writer in (1, 2)]
    place = Place("gate.stored", Scene.CONSUMER)
    for runs, texts in ((whole, 0), (whole[:1], 1), ([whole[0], (2, 0, 3)], 1)):
        made = lane(ConsumerLane, witness(*runs), last=place)
        made.account(3)
        assert len(made.tally.texts) == texts


def test_places_have_one_line_each_in_the_table():
    labels = [place.label for place in PLACES]
    assert len(labels) == len(set(labels))
