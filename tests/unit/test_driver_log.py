"""The log of a driver process: whatever its reader does, nobody waits for it, and what is lost is counted."""

from __future__ import annotations

import os
import re

import pytest

from shmdriver.driver.log import LINES_MAX, Log

SAID = re.compile(rb" shmdriver (\d+) lines of this log are lost")


def lines_until_all_are_accounted_for(reading: int, written: int) -> tuple[list[bytes], int]:
    """Reads until as many lines have come or are said to be lost as were ``written``; lines, number lost."""
    data = b""
    while True:
        data += os.read(reading, 1 << 16)
        whole = data[: data.rfind(b"\n") + 1]
        lines = re.findall(rb" shmdriver (line \d+)\n", whole)
        lost = sum(int(number) for number in SAID.findall(whole))
        if len(lines) + lost >= written:
            return lines, lost


@pytest.mark.fault(62, how="a pipe that is full")
@pytest.mark.parametrize("blocks", [True, False])
def test_a_reader_that_stalls_holds_nobody_up_and_lost_lines_are_counted(full_pipe, blocks: bool) -> None:
    reading, writing = full_pipe
    os.set_blocking(writing, blocks)
    written = LINES_MAX + 100
    with Log(writing) as log:
        for number in range(written):
            log(f"line {number}")  # nobody reads: each call returns all the same
        lines, lost = lines_until_all_are_accounted_for(reading, written)
        assert lines == [b"line %d" % number for number in range(len(lines))]
        assert 99 <= lost <= 100  # the thread may hold one line in its hands
        log("line 0")
        assert lines_until_all_are_accounted_for(reading, 1) == ([b"line 0"], 0)


def test_a_reader_that_is_gone_stops_nothing(full_pipe) -> None:
    _, writing = full_pipe
    reading, other = os.pipe()
    os.close(reading)
    with Log(other) as log:
        for number in range(10):
            log(f"line {number}")
    assert not log._thread.is_alive()
    os.close(other)
    with Log(writing) as log:  # full, and nobody reads: the end comes all the same
        log("last words")


def test_nobody_forges_lines() -> None:
    reading, writing = os.pipe()
    with Log(writing) as log:
        log("one\nline\x1b[31m of text")
    assert os.read(reading, 4096).endswith(b" shmdriver one\\nline\\x1b[31m of text\n")
    os.close(reading)
    os.close(writing)
