"""How a field tells the time."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill.app.new.times_seen import day_and_hour, times_seen
from tidemill.formats.times import TimeReader

moments = st.integers(347_155_200, 4_070_908_800).map(lambda second: dt.datetime.fromtimestamp(second, dt.UTC))


@given(
    st.lists(moments, min_size=1, max_size=20), st.sampled_from([("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
)
def test_the_unit_of_epochs_is_the_one_that_they_are_read_in(times, unit) -> None:
    """As numbers and as texts: what is told is what the engine's own reader makes of them."""
    name, scale = unit
    times = [max(time, dt.datetime(1990, 1, 1, tzinfo=dt.UTC)) for time in times]
    epochs = [int(time.timestamp()) * scale for time in times]
    for items in (epochs, list(map(str, epochs))):
        seen = times_seen(items)
        assert seen is not None
        assert (seen.words, seen.zoned) == (f"epoch in {name}", True)
    assert [TimeReader().one(epoch) // 10**9 for epoch in epochs] == [int(time.timestamp()) for time in times]


@given(st.lists(moments, min_size=1, max_size=20), st.sampled_from(["", "Z", "+02:00", "-0530"]))
def test_iso_times_say_whether_they_have_a_zone(times, zone) -> None:
    """With and without fractions."""
    seen = times_seen([time.replace(tzinfo=None).isoformat() + zone for time in times])
    assert seen is not None
    assert (seen.words, seen.zoned, seen.format) == ("ISO 8601", bool(zone), None)


@pytest.mark.parametrize(
    ("texts", "form", "doubted"),
    [
        (["31.03.2024 12:00:05"], "%d.%m.%Y %H:%M:%S", False),
        (["31/03/2024 12:00"], "%d/%m/%Y %H:%M", False),
        (["03/31/2024 12:00"], "%m/%d/%Y %H:%M", False),
        (["03/04/2024 12:00"], "%d/%m/%Y %H:%M", True),
        (["20240331120005"], "%Y%m%d%H%M%S", False),
        ([20240331120005, 20240331120010], "%Y%m%d%H%M%S", False),
        (["03/04/2024 12:00 AM"], "%m/%d/%Y %I:%M %p", True),
        (["3-4-2024 1:00:05 PM"], "%m-%d-%Y %I:%M:%S %p", True),
        (["13/04/2024 12:00 AM"], "%d/%m/%Y %I:%M %p", False),
        (["03/04/2024 12:00", "03/14/2024 12:00"], "%m/%d/%Y %H:%M", False),
        (["2024/03/31 12:00:05"], "%Y/%m/%d %H:%M:%S", False),
        (["03/31/2024 12:00:05 PM"], "%m/%d/%Y %I:%M:%S %p", False),
    ],
)
def test_other_ways_to_write_a_time(texts, form, doubted) -> None:
    """Told by the days beyond the twelfth; a guess, and said to be one, where there are none: months
    first beside AM and PM."""
    seen = times_seen(texts)
    assert seen is not None
    assert (seen.format, seen.zoned) == (form, False)
    assert bool(seen.doubt) is doubted


@pytest.mark.parametrize(
    "texts",
    [
        [f"03/{1 + n // 10:02}/2024 10:00:00" for n in range(130)],
        [f"{3 + n // 200:02}/{1 + n % 12 if n < 980 else 13 + n % 5:02}/2024 10:00:00" for n in range(1_000)],
        ["date", *[f"3/{1 + n % 14}/2024 1:00 PM" for n in range(130)]],
    ],
    ids=["days of two weeks", "only at the end", "behind a row of units"],
)
def test_few_days_beyond_the_twelfth_tell_days_from_months(texts) -> None:
    """Nothing is taken for a day that the other reading cannot be, wherever in the head it stands."""
    seen = times_seen(texts)
    assert seen is not None
    assert (seen.format or "").startswith("%m/%d/%Y")
    assert seen.doubt == ""


@pytest.mark.parametrize(
    "items",
    [
        [],
        [None],
        [20.5, 21.0],
        ["S1"],
        [True],
        [[1]],
        ["soon", "later"],
        [0, 1, 2],
        [1e30],
        ["nan"],
        ["12:30:00"],
        [20240331120065],
        [20241331120000],
    ],
)
def test_what_tells_no_time(items) -> None:
    """Readings, names, counters, times of day."""
    assert times_seen(items) is None


@example([8.98846567431158e307, 8.98846567431158e307])
@given(st.lists(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())))
def test_anything_may_stand_in_a_field(items) -> None:
    """It never raises."""
    times_seen(items)
    day_and_hour(items)
