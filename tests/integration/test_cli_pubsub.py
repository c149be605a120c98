"""`pub`, `sub` and `tail` as people use them: each in a process of its own."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shmdriver import Client, embedded

SHMDRIVER = [sys.executable, "-m", "shmdriver"]
PATIENCE_S = 60


def start(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    """A `shmdriver` command in the background."""
    return subprocess.Popen([*SHMDRIVER, *arguments], stderr=subprocess.PIPE, **options)  # type: ignore[call-overload, no-any-return]


def finish(process: subprocess.Popen[bytes], stdin: bytes | None = None) -> tuple[int, bytes, str]:
    """Exit code, stdout and stderr of a command that ends by itself."""
    out, err = process.communicate(stdin, timeout=PATIENCE_S)
    return process.returncode, out or b"", err.decode()


@pytest.fixture
def driver(instance_name: str) -> Iterator[Client]:
    """A client of a driver that runs in this process: starting one more interpreter shows nothing here."""
    with embedded(instance_name) as client:
        yield client


SIZES = {
    "empty": b"",
    "one byte": b"\0",
    "one newline": b"\n",
    "no newline at the end": b"first\nsecond\r\nlast",
    "long line": b"x" * 200_000 + b"\n",
    "5 MiB": random.Random(5).randbytes(5 << 20),
}


@pytest.mark.parametrize("size", ["empty", "no newline at the end", "5 MiB"])  # a pipe has all of them
def test_a_file_arrives_bit_for_bit(driver: Client, tmp_path: Path, size: str) -> None:
    data = SIZES[size]
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.write_bytes(data)
    with original.open("rb") as source, copy.open("wb") as target:
        pub = start("pub", "backup", "-i", driver.instance, stdin=source)
        sub = start("sub", "backup", "-i", driver.instance, stdout=target)
        assert finish(pub)[0] == 0
        assert finish(sub)[0] == 0
    assert copy.read_bytes() == data


@pytest.mark.parametrize("data", SIZES.values(), ids=SIZES.keys())
def test_a_pipe_arrives_bit_for_bit_at_two_consumers(driver: Client, tmp_path: Path, data: bytes) -> None:
    copies = [tmp_path / "one", tmp_path / "two"]
    subs, cats = [], []
    for copy in copies:
        with copy.open("wb") as target:
            subs.append(start("sub", "log", "-i", driver.instance, stdout=subprocess.PIPE))
            cats.append(subprocess.Popen(["cat"], stdin=subs[-1].stdout, stdout=target))
    pub = start("pub", "log", "--min-consumers", "2", "-i", driver.instance, stdin=subprocess.PIPE)
    assert finish(pub, data)[0] == 0
    for cat, sub, copy in zip(cats, subs, copies, strict=True):
        assert cat.wait(PATIENCE_S) == 0
        assert finish(sub)[0] == 0
        assert copy.read_bytes() == data


def test_lines_are_messages_of_their_own(driver: Client) -> None:
    with driver.consumer("log") as consumer:
        pub = start("pub", "log", "-i", driver.instance, stdin=subprocess.PIPE)
        assert finish(pub, b"one\ntwo\nthree")[0] == 0
        assert [bytes(message) for message in consumer] == [b"one\n", b"two\n", b"three"]


def test_a_line_is_sent_as_soon_as_it_is_complete(driver: Client) -> None:
    with driver.consumer("log") as consumer:
        pub = start("pub", "log", "-i", driver.instance, stdin=subprocess.PIPE)
        assert pub.stdin is not None
        pub.stdin.write(b"first\nsec")
        pub.stdin.flush()
        message = consumer.read(timeout=60)
        assert message is not None
        assert bytes(message) == b"first\n"
        assert finish(pub, b"ond\n")[0] == 0
        assert [bytes(message) for message in consumer] == [b"second\n"]


def test_length_prefixed_keeps_message_boundaries(driver: Client) -> None:
    frames = b"".join(len(body).to_bytes(4, "little") + body for body in (b"", b"\n\n", b"z" * 70_000))
    sub = start("sub", "s", "--length-prefixed", "-i", driver.instance, stdout=subprocess.PIPE)
    pub = start("pub", "s", "--length-prefixed", "-i", driver.instance, stdin=subprocess.PIPE)
    assert finish(pub, frames)[0] == 0
    code, out, _ = finish(sub)
    assert (code, out) == (0, frames)


def test_truncated_input_ends_the_stream_as_aborted(driver: Client) -> None:
    sub = start("sub", "s", "--length-prefixed", "-i", driver.instance, stdout=subprocess.PIPE)
    pub = start("pub", "s", "--length-prefixed", "-i", driver.instance, stdin=subprocess.PIPE)
    code, _, text = finish(pub, b"\1\0\0\0a" + b"\x64\0\0\0short")
    assert code == 1
    assert "announces 100 bytes, but only 5" in text
    code, out, text = finish(sub)
    assert (code, out) == (3, b"\1\0\0\0a")
    assert "without a clean close" in text or "aborted" in text


def test_arrays_travel_as_npy(driver: Client, tmp_path: Path) -> None:
    arrays = [np.arange(24, dtype="<u2").reshape(2, 3, 4), np.linspace(0, 1, 300_000)]
    for number, array in enumerate(arrays):
        np.save(tmp_path / f"{number}.npy", array)
    files = [str(tmp_path / f"{number}.npy") for number in (1, 0)]
    sub = start("sub", "frames", "--npy", "-i", driver.instance, stdout=subprocess.PIPE)
    pub = start("pub", "frames", "--npy", *files, "-i", driver.instance)
    assert finish(pub)[0] == 0
    code, out, _ = finish(sub)
    assert code == 0
    stream = io.BytesIO(out)
    assert np.array_equal(np.load(stream), arrays[1])
    assert np.array_equal(np.load(stream), arrays[0])
    assert not stream.read()


def test_sub_writes_the_elements_of_an_array_and_not_what_the_wire_adds(driver: Client) -> None:
    array = np.arange(300, dtype="<u2").reshape(3, 100)
    with driver.producer("a", slots=4, max_message=8192, min_consumers=2) as out:
        raw = start("sub", "a", "-i", driver.instance, stdout=subprocess.PIPE)
        told = start("sub", "a", "--json", "-i", driver.instance, stdout=subprocess.PIPE)
        out.publish_array(array, meta=b"mine", timeout=PATIENCE_S)
    assert finish(raw) == (0, array.tobytes(), "")
    code, line, _ = finish(told)
    assert code == 0
    assert json.loads(line)["length"] == array.nbytes


def test_pub_says_that_it_waits_for_a_consumer(driver: Client) -> None:
    pub = start("pub", "s", "-i", driver.instance, stdin=subprocess.DEVNULL)
    assert pub.stderr is not None
    assert b"waiting for a reliable consumer of stream 's'" in pub.stderr.readline()
    with driver.consumer("s", delivery="lossy") as looker:
        assert looker.read(timeout=0.3) is None, "a looker is no reason to publish"
        assert pub.poll() is None
    with driver.consumer("s") as consumer:
        assert finish(pub)[0] == 0
        assert list(consumer) == []


def test_pub_gives_up_at_its_timeout(driver: Client) -> None:
    pub = start("pub", "s", "--timeout", "0.1", "-i", driver.instance, stdin=subprocess.DEVNULL)
    code, _, text = finish(pub)
    assert code == 1
    assert "has 0 of 1 reliable consumers" in text


def test_min_consumers_zero_goes_on_at_once(driver: Client) -> None:
    pub = start("pub", "s", "--min-consumers", "0", "--json", "-i", driver.instance, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE)  # fmt: skip
    code, out, _ = finish(pub, b"a\nb\n")
    assert code == 0
    assert json.loads(out)["messages"] == 2
    with driver.consumer("s", start="oldest") as consumer:
        assert [bytes(message) for message in consumer] == [b"a\n", b"b\n"]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_pub_aborts_and_its_consumer_exits_with_3(
    driver: Client, sent: int, code: int
) -> None:
    pub = start("pub", "s", "-i", driver.instance, stdin=subprocess.PIPE)
    sub = start("sub", "s", "-i", driver.instance, stdout=subprocess.PIPE)
    assert pub.stdin is not None
    assert sub.stdout is not None
    pub.stdin.write(b"delivered\n")
    pub.stdin.flush()
    assert sub.stdout.readline() == b"delivered\n"
    pub.send_signal(sent)
    found, _, text = finish(pub)
    assert found == code
    assert "marked aborted" in text
    assert "Traceback" not in text
    found, _, text = finish(sub)
    assert found == 3
    assert text.count("\n") == 1


def test_a_killed_pub_is_no_clean_end(driver: Client) -> None:
    pub = start("pub", "s", "-i", driver.instance, stdin=subprocess.PIPE)
    sub = start("sub", "s", "-i", driver.instance, stdout=subprocess.PIPE)
    assert pub.stdin is not None
    assert sub.stdout is not None
    pub.stdin.write(b"committed\n")
    pub.stdin.flush()
    assert sub.stdout.readline() == b"committed\n"
    pub.kill()
    pub.communicate(timeout=PATIENCE_S)
    code, _, text = finish(sub)
    assert code == 3
    assert "died" in text


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sub_frees_its_producer(driver: Client, sent: int, code: int) -> None:
    sub = start("sub", "s", "-i", driver.instance, stdout=subprocess.PIPE)
    with driver.producer("s") as producer:
        assert producer.wait_for_consumers(1, timeout=60) == 1
        producer.publish(b"x\n")
        assert sub.stdout is not None
        assert sub.stdout.readline() == b"x\n"
        sub.send_signal(sent)
        assert finish(sub)[0] == code
        for _ in range(3 * producer.slots):
            producer.publish(b"nobody is there", timeout=60)


def test_a_closed_pipe_ends_sub_quietly(driver: Client) -> None:
    sub = start("sub", "s", "-i", driver.instance, stdout=subprocess.PIPE)
    with driver.producer("s") as producer:
        assert producer.wait_for_consumers(1, timeout=60) == 1
        assert sub.stdout is not None
        sub.stdout.close()
        producer.publish(b"into the void\n")
        assert sub.wait(PATIENCE_S) == 141
    assert sub.stderr is not None
    assert sub.stderr.read() == b""
    sub.stderr.close()


def test_sub_counts_times_out_and_prints_json(driver: Client) -> None:
    subs = {
        "count": start("sub", "s", "--count", "2", "-i", driver.instance, stdout=subprocess.PIPE),
        "json": start("sub", "s", "--json", "--pace", "eager", "-i", driver.instance, stdout=subprocess.PIPE),
    }
    with driver.producer("s", min_consumers=3) as producer:
        assert producer.wait_for_consumers(2, timeout=60) == 2
        # Its time runs from its attach on: it comes last, and has three seconds of a busy machine.
        subs["timeout"] = start("sub", "s", "--timeout", "3", "-i", driver.instance, stdout=subprocess.PIPE)
        for data in (b"a\n", b"\xff", b"c"):
            producer.publish(data, type=7, timeout=60)
        assert finish(subs["count"])[:2] == (0, b"a\n\xff")
        code, out, text = finish(subs["timeout"])
        assert (code, out) == (4, b"a\n\xffc")
        assert "no message for 3 s" in text
    code, out, _ = finish(subs["json"])
    assert code == 0
    messages = [json.loads(line) for line in out.splitlines()]
    assert [message["seq"] for message in messages] == [0, 1, 2]
    assert messages[0]["text"] == "a\n"
    assert messages[0]["type"] == 7
    assert messages[1]["base64"] == "/w=="


def test_tail_shows_records_and_never_stalls_the_producer(driver: Client) -> None:
    tick = np.dtype([("px", "<f8"), ("id", "<u8")])
    with driver.producer("ticks", dtype=tick, slots=64) as producer:
        tail = start("tail", "ticks", "--count", "2", "-i", driver.instance, stdout=subprocess.PIPE)
        assert producer.wait_for_consumers(1, timeout=60) == 1
        os.kill(tail.pid, signal.SIGSTOP)
        for number in range(10 * producer.slots):
            producer.publish(np.array([(number / 2, number)], tick).tobytes(), timeout=60)
        os.kill(tail.pid, signal.SIGCONT)
        code, out, _ = finish(tail)
    assert code == 0
    assert b"px=" in out
    assert b"messages missed" in out
