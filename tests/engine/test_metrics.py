"""Histograms against NumPy's quantiles, and the arithmetic of a report."""

import asyncio
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.engine.loop_lag import LagMonitor
from tidemill.engine.metrics import BatchSizes, Counts, Histogram, Quantiles, Report
from tidemill.stages.base import GONE
from tidemill.testing import ManualClock

durations = st.lists(st.integers(0, 2**40) | st.integers(0, 100), min_size=1, max_size=60)


@given(durations, st.floats(0, 1))
def test_quantiles_equal_numpy(values, q):
    """Any quantile is within 4 % of the exact one, never above it, and exact below 64 ns."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = int(np.quantile(values, q, method="inverted_cdf"))
    got = histogram.quantile(q)
    assert exact * 0.96 <= got <= exact
    if exact < 64:
        assert got == exact
    assert histogram.max == max(values)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 50)), min_size=1, max_size=20))
def test_a_weight_is_as_many_single_ones(pairs):
    """add(duration, times) is times adds."""
    weighted, single = Histogram(), Histogram()
    for value, times in pairs:
        weighted.add(value, times)
        for _ in range(times):
            single.add(value)
    assert weighted.quantiles() == single.quantiles()
    assert weighted.quantiles().samples == sum(times for _, times in pairs)


@pytest.mark.parametrize(("value", "kept"), [(-5, 0), (0, 0), (2**63, 2**63 - 1), (2**90, 2**63 - 1)])
def test_extremes_are_counted(value, kept):
    """A clock that lies by centuries spoils a number, not the run."""
    histogram = Histogram()
    histogram.add(value)
    assert histogram.max == kept
    assert kept * 0.96 <= histogram.quantile(0.5) <= kept


def test_an_empty_histogram_is_zero():
    """Before anything is measured everything is 0."""
    assert Histogram().quantiles() == Quantiles()


def test_batch_sizes():
    """The median and the largest; small ones exactly."""
    sizes = BatchSizes()
    for records in (1, 7, 7, 30_001):
        sizes.add(records)
    assert (sizes.read().p50, sizes.read().max) == (7, 30_001)


@given(st.fixed_dictionaries({f.name: st.integers(0, 1000) for f in dataclasses.fields(Counts)}))
def test_the_books_balance(fields):
    """records_in is where the records went, and rows_out where the rows came from: by construction."""
    counts = Counts(**fields)
    gone = ("rows_from_records", "filtered", "dead_letters", "late", "deduplicated", "dropped", "absorbed", "in_flight")
    assert counts.records_in == sum(getattr(counts, name) for name in gone)
    assert counts.rows_out == counts.rows_from_records + counts.emitted


@given(st.lists(st.dictionaries(st.sampled_from(GONE), st.integers(0, 50)), max_size=4), st.integers(0, 50))
def test_what_no_stage_speaks_of_was_filtered(gone, others):
    """Records that did not become rows are booked as their stages say, and the rest as filtered: none twice."""
    counts = Counts()
    said = sum(sum(shares.values()) for shares in gone)
    counts.book(said + others, gone)
    assert counts.filtered == others
    for what in GONE:
        assert getattr(counts, what) == sum(shares.get(what, 0) for shares in gone)


def test_a_report_is_json():
    """--report writes every field under its own name."""
    report = Report(records_in=3, loop_lag=Quantiles(0.1, 0.2, 0.3, 9), delivery={"lines": "at-least-once"})
    read = json.loads(report.to_json())
    assert list(read) == [field.name for field in dataclasses.fields(Report)]
    assert read["loop_lag"] == {"p50_ms": 0.1, "p99_ms": 0.2, "max_ms": 0.3, "samples": 9}


async def test_the_lag_monitor_measures_lateness():
    """What the loop's clock shows beyond the period is lag."""
    clock = ManualClock()
    monitor = LagMonitor(clock)
    with monitor.measuring():
        clock.advance(0.025)  # the loop was held for 20 ms longer than asked
        while not monitor.histogram.max:  # noqa: ASYNC110 - until a timer went off
            await asyncio.sleep(0)
    assert monitor.histogram.max == 20_000_000


@given(durations, st.lists(st.integers(1, 2**41), min_size=1, max_size=10, unique=True).map(sorted))
def test_a_distribution_counts_what_is_as_large_at_most(values, bounds):
    """To within a bucket, which is a thirty-second of the bound; the last bound has no more than there are."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    told = histogram.distribution(bounds)
    assert (told.samples, told.total) == (len(values), sum(values))
    for bound, up_to in zip(told.bounds, told.up_to, strict=True):
        assert sum(value <= bound for value in values) <= up_to <= sum(value <= bound * 33 / 32 for value in values)
