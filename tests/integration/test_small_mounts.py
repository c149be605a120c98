"""/dev/shm as containers have it: 64 MB, few inodes, read-only. Programs run where that is mounted."""

from __future__ import annotations

import pytest

from tests.small_mount import in_small_mount


@pytest.mark.fault(18, how="64 MB, a queue of twelve workers")
def test_twelve_workers_put_into_a_queue_in_64_megabytes() -> None:
    lines = in_small_mount(
        "size=64m",
        "import multiprocessing, shmdriver\n"
        "def work(queue, number):\n"
        "    queue.put(number)\n"
        "with shmdriver.embedded() as client:\n"
        "    queue = client.queue('q')\n"
        "    start = multiprocessing.get_context('fork').Process\n"
        "    workers = [start(target=work, args=(queue, n)) for n in range(12)]\n"
        "    [worker.start() for worker in workers]\n"
        "    [worker.join() for worker in workers]\n"
        "    print(sorted(queue.get(timeout=20) for _ in workers))\n",
    )
    assert lines == [str(list(range(12)))]


@pytest.mark.fault(18, how="64 MB, a stream of 40 MiB")
def test_stream_that_does_not_fit_64_megabytes_is_refused_with_what_can_be_done() -> None:
    (text,) = in_small_mount(
        "size=64m",
        "import shmdriver\n"
        "with shmdriver.embedded() as client:\n"
        "    try:\n"
        "        client.producer('s', arena=40 << 20)\n"
        "    except shmdriver.AttachRejected as error:\n"
        "        print(error)\n",
    )
    for remedy in ("half of what /dev/shm had free", "max_bytes=", "--shm-size",
                   "profiles.<name>", "arena"):  # fmt: skip
        assert remedy in text


@pytest.mark.fault(18, 72, how="64 MB, streams of 40 MiB one after another")
def test_large_streams_get_the_memory_of_those_that_ended() -> None:
    lines = in_small_mount(
        "size=64m",
        "import shmdriver\n"
        "with shmdriver.embedded(config={'shm': {'max_bytes': '60 MiB'}}) as client:\n"
        "    for number in range(20):\n"
        "        client.producer(f's{number}', slots=64, arena=40 << 20).close()\n"
        "    print('served')\n",
    )
    assert lines == ["served"]


@pytest.mark.fault(18, how="a mount of six inodes")
def test_mount_without_inodes_refuses_and_serves_again_when_there_are_some() -> None:
    lines = in_small_mount(
        "size=64m,nr_inodes=6",  # the folder's own, authority, control: room for one stream
        "import shmdriver\n"
        "with shmdriver.embedded() as client:\n"
        "    first = client.producer('first', slots=16, arena=0)\n"
        "    try:\n"
        "        client.producer('second', slots=16, arena=0)\n"
        "    except shmdriver.AttachRejected as error:\n"
        "        print(error)\n"
        "    first.close()\n"
        "    client.producer('second', slots=16, arena=0).close()\n"
        "    print('attached')\n",
    )
    assert "/dev/shm has 1 inodes left" in lines[0]
    assert "nr_inodes" in lines[0]
    assert lines[1] == "attached"


@pytest.mark.fault(18, how="a driver's start on a mount that is read-only or has no inode")
@pytest.mark.parametrize(
    ("options", "words"), [("ro", "is mounted read-only"), ("size=64m,nr_inodes=1", "has 0 inodes left")]
)
def test_driver_that_cannot_make_its_segments_says_why_and_leaves_none(options: str, words: str) -> None:
    lines = in_small_mount(
        options,
        "import os, shmdriver\n"
        "try:\n"
        "    shmdriver.embedded().__enter__()\n"
        "except shmdriver.ShmDriverError as error:\n"
        "    print(error)\n"
        "print(os.listdir('/dev/shm'))\n",
    )
    assert words in lines[0]
    assert "remount" in lines[0]
    assert lines[1] == "[]"
