"""Streams that get the record of a stream before them: what its late users and its own users see."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

import shmdriver
from shmdriver.errors import LeaseRevoked, Reason
from shmdriver.observe import Instance as View
from shmdriver.observe import diagnose
from tests.integration.test_client_reconnect import PATIENCE_S, Instance, lease_of, revoke

BIG = 100_000


@pytest.fixture
def instance(instance_name: str) -> Iterator[Instance]:
    """Room for one stream."""
    instance = Instance(instance_name)
    instance.start(**{"policies.limits.streams": 1, "profiles.default.evict_after_ms": 20})
    yield instance
    instance.end()


@pytest.fixture
def client(instance: Instance) -> Iterator[shmdriver.Client]:
    with shmdriver.connect(instance.name, timeout=PATIENCE_S) as client:
        yield client


def test_revoked_producer_is_told_where_its_epoch_ended_although_another_stream_is_there(
    instance, client
) -> None:
    old = client.producer("old", max_message=16)
    old.publish(b"one")
    revoke(instance, lease_of(old))
    new = client.producer("new", max_message=16)
    assert (old.epoch, new.epoch) == (1, 2)
    with pytest.raises(LeaseRevoked) as caught:
        old.publish(b"two")
    assert (caught.value.reason, caught.value.sealed_seq) == (Reason.REVOKED, 1)


def test_view_that_was_overwritten_stays_invalid_although_another_stream_has_its_gate(client) -> None:
    consumer = client.consumer("old")
    producer = client.producer("old", max_message=BIG, slots=16, slow_consumer="evict")
    producer.publish(bytes(BIG))
    message = consumer.read(timeout=PATIENCE_S)
    for _ in range(100):
        producer.publish(b"x" * BIG, timeout=PATIENCE_S)
    producer.close()
    consumer.close()
    with client.producer("new"), client.consumer("new"):
        assert bytes(message.data) != bytes(BIG)
        assert not message.valid()
    del message
    gc.collect()


def test_consumer_that_came_before_the_first_epoch_has_lost_nothing(instance) -> None:
    with shmdriver.connect(instance.name, reconnect=True, timeout=PATIENCE_S) as client:
        for _ in range(2):
            client.producer("old").close()
        consumer = client.consumer("new")
        revoke(instance, lease_of(consumer))
        assert consumer.read(timeout=0) is None
        producer = client.producer("new", max_message=16)
        producer.publish(b"first")
        assert bytes(consumer.read(timeout=PATIENCE_S)) == b"first"
        (again,) = consumer.reattachments
        assert (again.old_epoch, again.lost, consumer.lost) == (2, 0, 0)
        assert consumer.epoch == producer.epoch == 3


def test_tools_show_a_stream_without_an_epoch_as_one(instance, client) -> None:
    client.producer("old").close()
    consumer = client.consumer("new")
    with View(instance.name) as view:
        stream = view.stream("new")
        assert (stream.state, stream.epoch_count, stream.epochs) == ("waiting", 0, ())
        assert (len(stream.consumers), consumer.epoch) == (1, 0)
        assert "has never had a producer" in str(diagnose(view, "new"))
    producer = client.producer("new")
    with View(instance.name) as view:
        stream = view.stream("new")
        assert (stream.state, stream.epoch_count) == ("open", 2)
        assert [epoch.epoch for epoch in stream.epochs] == [producer.epoch] == [2]
