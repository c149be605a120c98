"""An exception at any call of an attach or of a start: all of it is undone, and the next one succeeds."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

from shmdriver._native import lib
from shmdriver.driver import admission
from shmdriver.driver.config import Config
from shmdriver.driver.driver import Driver
from tests.driver_rig import Requester, Rig

UNDOING = ("__exit__", "pop_all", "callback")


class Injected(Exception):
    """No rejection, and nothing that anybody expects."""


class Injection:
    """Raises at the n-th call that is made inside a block; ``has_fired`` says whether there were so many."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.has_fired = False
        self.where = ""

    def __enter__(self) -> Self:
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "c_call") or self.has_fired:
            return
        if frame.f_code.co_flags & inspect.CO_GENERATOR:  # also resumed to be closed, where nobody catches
            return
        if frame.f_code.co_name in UNDOING or "contextlib" in frame.f_code.co_filename:
            return
        if "hypothesis" in frame.f_code.co_filename:
            return  # its callback of the collector, where nobody catches
        if event == "c_call" and getattr(argument, "__name__", "") == "close":
            return  # of a descriptor: that is undoing, and is done even when it says that it failed
        self._left -= 1
        if self._left == 0:
            self.has_fired = True
            self.where = f"{frame.f_code.co_name}:{frame.f_lineno} {event} {argument}"
            sys.setprofile(None)
            raise Injected


@pytest.fixture
def rig(instance_name: str) -> Iterator[Rig]:
    rig = Rig(instance_name)
    yield rig
    rig.close()


def during(target: Any, name: str, injection: Injection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Injects while that method runs."""
    real = getattr(target, name)

    def injected(*arguments: Any) -> Any:
        with injection:
            return real(*arguments)

    monkeypatch.setattr(target, name, injected)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def state_of(rig: Rig) -> tuple[Any, ...]:
    names = sorted(path.name for path in Path("/dev/shm").glob(f"shmd.{rig.instance}.*"))
    streams = [
        (s.name, int(s.record.gates_used), len(s.epochs), len(s.leases)) for s in rig.driver.tables.streams
    ]
    masks = [
        (int(e.hot.gate_mask), int(e.hot.wired_mask), int(e.hot.sleep_mask))
        for s in rig.driver.tables.streams
        for e in s.epochs.values()
    ]
    return names, streams, masks, len(rig.driver.tables.leases), descriptors()


def try_each_call(
    rig: Rig,
    method: str,
    attach: Callable[[], Any],
    undo: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    before = state_of(rig)
    for number in range(2, 2000):  # the first one is the call of the method itself
        injection = Injection(number)
        with monkeypatch.context() as patch:
            during(admission.Admission, method, injection, patch)
            answer = attach()
        if not injection.has_fired:
            assert answer.code == lib.SHMD_CODE_OK
            undo(answer)
            return number
        if answer.code != lib.SHMD_CODE_OK:
            assert state_of(rig) == before, injection.where
            answer = attach()
        assert answer.code == lib.SHMD_CODE_OK, f"{injection.where}: {answer.text}"
        undo(answer)
        rig.tick(20_000, step_ms=5000)
        assert state_of(rig) == before, injection.where
    raise AssertionError("it never ends")


def beating(client: Requester, act: Callable[[], Any]) -> Callable[[], Any]:
    def beats() -> Any:
        client.beat()
        return act()

    return beats


@pytest.mark.fault(51, how="an exception at each call of a consumer's attach")
def test_consumer_attach_that_fails_anywhere_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = rig.client()
    rig.overrides["policies.lease_timeout_ms"] = 3_600_000
    client.produce()
    calls = try_each_call(
        rig, "_attach_consumer", beating(client, client.consume), client.detach, monkeypatch
    )
    assert calls > 50


@pytest.mark.fault(51, how="an exception at each call of a producer's attach")
@pytest.mark.parametrize("step", ["_provision", "finish"])
def test_producer_attach_that_fails_anywhere_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    client = rig.client()
    client.consume()
    client.detach(client.produce(), aborted=True)
    rig.tick(20_000, step_ms=5000)
    client = rig.client()
    calls = try_each_call(
        rig,
        step,
        beating(client, client.produce),
        lambda answer: client.detach(answer, aborted=True),
        monkeypatch,
    )
    assert calls > 50


@pytest.mark.fault(51, how="an exception at each call of a driver's start")
def test_start_that_fails_anywhere_gives_everything_back(instance_name: str) -> None:
    before = descriptors()
    for number in range(1, 5000):
        driver = Driver(Config.load(env={}, overrides={"driver.instance": instance_name}))
        injection = Injection(number)
        try:
            with injection:
                driver.start()
        except Injected:
            # Before it had the lock: an empty object, which the next one takes.
            left = list(Path("/dev/shm").glob(f"shmd.{instance_name}.*"))
            assert [path.stat().st_size for path in left] == [0] * len(left), injection.where
            assert len(left) <= 1
            assert descriptors() == before, injection.where
            continue
        driver.request_shutdown("end")
        driver.run()
        assert descriptors() == before, injection.where
        if not injection.has_fired:
            assert number > 200
            return
