"""What others may do to the files in /dev/shm: fill it up, remove, truncate and plant segments."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmdriver
from shmdriver._native import ffi
from shmdriver.errors import Reason, ShmDriverError
from shmdriver.observe import Instance
from tests.segments import path_of
from tests.small_mount import in_small_mount

SHM = Path("/dev/shm")
PATIENCE_S = 60


@pytest.fixture
def client() -> Iterator[shmdriver.Client]:
    with shmdriver.embedded() as client:
        yield client


def segments(client: shmdriver.Client, stream: str) -> tuple[Path, Path]:
    """Data and gates of the stream's newest epoch."""
    with Instance(client.instance) as view:
        epoch = view.stream(stream).epochs[-1]
        return SHM / epoch.data_name.lstrip("/"), SHM / epoch.gates_name.lstrip("/")


def works(client: shmdriver.Client, stream: str) -> bool:
    """Whether somebody new can produce and consume."""
    with client.producer(stream) as out, client.consumer(stream) as consumer:
        out.publish(b"x")
        message = consumer.read(timeout=PATIENCE_S)
        return message is not None and bytes(message) == b"x"


@pytest.mark.fault(19, how="rm of an epoch's segments while messages flow")
def test_messages_flow_on_after_their_segments_were_removed(client: shmdriver.Client) -> None:
    out = client.producer("s")
    consumer = client.consumer("s")
    for path in segments(client, "s"):
        path.unlink()
    for number in range(1000):
        out.publish(b"%d" % number)
        message = consumer.read(timeout=PATIENCE_S)
        assert message is not None
        assert bytes(message) == b"%d" % number
    with pytest.raises(ShmDriverError, match=r"\.(data|gates).*No such file"):
        client.consumer("s")
    assert works(client, "other")
    out.close()
    with pytest.raises(shmdriver.EndOfStream):
        consumer.read(timeout=PATIENCE_S)
    assert works(client, "s"), "the next epoch has segments of its own"


@pytest.mark.fault(23, how="a client overwrites the header of its control segment")
@pytest.mark.parametrize("field", ["magic", "layout_version", "segment_bytes", "boot_id", "stream_id"])
def test_header_of_a_control_segment_is_nobody_elses_matter(client: shmdriver.Client, field: str) -> None:
    with path_of(client.instance, "control").open("r+b") as control:
        control.seek(ffi.offsetof("shmd_header_t", field))
        control.write(b"\xa5" * 4)
    with shmdriver.connect(client.instance) as newcomer:
        assert works(newcomer, "s")
    assert works(client, "t")


@pytest.mark.fault(21, how="a file, symlink, FIFO or hard link in place of a living epoch's segment")
@pytest.mark.parametrize("plant", ["file", "symlink", "fifo", "long"])
def test_planted_segment_is_refused_by_clients_and_left_alone(
    client: shmdriver.Client, tmp_path: Path, plant: str
) -> None:
    out = client.producer("s")
    data, _ = segments(client, "s")
    size = data.stat().st_size
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious" * 1000)
    data.unlink()
    if plant == "symlink":
        data.symlink_to(precious)
    elif plant == "fifo":
        os.mkfifo(data)
    else:
        data.write_bytes(secrets.token_bytes(size if plant == "file" else 100))
    with pytest.raises(ShmDriverError, match=r"data|magic") as refused:
        client.consumer("s", attach_timeout=5)
    assert not isinstance(refused.value, TimeoutError)
    out.publish(b"still here")
    assert precious.read_bytes() == b"precious" * 1000
    assert works(client, "other")
    out.close()


@pytest.mark.fault(17, how="an epoch's data segment cut short, its header changed")
@pytest.mark.parametrize("change", ["truncated", "magic", "version", "epoch", "geometry"])
def test_changed_segment_is_refused_by_newcomers(client: shmdriver.Client, change: str) -> None:
    out = client.producer("s")
    data, _ = segments(client, "s")
    copy = bytearray(data.read_bytes())
    data.unlink()  # a copy of it in its place: what is mapped stays as it is
    at = {"magic": 0, "version": 8, "epoch": 36, "geometry": 128}.get(change, 0)
    if change == "truncated":
        del copy[4096:]
    else:
        copy[at] ^= 0x55
    data.write_bytes(copy)
    words = {"truncated": "bytes", "geometry": "slots"}.get(change, change)
    with pytest.raises(ShmDriverError, match=words):
        client.consumer("s")
    out.publish(b"x")
    out.close()


# ---- a mount of its own, small


@pytest.mark.fault(18, how="a driver's start with 64 KiB")
def test_driver_does_not_start_in_a_mount_that_is_too_small_and_says_the_numbers() -> None:
    lines = in_small_mount(
        "size=64k",
        "import os, shmdriver\n"
        "try:\n"
        "    with shmdriver.embedded():\n"
        "        print('started')\n"
        "except shmdriver.ShmDriverError as error:\n"
        "    print(error)\n"
        "print(os.listdir('/dev/shm'))\n",
    )
    assert "/dev/shm is too small for the authority of instance 'embedded-" in lines[0]
    assert re.search(r"needs \d+ bytes and \d+ are free", lines[0])
    assert lines[1] == "[]"


@pytest.mark.fault(18, how="somebody else fills the mount while messages flow")
def test_mount_that_others_fill_up_harms_nobody_who_is_attached() -> None:
    script = """
import shmdriver
from shmdriver.driver.config import Config
config = Config.load(overrides={"policies.limits.streams": 8})
with shmdriver.embedded(config=config) as client:
    out, consumer = client.producer("s", slots=64, max_message=4000), client.consumer("s")
    import os
    hog = os.open("/dev/shm/hog", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(hog, bytes(4096))
    except OSError as error:
        print(error.errno)
    os.close(hog)
    for number in range(500):
        out.publish(b"%d" % number * 500)
        assert bytes(consumer.read(timeout=60)) == b"%d" % number * 500
    print("flowed")
    try:
        client.producer("late", slots=64, max_message=100)
    except shmdriver.AttachRejected as error:
        print(int(error.reason), error)
    os.unlink("/dev/shm/hog")
    client.producer("late", slots=64, max_message=100).close()
    print("attached")
"""
    lines = in_small_mount("size=8m", script)
    assert lines[:2] == ["28", "flowed"]
    assert lines[2].startswith(f"{int(Reason.NO_MEMORY)} ")
    assert "/dev/shm leaves 0 bytes" in lines[2]
    assert lines[3] == "attached"
