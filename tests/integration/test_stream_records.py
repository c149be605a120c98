"""Streams that get the record of a stream before them: what its late users and its own users see."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import shmdriver
from shmdriver.errors import LeaseRevoked, Reason
from shmdriver.observe import Instance as View
from shmdriver.observe import diagnose
from tests.integration.test_client_reconnect import PATIENCE_S, Instance, lease_of, revoke, texts

ONE_STREAM = {"policies.limits.streams": 1}


@pytest.fixture
def instance(instance_name: str) -> Iterator[Instance]:
    """Room for one stream."""
    instance = Instance(instance_name)
    instance.start(**ONE_STREAM)
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


def test_consumer_that_came_before_the_first_epoch_has_lost_nothing(instance) -> None:
    with shmdriver.connect(instance.name, reconnect=True, timeout=PATIENCE_S) as client:
        for _ in range(2):
            client.producer("old").close()
        consumer = client.consumer("new")
        revoke(instance, lease_of(consumer))
        assert consumer.read(timeout=0) is None
        producer = client.producer("new", max_message=16)
        producer.publish(b"first")
        assert texts(consumer, 1) == [b"first"]
        (again,) = consumer.reattachments
        assert (again.old_epoch, again.lost, consumer.lost) == (2, 0, 0)
        assert consumer.epoch == producer.epoch == 3


def test_consumer_that_goes_over_to_a_driver_which_had_another_stream_there_has_lost_nothing(
    instance,
) -> None:
    with shmdriver.connect(instance.name, reconnect=True, timeout=PATIENCE_S) as client:
        consumer = client.consumer("new")
        instance.end()
        instance.start(**ONE_STREAM)
        with shmdriver.connect(instance.name, timeout=PATIENCE_S) as other:
            for _ in range(2):
                other.producer("old").close()
            producer = other.producer("new", max_message=16)
            producer.publish(b"first")
            assert texts(consumer, 1) == [b"first"]
            (again,) = consumer.reattachments
            assert (again.epoch, again.lost, consumer.lost) == (3, 0, 0)
            producer.close()


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
