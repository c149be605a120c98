"""Whether a consumer holds still at the end of a fast flow: pace="auto" does, pace="eager" never."""

from __future__ import annotations

import numpy as np
import pytest

import shmdriver

RECORD = np.dtype([("id", "<i8")])


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def holds(client, pace, rounds):
    """How often a consumer of this pace held still; it stops counting at the first time."""
    records = np.zeros(1000, RECORD)
    reader = client.consumer(pace, dtype=RECORD, pace=pace)
    with reader, client.producer(pace, dtype=RECORD, slots=4096) as out:
        for _ in range(rounds):
            out.publish(records)
            for _ in range(len(records) // 100):
                assert len(reader.read_batch(100, timeout=0)) == 100
            assert reader.read_batch(100, timeout=0) is None
            found = int(reader._info().holds)
            if found:
                return found
    return 0


@pytest.mark.fault(73, how="flows of a thousand records, each read to its end")
def test_eager_consumer_never_holds_still_where_one_of_pace_auto_does(client):
    assert holds(client, "eager", 300) == 0
    assert holds(client, "auto", 3000) > 0


def test_unknown_pace_is_refused_and_names_the_nearest(client):
    words = "pace='eagr': expected one of 'auto', 'eager'; did you mean 'eager'"
    with pytest.raises(ValueError, match=words):
        client.consumer("s", pace="eagr")
