"""Readers that hold nothing back, so late that the epoch is gone: how it ended, and what they missed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

import shmdriver
from shmdriver.driver.config import Config
from shmdriver.errors import EndOfStream, ProducerLost
from tests.chaos.stage import wait_until

Delivery = Literal["lossy", "latest"]
PATIENCE_S = 60


@pytest.fixture
def client() -> Iterator[shmdriver.Client]:
    with shmdriver.embedded(config=Config.load(env={}, overrides={"policies.grace_ms": 0})) as client:
        yield client


def produce(
    client: shmdriver.Client, *, aborted: bool = False, look: shmdriver.Consumer | None = None
) -> None:
    """One epoch with three messages, from its beginning until it is gone; ``look`` maps it meanwhile."""
    out = client.producer("s", slots=64)
    if look is not None:
        assert look.read(timeout=0) is None
    for number in range(3):
        out.publish(b"%d" % number)
    out.abort() if aborted else out.close()
    wait_until(lambda: not client.streams()[0].epochs, "the epoch to be retired")


@pytest.mark.parametrize("delivery", ["lossy", "latest"])
@pytest.mark.parametrize("later", [0, 1, 3])
@pytest.mark.parametrize("looked", [True, False])
def test_a_clean_end_reads_as_one_after_the_epoch_was_retired(
    client: shmdriver.Client, delivery: Delivery, later: int, looked: bool
) -> None:
    with client.consumer("s", delivery=delivery) as reader:
        produce(client, look=reader if looked else None)
        for _ in range(later):
            produce(client, aborted=True)
        with pytest.raises(EndOfStream):
            reader.read(timeout=PATIENCE_S)
        assert reader.lost == (3 if delivery == "lossy" else 0)


@pytest.mark.parametrize("delivery", ["lossy", "latest"])
@pytest.mark.parametrize("looked", [True, False])
def test_an_aborted_end_never_reads_as_a_clean_one(
    client: shmdriver.Client, delivery: Delivery, looked: bool
) -> None:
    with client.consumer("s", delivery=delivery) as reader:
        produce(client, aborted=True, look=reader if looked else None)
        for _ in range(3):
            produce(client)
        with pytest.raises(ProducerLost):
            reader.read(timeout=PATIENCE_S)


@pytest.mark.parametrize("looked", [True, False])
def test_an_end_that_nobody_remembers_is_not_called_clean(client: shmdriver.Client, looked: bool) -> None:
    with client.consumer("s", delivery="lossy") as reader:
        produce(client, look=reader if looked else None)
        for _ in range(5):
            produce(client)
        with pytest.raises(ProducerLost):
            reader.read(timeout=PATIENCE_S)


def test_a_follower_counts_what_it_missed_and_goes_on(client: shmdriver.Client) -> None:
    with client.consumer("s", delivery="lossy", follow=True) as reader:
        produce(client, look=reader)
        with client.producer("s", slots=64) as out:
            out.publish(b"next")
            message = reader.read(timeout=PATIENCE_S)
            assert message is not None
            assert bytes(message) == b"next"
            assert (message.seq, reader.lost) == (0, 3)


@pytest.mark.parametrize("looked", [True, False])
@pytest.mark.parametrize("missed", [1, 2])  # a stream remembers the last four
def test_a_follower_counts_the_epochs_that_came_and_went_before_it_looked(
    client: shmdriver.Client, missed: int, looked: bool
) -> None:
    with client.consumer("s", delivery="lossy", follow=True) as reader:
        if looked:
            produce(client, look=reader)
        for _ in range(missed):
            produce(client)
        with client.producer("s", slots=64) as out:
            out.publish(b"next")
            message = reader.read(timeout=PATIENCE_S)
            assert message is not None
            assert bytes(message) == b"next"
            epochs = missed + looked
            assert reader.lost == 3 * epochs
            assert reader.lost_ranges == [(epoch, 0, 2) for epoch in range(1, epochs + 1)]
