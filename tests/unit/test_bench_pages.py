"""The pages that `make bench-report` writes have the regions that it needs; nothing else of them changes."""

from __future__ import annotations

import pytest

from benchmarks import report
from benchmarks.peers import OURS, PEERS, available
from shmdriver.bench.series import Series, number


def test_the_pages_have_every_region_once():
    for page, names in (
        (report.PAGE, ("peers", "latencies", "commands", "instructions", "growth", "operations", "trials")),
        (report.README, ("figures",)),
    ):
        text = page.read_text(encoding="utf-8")
        for name in names:
            assert text.count(f"<!-- {name}:begin -->") == text.count(f"<!-- {name}:end -->") == 1


def test_writing_a_region_changes_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter\n<!-- b:begin -->\n<!-- b:end -->\n"
    )
    report.put(page, "a", r"new \1 text")
    expected = (
        "before\n<!-- a:begin -->\nnew \\1 text\n<!-- a:end -->\nafter\n<!-- b:begin -->\n<!-- b:end -->\n"
    )
    assert page.read_text() == expected
    with pytest.raises(ValueError, match="expected one region <!-- c:begin -->"):
        report.put(page, "c", "text")
    assert page.read_text() == expected


def test_every_peer_is_there_or_says_why_not():
    found, missing = available()
    assert OURS in found
    assert set(found) | set(missing) == {OURS, *PEERS}
    assert all(missing.values())
    assert {"Pipe", "Queue"} <= set(found)


def test_ratios_are_taken_within_a_round_and_failures_left_out():
    ours = Series("M/s", values=[4.0, None, 9.0])
    theirs = Series("M/s", values=[2.0, 1.0, 3.0])
    assert ours.advantage_over(theirs).values == [2.0, 3.0]
    fast, slow = Series("µs", lower=True, values=[2.0]), Series("µs", lower=True, values=[6.0])
    assert fast.advantage_over(slow).values == [3.0]
    assert Series("M/s", values=[None]).text() == "failed"
    assert [number(value) for value in (0.01234, 7.891, 1234.4, 45678, 3.2e6)] == [
        "0.0123",
        "7.89",
        "1234",
        "45.7k",
        "3.2M",
    ]
