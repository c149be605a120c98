"""What `observe.Instance` sees of a running instance, and that it disturbs nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shmdriver.client import Client, embedded
from shmdriver.errors import ShmDriverError
from shmdriver.observe import Instance, Rates
from tests.segments import path_of


@pytest.fixture
def client(instance_name: str) -> Iterator[Client]:
    with embedded(instance_name) as connected:
        yield connected


@pytest.fixture
def view(client: Client) -> Iterator[Instance]:
    with Instance(client.instance) as opened:
        yield opened


def test_gates_show_lag_and_what_views_hold(client: Client, view: Instance) -> None:
    with client.producer("s", slots=8, max_message=100_000) as producer, client.consumer("s") as consumer:
        for _ in range(4):
            producer.publish(bytes(100_000))
        held = [consumer.read(timeout=60) for _ in range(3)]
        epoch = view.stream("s").current
        assert epoch is not None
        (gate,) = epoch.gates
        assert (epoch.head, gate.position, gate.cursor) == (4, 0, 3)
        assert (gate.lag, gate.held, gate.behind) == (1, 3, 4)
        assert epoch.slowest == gate
        assert epoch.bytes == 400_000
        held.clear()


def test_what_a_late_consumer_has_still_to_read_is_shown(client: Client, view: Instance) -> None:
    with client.producer("s", slots=8) as producer:
        for _ in range(4):
            producer.publish(b"x")
        with client.consumer("s", start="oldest") as consumer:
            epoch = view.stream("s").current
            assert epoch is not None
            (gate,) = epoch.gates
            assert (gate.position, gate.cursor, gate.lag, gate.held, gate.behind) == (4, 0, 4, 0, 4)
            assert all(consumer.read(timeout=60) for _ in range(4))
            epoch = view.stream("s").current
            assert epoch is not None
            assert (epoch.gates[0].cursor, epoch.gates[0].lag) == (4, 0)


def test_lossy_consumers_are_never_the_slowest(client: Client, view: Instance) -> None:
    with client.producer("s") as producer, client.consumer("s", delivery="lossy"):
        producer.publish(b"x")
        epoch = view.stream("s").current
        assert epoch is not None
        assert [gate.reliable for gate in epoch.gates] == [False]
        assert epoch.slowest is None


def test_back_pressure_names_the_gate(client: Client, view: Instance) -> None:
    with client.producer("s", slots=64) as producer, client.consumer("s"):
        while producer.try_publish(b"x"):
            pass
        epoch = view.stream("s").current
        assert epoch is not None
        assert epoch.blocked is not None
        assert epoch.blocked.gate == epoch.gates[0].gate
        assert not epoch.blocked.no_consumer


def test_epochs_stay_visible_until_they_are_drained(client: Client, view: Instance) -> None:
    with client.consumer("s", follow=True) as consumer:
        for _ in range(2):
            with client.producer("s") as producer:
                producer.publish(b"x")
        stream = view.stream("s")
        assert [epoch.state for epoch in stream.epochs] == ["sealed", "sealed"]
        assert [epoch.end_reason for epoch in stream.epochs] == ["closed", "closed"]
        assert [epoch.sealed_seq for epoch in stream.epochs] == [1, 1]
        assert stream.producer is None
        assert [lease.follow for lease in stream.consumers] == [True]
        assert [bytes(consumer.read(timeout=60) or b"") for _ in range(2)] == [b"x", b"x"]


def test_schema_and_rates_are_shown(client: Client, view: Instance) -> None:
    tick = np.dtype([("px", "<f8")])
    rates = Rates()
    with client.producer("ticks", dtype=tick) as producer:
        assert rates.update(view.streams()) == {}
        producer.publish(np.zeros(100, tick))
        streams = view.streams()
        assert "px" in streams[0].schema
        rate = rates.update(streams)["ticks"]
        assert rate.messages > 0
        assert rate.bytes == pytest.approx(rate.messages * 8)


def test_an_epoch_whose_segments_are_gone_says_so(client: Client, view: Instance) -> None:
    with client.producer("s"):
        with Instance(client.instance) as other:
            epoch = other.stream("s").current
        assert epoch is not None
        hidden = Path(f"/dev/shm{epoch.data_name}")
        aside = hidden.with_name(f"{hidden.name}.aside")
        hidden.rename(aside)
        try:
            epoch = view.stream("s").current
            assert epoch is not None
            assert epoch.problem
            assert epoch.state == "open"
        finally:
            aside.rename(hidden)
        epoch = view.stream("s").current
        assert epoch is not None
        assert not epoch.problem


def test_a_segment_of_another_size_is_not_mapped(client: Client, view: Instance) -> None:
    with client.producer("s"):
        with Instance(client.instance) as other:
            epoch = other.stream("s").current
        assert epoch is not None
        path = Path(f"/dev/shm{epoch.gates_name}")
        aside = path.with_name(f"{path.name}.aside")
        path.rename(aside)
        try:
            path.write_bytes(b"\0" * 4096)
            epoch = view.stream("s").current
            assert epoch is not None
            assert "the directory says" in epoch.problem
        finally:
            aside.rename(path)


def test_the_view_is_read_only(client: Client, view: Instance) -> None:
    with client.producer("s") as producer:
        producer.publish(b"x")
        view.streams()
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        authority = [line for line in maps if path_of(client.instance, "authority").name in line]
        assert any(line.split()[1].startswith("r--s") for line in authority)
    before = path_of(client.instance, "control").read_bytes()[256:512]
    (
        view.clients(),
        view.leases(),
        view.streams(),
        view.events(),
        view.errors(),
        view.counters(),
        view.config_text(),
    )
    assert path_of(client.instance, "control").read_bytes()[256:512] == before


def test_copies_are_consistent_while_everything_changes(client: Client, view: Instance) -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            with client.producer("churn") as producer, client.consumer("churn"):
                producer.publish(b"x")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            for lease in view.leases(ended=True):
                assert lease.stream == "churn"
                assert lease.role in ("producer", "consumer")
                assert lease.pid > 0
            for stream in view.streams():
                assert [epoch.epoch for epoch in stream.epochs] == sorted(
                    {epoch.epoch for epoch in stream.epochs}
                )
                for epoch in stream.epochs:
                    assert epoch.slots >= 2
                    assert epoch.state in ("open", "sealing", "sealed")
    finally:
        stop.set()
        thread.join()


def test_events_can_be_read_on_from_where_one_was(client: Client, view: Instance) -> None:
    seen = view.events()
    assert seen
    assert [event.seq for event in seen] == list(range(seen[0].seq, seen[0].seq + len(seen)))
    client.producer("s").close()
    news = view.events(after=seen[-1].seq)
    assert news[0].seq == seen[-1].seq + 1
    assert {"attach_response", "detach_response"} <= {event.kind for event in news if event.stream == "s"}


def test_a_fresh_driver_is_followed(instance_name: str) -> None:
    with embedded(instance_name) as first:
        view = Instance(first.instance)
        boot_id = view.boot_id
        assert not view.reopen_if_replaced()
    assert view.driver().status == "stopped"
    with pytest.raises(ShmDriverError, match="no driver runs"):
        view.reopen_if_replaced()
    with embedded(instance_name):
        assert view.reopen_if_replaced()
        assert view.boot_id != boot_id
        assert view.driver().status == "running"
    view.close()
    with pytest.raises(ShmDriverError, match="was closed"):
        view.driver()
