"""Requests in work when their driver dies: what a successor refuses, and what it serves again."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from shmdriver._native import lib
from shmdriver.driver import admission, clients, desk, memory, work
from shmdriver.driver.config import Config
from shmdriver.driver.door import Door
from shmdriver.driver.driver import Driver
from shmdriver.driver.events import EventLog
from shmdriver.driver.memory import InlineMemory, Job
from shmdriver.driver.streams import Stream
from shmdriver.errors import Reason
from tests.driver_rig import Requester, Rig

PRODUCER, CONSUMER = lib.SHMD_ROLE_PRODUCER, lib.SHMD_ROLE_CONSUMER


class Killed(BaseException):
    """The driver's process ends here."""


def dies(*_: Any, **__: Any) -> Any:
    raise Killed


class Later(InlineMemory):
    """A helper thread's worker, in steps: ``work`` runs the job that was submitted first."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def work(self) -> None:
        super().submit(self.jobs.popleft())

    def close(self) -> None:
        self.jobs.clear()  # with the process


@pytest.fixture
def killed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Ticks once, dies at that function, and starts the next driver."""

    def kill(owner: Any, name: str, act: Callable[[], object] | None = None) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies)
            with pytest.raises(Killed):
                (act or rig.tick)()
        rig.restart()

    return kill


def with_worker(rig: Rig) -> Later:
    """A driver whose memory is made later."""
    worker = Later()
    rig.driver.close()
    config = Config.load(env={}, overrides={**rig.overrides, "driver.instance": rig.instance})
    rig.driver = Driver(config, clock=rig.clock, memory=worker, log=rig.logged.append, token=rig.token)
    rig.driver.start()
    return worker


def notes(rig: Rig) -> list[int]:
    """Correlation ids of what is noted as in work."""
    entries = rig.view.authority.work[0 : lib.SHMD_WORK_REMEMBERED]
    return [int(entry.correlation_id) for entry in entries if entry.state]


def again(client: Requester, raw: Any) -> SimpleNamespace:
    """The same request, sent once more, and its answer."""
    return client.ask(raw)


def test_attach_whose_memory_a_driver_died_over_is_refused_by_its_successor(
    rig: Rig, killed: Callable[..., None]
) -> None:
    client, other = rig.client(), rig.client()
    bystander = other.produce("bystander")
    raw = client.attach_request("s", PRODUCER)
    client.send(raw)
    killed(memory, "create_segment")
    refused = again(client, raw)
    assert (refused.code, refused.reason) == (lib.SHMD_CODE_REJECTED, Reason.DRIVER_DIED)
    assert "died while it made 114688 bytes for this attach" in refused.text
    assert any("died while request" in line and "114688 bytes" in line for line in rig.logged)
    assert rig.epoch_state(bystander) == lib.SHMD_EPOCH_OPEN
    assert other.produce("other").code == lib.SHMD_CODE_OK
    assert client.produce("s").code == lib.SHMD_CODE_OK, "attaching again is a new request"


@pytest.mark.parametrize(
    ("role", "owner", "name"),
    [
        (PRODUCER, memory, "create_segment"),
        (PRODUCER, admission.Admission, "_grant"),
        (CONSUMER, admission, "check_consumer_schema"),
    ],
)
def test_client_that_asks_by_another_request_is_told_once(
    rig: Rig, killed: Callable[..., None], role: int, owner: Any, name: str
) -> None:
    """As one does that attaches anew by itself: or it would kill driver after driver."""
    client, other = rig.client(), rig.client()
    client.send(client.attach_request("s", role))
    killed(owner, name)
    rig.clock.advance_ms(6000)  # it has given up: nobody reads that request from the ring any more
    others = PRODUCER + CONSUMER - role
    for innocent, stream, attach in ((client, "s", others), (client, "t", role), (other, "u", role)):
        assert innocent.ask(innocent.attach_request(stream, attach)).code == lib.SHMD_CODE_OK
    anew = client.attach_request("s", role)
    client.send(anew)
    assert again(client, anew).reason == Reason.DRIVER_DIED, "also when it comes twice"
    rig.restart()
    assert again(client, anew).reason == Reason.DRIVER_DIED
    assert client.ask(client.attach_request("s", role)).code == lib.SHMD_CODE_OK


