"""The simulation's native client (sim_client.c), compiled on first use against the core's archive."""

from __future__ import annotations

import fcntl
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ARCHIVE = ROOT / "build" / "release" / "libshmdriver.a"
BUILD = ROOT / "build" / "simulation"

WRAPPED = [f"-Wl,--wrap=shmd_client_{name}" for name in ("attach", "detach", "confirm")]

CDEF = """
typedef struct sim_message { uint64_t seq, tag, lost, skipped, epoch, bad; } sim_message_t;
uintptr_t sim_client_new(uintptr_t authority, uint64_t nonce);
int sim_client_join(uintptr_t client, uintptr_t control, uint64_t client_id, uint32_t index);
void sim_client_free(uintptr_t client);
void sim_client_beat(uintptr_t client);
int sim_send(uintptr_t client, uintptr_t request);
void sim_send_half(uintptr_t client, uintptr_t request);
int sim_send_garbage(uintptr_t client, uintptr_t request);
void sim_tail(uintptr_t client, uint64_t tail);
int sim_confirm(uintptr_t client, uint32_t entry, uint64_t lease_id);
int sim_detach(uintptr_t client, uint32_t entry, uint64_t lease_id, uint32_t how);
int sim_produce(uintptr_t client, uintptr_t answer, uint32_t min_consumers, uintptr_t *out);
void sim_producer_drop(uintptr_t p);
int sim_consume(uintptr_t client, uintptr_t answer, uint32_t delivery, uint32_t wait, uint32_t flags,
                uintptr_t *out);
void sim_consumer_drop(uintptr_t c);
uint64_t sim_publish(uintptr_t p, uint32_t bytes, uint64_t n, int in_place, int *rc);
uint64_t sim_publish_headless(uintptr_t p, uint64_t n);
int sim_claim(uintptr_t p, uint32_t bytes);
int sim_commit(uintptr_t p);
int sim_abort(uintptr_t p);
uint64_t sim_poll(uintptr_t c, sim_message_t *out, uint64_t limit, int runs, int *rc);
void sim_consumer_state(uintptr_t c, uint64_t out[8]);
int sim_lie(uintptr_t c, uint64_t position);
const char *shmd_last_error(void);
"""

# Handles are plain addresses, so that they can cross from and to shmdriver._native's own types.
ffi: Any = FFI()
ffi.cdef(CDEF)


@cache
def load() -> Any:
    """The library; compiled when it is older than its parts. Raises CalledProcessError."""
    source, library = HERE / "sim_client.c", BUILD / "libsim.so"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        parts = [source, ARCHIVE, *(ROOT / "csrc").rglob("*.h")]
        if not library.exists() or library.stat().st_mtime < max(part.stat().st_mtime for part in parts):
            _compile(source, library)
    return ffi.dlopen(str(library))


def _compile(source: Path, library: Path) -> None:
    made = library.with_suffix(f".{os.getpid()}")
    flags = ["-std=c11", "-D_GNU_SOURCE=", "-O2", "-g1", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        [
            "cc",
            *flags,
            *WRAPPED,
            f"-I{ROOT / 'csrc'}",
            "-shared",
            str(source),
            str(ARCHIVE),
            "-lrt",
            "-o",
            str(made),
        ],
        check=True,
    )
    made.replace(library)
