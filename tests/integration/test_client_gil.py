"""Mapping an epoch's memory and giving it back lets other threads run: the interpreter's lock is not held.

A library that is loaded first stands between the core and mmap() and munmap(), and asks the interpreter.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmdriver

WATCH = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

#define LARGE (1 << 20)
#define LOOK_UP(function, where, name) \
    if (function == NULL) { \
        void *found = dlsym(where, name); \
        memcpy(&function, &found, sizeof found); \
    }
typedef void *(*mmap_t)(void *, size_t, int, int, int, off_t);
typedef int (*munmap_t)(void *, size_t);
typedef int (*check_t)(void);

unsigned maps_with, maps_without, unmaps_with, unmaps_without;

static void note(unsigned *with, unsigned *without)
{
    static check_t holds_gil;
    LOOK_UP(holds_gil, RTLD_DEFAULT, "PyGILState_Check")
    *(holds_gil != NULL && holds_gil() ? with : without) += 1;
}

void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    static mmap_t original;
    LOOK_UP(original, RTLD_NEXT, "mmap")
    if ((flags & MAP_SHARED) && bytes >= LARGE)
        note(&maps_with, &maps_without);
    return original(at, bytes, protection, flags, fd, offset);
}

int munmap(void *at, size_t bytes)
{
    static munmap_t original;
    LOOK_UP(original, RTLD_NEXT, "munmap")
    if (bytes >= LARGE)
        note(&unmaps_with, &unmaps_without);
    return original(at, bytes);
}
"""
READ = r"""
import ctypes, json, sys
import numpy as np
import shmdriver

TICK = np.dtype([("n", "<i8")])
SLOTS = 1 << 16  # of 64 bytes: large enough to be seen
names = ("maps_with", "maps_without", "unmaps_with", "unmaps_without")

def counts():
    watch = ctypes.CDLL(None)
    return {name: ctypes.c_uint.in_dll(watch, name).value for name in names}

def of_records(how): return how in ("read_batch", "batches")

def read(how, consumer):
    if how == "read":
        return consumer.read()
    if how == "read at once":
        while (message := consumer.read(timeout=0)) is None:
            pass
        return message
    if how == "for":
        return next(iter(consumer))
    if how == "wait":
        shmdriver.wait([consumer])
        return consumer.read()
    if how == "lag":
        while consumer.lag == 0:
            pass
        return consumer.read()
    if how == "read_batch":
        return consumer.read_batch()
    if how == "batches":
        return next(iter(consumer.batches()))
    raise AssertionError(how)

def main(instance, how):
    with shmdriver.connect(instance) as client:
        dtype = TICK if of_records(how) else None
        consumer = client.consumer("s", follow=True, dtype=dtype)
        for _ in range(4):  # what a read finds from the second on is an epoch that is over, and another one
            with client.producer("s", slots=SLOTS, dtype=dtype) as out:
                out.publish(np.zeros(1, TICK) if dtype is not None else b"x")
                assert read(how, consumer) is not None
        consumer.close()
    print(json.dumps(counts()))

main(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("watch")
    source, library = folder / "watch.c", folder / "watch.so"
    source.write_text(WATCH)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", source, "-o", library, "-ldl"], check=True)
    return library


@pytest.fixture
def instance() -> Iterator[str]:
    with shmdriver.embedded() as client:
        yield client.instance


@pytest.mark.parametrize("how", ["read", "read at once", "for", "wait", "lag", "read_batch", "batches"])
def test_other_threads_run_while_an_epoch_is_mapped_or_unmapped(watch: Path, instance: str, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ, instance, how],
        env={**os.environ, "LD_PRELOAD": str(watch)},
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    counts = json.loads(done.stdout)
    assert counts["maps_with"] == counts["unmaps_with"] == 0, counts
    assert counts["maps_without"] >= 4 * 2 * 2, "the ring, twice in a row, of producer and consumer"
    assert counts["unmaps_without"] >= 4 * 2
