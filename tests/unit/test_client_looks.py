"""How long an awaited read looks for itself before it arms its fd."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from shmdriver.client import aio


def consumer() -> Any:
    return SimpleNamespace(_misses=0, _waits_unlooked=0)


def looks(one: Any, waits: int, *, found: bool) -> list[bool]:
    """Which of so many waits began with a look, all of which end the same."""
    began = []
    for _ in range(waits):
        began.append(aio.look_ns(one) > 1)
        if began[-1]:
            aio.note_look(one, found=found)
    return began


def test_looks_that_find_something_go_on() -> None:
    assert all(looks(consumer(), 100, found=True))


def test_after_looks_in_vain_one_wait_in_five_has_one() -> None:
    began = looks(consumer(), 10_000, found=False)
    assert sum(began[-1000:]) == 200


def test_one_that_finds_something_again_brings_them_back() -> None:
    one = consumer()
    looks(one, 10_000, found=False)
    while not looks(one, 1, found=True)[0]:
        pass
    assert all(looks(one, 100, found=True))
