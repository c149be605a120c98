"""What the compiler makes of docs/MEMORY_MODEL.md for ARM64: its fences and one-way barriers are there.

That is all it shows. That they are enough is what the models show (`make models`); qemu shows neither.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = "aarch64-linux-gnu-gcc"
pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed (Debian: gcc-aarch64-linux-gnu)"
)


def code_of(file: str, function: str) -> list[str]:
    """The instructions of a function, optimised as in a release."""
    flags = [
        "-std=c11",
        "-D_GNU_SOURCE=",
        "-O3",
        "-fno-partial-inlining",
        "-S",
        "-o",
        "-",
        f"-I{ROOT / 'csrc'}",
    ]
    done = subprocess.run(
        [COMPILER, *flags, ROOT / "csrc" / file], capture_output=True, text=True, check=True, timeout=60
    )
    body = re.search(rf"^{function}:\n(.*?)^\t\.size\t{function},", done.stdout, re.MULTILINE | re.DOTALL)
    assert body is not None, function
    return [line.strip() for line in body[1].splitlines() if line.startswith("\t") and line[1] != "."]


def ordering(code: list[str]) -> list[str]:
    """The instructions that order something, in the order of the code."""
    words = {"dmb": "", "stlr": "release", "ldar": "acquire", "ldapr": "acquire"}
    found = []
    for line in code:
        name, _, operands = line.partition("\t")
        if name in words:
            found.append(words[name] or operands)
    return found


@pytest.mark.fault(42, how="instructions of the ARM64 code")
def test_publish_has_its_release_fence_and_two_release_stores() -> None:
    order = ordering(code_of("shmd_producer.c", "shmd_publish"))
    fence = order.index("ish")  # P1: between opening the slot and writing it
    assert order[fence + 1 :].count("release") >= 2  # P2: commit, P3: head


@pytest.mark.fault(42, how="instructions of the ARM64 code")
def test_ungated_read_has_its_acquire_load_and_both_fences() -> None:
    order = ordering(code_of("shmd_slot_ring.c", "shmd_slot_copy"))
    assert order[0] == "acquire"  # P2
    assert order.count("ishld") >= 2  # U1, U2


@pytest.mark.fault(42, how="instructions of the ARM64 code")
def test_gated_poll_has_its_acquire_load_and_the_fence_before_the_mask() -> None:
    order = ordering(code_of("shmd_consumer.c", "shmd_poll"))
    assert order.index("acquire") < order.index("ishld")  # P2, C1


@pytest.mark.fault(42, 43, how="instructions of the ARM64 code")
def test_a_use_is_over_before_the_second_look_at_the_mask() -> None:
    advance = ordering(code_of("shmd_consumer.c", "shmd_advance"))
    assert advance.index("ishld") < advance.index("release")  # C1, C2
    assert "ishld" in ordering(code_of("shmd_consumer.c", "shmd_consumer_valid"))
    assert ordering(code_of("shmd_consumer.c", "shmd_copy")).count("ishld") >= 2
    assert ordering(code_of("shmd_mapping.c", "shmd_mapping_protects"))[0] == "ishld"


@pytest.mark.fault(42, how="instructions of the ARM64 code")
def test_room_and_wake_have_full_fences() -> None:
    assert "ish" in ordering(code_of("shmd_producer.c", "shmd_producer_room"))  # J1
    assert "ish" in ordering(code_of("shmd_producer.c", "shmd_producer_wake"))  # W1
    assert "ish" in ordering(code_of("shmd_consumer.c", "shmd_consumer_before_idle"))  # W2
    assert "ish" in ordering(code_of("shmd_stream.c", "shmd_epoch_join"))  # J1


def test_a_clients_ring_publishes_before_its_fence_and_the_sleeper_looks_after_its_own() -> None:
    send = ordering(code_of("core/shmd_client_ring.c", "shmd_client_ring_send"))
    tail = send.index("release")
    assert send.index("acquire") < tail < send.index("ish", tail)  # Q2, Q1, Q3
    assert ordering(code_of("core/shmd_client_ring.c", "shmd_client_ring_poll"))[0] == "acquire"  # Q1
    assert "release" in ordering(code_of("core/shmd_client_ring.c", "shmd_client_ring_advance"))  # Q2
    look = ordering(code_of("core/shmd_client_ring.c", "shmd_client_ring_look"))
    assert look.count("acquire") == 2  # Q4, L2
    assert "ish" in ordering(code_of("driver/shmd_sleeper.c", "shmd_sleeper_wait"))  # Q3
    assert "ish" in ordering(code_of("driver/shmd_sleeper.c", "shmd_sleeper_wake"))  # Q5
