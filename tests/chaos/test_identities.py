"""Who is who, over the ends of drivers, programs and places: proved by the kernel, never by silence.

Silence ends nobody within ten minutes in these tests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmdriver.observe import Instance
from tests.chaos.stage import HEALTHY_S, ROOT, Actor, Stage, Zygote, moves_on, wait_until
from tests.chaos.visitors import usage
from tests.segments import SHM, paths_of, runtime_folder_of
from tests.tool import tool

ENDLESS: dict[str, Any] = {"policies.lease_timeout_ms": 600_000}
SMALL = {"slots": 256}
CALM: dict[str, Any] = {"listen_every": 16, "rest_s": 0.001}


def is_healthy(stage: Stage) -> bool:
    return tool("stat", "--check", "-i", stage.instance).returncode == 0


# ---- driver and clients, killed together


def processes(stage: Stage) -> list[Actor]:
    return [
        stage.producer("doomed", 7, options=SMALL, **CALM),
        stage.consumer("doomed"),
        stage.consumer("kept"),
    ]


def a_container(stage: Stage) -> list[Actor]:
    roles = [
        ["producer", {"stream": "doomed", "writer": 7, "options": SMALL, **CALM}],
        ["consumer", {"stream": "doomed"}],
        ["consumer", {"stream": "kept"}],
    ]
    container = stage.actor("container", roles=roles)
    wait_until(lambda: len(container.words("attached")) == len(roles), f"{container} to attach")
    return [container]


@pytest.mark.usefixtures("namespaces")
@pytest.mark.fault(12, 35, 44, how="SIGKILL of a driver and half of its clients; the others are stopped")
@pytest.mark.parametrize(("doomed", "reaped"), [(processes, True), (processes, False), (a_container, True)])
def test_dead_of_a_driver_that_died_with_them_are_proved_before_anybody_says_hello(
    make_stage: Callable[..., Stage], doomed: Callable[[Stage], list[Actor]], reaped: bool
) -> None:
    """The driver is stopped before it can see a death. The living say nothing until its successor serves."""
    stage = make_stage(ENDLESS)
    reader = stage.consumer("kept")
    writer = stage.producer("kept", 1, options=SMALL, **CALM)
    living = {lease.lease_id for lease in stage.leases()}
    dying = doomed(stage)
    dead = {lease.lease_id for lease in stage.leases()} - living
    assert (len(living), len(dead)) == (2, 3)
    assert stage.driver is not None
    for actor in (stage.driver, reader, writer):
        actor.stop()
    for actor in dying:
        if actor.role == "container":
            actor.kill_init()
            continue
        actor.send_signal(signal.SIGKILL)
        if reaped:
            actor.join()
    wait_until(lambda: not any(actor.alive for actor in dying), f"{dying} to be dead")
    stage.driver.kill()
    stage.start_driver()
    assert {lease.lease_id for lease in stage.leases()} == living
    ends = {lease.lease_id: lease.end_reason for lease in stage.leases(ended=True) if not lease.live}
    assert {lease: ends[lease] for lease in dead} == dict.fromkeys(dead, "died")
    with Instance(stage.instance) as view:
        assert view.driver().adoptions == 1
        assert len(view.clients(gone=True)) == len(living)
    for actor in (reader, writer):
        actor.go_on()
    moves_on(reader)
    writer.say("stop")
    sent = writer.wait_for("closed")["closed"]
    assert reader.wait_for("error")["error"] == "EndOfStream"
    assert reader.words("writer") == [{"writer": 1, "first": 0, "next": sent}]
    wait_until(lambda: is_healthy(stage), "health", HEALTHY_S)


# ---- a process that becomes another program, again and again

EXECS = """
import os, sys, shmdriver
instance, turn = sys.argv[1], int(sys.argv[2])
producer = shmdriver.connect(instance, name="producer", timeout=60).producer("s", slots=64)
consumer = shmdriver.connect(instance, name="consumer", timeout=60).consumer("s")
for number in range(20):
    producer.publish(b"%d %d" % (turn, number), timeout=60)
    assert bytes(consumer.read(timeout=60)) == b"%d %d" % (turn, number)
if turn:
    os.execv(sys.executable, [*sys.orig_argv[:-1], str(turn - 1)])
