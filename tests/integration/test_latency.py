"""Publish-to-read latencies, as tools see them: of every message once, and only with timestamps."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import shmdriver
from shmdriver.observe import Instance
from shmdriver.observe.latency import LatencyStatus, _summary

TICK = np.dtype([("n", "<i8")])


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def latencies(client, stream="s"):
    with Instance(client.instance) as view:
        epoch = view.stream(stream).current
        assert epoch is not None
        return [gate.latency for gate in epoch.gates]


def test_percentiles_of_a_histogram_are_upper_ends_of_buckets():
    assert _summary([0] * 256) is None
    one = [0] * 256
    one[3] = 1
    assert _summary(one) == LatencyStatus(1, 3, 3, 3, 3)
    many = [0] * 256
    many[5], many[6], many[7], many[100] = 985, 10, 4, 1
    found = _summary(many)
    assert found is not None
    assert (found.count, found.p50_ns, found.p99_ns, found.p999_ns) == (1000, 5, 6, 7)
    assert found.max_ns > 1000


def test_every_message_is_counted_by_whoever_reads_it(client):
    with (
        client.consumer("s") as into,
        client.consumer("s", delivery="lossy") as other,
        client.producer("s", timestamps=True) as out,
    ):
        assert latencies(client) == [None, None]
        for n in range(300):
            out.publish(b"%d" % n)
        assert [into.read().seq for _ in range(300)] == list(range(300))
        assert sum(1 for _ in iter(lambda: other.read(timeout=0), None)) == 300
        for found in latencies(client):
            assert found.count == 300
            assert 0 < found.p50_ns <= found.p99_ns <= found.p999_ns <= found.max_ns < 120_000_000_000


def test_records_are_counted_as_well(client):
    with client.consumer("s") as into, client.producer("s", dtype=TICK, timestamps=True) as out:
        out.publish(np.arange(100).view(TICK))
        assert len(into.read_batch()) == 100
        (found,) = latencies(client)
        assert found.count == 100


def test_without_timestamps_there_is_nothing_to_see(client):
    with client.consumer("s") as into, client.producer("s") as out:
        out.publish(b"x")
        into.read()
        assert latencies(client) == [None]
        shown = stat(client, "leases")
        assert "p99.9" not in shown


def stat(client, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "shmdriver", "stat", *arguments, "-i", client.instance],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def test_stat_shows_them(client):
    with client.consumer("s") as into, client.producer("s", timestamps=True) as out:
        out.publish(b"x")
        into.read()
        shown = stat(client, "leases")
        assert "p50" in shown
        assert "p99.9" in shown
        (stream,) = json.loads(stat(client, "streams", "--json"))
        latency = stream["epochs"][0]["gates"][0]["latency"]
        assert latency["count"] == 1
        assert latency["p50_ns"] == latency["p999_ns"] > 0
