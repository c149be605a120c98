"""``shmdriver bench``: short runs give well-formed reports, reports can be compared. No speed is asserted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from shmdriver import embedded
from shmdriver.bench import machine
from shmdriver.bench.case import Case, Metric
from shmdriver.bench.compare import compare
from shmdriver.bench.histogram import Histogram
from shmdriver.bench.native import Outcome
from shmdriver.bench.report import FORMAT, VERSION, Report
from shmdriver.bench.scenarios import RECORD, SCENARIOS, Run, run
from shmdriver.bench.stream_channel import StreamChannel
from shmdriver.demo.stage import DemoFailed
from tests.tool import tool, tool_json

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="native benchmarks need a C compiler")
TRIP = Metric("p50_ns", "p50", "ns", lower=True, floor="p50_ns")
RATE = Metric("messages_s", "", "M/s")


def shmdriver(*arguments):
    command = [sys.executable, "-m", "shmdriver", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


TOO_SHORT = "give it more seconds"  # on a machine that has other things to do, too


def measured(group, seconds, *arguments):
    """A run as short as it may be here."""
    done = shmdriver("bench", group, "--quick", "--seconds", seconds, *arguments)
    while done.returncode != 0 and TOO_SHORT in done.stderr:
        seconds *= 4
        done = shmdriver("bench", group, "--quick", "--seconds", seconds, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def report_with(path, rates, trips, over_floor, *, samples=()):
    """A report of one throughput and one round trip."""
    report = Report(
        {"cpu": "a cpu", "cores": 2, "kernel": "6", "python": "3", "compiler": "cc", "commit": "c0"}
    )
    case = Case("throughput", "native", "40 B one by one", lambda _: Outcome({}), (RATE,))
    report.figure(case, RATE).series.values += rates
    case = Case("latency", "native", "round trip 40 B", lambda _: Outcome({}), (TRIP,))
    figure = report.figure(case, TRIP)
    figure.series.values += trips
    assert figure.over_floor is not None
    figure.over_floor.values += over_floor
    if samples:
        report.histograms["native round trip 40 B"] = Histogram()
        report.histograms["native round trip 40 B"].record(np.array(samples, np.uint64))
    report.save(path)
    return path


def is_well_formed(report, groups):
    assert (report["format"], report["version"]) == (FORMAT, VERSION)
    assert report["problems"] == []
    assert {"cpu", "kernel", "compiler", "commit", "python"} <= set(report["machine"])
    assert report["calibration"]["verdict"]
    assert {figure["group"] for figure in report["figures"]} == set(groups)
    assert all(figure["median"] > 0 and figure["unit"] for figure in report["figures"])
    return {(figure["side"], figure["what"]) for figure in report["figures"]}


@needs_compiler
def test_a_quick_run_prints_a_well_formed_report(instance_name):
    out = measured("throughput", 0.3, "--bytes", "40", "--json")
    figures = is_well_formed(json.loads(out), ["throughput"])
    assert {("native", "40 B one by one"), ("native", "40 B in batches of 64")} <= figures
    assert {("python", "40 B read()"), ("python", "40 B iterated")} <= figures


@needs_compiler
def test_latencies_come_as_histograms_that_can_be_read_back_and_drawn(tmp_path):
    path = tmp_path / "report.json"
    measured("latency", 0.05, "--rate", "0", "--rate", "5000", "-o", path)
    is_well_formed(json.loads(path.read_text()), ["latency"])
    report = Report.load(path)
    for name in (
        "native round trip 40 B",
        "native one way 40 B at 5,000/s",
        "python one way 40 B at 5,000/s",
    ):
        histogram = report.histograms[name]
        assert histogram.count > 0
        assert 0 < histogram.at(50) <= histogram.at(99.9) <= histogram.at(100)
        curve = [ns for _, ns in histogram.curve()]
        assert curve == sorted(curve)


@needs_compiler
def test_consumers_that_may_miss_messages_are_measured_too():
    out = measured("throughput", 0.05, "-b", "40", "--delivery", "latest", "--json")
    figures = is_well_formed(json.loads(out), ["throughput"])
    assert ("native", "40 B one by one, latest, producer") in figures
    assert ("python", "40 B read(), latest") in figures


@pytest.mark.parametrize("name", ["single", "iterate", "array"])
def test_messages_in_the_arena_are_received_without_being_held(name):
    """The ring of 8 slots turns over many times: a view that the receiver kept would fill it."""
    size = 1024 if name != "array" else RECORD.itemsize
    found, seconds = None, 0.02
    with embedded() as client:
        options = {"instance": client.instance, "bytes_each": size, "slots": 8}
        while found is None:
            how = Run(seconds=seconds, warm_s=0.002, cores=machine.cores(None), chunk=50)
            try:
                found = run(SCENARIOS[name], StreamChannel, how, **options)
            except DemoFailed as error:
                if TOO_SHORT not in str(error):
                    raise
                seconds *= 4
    assert found.values["messages_s"] > 0
    assert found.values["produced_s"] > 0


def test_without_a_compiler_native_programs_say_what_is_needed(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    done = tool("bench", "throughput", "--quick", "--side", "native")
    assert done.returncode == 1
    assert "no C compiler (no-such-compiler)" in done.stderr
    assert "--side python" in done.stderr


def test_wrong_options_say_what_is_expected():
    for arguments, expected in (
        (("--side", "rust"), "native, python"),
        (("--bytes", "4 furlongs"), "as 64, 4KiB or 1MiB"),
        (("--cores", "0,4711"), "expected two of"),
    ):
        done = tool("bench", "throughput", *arguments)
        assert done.returncode in (1, 2)
        assert expected in " ".join(done.stderr.replace("│", " ").split())


def test_compare_tells_changes_from_noise(tmp_path):
    before = report_with(tmp_path / "a.json", [10.0, 11.0, 12.0], [300.0, 300.0, 310.0], [1.2, 1.2, 1.3])
    after = report_with(tmp_path / "b.json", [20.0, 22.0, 24.0], [150.0, 151.0, 152.0], [1.2, 1.25, 1.3])
    rate, trip = compare(Report.load(before), Report.load(after))
    assert (rate.times, rate.verdict, rate.over_floor) == (2.0, "better", False)
    assert (trip.verdict, trip.over_floor) == ("noise", True)  # the floor moved, not the round trip
    back = compare(Report.load(after), Report.load(before))
    assert (back[0].times, back[0].verdict) == (0.5, "worse")
    done = tool("bench", "compare", str(before), str(after))
    assert done.returncode == 0
    assert "40 B one by one" in done.stdout
    assert "better" in done.stdout
    changes = tool_json("bench", "compare", str(before), str(after))["changes"]
    assert [change["verdict"] for change in changes] == ["better", "noise"]


def test_a_figure_that_failed_is_compared_as_failed(tmp_path):
    before = report_with(tmp_path / "a.json", [10.0], [300.0], [1.2])
    after = report_with(tmp_path / "b.json", [None], [300.0], [1.2])
    assert [change.verdict for change in compare(Report.load(before), Report.load(after))] == [
        "failed",
        "same",
    ]
    done = tool("bench", "compare", str(before), str(after), "--json")
    assert json.loads(done.stdout)["changes"][0]["after"] is None


def test_what_is_no_report_is_refused(tmp_path):
    good = report_with(tmp_path / "a.json", [10.0], [300.0], [1.2])
    other = tmp_path / "b.json"
    for text, expected in (
        ("{", "no JSON"),
        ("{}", "expected a report"),
        (json.dumps({"format": FORMAT, "version": VERSION + 1}), f"has version {VERSION + 1}"),
        (json.dumps({"format": FORMAT, "version": VERSION}), "damaged"),
    ):
        other.write_text(text)
        done = tool("bench", "compare", str(good), str(other))
        assert done.returncode == 1
        assert expected in done.stderr


def test_a_histogram_keeps_three_digits_and_survives_its_encoding():
    samples = [100, 101, 1_000_000, 123_456_789]
    histogram = Histogram()
    histogram.record(np.array(samples * 5, np.uint64))
    again = Histogram(str(histogram.as_json()["encoded"]))
    assert again.count == histogram.count == 20
    for percentile in (1, 50, 75, 100):
        assert again.at(percentile) == histogram.at(percentile)
    assert abs(histogram.at(100) / samples[-1] - 1) < 1e-3