print("last", os.getpid(), flush=True)
sys.stdin.readline()
"""
EXECS_STRICT = {**ENDLESS, "policies.limits.clients": 2, "profiles.default.max_consumers": 1}


def exec_often(stage: Stage, times: int) -> None:
    """A producer and a consumer of a process with room for these two: a former image of it takes none."""
    assert stage.driver is not None
    driver = stage.driver.pid

    def holdings() -> tuple[Any, ...]:
        used = usage(driver)
        del used["resident_kib"]
        with Instance(stage.instance) as view:
            clients = [client.client_id for client in view.clients(gone=True)]
            kept = [lease.lease_id for lease in view.leases(ended=True) if lease.quarantined]
            epochs = [len(stream.epochs) for stream in view.streams()]
            return clients, view.leases(), kept, epochs, used, len(paths_of(stage.instance))

    def image_after_image(count: int) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", EXECS, stage.instance, str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "XDG_RUNTIME_DIR": str(stage.zygote.runtime)},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"last {process.pid}\n", "it stayed one process throughout"
            with Instance(stage.instance) as view:
                assert [client.pid for client in view.clients(gone=True)] == [process.pid] * 2
        finally:
            process.kill()
            process.communicate()
        wait_until(lambda: not stage.leases(), "the last image's leases to end")

    def is_settled() -> bool:
        with Instance(stage.instance) as view:
            return not view.stream("s").epochs

    image_after_image(1)
    wait_until(is_settled, "its epochs to be retired")
    before = holdings()
    image_after_image(times)
    wait_until(lambda: holdings() == before, f"all to be as before: {before}")
    wait_until(lambda: is_healthy(stage), "health", HEALTHY_S)


@pytest.mark.fault(87, how="a producer and a consumer, exec after exec, with room for one image")
def test_process_that_execs_is_never_refused_by_its_former_image(
    make_stage: Callable[..., Stage], fault_cycles: Callable[[int], None]
) -> None:
    exec_often(make_stage(EXECS_STRICT), 20)
    fault_cycles(20)


@pytest.mark.stress
@pytest.mark.fault(87, how="a producer and a consumer, exec after exec, with room for one image")
def test_process_that_execs_three_hundred_times(
    make_stage: Callable[..., Stage], fault_cycles: Callable[[int], None]
) -> None:
    exec_often(make_stage(EXECS_STRICT), 300)
    fault_cycles(300)


# ---- clients in another place than their driver's


@pytest.mark.usefixtures("namespaces")
@pytest.mark.fault(88, how="chroot, a mount namespace, entered before and after connect; the driver restarts")
@pytest.mark.parametrize("place", ["mounts", "chroot"])
@pytest.mark.parametrize("before", [True, False])
def test_client_in_another_place_goes_over_to_the_next_driver_by_dev_shm_alone(
    instance_name: str, tmp_path: Path, zygote: Zygote, place: str, before: bool
) -> None:
    with Stage(instance_name, tmp_path, zygote, **ENDLESS) as stage:
        stage.driver_arguments = {"place": "bare"}
        driver = stage.start_driver()
        (folder,) = SHM.glob(f"shmdriver-{os.geteuid()}.*/{instance_name}")
        client = stage.actor("wander", stream="s", place=place, before=before)
        client.wait_for("attached")
        leases = {lease.lease_id for lease in stage.leases()}
        driver.kill()
        stage.start_driver()
        assert {lease.lease_id for lease in stage.leases()} == leases
        client.say("another driver")
        client.wait_for("went_on")
        assert folder.is_dir()
        client.kill()
        wait_until(lambda: not stage.leases(), "its death to be proved")
        with Instance(instance_name) as view:
            reasons = {lease.end_reason for lease in view.leases(ended=True)}
        assert reasons == {"died"}


@pytest.mark.usefixtures("namespaces")
@pytest.mark.fault(88, how="chroot, a mount namespace, where the driver's folder is not to be found")
@pytest.mark.parametrize("place", ["mounts", "chroot"])
def test_client_that_does_not_see_its_drivers_folder_is_told_which_one(stage: Stage, place: str) -> None:
    folder = runtime_folder_of(stage.instance, stage.zygote.runtime)
    client = stage.actor("wander", stream="s", place=place, before=True, timeout=1)
    refused = client.wait_for("error")
    assert refused["error"] == "DriverUnavailable"
    assert str(folder) in refused["text"]
    assert stage.leases() == ()
