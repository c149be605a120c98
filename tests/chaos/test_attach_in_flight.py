"""Attaches whose driver goes before it answers: an error once that is proved, a wait while one may adopt."""

from __future__ import annotations

import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmdriver
from shmdriver._native import ffi, lib
from shmdriver.driver.collect import collect
from shmdriver.driver.shm import SegmentMap, open_segment
from shmdriver.errors import DriverUnavailable
from tests.chaos.stage import PATIENCE_S, Stage, Zygote, wait_until
from tests.driver_rig import View
from tests.integration.test_client_processes import in_child
from tests.segments import path_of, paths_of, segment_name

NEVER_S = 86_400.0  # nothing here ends because time is over


class Attach:
    """An attach in a thread of its own."""

    def __init__(self, client: shmdriver.Client) -> None:
        self._client = client
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.made: shmdriver.Producer | None = None
        self.error: Exception | None = None
        self._thread.start()

    def _run(self) -> None:
        try:
            self.made = self._client.producer("s", slots=8, attach_timeout=NEVER_S)
        except Exception as error:
            self.error = error

    def result(self) -> shmdriver.Producer:
        """What it made; raises what it raised."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "it waits for a driver that will never answer"
        if self.error is not None:
            raise self.error
        assert self.made is not None
        return self.made


class Watch:
    """The control rings of a driver's clients, also after it has gone."""

    def __init__(self, instance: str) -> None:
        self._instance, self.view = instance, View(instance)

    def unread(self) -> list[int]:
        """The correlation ids of attaches that nobody has served."""
        found: list[int] = []
        for path in paths_of(self._instance, "control"):
            fd, size = open_segment(segment_name(path), writable=False)
            mapped = SegmentMap.of(fd, size, writable=False)
            os.close(fd)
            control = mapped.view("shmd_control_t *")
            for position in range(self._cursor(int(control.client_id)), int(control.tail)):
                request = control.requests[position % lib.SHMD_CLIENT_REQUESTS]
                if request.kind == lib.SHMD_REQUEST_ATTACH:
                    found.append(int(request.correlation_id))
            mapped.close()
        return found

    def _cursor(self, client_id: int) -> int:
        authority = self.view.authority
        records = (lib.shmd_authority_client(authority, index) for index in range(authority.client_max))
        return next(int(record.control_cursor) for record in records if record.client_id == client_id)

    def await_attach(self) -> int:
        """Until an attach stands in the ring that nobody has read; its correlation id."""
        return wait_until(self.unread, "an attach to be in flight")[0]

    def leases_granted(self, correlation_id: int) -> set[int]:
        """To that request, since this watch began."""
        answers = [event for event in self.view.events() if event.kind == lib.SHMD_EVENT_ATTACH_RESPONSE]
        return {int(event.lease_id) for event in answers if event.correlation_id == correlation_id}


