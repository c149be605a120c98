"""Quotes of the demo: what its reader takes and refuses, and the sample."""

import numpy as np
import pytest

from shmdriver.demo import quotes


def test_both_forms_of_time_are_read(tmp_path):
    compact = tmp_path / "compact.csv"
    compact.write_text("20200101 170000065,1.121200,1.121720,0\n20200101 170010447,1.1,1.2,5\n")
    iso = tmp_path / "iso.csv"
    iso.write_text("timestamp,bid,ask\n2013-01-01 22:00:00.295000+00:00,86.655,86.728\n")
    found = quotes.load([compact, iso])
    assert found["id"].tolist() == [0, 1, 2]
    assert found["time_ns"].tolist() == [1577898000065000000, 1577898010447000000, 1357077600295000000]
    assert found["bid"].tolist() == [1.1212, 1.1, 86.655]
    assert found["volume"].tolist() == [0, 5, 0]


def test_a_line_that_is_no_quote_is_named(tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("20200101 170000065,1.1,1.2\n20200101 170000066,1.1\n")
    with pytest.raises(ValueError, match=r"bad\.csv, line 2"):
        quotes.load([bad])


def test_files_without_quotes_are_refused(tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_text("timestamp,bid,ask\n")
    with pytest.raises(ValueError, match="no quotes"):
        quotes.load([empty])


def test_the_sample_is_the_same_every_time_and_fills_a_cache_line():
    first, second = quotes.sample(1000), quotes.sample(1000)
    assert np.array_equal(first, second)
    assert (first["ask"] > first["bid"]).all()
    assert quotes.QUOTE.itemsize == 40
