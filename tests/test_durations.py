"""Durations: what is read, what is refused, and that the text made of one is read as the same."""

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.durations import as_named, duration_ns, shown
from tidemill.errors import PlanError


@pytest.mark.parametrize(
    ("value", "ns"),
    [
        ("30s", 30 * 10**9),
        ("500ms", 500 * 10**6),
        ("5min", 300 * 10**9),
        ("1h", 3_600 * 10**9),
        ("1d", 86_400 * 10**9),
        ("1h30min", 5_400 * 10**9),
        (" 1.5 s ", 1_500_000_000),
        ("20us", 20_000),
        ("20µs", 20_000),
        ("7ns", 7),
        (30, 30 * 10**9),
        (0.1, 100_000_000),
        (1e-9, 1),
        (np.float64(2.5), 2_500_000_000),
        (np.int64(2), 2 * 10**9),
        (timedelta(days=1, microseconds=3), 86_400 * 10**9 + 3_000),
        (pd.Timedelta("1s") + pd.Timedelta(5, "ns"), 10**9 + 5),
    ],
)
def test_a_duration_is_read(value, ns):
    """Text with units, numbers of seconds, timedeltas, each exactly."""
    assert duration_ns(value, name="window") == ns


@pytest.mark.parametrize(
    "value", ["", "s", "30", "30 parsecs", "-3s", "1h-5min", "3s!", True, None, [3], float("nan"), "1e3s"]
)
def test_what_is_no_duration_is_refused_by_name(value):
    """The message has the name, the value and examples."""
    with pytest.raises(PlanError, match=r'^Rolling: window=.* is not a duration; .*"30s"'):
        duration_ns(value, name="Rolling: window")


def test_a_text_is_not_told_to_be_a_number_of_seconds():
    """It may come from a command line, or stand where a number means records."""
    with pytest.raises(PlanError, match=r'"1h" or "1d"\.$'):
        duration_ns("60", name="max_dead")


@pytest.mark.parametrize("value", [0, "0s", -1, timedelta(seconds=-1), "0.1ns"])
def test_a_duration_is_at_least_a_nanosecond(value):
    """Nothing and less than nothing are refused."""
    with pytest.raises(PlanError, match="must be at least a nanosecond"):
        duration_ns(value, name="window")


def test_no_time_at_all_where_it_makes_sense():
    """A lateness of 0 is one; a negative one is not."""
    assert duration_ns(0, name="lateness", zero=True) == duration_ns("0s", name="lateness", zero=True) == 0
    with pytest.raises(PlanError, match="must be 0 or at least"):
        duration_ns(-1, name="lateness", zero=True)


def test_habits_from_elsewhere_get_a_hint():
    """Minutes as ``m`` and units as capitals are what pandas and others have had."""
    with pytest.raises(PlanError, match='Minutes are "min"'):
        duration_ns("5m", name="window")
    with pytest.raises(PlanError, match="written small"):
        duration_ns("30S", name="window")


def test_more_than_nanoseconds_can_count_is_refused():
    """An int64 holds 292 years."""
    with pytest.raises(PlanError, match="292 years"):
        duration_ns("110000d", name="window")


@given(st.integers(0, 2**63 - 1))
def test_what_is_shown_reads_as_the_same(ns):
    """Every duration has a text that means it."""
    assert duration_ns(shown(ns), name="window", zero=True) == ns


@given(st.integers(1, 10_000), st.sampled_from(["d", "h", "min", "s", "ms", "us", "ns"]))
def test_a_name_says_what_was_written(number, unit):
    """In the user's own unit; numbers and timedeltas in the largest that fits."""
    text = f"{number}{unit}"
    assert as_named(text, name="window") == text
    seconds = duration_ns(text, name="window") / 1e9
    assert duration_ns(as_named(seconds, name="window"), name="window") == duration_ns(text, name="window")


def test_names_of_numbers_and_timedeltas():
    """Seconds become minutes where they are whole ones."""
    assert as_named(60, name="window") == as_named(timedelta(minutes=1), name="window") == "1min"
    assert shown(0) == "0s"
