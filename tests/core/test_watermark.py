"""The watermark against its rules told record by record, and what wrong clocks cannot do to it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core import watermark
from tidemill.core.watermark import BEGIN, END, Watermark

S = 1_000_000_000
HOUR = 3_600 * S


def made(past=None, **options):
    """A watermark; ``past`` nanoseconds behind the newest time are far behind."""
    with pytest.MonkeyPatch.context() as patched:
        if past is not None:
            patched.setattr(watermark, "_LEAP_NS", past)
        return Watermark(**options)


class Told:
    """The rules, in the most simple-minded way."""

    def __init__(self, lag, ahead, past):
        self.lag, self.ahead_ns, self.past, self.behind = lag, ahead, max(past, lag), 0
        self.newest, self.mark, self.ahead, self.leaps, self.leaping, self.first = None, BEGIN, 0, 0, [], []

    def begin(self, time, here):
        self.first.append(time)
        near = sorted(self.first)[(len(self.first) - 1) // 2] + self.ahead_ns
        believed = self.first if here else [time for time in self.first if time <= near]
        if here or len(self.first) == 9 or (len(self.first) == 2 and believed == self.first):
            self.newest = max(believed)
            self.ahead += len(self.first) - len(believed)
            self.behind += sum(time < self.newest - self.past for time in self.first)
            self.mark = max(self.mark, self.newest - self.lag)

    def record(self, time, wall):
        future = wall is not None and time > wall + self.ahead_ns
        here = wall is not None and time >= wall - self.ahead_ns
        if self.newest is None and not future:
            self.begin(time, here)
            return
        leaps = self.newest is not None and time > self.newest + self.ahead_ns
        if not future and not (leaps and not here):
            self.leaping = []
            self.newest = max(self.newest, time)
            self.behind += time < self.newest - self.past
            self.mark = max(self.mark, self.newest - self.lag)
            return
        self.ahead += 1
        if not future:
            self.leaping.append(time)
            if len(self.leaping) == 8:
                self.ahead -= 8
                self.leaps += 1
                self.newest = min(self.leaping)
                self.mark = max(self.mark, self.newest - self.lag)
                self.leaping = []


@given(
    times=st.lists(st.integers(0, 300), max_size=60),
    lag=st.integers(0, 20),
    ahead=st.integers(1, 60),
    past=st.integers(1, 100),
    wall=st.none() | st.integers(0, 300),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_it_follows_its_rules_wherever_batches_end(times, lag, ahead, past, wall, cuts):
    told, mark = Told(lag, ahead, past), made(past, lag_ns=lag, max_ahead_ns=ahead)
    expected = [told.mark]
    for time in times:
        told.record(time, wall)
        expected.append(told.mark)
    marks_made = [BEGIN]
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        marks = mark.advance(np.array(times[start:stop], np.int64), wall_ns=wall)
        assert marks[0] == marks_made[-1]
        marks_made += marks[1:].tolist()
    assert marks_made == expected
    assert (mark.ahead, mark.behind, mark.leaps) == (told.ahead, told.behind, told.leaps)


@given(
    times=st.lists(st.integers(0, 300), max_size=60),
    ahead=st.integers(1, 60),
    past=st.integers(1, 100),
    wall=st.none() | st.integers(0, 300),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_where_nobody_needs_the_steps_it_goes_the_same_way(times, ahead, past, wall, cuts):
    mark, hearing = (made(past, lag_ns=7, max_ahead_ns=ahead) for _ in range(2))
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        own = np.array(times[start:stop], np.int64)
        mark.advance(own, wall_ns=wall, now_ns=stop)
        hearing.hear(own, wall_ns=wall, now_ns=stop)
        assert hearing.snapshot() == mark.snapshot()
        assert hearing.tick(100 * S) == mark.tick(100 * S)


def test_one_clock_that_is_936_days_ahead_makes_nobody_late():
    mark = Watermark(lag_ns=0)
    good = np.arange(100) * S
    wrong = np.insert(good, 50, 936 * 24 * HOUR)
    marks = mark.advance(wrong, wall_ns=5_000 * 24 * HOUR)
    assert marks[51] == marks[50] == 49 * S
    assert mark.mark == 99 * S
    assert mark.ahead == 1


@pytest.mark.parametrize("wrong", [[0], [0, 3], [0, 2, 4, 6]])
@pytest.mark.parametrize("years", [3, -30])
def test_a_wrong_clock_at_the_beginning_makes_nobody_late(wrong, years):
    """The first time is no better than any other: ahead it would make all after it late, behind hold all windows up."""
    mark = Watermark(lag_ns=0)
    times = 17_000 * 24 * HOUR + np.arange(20) * S
    times[wrong] += years * 365 * 24 * HOUR
    marks = mark.advance(times, wall_ns=20_000 * 24 * HOUR)
    right = np.delete(np.arange(20), wrong)
    assert (marks[right] < times[right]).all()
    assert mark.mark == times[-1]
    assert (mark.ahead, mark.behind) == ((len(wrong), 0) if years > 0 else (0, len(wrong)))


def test_what_is_within_the_lag_is_not_far_behind():
    """Thirty days, or the lag where that is more."""
    days = np.array([100, 40, 69, 71]) * 24 * HOUR
    for lag, behind in ((0, 2), (45 * 24 * HOUR, 1), (90 * 24 * HOUR, 0)):
        mark = Watermark(lag_ns=lag)
        mark.advance(np.concatenate([days[:1], days]), wall_ns=None)
        assert mark.behind == behind


def test_where_the_first_times_disagree_another_watermark_goes_on_from_a_snapshot():
    """Also in the middle of the nine."""
    times = np.array([900 * 24 * HOUR, *(np.arange(20) * S)])
    whole, began, other = Watermark(lag_ns=0), Watermark(lag_ns=0), Watermark(lag_ns=0)
    expected = whole.advance(times, wall_ns=None)
    first = began.advance(times[:5], wall_ns=None)
    other.restore(began.snapshot(), 0)
    assert [*first[:-1], *other.advance(times[5:], wall_ns=None)] == expected.tolist()
    assert other.ahead == whole.ahead == 1


def test_a_recording_with_a_hole_of_86_days_goes_on_behind_it():
    mark = Watermark(lag_ns=0)
    times = np.concatenate([np.arange(20), 86 * 86_400 + np.arange(20)]) * S
    mark.advance(times, wall_ns=10_000 * 24 * HOUR)
    assert mark.mark == times[-1]
    assert (mark.ahead, mark.leaps) == (0, 1)


def test_a_live_source_goes_on_at_once_after_a_long_silence():
    mark = Watermark(lag_ns=0)
    mark.advance(np.array([0]), wall_ns=0)
    mark.advance(np.array([90 * 24 * HOUR]), wall_ns=90 * 24 * HOUR)
    assert mark.mark == 90 * 24 * HOUR


def test_a_time_beyond_an_hour_after_its_arrival_never_moves_it():
    mark = Watermark(lag_ns=0)
    mark.advance(np.array([5, *[2 * HOUR] * 20]), wall_ns=10)
    assert mark.mark == 5
    assert mark.ahead == 20


def test_it_goes_on_with_the_clock_only_after_a_long_time_without_records():
    mark = Watermark(lag_ns=1 * S, idle_ns=10 * S)
    assert not mark.tick(100 * S)
    mark.advance(np.array([1_000 * S]), wall_ns=None, now_ns=100 * S)
    assert not mark.tick(109 * S)
    assert (further := mark.tick(110 * S)) == 1_009 * S
    assert mark.go_on(further)
    assert not mark.go_on(further), "it is there already"
    assert mark.mark == 1_009 * S
    mark.advance(np.array([1_002 * S]), wall_ns=None, now_ns=111 * S)
    assert mark.mark == 1_009 * S  # it never goes back


def test_when_nothing_more_can_be_late_it_catches_up_with_the_newest_time():
    mark = Watermark(lag_ns=10)
    assert not mark.catch_up()
    mark.advance(np.array([100, 95]), wall_ns=None)
    assert mark.catch_up()
    assert mark.mark == 100
    assert not mark.catch_up()


@pytest.mark.parametrize("before", [[], [5]])
def test_at_the_end_everything_ends(before):
    mark = Watermark(lag_ns=10)
    mark.advance(np.array(before, np.int64), wall_ns=None)
    mark.end()
    assert mark.statistics().mark_ns == END


def test_times_at_the_ends_of_int64_do_no_harm():
    mark = Watermark(lag_ns=5 * S)
    ends = np.array([-(1 << 63), (1 << 63) - 1, 3 * S], np.int64)
    marks = mark.advance(ends, wall_ns=None)
    assert (np.diff(marks) >= 0).all()
    assert mark.mark < 0