@pytest.fixture
def connect(stage: Stage) -> Iterator[Callable[..., shmdriver.Client]]:
    made: list[shmdriver.Client] = []

    def make(**options: Any) -> shmdriver.Client:
        made.append(shmdriver.connect(stage.instance, timeout=PATIENCE_S, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def watch(stage: Stage) -> Iterator[Watch]:
    watch = Watch(stage.instance)
    yield watch
    watch.view.close()


def in_flight(stage: Stage, client: shmdriver.Client, watch: Watch) -> tuple[Attach, int]:
    """An attach that its driver, which is stopped, has not read, and its correlation id."""
    assert stage.driver is not None
    stage.driver.stop()
    return Attach(client), watch.await_attach()


def kill(stage: Stage) -> None:
    assert stage.driver is not None
    stage.driver.kill()


def move_to_another_pid_namespace(instance: str) -> None:
    """As if the driver had been in a container: its pid proves nothing here."""
    at = int(ffi.offsetof("shmd_authority_t", "driver_pid_namespace"))
    with (
        path_of(instance, "authority").open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as memory,
    ):
        memory[at : at + 8] = (1).to_bytes(8, "little")


# ---- the driver was killed


@pytest.mark.fault(12, how="kill -9 with an attach unanswered, the next driver adopts")
def test_attach_is_answered_by_the_driver_that_adopts(
    stage: Stage, connect: Callable[..., shmdriver.Client], watch: Watch
) -> None:
    client = connect(reconnect=True)
    before = client.boot_id
    attach, correlation_id = in_flight(stage, client, watch)
    kill(stage)
    stage.start_driver()
    producer = attach.result()
    assert watch.leases_granted(correlation_id) == {int(producer._info().lease_id)}, "the same request"
    assert client.boot_id == before


@pytest.mark.fault(12, how="kill -9 with an attach unanswered")
def test_attach_of_a_client_that_does_not_reconnect_fails_when_its_driver_is_dead(
    stage: Stage, connect: Callable[..., shmdriver.Client], watch: Watch
) -> None:
    attach, _ = in_flight(stage, connect(), watch)
    kill(stage)
    with pytest.raises(DriverUnavailable, match="is dead; start it again"):
        attach.result()


@pytest.mark.fault(
    12, how="kill -9 with an attach unanswered, segments removed or superseded, another driver"
)
@pytest.mark.parametrize("how", ["removed", "removed, in another pid namespace", "superseded"])
def test_attach_goes_over_to_the_driver_that_serves_in_place_of_its_own(
    stage: Stage, connect: Callable[..., shmdriver.Client], watch: Watch, how: str
) -> None:
    client = connect(reconnect=True)
    before = client.boot_id
    attach, _ = in_flight(stage, client, watch)
    kill(stage)
    if "namespace" in how:
        move_to_another_pid_namespace(stage.instance)
    if "removed" in how:
        collect(stage.instance)
    stage.start_driver(**{"driver.boot": "adopt" if "removed" in how else "fresh"})
    assert attach.result().epoch == 1
    assert client.boot_id != before


@pytest.mark.fault(12, 44, how="kill -9 of a driver in another PID namespace with an attach unanswered")
def test_attach_fails_when_its_driver_in_another_namespace_is_dead(
    stage: Stage, connect: Callable[..., shmdriver.Client], watch: Watch
) -> None:
    client = connect()
    attach, _ = in_flight(stage, client, watch)
    move_to_another_pid_namespace(stage.instance)
    assert client.driver_alive, "its lock is held"
    kill(stage)
    with pytest.raises(DriverUnavailable, match="is dead; start it again"):
        attach.result()
    assert not client.driver_alive


def test_attach_goes_on_when_the_lock_object_of_a_living_driver_is_removed(
    stage: Stage, connect: Callable[..., shmdriver.Client], watch: Watch
) -> None:
    client = connect()
    attach, _ = in_flight(stage, client, watch)
    path_of(stage.instance, "authority").unlink()
    assert client.driver_alive
    assert stage.driver is not None
    stage.driver.go_on()
    assert attach.result().epoch == 1


@pytest.mark.fault(12, how="kill -9 of a driver with more attaches in flight than a client's ring holds")
def test_attaches_that_find_no_room_in_their_ring_fail_when_the_driver_is_dead(
    stage: Stage, connect: Callable[..., shmdriver.Client], watch: Watch
) -> None:
    client, room = connect(), int(lib.SHMD_CLIENT_REQUESTS)
    assert stage.driver is not None
    stage.driver.stop()
    attaches = [Attach(client) for _ in range(room + 2)]
    wait_until(lambda: len(watch.unread()) == room, "the ring to be full")
    kill(stage)
    for attach in attaches:
        with pytest.raises(DriverUnavailable, match="is dead; start it again"):
            attach.result()


# ---- the driver ended


@pytest.mark.fault(13, how="an attach between a driver's last look and its end")
@pytest.mark.parametrize("reconnect", [False, True])
def test_attach_that_came_too_late_for_a_driver_that_ends(
    striking: Zygote, tmp_path: Path, instance_name: str, reconnect: bool
) -> None:
    with Stage(instance_name, tmp_path, striking) as stage:
        driver = stage.start_driver(failpoint="stop.began:1:stop")
        with shmdriver.connect(instance_name, reconnect=reconnect, timeout=PATIENCE_S) as client:
            before = client.boot_id
            watch = Watch(instance_name)
            driver.send_signal(signal.SIGTERM)  # nobody has a lease: it drains at once
            wait_until(lambda: driver.is_stopped, "the driver to be stopped in its end")
            attach = Attach(client)
            watch.await_attach()
            driver.go_on()
            assert driver.join() == 0
            if reconnect:
                stage.start_driver()
                assert attach.result().epoch == 1
                assert client.boot_id != before
            else:
                with pytest.raises(DriverUnavailable, match="was stopped; start one again"):
                    attach.result()
            watch.view.close()


@pytest.mark.fault(13, how="a driver that ends between an attach's answer and its mapping")
@pytest.mark.parametrize("role", ["producer", "consumer"])
def test_attach_whose_driver_ends_before_it_is_mapped_says_so(
    striking: Zygote, tmp_path: Path, instance_name: str, role: str
) -> None:
    with Stage(instance_name, tmp_path, striking, **{"policies.shutdown_timeout_ms": 50}) as stage:
        driver = stage.start_driver()
        if role == "consumer":
            stage.producer("s", 1, linger=True)
        late = stage.actor(role, stream="s", writer=1, failpoint="attach.answered:1:stop")
        wait_until(lambda: late.is_stopped, "an attach to be answered")
        driver.send_signal(signal.SIGTERM)
        assert driver.join() == 0
        late.go_on()
        assert late.join() != 0
        assert "DriverUnavailable" in late.log_text()


# ---- the client's process forks


@pytest.mark.fault(45, how="os.fork with an attach unanswered")
def test_attach_stays_the_parents_when_its_process_forks_meanwhile(
    stage: Stage, connect: Callable[..., shmdriver.Client], watch: Watch
) -> None:
    client = connect()
    reader = client.consumer("s")
    attach, _ = in_flight(stage, client, watch)
    assert in_child(lambda: reader.read(timeout=0)).startswith("ForkedHandleError")
    assert stage.driver is not None
    stage.driver.go_on()
    producer = attach.result()
    assert in_child(lambda: producer.publish(b"the child's")).startswith("ForkedHandleError")
    producer.publish(b"the parent's")
    message = reader.read(timeout=PATIENCE_S)
    assert message is not None
    assert bytes(message) == b"the parent's"
