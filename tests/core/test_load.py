"""Means over the last seconds: exact for what does not change, forgetful of what did."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.load import Load, LoadMeter, LoadSample

SECOND = 1_000_000_000
gaps = st.lists(st.integers(1, 20 * SECOND), min_size=2, max_size=40)
shares = st.floats(0, 1)


def sample(now_ns: int, *, rate: float, busy: list[float], loop: float, queue: float, sinks: float) -> LoadSample:
    """Of a run that has gone on like this since 0."""
    return LoadSample(
        now_ns,
        records=round(rate * now_ns / 1e9),
        through=round(rate * now_ns / 2e9),
        lanes_busy_ns=tuple(round(share * now_ns) for share in busy),
        loop_busy_ns=round(loop * now_ns),
        waiting=7,
        queue=queue,
        sinks=sinks,
        backlog=queue > 0.5,
        sink_rows=(round(rate * now_ns / 3e9), 0),
    )


@given(gaps, st.floats(0, 1e7), st.lists(shares, min_size=1, max_size=4), shares, shares, shares)
def test_what_does_not_change_is_its_own_mean(
    gaps: list[int], rate: float, busy: list[float], loop: float, queue: float, sinks: float
) -> None:
    """However often it is looked at; rounded counts weigh as much as the gaps are short."""
    meter, now = LoadMeter(), SECOND
    for gap in gaps:
        now += gap
        meter.add(sample(now, rate=rate, busy=busy, loop=loop, queue=queue, sinks=sinks))
    read = meter.read()
    close = {"rel": 1e-6, "abs": 1e9 / min(gaps[1:]) + 1e-6}
    assert read.records_per_s == pytest.approx(rate, **close)
    assert read.through_per_s == pytest.approx(rate / 2, **close)
    assert read.sink_rows_per_s == pytest.approx((rate / 3, 0), **close)
    assert read.waiting == pytest.approx(7)
    assert read.queue == pytest.approx(queue)
    assert read.sinks == pytest.approx(sinks)
    assert read.backlog == pytest.approx(float(queue > 0.5))
    for got, share in zip((*read.lanes, read.loop), (*busy, loop), strict=True):
        assert got == pytest.approx(share, abs=1 / min(gaps[1:]) + 1e-9)


@given(st.lists(st.tuples(st.integers(0, 3 * SECOND), st.integers(0, SECOND), st.integers(0, SECOND)), max_size=30))
def test_shares_are_shares_whatever_is_counted(steps: list[tuple[int, int, int]]) -> None:
    """A slab of a second is counted at its end: more than the time since the last look, and still no more than all of it."""
    meter, now, busy, loop = LoadMeter(), 0, 0, 0
    for passed, worked, used in steps:
        now, busy, loop = now + passed, busy + worked, loop + used
        meter.add(LoadSample(now, busy, busy, (busy,), loop, 1, 0.5, 0.5, False))
    read = meter.read()
    assert all(0 <= share <= 1 for share in (*read.lanes, read.loop, read.queue, read.sinks, read.backlog))


def test_slabs_of_seconds_are_work_for_all_of_their_time() -> None:
    """They are counted at their end, eight looks after the last."""
    meter = LoadMeter()
    for look in range(200):
        meter.add(LoadSample(look * SECOND // 4, 0, 0, (look // 8 * 2 * SECOND,), 0, 0, 0.0, 0.0, False))
    assert meter.read().lanes[0] > 0.8


def test_what_was_is_forgotten_within_a_minute() -> None:
    """From all the time to none of it."""
    meter = LoadMeter()
    for second in range(100):
        meter.add(LoadSample(second * SECOND, 0, 0, (min(second, 40) * SECOND,), 0, 0, 0.0, 0.0, False))
    assert meter.read().lanes[0] < 0.001


def test_another_attempts_counts_begin_anew() -> None:
    """Counts that fell are not a negative rate."""
    meter = LoadMeter()
    for second, records in enumerate((0, 900, 1_800, 0, 5, 10)):
        meter.add(LoadSample(second * SECOND, records, 0, (0,), 0, 0, 0.0, 0.0, False))
    assert meter.read().records_per_s == pytest.approx(5)


def test_before_two_samples_there_is_nothing_to_say() -> None:
    """A rate needs two readings."""
    meter = LoadMeter()
    meter.add(dataclasses.replace(LoadSample(5, 1, 1, (1,), 1, 1, 1.0, 1.0, True)))
    assert meter.read() == Load()


def test_an_attempt_with_other_sinks_begins_anew() -> None:
    """A history that is worked on first has a sink of its own."""
    meter = LoadMeter()
    for second, rows in enumerate([(0,), (50,), (0, 0), (10, 20)]):
        meter.add(LoadSample(second * 10**9, 0, 0, (0,), 0, 0, 0.0, 0.0, False, rows))
    assert [round(rate) for rate in meter.read().sink_rows_per_s] == [10, 20]
