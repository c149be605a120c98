"""A driver and a consumer in a real frozen cgroup: each tool says so, and which file thaws it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

import shmdriver
from shmdriver.driver.collect import collect
from tests.chaos.stage import wait_until
from tests.integration.test_cli_tools import SHMDRIVER, DriverProcess, fill
from tests.real_cgroups import FrozenCgroup, freezable
from tests.tool import tool, tool_json


@pytest.fixture(params=[True, False], ids=["v1", "v2"])
def cgroup(request: pytest.FixtureRequest) -> Iterator[FrozenCgroup]:
    with freezable(is_v1=request.param) as made:
        yield made


@pytest.fixture
def driver(instance_name: str) -> Iterator[DriverProcess]:
    process = DriverProcess(instance_name)
    yield process
    process.process.kill()
    process.process.communicate()
    collect(instance_name)


@pytest.mark.fault(31, how="a frozen cgroup, v1 and v2")
def test_a_frozen_driver_is_paused_and_goes_on_when_it_is_thawed(
    driver: DriverProcess, cgroup: FrozenCgroup
) -> None:
    advice = f"thaw its cgroup: `{cgroup.command}`"
    cgroup.freeze(driver.process.pid)
    found = tool_json("stat", "-i", driver.instance)["driver"]
    assert (found["status"], found["alive"], found["advice"]) == ("paused", True, advice)
    assert found["process"]["cgroup"] == str(cgroup.folder)
    checked = tool("stat", "--check", "-i", driver.instance)
    assert checked.returncode == 2
    assert "frozen by cgroup" in checked.stdout
    (doctor,) = (each for each in tool_json("doctor") if each["name"] == "instances")
    assert doctor["level"] == "warn"
    told = (tool("stat", "-i", driver.instance).stdout, checked.stdout, doctor["advice"])
    for text in told:
        assert advice in text
        assert "dead" not in text
        assert "kill" not in text
    assert "frozen by cgroup" in tool("gc", "-i", driver.instance).stdout, "its segments are left alone"
    subprocess.run(["sh", "-c", found["process"]["thaw"]], check=True)
    with shmdriver.connect(driver.instance, timeout=60) as client:
        client.producer("s", attach_timeout=60).close()
    assert tool_json("stat", "-i", driver.instance)["driver"]["status"] == "running"


def test_why_tells_to_thaw_a_frozen_consumer(driver: DriverProcess, cgroup: FrozenCgroup) -> None:
    with shmdriver.connect(driver.instance) as client, client.producer("quotes", slots=64) as producer:
        sub = subprocess.Popen(
            [*SHMDRIVER, "sub", "quotes", "-i", driver.instance], stdout=subprocess.DEVNULL, stderr=sys.stderr
        )
        try:
            wait_until(lambda: [lease.state for lease in client.leases()] == ["active"] * 2, "both leases")
            cgroup.freeze(sub.pid)
            fill(producer)
            found = tool_json("why", "quotes", "-i", driver.instance)
            assert found["verdict"] == "consumer_stopped"
            assert found["advice"] == [f"thaw its cgroup: `{cgroup.command}`"]
            assert f"which is frozen by cgroup {cgroup.folder}" in found["summary"]
            clients = tool("stat", "clients", "-i", driver.instance).stdout
            assert f"frozen by cgroup {cgroup.folder}" in clients
            assert f"({sub.pid}) frozen" in tool("stat", "leases", "-i", driver.instance).stdout
            cgroup.thaw()
            producer.publish(b"it reads again", timeout=60)
        finally:
            cgroup.thaw()
            sub.kill()
            sub.wait()
