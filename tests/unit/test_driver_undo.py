"""An exception at any call of an attach or of a start: all of it is undone, and the next one succeeds."""

from __future__ import annotations

import inspect
import os
import resource
import secrets
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

from shmdriver._native import lib
from shmdriver.driver import admission
from shmdriver.driver.config import Config
from shmdriver.driver.desk import RequestDesk
from shmdriver.driver.driver import Driver
from shmdriver.driver.memory import Completion, EpochMemory, InlineMemory
from shmdriver.errors import Reason, ShmDriverError
from tests.driver_rig import Requester, Rig
from tests.segments import paths_of, runtime_folders

UNDOING = ("__exit__", "pop_all", "callback", "close")


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
        if event == "c_call" and getattr(argument, "__name__", "") in ("close", "__exit__"):
            return  # of a descriptor or a lock: that is undoing, and no handler raises right before it
        self._left -= 1
        if self._left == 0:
            self.has_fired = True
            self.where = f"{frame.f_code.co_name}:{frame.f_lineno} {event} {argument}"
            sys.setprofile(None)
            raise Injected


@pytest.fixture
def rig(instance_name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(admission, "shortage", lambda *_, **__: "")  # hundreds of calls that only read
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


def fail_once(real: Any) -> Any:
    """That method, which raises before it does anything when it is called for the first time."""
    left = [Injected]
    function = real.__func__ if isinstance(real, staticmethod) else real

    def failing(*arguments: Any) -> Any:
        if left:
            raise left.pop()
        return function(*arguments)

    return staticmethod(failing) if isinstance(real, staticmethod) else failing


class Held(InlineMemory):
    """Hands nothing back while it is held."""

    is_held = True

    def completions(self) -> Iterator[Completion]:
        return iter(()) if self.is_held else super().completions()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mappings(instance: str) -> list[str]:
    """The segments of an instance that this process has mapped."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f"/shmd.{instance}." in line]


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
    owner: type,
    method: str,
    attach: Callable[[], Any],
    undo: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    before = state_of(rig)
    for number in range(2, 2000):  # the first one is the call of the method itself
        injection = Injection(number)
        with monkeypatch.context() as patch:
            during(owner, method, injection, patch)
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
        rig,
        admission.Admission,
        "_attach_consumer",
        beating(client, client.consume),
        client.detach,
        monkeypatch,
    )
    assert calls > 50


@pytest.mark.fault(51, how="an exception at each call of a producer's attach")
@pytest.mark.parametrize(
    ("owner", "step"),
    [(admission.Admission, "_provision"), (admission.Admission, "finish"), (Driver, "_finish_attach")],
)
def test_producer_attach_that_fails_anywhere_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, owner: type, step: str
) -> None:
    client = rig.client()
    client.consume()
    client.detach(client.produce(), aborted=True)
    rig.tick(20_000, step_ms=5000)
    client = rig.client()
    calls = try_each_call(
        rig,
        owner,
        step,
        beating(client, client.produce),
        lambda answer: client.detach(answer, aborted=True),
        monkeypatch,
    )
    assert calls > 50


@pytest.mark.fault(51, how="the call that goes on with an attach fails")
@pytest.mark.parametrize(
    ("owner", "step"),
    [(admission.Admission, "request_of"), (RequestDesk, "guarded"), (Driver, "_finish_attach")],
)
def test_attach_whose_memory_is_there_is_not_waiting_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, owner: type, step: str
) -> None:
    """Memory of two attaches is there; the first one fails before anything of it was looked at."""
    client = rig.client()
    rig.driver._memory = memory = Held()
    vars(rig.driver._admission)["_memory"] = memory
    raws = [client.attach_request(name, lib.SHMD_ROLE_PRODUCER) for name in ("a", "b")]
    for raw in raws:
        client.send(raw)
    rig.tick()
    before = len(list(Path("/dev/shm").glob(f"shmd.{rig.instance}.*.data")))
    assert before == len(raws)
    memory.is_held = False
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail_once(vars(owner)[step]))
        rig.tick()
    rig.tick()
    assert rig.answer(raws[1].correlation_id).code == lib.SHMD_CODE_OK
    assert len(list(Path("/dev/shm").glob(f"shmd.{rig.instance}.*.data"))) == 1
    client.send(raws[0])  # as its client does, when no answer has come
    rig.tick()
    assert rig.answer(raws[0].correlation_id).code == lib.SHMD_CODE_OK


@pytest.mark.fault(51, how="an exception at each call of a driver's start")
def test_start_that_fails_anywhere_gives_everything_back(instance_name: str) -> None:
    before = descriptors()
    config = Config.load(env={}, overrides={"driver.instance": instance_name})
    for number in range(1, 5000):
        driver = Driver(config)
        injection = Injection(number)
        try:
            with injection:
                driver.start()
        except Injected:
            left = [*paths_of(instance_name), *runtime_folders(lambda name: name == instance_name)]
            assert not left, injection.where
            assert descriptors() == before, injection.where
            assert not mappings(instance_name), injection.where
            continue
        driver.request_shutdown("end")
        driver.run()
        assert descriptors() == before, injection.where
        if not injection.has_fired:
            assert number > 200
            return


# ---- an adopting start


@pytest.fixture
def small_rig(instance_name: str) -> Iterator[Rig]:
    """Its tables have few rows: each of them is a call."""
    limits = {"clients": 4, "leases": 8, "streams": 4}
    rig = Rig(instance_name, **{f"policies__limits__{name}": most for name, most in limits.items()})
    yield rig
    rig.close()


def populate(rig: Rig) -> None:
    """Whatever an adoption looks at: open and sealed epochs, a stream that waits, an ended lease."""
    client = rig.client()
    follow = lib.SHMD_ATTACH_CREATE | lib.SHMD_ATTACH_FOLLOW
    consumers = [client.consume(name, flags=follow) for name in ("open", "sealed", "waiting", "open")]
    client.produce("open")
    client.detach(client.produce("sealed"))
    lease = rig.driver.tables.leases.live(consumers[-1].lease_id)
    assert lease is not None
    rig.driver.tables.tenure.revoke(lease, Reason.REVOKED, "test", rig.clock.now_ns)
    rig.tick(200)


def found_by(driver: Driver, instance: str) -> tuple[Any, ...]:
    """What a driver has of its tables, and which segments there are."""
    tables = driver.tables
    streams = {
        stream.name: (
            int(stream.record.gates_used),
            sorted((lease_id, lease.state) for lease_id, lease in stream.leases.items()),
            [(epoch.number, epoch.state, int(epoch.hot.wired_mask)) for epoch in stream.in_order],
        )
        for stream in tables.streams
    }
    names = sorted(path.name for path in Path("/dev/shm").glob(f"shmd.{instance}.*"))
    clients = [client.client_id for client in tables.clients]
    return streams, clients, len(tables.leases.all_quarantined), names


def fail_adopting(rig: Rig, first: int, stride: int) -> int:
    """Starts that adopt, each with an exception at one call; after each another one adopts it all."""
    populate(rig)
    expected = found_by(rig.driver, rig.instance)
    rig.crash()
    left = descriptors(), mappings(rig.instance)
    for number in count(first, stride):
        driver, injection = rig.make_driver(), Injection(number)
        try:
            with injection:
                driver.start()
        except Injected:
            pass
        driver.close()
        assert (descriptors(), mappings(rig.instance)) == left, injection.where
        rig.start()
        assert found_by(rig.driver, rig.instance) == expected, injection.where
        rig.crash()
        assert (descriptors(), mappings(rig.instance)) == left, injection.where
        if not injection.has_fired:
            return number
    raise AssertionError("it never ends")


@pytest.mark.fault(51, how="an exception at some of the calls of an adopting start")
def test_adopting_start_that_fails_leaves_everything_to_the_next(small_rig: Rig, fault_cycles) -> None:
    stride = 97
    fault_cycles(fail_adopting(small_rig, 1 + secrets.randbelow(stride), stride) // stride)


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.fault(51, how="an exception at each call of an adopting start")
def test_adopting_start_that_fails_at_any_call_leaves_everything_to_the_next(
    small_rig: Rig, fault_cycles
) -> None:
    fault_cycles(fail_adopting(small_rig, 1, 1))


@pytest.mark.fault(51, how="no descriptor is left while an epoch is adopted")
def test_epoch_that_cannot_be_opened_now_is_adopted_by_a_later_start(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an adopting driver cannot see it does not give up: its clients read and write on."""
    populate(rig)
    expected = found_by(rig.driver, rig.instance)
    rig.crash()
    driver = rig.make_driver()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    real = EpochMemory.open

    def run_short(*arguments: Any) -> EpochMemory:
        next_one = os.open("/dev/null", os.O_RDONLY)
        os.close(next_one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, limit[1]))
        try:
            return real(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)

    with monkeypatch.context() as patch:
        patch.setattr(EpochMemory, "open", run_short)
        with pytest.raises(ShmDriverError, match="Too many open files"):
            driver.start()
    rig.start()
    assert found_by(rig.driver, rig.instance) == expected
