"""What a client tells logging: connections, attaches, losses; nothing for messages, nothing of queues."""

from __future__ import annotations

import logging
import logging.handlers
import subprocess
import sys
import threading
from collections.abc import Iterator
from queue import Empty
from typing import Any

import pytest

import shmdriver
from shmdriver.client.log import tell, tell_apart
from shmdriver.driver.embedded import EmbeddedDriver


@pytest.fixture
def client(instance_name: str) -> Iterator[Any]:
    with shmdriver.embedded(instance_name) as client:
        yield client


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "shmdriver"]


@pytest.mark.fault(75, how="a connect, attaches, a thousand messages")
def test_connections_and_attaches_are_told_and_messages_are_not(client: Any, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, "shmdriver")
    with (
        shmdriver.connect(client.instance) as other,
        other.producer("s") as out,
        other.consumer("s") as into,
    ):
        before = told(caplog)
        for number in range(1000):
            out.publish(b"%d" % number)
            into.read(timeout=60)
        assert told(caplog) == before
    texts = [text for _, text in before]
    assert [level for level, _ in before] == ["INFO"] * 3
    assert texts[0].startswith(f"instance {client.instance!r}: connected to its driver, boot ")
    assert texts[1:] == [
        "stream 's': attached as its producer, epoch 1",
        "stream 's': attached as a reliable consumer",
    ]


@pytest.mark.fault(75, how="a ring lapped before its consumer is closed")
def test_what_was_lost_is_told_at_the_close(client: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "shmdriver")
    with client.producer("s", slots=64) as out, client.consumer("s", delivery="lossy") as into:
        for _ in range(200):
            out.publish(b"x")
        into.read(timeout=60)
        lost = into.lost
    assert lost > 0
    assert ("INFO", f"stream 's': closed, {lost} messages were lost to it") in told(caplog)


@pytest.mark.fault(75, how="a driver that is shut down and started again")
def test_what_is_attached_anew_is_told_with_its_reason_in_words(instance_name: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "shmdriver")
    soon = {"policies": {"shutdown_timeout_ms": 20}}  # the producer stays: the first driver waits for so long
    first, second = EmbeddedDriver(instance_name, soon), EmbeddedDriver(instance_name)
    first.start()
    try:
        with shmdriver.connect(instance_name, reconnect=True, timeout=60) as client:
            out = client.producer("s")
            out.publish(b"x")
            first.stop()
            assert [level for level, _ in told(caplog) if level != "INFO"] == []
            second.start()
            out.publish(b"y", timeout=60)
            (again,) = out.reattachments
            assert "reason=<Reason.SHUTDOWN: 40>" in repr(again)
            (said,) = (text for level, text in told(caplog) if level == "WARNING" and "'s'" in text)
            assert said.startswith("stream 's': attached anew as its producer, because its lease had ended ")
            assert said.endswith("(the driver shut down): at seq 0 of epoch 1, 0 messages lost")
    finally:
        first.stop()
        second.stop()


@pytest.mark.fault(75, how="a logging handler that puts into a queue of the same client")
def test_a_handler_may_put_into_a_queue(client: Any) -> None:
    """Its first put attaches, in the handler of a record of this very logger."""
    queue = client.queue("records")
    logger = logging.getLogger("shmdriver")
    handler = logging.handlers.QueueHandler(queue)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with client.producer("s"):
            pass
        assert queue.get(timeout=60).getMessage() == "stream 's': attached as its producer, epoch 1"
        with pytest.raises(Empty):
            queue.get(timeout=0)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        queue.close()


@pytest.mark.fault(75, how="a program that has not set up logging")
def test_a_program_that_has_not_set_up_logging_sees_nothing(client: Any) -> None:
    program = (
        "import logging, sys, shmdriver\n"
        "with shmdriver.connect(sys.argv[1]) as client, client.producer('s'): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, client.instance], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_what_no_thread_could_tell_is_told_with_the_next_line(caplog: Any, monkeypatch: Any) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    caplog.set_level(logging.INFO, "shmdriver")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    tell_apart("WARNING", "the %s", "first")
    assert told(caplog) == []
    tell("INFO", "the second")
    assert told(caplog) == [("WARNING", "the first"), ("INFO", "the second")]


def test_a_queues_holder_tells_its_trouble_to_nobody_where_logging_was_not_set_up(client: Any) -> None:
    program = (
        "import sys, shmdriver\n"
        "def fail(holder): raise shmdriver.ShmDriverError('in vain')\n"
        "with shmdriver.connect(sys.argv[1]) as client:\n"
        "    queue = client.queue('q')\n"
        "    holder = queue._holder\n"
        "    type(holder)._holds_on = fail\n"
        "    holder._turn()\n"
        "    assert holder._told == 'in vain'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, client.instance], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
