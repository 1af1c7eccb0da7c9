"""Times in every shape, against pandas and the standard library."""
# ruff: noqa: DTZ001 - times without a zone are the subject

from __future__ import annotations

import datetime as dt
import zoneinfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidemill.column import NAT, Column
from tidemill.errors import InputError, PlanError
from tidemill.formats.times import TimeReader, epochs
from tidemill.schema import Kind

moments = st.datetimes(dt.datetime(1680, 1, 1), dt.datetime(2260, 1, 1))
zones = st.sampled_from(["", "Z", "+00:00", "+05:30", "-0330", "+01", "-11:59"])
fractions = st.text("0123456789", max_size=12)


@given(moments, st.sampled_from("Tt "), fractions, zones)
@example(dt.datetime(2000, 2, 29, 23, 59, 59), "T", "999999999", "+23:59")
@example(dt.datetime(2026, 1, 1), "T", "1234567891", "Z")
@example(dt.datetime(1960, 1, 1), " ", "999999999999", "")
def test_iso_text_against_pandas(moment: dt.datetime, between: str, fraction: str, zone: str) -> None:
    """ISO texts give pandas' nanoseconds, whatever their fraction and zone; what is below a nanosecond is cut."""
    text = moment.strftime(f"%Y-%m-%d{between}%H:%M:%S").rjust(19, "0") + (f".{fraction}" if fraction else "") + zone
    stamp = pd.Timestamp(text.replace("t", "T")).as_unit("ns")
    expected = stamp.tz_localize("UTC").value if stamp.tzinfo is None else stamp.value
    assert TimeReader().texts([text, "soon"]).tolist() == [expected, NAT]


@given(st.text(max_size=40))
@example("2024-02-30 00:00:00")
@example("2024-13-01T00:00:00")
@example("2024-01-01T24:00:00")
@example("2024-01-01T00:00:60")
@example("2024-01-01T00:00:00.")
@example("2024-01-01T00:00:00+1:0")
@example("0001-01-01T00:00:00")
@example("9999-12-31T23:59:59")
@example("1e999")
@example("9" * 40)
@example("\u0662\u0660\u0662\u0664-\u0660\u0661-\u0660\u0661 00:00:00")
def test_any_text_is_a_time_or_none(text: str) -> None:
    """No text raises, and alone or among others it means the same."""
    alone = TimeReader().texts([text]).tolist()
    assert TimeReader().texts(["2024-01-01T00:00:00Z", text, "x"]).tolist()[1:2] == alone


@given(st.lists(st.text("0123456789-:T. Z+", max_size=24), max_size=5))
def test_what_is_understood_is_what_the_standard_library_understands(texts: list[str]) -> None:
    """Of texts that look like times, those with dashes are read as `datetime.fromisoformat` reads them, or not."""
    for text, ns in zip(texts, TimeReader().texts(texts).tolist(), strict=True):
        if ns == NAT or "-" not in text.strip()[1:]:
            continue
        moment = dt.datetime.fromisoformat(text.strip())
        moment = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment
        assert abs(ns - round(moment.timestamp() * 1e6) * 1_000) <= 1_000


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_epochs_tell_their_unit_by_magnitude(unit: str) -> None:
    """An epoch of this century means the same moment in each unit, as int, float or text."""
    expected = pd.Timestamp("2024-03-01T12:00:00Z").value
    number = expected // {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
    reader = TimeReader()
    assert reader.one(number) == expected
    assert reader.one(float(number)) == expected
    assert reader.one(str(number)) == expected
    assert epochs(np.array([float(number)])).tolist() == [expected]


@given(st.integers(10**8 * 10**6, 4 * 10**9 * 10**6))
def test_fractional_seconds_are_read_to_the_microsecond(micros: int) -> None:
    """A float of seconds with microseconds gives those microseconds, not the float's binary noise."""
    assert TimeReader().one(micros / 1e6) == micros * 1_000


