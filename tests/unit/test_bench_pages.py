"""The pages that `make bench-report` writes have the regions that it needs; nothing else of them changes."""

from __future__ import annotations

import pytest

from benchmarks import report
from benchmarks.native_peers import GROUP
from benchmarks.peers import OURS, PEERS, available
from shmdriver.bench.case import Case, Metric
from shmdriver.bench.native import Outcome
from shmdriver.bench.placement import boundary_ns, placed
from shmdriver.bench.report import Figure, Report
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


RATE = Metric("messages_s", "", "M/s")


def measured(who, values, floors_ns, *, group="throughput"):
    """A native figure of one value a round, each between floors of that many nanoseconds."""
    series = Series("M/s", values=list(values))
    return Figure(group, "native", "64 B one by one", who, series, floors_ns=list(floors_ns))


def test_cores_that_never_moved_are_one_table():
    figure = measured(OURS, [1.0, 2.0, None], [120.0, 180.0, None])
    assert boundary_ns([figure]) is None
    assert placed(figure, None) == [("", figure)]


def test_figures_of_near_and_of_far_cores_are_not_mixed():
    figure = measured(OURS, [170.0, 70.0, 172.0, None], [120.0, 510.0, 130.0, None])
    boundary = boundary_ns([figure])
    assert boundary == 240.0
    found = {where: each.series.values for where, each in placed(figure, boundary)}
    assert found == {"near cores": [170.0, 172.0], "far cores": [70.0]}
    assert [where for where, _ in placed(measured("x", [1.0], [500.0]), boundary)] == ["far cores"]


def test_peers_are_compared_where_the_cores_stood_alike():
    ours = measured(OURS, [170.0, 70.0, 60.0], [120.0, 510.0, 500.0])
    theirs = measured("Aeron", [35.0, 85.0, 10.0], [500.0, 110.0, 520.0], group=GROUP)
    found = Report({}, figures={each.key: each for each in (ours, theirs)})
    near, far = report.native_peers_tables(found, spread=False)
    assert near == [
        ("C to C, near cores", "unit", OURS, "Aeron", "x best peer"),
        ("64 B one by one", "M/s", "170", "85", "2"),
    ]
    assert far == [
        ("C to C, far cores", "unit", OURS, "Aeron", "x best peer"),
        ("64 B one by one", "M/s", "65", "22.5", "2.89"),
    ]


def test_a_report_keeps_the_floors_of_its_values(tmp_path):
    made = Report({"packages": {}}, figures={})
    figure = made.figure(
        Case("throughput", "native", "64 B one by one", lambda _: Outcome({}), (RATE,)), RATE
    )
    figure.series.values += [1.0, None]
    figure.floors_ns += [120.0, None]
    made.save(tmp_path / "report.json")
    (loaded,) = Report.load(tmp_path / "report.json").figures.values()
    assert loaded.floors_ns == [120.0, None]
