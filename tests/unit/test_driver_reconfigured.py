"""A driver that adopts under another configuration: what changes at once, and what is said of the rest."""

from __future__ import annotations

import grp
import json
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmdriver._native import ffi, lib
from shmdriver.cli.app import run
from shmdriver.errors import Reason
from tests.driver_rig import Rig


@pytest.fixture
def rigs() -> Iterator[list[Rig]]:
    """Closed at the end, whichever way it comes."""
    made: list[Rig] = []
    yield made
    for rig in made:
        rig.close()


def config_text(rig: Rig) -> str:
    return bytes(ffi.string(lib.shmd_authority_config(rig.view.authority))).decode()


def many_streams(count: int) -> dict[str, Any]:
    return {f"streams.stream-{number:05d}.profile": "default" for number in range(count)}


@pytest.mark.fault(63, how="limits raised in the successor's configuration")
def test_raised_limits_are_said_not_to_hold_and_how_they_would(rigs: list[Rig], instance_name: str) -> None:
    rig = Rig(
        instance_name, policies__limits__clients=2, policies__limits__streams=2, policies__limits__leases=2
    )
    rigs.append(rig)
    client = rig.client()
    rig.client()
    client.consume("a")
    client.consume("b")
    rig.crash()
    rig.logged.clear()
    limits: dict[str, Any] = {f"policies.limits.{name}": 8 for name in ("clients", "streams", "leases")}
    rig.start(**limits)
    for name in limits:
        assert any(f"{name} is 8, but 2 holds" in line for line in rig.logged), rig.logged
    held = tomllib.loads(config_text(rig))["policies"]["limits"]
    assert {held[name] for name in ("clients", "streams", "leases")} == {2}
    assert "8 by command line, policies.limits.clients" in config_text(rig)
    with pytest.raises(AssertionError, match=r"2 of 2 clients .* a new instance"):
        rig.client()
    for refused in (client.consume("c"), client.consume("a")):  # no stream more, no lease more
        assert refused.reason == Reason.LIMIT
        assert "tables keep their size" in refused.text


def test_lowered_limits_hold_at_once_and_say_how_far_they_can_be_raised(
    rigs: list[Rig], instance_name: str
) -> None:
    rig = Rig(instance_name, policies__limits__clients=4)
    rigs.append(rig)
    rig.client()
    rig.crash()
    rig.logged.clear()
    rig.start(policies__limits__clients=1)
    assert not any("holds" in line for line in rig.logged)
    with pytest.raises(AssertionError, match=r"raise policies\.limits\.clients \(up to 4\) and restart"):
        rig.client()


def test_modes_and_group_of_all_segments_follow_the_configuration(
    rigs: list[Rig], instance_name: str
) -> None:
    rig = Rig(instance_name)
    rigs.append(rig)
    rig.client().produce()

    def modes() -> dict[str, int]:
        paths = Path("/dev/shm").glob(f"shmd.{instance_name}.*")
        return {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in paths}

    private = dict.fromkeys((".authority", ".control", ".data", ".gates"), 0o600)
    assert modes() == private
    rig.crash()
    rig.start(shm__mode="0660", shm__group=grp.getgrgid(os.getegid()).gr_name)
    assert modes() == {".authority": 0o640, ".control": 0o600, ".data": 0o660, ".gates": 0o660}
    assert any("mode 0660" in line for line in rig.logged)
    rig.crash()
    rig.start()
    assert modes() == private


def test_configuration_that_has_grown_is_published_whole(rigs: list[Rig], instance_name: str) -> None:
    rig = Rig(instance_name)
    rigs.append(rig)
    rig.crash()
    rig.start(**many_streams(500))
    assert len(tomllib.loads(config_text(rig))["streams"]) == 500


@pytest.mark.fault(63, how="a configuration longer than its room in the authority")
def test_configuration_too_long_for_its_room_is_cut_between_lines_and_said_so(
    rigs: list[Rig], instance_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = Rig(instance_name)
    rigs.append(rig)
    rig.crash()
    rig.start(**many_streams(2000))
    assert any("lines of the configuration do not fit" in line for line in rig.logged)
    text = config_text(rig)
    assert text.splitlines()[-1].startswith("# cut: ")
    assert 200 < len(tomllib.loads(text)["streams"]) < 2000
    assert run(["config", "-i", instance_name, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["driver"]["instance"] == instance_name
    assert "shmdriver: cut: " in shown.err


def test_long_configuration_gets_the_room_that_it_needs(rigs: list[Rig], instance_name: str) -> None:
    rig = Rig(instance_name, **many_streams(2000))
    rigs.append(rig)
    assert len(tomllib.loads(config_text(rig))["streams"]) == 2000


def test_raised_number_of_consumers_holds_from_the_next_epoch_on(rigs: list[Rig], instance_name: str) -> None:
    rig = Rig(instance_name, profiles__default__max_consumers=1, policies__grace_ms=0)
    rigs.append(rig)
    client = rig.client()
    producer, first = client.produce(), client.consume()
    refused = client.consume()
    assert (refused.reason, "next producer" in refused.text) == (Reason.LIMIT, True)
    rig.crash()
    rig.start(profiles__default__max_consumers=3)
    assert client.consume().reason == Reason.LIMIT  # the open epoch has one gate
    rig.publish(producer, 1)
    client.detach(producer)
    again = client.produce()
    assert again.code == lib.SHMD_CODE_OK
    assert client.consume().reason == Reason.LIMIT  # the epoch before, which is not drained, has one gate
    rig.leave(first, producer.epoch)
    rig.tick(500)  # it is drained, and its grace is over
    assert [client.consume().code for _ in range(2)] == [lib.SHMD_CODE_OK] * 2
    assert rig.epoch(again).hot.gate_mask == 0b110  # not the first, which does not follow
    assert client.consume().reason == Reason.LIMIT


def test_lowered_number_of_consumers_keeps_those_that_are_there(rigs: list[Rig], instance_name: str) -> None:
    rig = Rig(instance_name, profiles__default__max_consumers=4)
    rigs.append(rig)
    client = rig.client()
    for _ in range(3):
        client.consume()
    rig.crash()
    rig.start(profiles__default__max_consumers=1)
    producer = client.produce()
    assert rig.epoch(producer).gate_count == 3
    assert rig.epoch(producer).hot.gate_mask == 0b111


def test_clients_that_sleep_by_the_former_interval_do_not_expire_by_the_new_timeout(
    rigs: list[Rig], instance_name: str
) -> None:
    rig = Rig(instance_name, policies__heartbeat_interval_ms=4000)
    rigs.append(rig)
    client = rig.client()
    rig.crash()
    rig.start(policies__heartbeat_interval_ms=100, policies__lease_timeout_ms=300)
    rig.tick(3900)
    assert rig.client_state(client) == lib.SHMD_CLIENT_ALIVE
    client.beat()
    rig.tick(100)
    assert rig.client_state(client) == lib.SHMD_CLIENT_ALIVE
    rig.tick(1000)  # from its next beat on the new ones hold
    assert rig.client_state(client) == lib.SHMD_CLIENT_FREE, "nothing of it is set aside"


def test_limit_of_memory_that_nobody_set_is_not_called_a_setting(rigs: list[Rig], instance_name: str) -> None:
    rig = Rig(instance_name)
    rigs.append(rig)
    rig.driver._admission._segment_bytes_max = 1
    refused = rig.client().produce()
    assert refused.reason == Reason.NO_MEMORY
    assert "half of what /dev/shm had free when the driver started: shm.max_bytes is not set" in refused.text