@given(
    st.lists(
        st.one_of(
            st.floats(-1e20, 1e20),
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(-5e9, 5e9),
            st.sampled_from([2.0**22, 2.0**23, 2.0**26, 9_223_372_034.5, 9_223_372_035.0, -9_223_372_035.5]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_an_epoch_does_not_depend_on_its_neighbours(numbers: list[float]) -> None:
    """Nor on what can be said of all of them together."""
    each = [epochs(np.array([number])).tolist()[0] for number in numbers]
    assert epochs(np.array(numbers)).tolist() == each


@pytest.mark.parametrize("start", [1.7e9, 1e7, -2e9, 1.7e12])
def test_a_long_column_of_epochs_is_read_as_its_parts_are(start: float) -> None:
    """It is read piece by piece: in seconds with noise below the microsecond or without, before 1970, and in milliseconds."""
    numbers = start + np.arange(20_000) * 0.001234567
    assert (epochs(numbers) == np.concatenate([epochs(part) for part in np.split(numbers, 100)])).all()


def test_epochs_that_are_none() -> None:
    """NaN, infinities and what nanoseconds cannot hold are no times."""
    assert (epochs(np.array([np.nan, np.inf, -np.inf, 1e30, 9.3e9])) == NAT).all()


@given(
    moments.filter(lambda moment: moment.year > 1900),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]),
)
@example(dt.datetime(2024, 3, 31, 2, 30), "Europe/Berlin")
@example(dt.datetime(2024, 10, 27, 2, 30), "Europe/Berlin")
def test_naive_times_are_local(moment: dt.datetime, tz: str) -> None:
    """A time without a zone is the zone's local time: of a doubled hour the first, in a skipped one the old offset."""
    moment = moment.replace(microsecond=0, fold=0)  # which no text can tell
    expected = (moment.replace(tzinfo=zoneinfo.ZoneInfo(tz)) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(
        seconds=1
    )
    reader = TimeReader(tz)
    assert reader.texts([moment.isoformat(sep=" ")]).tolist() == [expected * 10**9]
    assert reader.one(moment) == expected * 10**9
    local = np.array([moment], "datetime64[ns]").view(np.int64)
    assert reader.localised(local).tolist() == [expected * 10**9]
    assert reader.texts([moment.isoformat() + "Z"]).tolist() == TimeReader().texts([moment.isoformat()]).tolist()


def test_a_datetime_may_say_that_it_means_the_second_of_a_doubled_hour() -> None:
    moment = dt.datetime(2024, 10, 27, 2, 30)
    reader = TimeReader("Europe/Berlin")
    assert reader.one(moment.replace(fold=1)) - reader.one(moment) == 3_600 * 10**9


def test_objects_that_are_times() -> None:
    """datetime, date, datetime64 and pandas' Timestamp, with its nanoseconds."""
    reader = TimeReader()
    assert reader.one(dt.datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=dt.UTC)) == 1_000_005_000
    assert reader.one(dt.date(1970, 1, 2)) == 86_400 * 10**9
    assert reader.one(np.datetime64("1970-01-01T00:00:01", "ms")) == 10**9
    assert TimeReader("Europe/Berlin").one(np.datetime64("1970-01-01T01:00:01")) == 10**9
    assert TimeReader("Europe/Berlin").one(np.datetime64("NaT", "s")) == NAT
    assert reader.one(pd.Timestamp("1970-01-01T00:00:00.123456789Z")) == 123_456_789
    assert reader.one(np.float64(1.5)) == 1_500_000_000
    assert [reader.one(item) for item in (None, True, [], np.datetime64("NaT", "s"), float("nan"))] == [NAT] * 5


def test_an_explicit_format_is_the_only_one() -> None:
    """With ``time_format`` texts and numbers are read by it, in the zone."""
    reader = TimeReader("Europe/Berlin", "%Y%m%d%H%M%S")
    expected = pd.Timestamp("2024-03-01T12:00:00", tz="Europe/Berlin").value
    assert reader.texts(["20240301120000", "2024-03-01T12:00:00"]).tolist() == [expected, NAT]
    ns, bad = reader.column(Column.of_integers(np.array([20240301120000])))
    assert (ns.tolist(), bad.tolist()) == ([expected], [False])


@pytest.mark.parametrize("time_format", ["%Q", "100%", "soon", "", "%Y %Y", "%G-%m", "%s", " %Y", 5])
def test_a_format_that_reads_nothing_is_refused(time_format: str) -> None:
    """When it is written, not record by record."""
    with pytest.raises(PlanError, match=r"time_format=.* reads no time: .*'%d\.%m\.%Y %H:%M:%S'"):
        TimeReader("UTC", time_format)


@pytest.mark.parametrize(
    "time_format",
    [
        "%c",
        "%x %X",
        "%I:%M:%S %p, %a %b %d %y",
        "%G-W%V-%u",
        "%Y-%j",
        "%H:%M:%S.%f%z",
        "%A %B %d %Y %Z",
        "%m/%d/%Y",
        "%U %w %Y",
        "%d%m%y%H%M",
        "%%%Y",
    ],
)
def test_every_directive_may_be_in_a_format(time_format: str) -> None:
    """Those of ``strptime``."""
    assert TimeReader("UTC", time_format).time_format == time_format


def test_epoch_nanoseconds_beyond_float_precision_are_exact() -> None:
    """Integers that float64 cannot hold keep their last digits."""
    column = Column.of_integers(np.array([1_700_000_000_123_456_789]))
    assert TimeReader().column(column)[0].tolist() == [1_700_000_000_123_456_789]
    declared = Column(Kind.INT, np.array([1_700_000_000_123_456_789]))
    assert TimeReader().column(declared)[0].tolist() == [1_700_000_000_123_456_789]


def test_an_unknown_zone_is_refused() -> None:
    """The error names the zone and an example."""
    with pytest.raises(InputError, match=r"Mars/Base.*Europe/Berlin"):
        TimeReader("Mars/Base")


def test_a_day_alone_is_its_midnight():
    """In the reader's zone; what only looks like one is no time."""
    assert TimeReader().one("2024-03-01") == 1_709_251_200 * 10**9
    assert TimeReader("Europe/Berlin").one("2024-03-01") == (1_709_251_200 - 3_600) * 10**9
    assert [TimeReader().one(text) for text in ("2024-13-01", "2024-3", "1-1", "9" * 25)] == [NAT] * 4


def test_nanoseconds_of_rarer_forms() -> None:
    """A time that is read singly is as exact as one that is read with many."""
    assert TimeReader().texts(["20260101T000000.123456789Z", " 2026-01-01T00:00:00,1234567Z"]).tolist() == [
        1767225600_123456789,
        1767225600_123456700,
    ]