def test_another_client_may_have_the_stream_over_which_a_driver_died(
    rig: Rig, killed: Callable[..., None]
) -> None:
    client, other = rig.client(), rig.client()
    client.send(client.attach_request("s", PRODUCER))
    killed(memory, "create_segment")
    assert other.produce("s").code == lib.SHMD_CODE_OK


def test_refused_attach_stays_refused_over_any_number_of_drivers(
    rig: Rig, killed: Callable[..., None]
) -> None:
    client = rig.client()
    raw = client.attach_request("s", PRODUCER)
    client.send(raw)
    killed(memory, "create_segment")
    for _ in range(3):
        assert again(client, raw).reason == Reason.DRIVER_DIED
        client.send(client.attach_request("t", CONSUMER))
        killed(admission, "check_consumer_schema")  # in the middle of something else
    assert again(client, raw).reason == Reason.DRIVER_DIED


def test_only_the_attach_in_work_is_refused_and_not_those_that_wait_for_the_worker(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = with_worker(rig)
    first, second = rig.client(), rig.client()
    raws = [first.attach_request("a", PRODUCER), second.attach_request("b", PRODUCER)]
    first.send(raws[0])
    second.send(raws[1])
    rig.tick()
    with monkeypatch.context() as patch:
        patch.setattr(memory, "create_segment", dies)
        with pytest.raises(Killed):
            worker.work()
    assert notes(rig) == [raws[0].correlation_id]
    rig.restart()
    assert again(first, raws[0]).reason == Reason.DRIVER_DIED
    assert again(second, raws[1]).code == lib.SHMD_CODE_OK


def test_attach_that_waits_for_its_grant_when_the_driver_dies_is_served(rig: Rig) -> None:
    worker = with_worker(rig)
    client = rig.client()
    raw = client.attach_request("s", PRODUCER)
    client.send(raw)
    rig.tick()
    worker.work()  # the memory is there
    assert notes(rig) == []
    rig.restart()
    assert again(client, raw).code == lib.SHMD_CODE_OK


@pytest.mark.parametrize("made", ["at once", "by the helper thread"])
def test_attach_in_whose_grant_a_driver_died_is_refused_by_its_successor(
    rig: Rig, killed: Callable[..., None], made: str
) -> None:
    worker = with_worker(rig) if made != "at once" else None
    client, other = rig.client(), rig.client()
    bystander = other.consume("s")
    raw = client.attach_request("s", PRODUCER)
    client.send(raw)
    if worker is not None:
        rig.tick()
        worker.work()
    killed(Stream, "publish_epoch")  # its lease stands in the tables, its epoch does not
    refused = again(client, raw)
    assert (refused.code, refused.reason) == (lib.SHMD_CODE_REJECTED, Reason.DRIVER_DIED)
    assert refused.text.startswith(f"a driver (pid {os.getpid()}) died while serving this request")
    assert rig.lease_state(bystander) in (lib.SHMD_LEASE_ATTACHED, lib.SHMD_LEASE_ACTIVE)
    assert other.produce("s").code == lib.SHMD_CODE_OK, "nothing of it is left"


def test_attach_whose_memory_comes_with_another_request_leaves_that_one_unsuspected(
    rig: Rig, killed: Callable[..., None]
) -> None:
    worker = with_worker(rig)
    first, second = rig.client(), rig.client()
    raws = [first.attach_request("a", PRODUCER), second.attach_request("b", CONSUMER, flags=0)]
    first.send(raws[0])
    rig.tick()
    worker.work()
    second.send(raws[1])
    killed(admission.Admission, "_grant")
    assert again(first, raws[0]).reason == Reason.DRIVER_DIED
    assert again(second, raws[1]).reason == Reason.UNKNOWN_STREAM


@pytest.mark.parametrize("role", [PRODUCER, CONSUMER])
def test_attach_that_was_granted_when_the_driver_died_is_answered(
    rig: Rig, killed: Callable[..., None], role: int
) -> None:
    client = rig.client()
    raw = client.attach_request("s", role)
    client.send(raw)
    killed(EventLog, "attach_response")
    answer = again(client, raw)
    assert answer.code == lib.SHMD_CODE_OK
    assert rig.lease_state(answer) == lib.SHMD_LEASE_ATTACHED
    client.confirm(answer)
    client.detach(answer)
    assert client.ask(client.attach_request("s", role)).code == lib.SHMD_CODE_OK, "it was told"


def test_answer_at_which_several_drivers_died_is_not_given_again(
    rig: Rig, killed: Callable[..., None]
) -> None:
    client = rig.client()
    raw = client.attach_request("s", CONSUMER)
    client.send(raw)
    for _ in range(work.DEATHS_MAX):
        killed(EventLog, "attach_response")
    assert again(client, raw).reason == Reason.DRIVER_DIED
    assert client.consume("s").code == lib.SHMD_CODE_OK


def test_consumers_attach_in_which_a_driver_died_is_refused_by_its_successor(
    rig: Rig, killed: Callable[..., None]
) -> None:
    client, other = rig.client(), rig.client()
    raw = client.attach_request("s", CONSUMER)
    client.send(raw)
    killed(Stream, "take_gate")
    refused = again(client, raw)
    assert (refused.code, refused.reason) == (lib.SHMD_CODE_REJECTED, Reason.DRIVER_DIED)
    assert other.consume("s").code == lib.SHMD_CODE_OK
    assert client.consume("s").code == lib.SHMD_CODE_OK, "attaching again is a new request"


def test_detach_is_served_until_several_drivers_have_died_at_it(
    rig: Rig, killed: Callable[..., None]
) -> None:
    client = rig.client()
    consumer = client.consume()
    detach = client.detach_request(consumer)
    client.send(detach)
    for _ in range(work.DEATHS_MAX):
        assert rig.lease_state(consumer) in (lib.SHMD_LEASE_ATTACHED, lib.SHMD_LEASE_ACTIVE)
        killed(desk.RequestDesk, "_own")  # the request stands in the ring yet
    rig.tick()
    refused = rig.answer(detach.correlation_id)
    assert refused.reason == Reason.DRIVER_DIED
    assert refused.text.startswith(f"{work.DEATHS_MAX} drivers (the last one: pid {os.getpid()}) died")
    assert client.detach(consumer).code == lib.SHMD_CODE_OK, "asking again is a new request"


def test_hello_at_which_a_driver_died_is_refused_and_others_are_let_in(
    rig: Rig, killed: Callable[..., None]
) -> None:
    stranger = Requester(rig)
    stranger.say(stranger.hello_message())
    killed(clients.ClientTable, "admit")
    assert stranger.hear() is None, "its connection ended with that driver"
    assert stranger.hello().reason == Reason.DRIVER_DIED
    assert rig.client().consume().code == lib.SHMD_CODE_OK
    assert Requester(rig).hello().code == lib.SHMD_CODE_OK, "connecting anew is another Hello"


def test_hello_whose_client_was_known_when_the_driver_died_is_answered(
    rig: Rig, killed: Callable[..., None]
) -> None:
    stranger = Requester(rig)
    stranger.say(stranger.hello_message())
    killed(Door, "answer")
    assert stranger.hear() is None
    assert stranger.hello().code == lib.SHMD_CODE_OK
    assert len(rig.driver.tables.clients) == 1


def test_attach_that_was_answered_before_its_driver_died_is_not_held_against_the_next_one(
    rig: Rig, killed: Callable[..., None]
) -> None:
    """The kill comes between the answer and the end of the note."""
    client = rig.client()
    rig.driver.set_maintenance(True, "a test")
    raw = client.attach_request("s", PRODUCER)
    client.send(raw)
    killed(work._Note, "__exit__")
    answers = [event.reason for event in rig.events if event.correlation_id == raw.correlation_id]
    assert answers == [Reason.MAINTENANCE]
    rig.clock.advance_ms(6000)  # nobody reads that request any more
    rig.driver.set_maintenance(False, "a test")
    rig.tick()
    assert client.produce("s").code == lib.SHMD_CODE_OK


def test_nothing_is_noted_once_requests_are_answered(rig: Rig) -> None:
    client = rig.client()
    answer = client.produce()
    client.consume()
    client.consume("t", shards=9999)  # refused
    client.detach(answer)
    assert notes(rig) == []
    rig.restart()
    assert not [line for line in rig.logged if "died while" in line]


def test_step_that_fails_is_no_death(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    client = rig.client()
    raw = client.attach_request("s", PRODUCER)

    def fails(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(memory, "create_segment", fails)
        assert client.ask(raw).code == lib.SHMD_CODE_INTERNAL_ERROR
    assert notes(rig) == []
    assert again(client, raw).code == lib.SHMD_CODE_OK


@pytest.mark.parametrize("stores", range(4))
def test_driver_killed_while_it_reads_the_notes_leaves_them_to_the_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, stores: int
) -> None:
    client = rig.client()
    raw = client.attach_request("s", PRODUCER)
    client.send(raw)
    left = stores
    store = work._store_state

    def counted(entry: Any, state: int) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        store(entry, state)

    with monkeypatch.context() as patch:
        patch.setattr(memory, "create_segment", dies)
        with pytest.raises(Killed):
            rig.tick()
    rig.crash()
    with monkeypatch.context() as patch:
        patch.setattr(work, "_store_state", counted)
        with pytest.raises(Killed):
            rig.start()
    rig.driver.close()
    rig.start()
    assert again(client, raw).reason == Reason.DRIVER_DIED
    entries = rig.view.authority.work[lib.SHMD_WORK_REMEMBERED : lib.SHMD_WORK_ENTRIES]
    assert [int(entry.deaths) for entry in entries if entry.state] == [1]


def test_deaths_that_are_remembered_make_room_for_later_ones(rig: Rig, killed: Callable[..., None]) -> None:
    client = rig.client()
    raws = [client.attach_request(f"s{number}", PRODUCER) for number in range(8)]
    for raw in raws:
        client.send(raw)
        killed(memory, "create_segment")
        assert again(client, raw).reason == Reason.DRIVER_DIED
        rig.clock.advance_ms(1)
    kept = int(lib.SHMD_WORK_ENTRIES - lib.SHMD_WORK_REMEMBERED)
    assert [again(client, raw).reason for raw in raws[-kept:]] == [Reason.DRIVER_DIED] * kept


# ---- an attach whose memory comes when the state refuses


@pytest.mark.parametrize(("event", "reason"), [("maintenance", Reason.MAINTENANCE), ("end", Reason.DRAINING)])
def test_attach_that_is_finished_in_a_state_that_refuses_is_told_that_states_reason(
    rig: Rig, event: str, reason: Reason
) -> None:
    worker = with_worker(rig)
    client = rig.client()
    holder = client.consume("other")  # so that draining takes its time
    raw = client.attach_request("s", PRODUCER)
    client.send(raw)
    rig.tick()
    if event == "maintenance":
        rig.driver.set_maintenance(True, "a test")
    else:
        rig.driver.request_shutdown("end", "a test")
        rig.driver._obey(rig.clock.now_ns)
    worker.work()
    rig.tick()
    refused = rig.answer(raw.correlation_id)
    assert refused.reason == reason
    assert ("maintenance" in refused.text) == (event == "maintenance")
    assert rig.lease_state(holder) == lib.SHMD_LEASE_ATTACHED
