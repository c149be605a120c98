"""What the client or the driver refuses, and that the text says what to do."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

import shmdriver
from shmdriver import Code, Reason

TICK = np.dtype([("ts", "<i8"), ("px", "<f8")])


@pytest.fixture
def client():
    with shmdriver.embedded() as client:
        yield client


def test_no_driver(instance_name):
    with pytest.raises(shmdriver.DriverUnavailable, match="shmdriver run") as caught:
        shmdriver.connect(instance_name, timeout=0.1)
    assert caught.value.instance == instance_name
    assert isinstance(caught.value, ConnectionError)


def test_the_instance_comes_from_the_environment(monkeypatch, instance_name):
    monkeypatch.setenv("SHMDRIVER_DRIVER_INSTANCE", instance_name)
    with pytest.raises(shmdriver.DriverUnavailable, match=instance_name):
        shmdriver.connect(timeout=0.1)


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a b", "x" * 42, "ü"])
def test_bad_instance_name(name):
    with pytest.raises(shmdriver.ConfigError, match="instance name"):
        shmdriver.connect(name or "/")


@pytest.mark.parametrize("name", ["", ".hidden", "with space", "x" * 64, "smörgås", "a\0b"])
@pytest.mark.parametrize("role", ["producer", "consumer"])
def test_bad_stream_name(client, role, name):
    with pytest.raises(shmdriver.AttachRejected, match="stream name") as caught:
        getattr(client, role)(name)
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_PARAMS, Reason.BAD_NAME)


def test_second_producer(client):
    with client.producer("s"), shmdriver.connect(client.instance, name="intruder") as other:
        with pytest.raises(shmdriver.AttachRejected) as caught:
            other.producer("s")
        assert (caught.value.code, caught.value.reason) == (Code.REJECTED, Reason.PRODUCER_EXISTS)
        assert str(os.getpid()) in caught.value.text
        assert caught.value.text.count("stream 's'") == 1  # named once, whoever names it


@pytest.mark.parametrize("role", ["producer", "consumer"])
def test_unknown_stream_without_create(client, role):
    with pytest.raises(shmdriver.AttachRejected) as caught:
        getattr(client, role)("nosuch", create=False)
    assert caught.value.reason == Reason.UNKNOWN_STREAM
    assert "nosuch" in str(caught.value)


def test_consumer_that_expects_another_schema_gets_the_field_diff(client):
    other = np.dtype([("ts", "<i8"), ("px", "<f4")])
    with client.producer("s", dtype=TICK):
        with pytest.raises(shmdriver.SchemaMismatch, match="px") as caught:
            client.consumer("s", dtype=other)
        assert caught.value.reason == Reason.SCHEMA
        assert caught.value.found == "[('ts', '<i8'), ('px', '<f8')]"
        assert caught.value.expected == "[('ts', '<i8'), ('px', '<f4')]"


def test_producer_whose_schema_a_live_consumer_did_not_expect(client):
    with client.consumer("s", dtype=TICK), pytest.raises(shmdriver.SchemaMismatch):
        client.producer("s", dtype=np.dtype([("ts", "<i8")]))


@pytest.mark.parametrize("call", ["publish", "try_publish", "claim"])
def test_message_too_large_prints_both_numbers_and_the_argument(client, call):
    with client.producer("s", max_message=5000, slots=64) as out:
        limit = out.max_message
        wanted = limit + 1
        with pytest.raises(shmdriver.MessageTooLarge, match=f"max_message={wanted}") as caught:
            getattr(out, call)(wanted if call == "claim" else bytes(wanted))
        assert (caught.value.length, caught.value.limit) == (wanted, limit)
        assert str(limit) in str(caught.value)
        assert isinstance(caught.value, ValueError)
        out.publish(bytes(limit))


def test_more_memory_than_there_is_is_refused_with_numbers(client):
    with pytest.raises(shmdriver.AttachRejected) as caught:
        client.producer("s", slots=1 << 26, slot_bytes=65536)
    assert caught.value.reason in (Reason.NO_MEMORY, Reason.SIZE, Reason.LIMIT)
    assert any(character.isdigit() for character in caught.value.text)


@pytest.mark.parametrize(
    ("role", "argument", "value", "text"),
    [
        ("consumer", "delivery", "reliabel", "did you mean 'reliable'"),
        ("consumer", "start", "first", "'newest', 'oldest'"),
        ("consumer", "wait", "forever", "'adaptive', 'spin', 'sleep'"),
        ("producer", "slow_consumer", "kill", "'block', 'evict', 'refuse'"),
        ("producer", "slots", -1, "expected 0 to"),
        ("producer", "slot_bytes", 1 << 20, "expected 0 to 65536"),
        ("producer", "min_consumers", 65, "expected 0 to 64"),
    ],
)
def test_an_argument_out_of_its_range(client, role, argument, value, text):
    with pytest.raises(ValueError, match=text):
        getattr(client, role)("s", **{argument: value})


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        (-1, ValueError, "type=-1: expected 0 to 65535"),
        (65536, ValueError, "type=65536: expected 0 to 65535"),
        ("x", TypeError, "type='x': expected an int from 0 to 65535"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda out, kind: out.publish(b"x", kind),
        lambda out, kind: out.publish(bytearray(b"x"), kind),
        lambda out, kind: out.try_publish(b"x", kind),
        lambda out, kind: out.claim(1, type=kind),
        lambda out, kind: out.publish_array(np.zeros(3), type=kind),
        lambda out, kind: out.claim_array(3, type=kind),
    ],
)
def test_a_type_out_of_its_range(client, call, kind, error, text):
    with client.producer("s") as out, client.consumer("s") as consumer:
        with pytest.raises(error, match=text):
            call(out, kind)
        out.publish(b"next")
        assert consumer.read(timeout=60).seq == 0, "nothing was claimed or published before"


def test_wrong_role_has_no_such_method(client):
    with client.producer("s") as out, client.consumer("s") as into:
        assert not hasattr(out, "read")
        assert not hasattr(into, "publish")


def test_records_of_another_dtype_are_a_type_error_with_the_field_diff(client):
    with client.producer("s", dtype=TICK) as out:
        with pytest.raises(TypeError, match=r"px.*astype"):
            out.publish(np.zeros(3, [("ts", "<i8"), ("px", "<f4")]))
        with pytest.raises(ValueError, match="no message type"):
            out.publish(np.zeros(3, TICK), type=1)
        with pytest.raises(ValueError, match="whole number of records"):
            out.publish(b"x" * 17)


def test_batches_of_a_stream_of_bytes_are_a_type_error(client):
    with client.consumer("s") as into, client.producer("s") as out:
        out.publish(b"x")
        with pytest.raises(TypeError, match="carries bytes"):
            into.read_batch(timeout=5)


def test_a_dtype_with_python_objects(client):
    with pytest.raises(TypeError, match="Python objects"):
        client.producer("s", dtype=[("a", "O")])


def test_handles_do_not_pickle(client):
    with client.producer("s") as out, client.consumer("s") as into:
        with pytest.raises(TypeError, match="pass its Client"):
            pickle.dumps(out)
        with pytest.raises(TypeError, match="pass its Client"):
            pickle.dumps(into)


def test_closed_handles_say_so(client):
    out, into = client.producer("s"), client.consumer("s")
    out.close()
    into.close()
    out.close()
    into.close()
    for call in (
        lambda: out.publish(b"x"),
        lambda: out.try_publish(b"x"),
        lambda: out.claim(3),
        lambda: out.wait_for_consumers(timeout=0),
        lambda: into.read(timeout=0),
        lambda: into.read(),
        lambda: next(iter(into)),
        lambda: into.release(),
        lambda: shmdriver.wait([into], timeout=0),
    ):
        with pytest.raises(shmdriver.HandleClosed, match="closed"):
            call()
    assert "closed" in repr(out)
    assert "closed" in repr(into)


def test_a_closed_client_says_so(client):
    other = shmdriver.connect(client.instance)
    other.close()
    other.close()
    with pytest.raises(shmdriver.HandleClosed):
        other.producer("s")


def test_a_driver_that_ended_is_unavailable_and_streams_end_where_they_were(instance_name):
    with shmdriver.embedded(instance_name, config=impatient()):
        other = shmdriver.connect(instance_name)
        into = other.consumer("s")
        out = other.producer("s")
        out.publish(b"a")
        assert bytes(into.read()) == b"a"
        out.publish(b"b")
    with pytest.raises(shmdriver.DriverUnavailable):
        other.producer("t")
    with pytest.raises(shmdriver.LeaseRevoked) as revoked:
        out.publish(b"too late")
    assert revoked.value.sealed_seq == 2
    assert bytes(into.read()) == b"b"
    with pytest.raises(shmdriver.ProducerLost) as lost:
        into.read(timeout=5)
    assert lost.value.reason == Reason.SHUTDOWN
    other.close()


def impatient():
    from shmdriver.driver.config import Config

    return Config.load(overrides={"policies.shutdown_timeout_ms": 100})


def test_a_client_that_may_reconnect_goes_over_to_the_next_driver(instance_name):
    with shmdriver.embedded(instance_name):
        patient = shmdriver.connect(instance_name, reconnect=True)
        plain = shmdriver.connect(instance_name)
        first = patient.boot_id
    with pytest.raises(shmdriver.DriverUnavailable):
        patient.producer("s", attach_timeout=0.1)
    with shmdriver.embedded(instance_name):
        with patient.consumer("s") as into, patient.producer("s") as out:
            out.publish(b"again")
            assert bytes(into.read()) == b"again"
        assert patient.boot_id != first
        with pytest.raises(shmdriver.DriverUnavailable):
            plain.producer("s")
        patient.close()
    plain.close()
