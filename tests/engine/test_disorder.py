"""R22: input that is shuffled, late and doubled gives what it gives in order, or counts exactly what came too late."""

from __future__ import annotations

import gzip
import random
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import tidemill as tm
from tidemill.core.watermark import Watermark
from tidemill.engine.saved_facts import _Watermark
from tidemill.testing import ListSink

HOUR_NS = 3_600 * 10**9
WINDOWS = {"rssi": ["count", "min", "max"], "first": ("fcnt", "min"), "sum": ("fcnt", "sum")}


@pytest.fixture(scope="module")
def frames(recordings: Path) -> list[dict[str, Any]]:
    """Of one device, in the order of their times, which are all different."""
    (path,) = (recordings / "campusiot_lorawan").glob("ems-*.ndjson.gz")
    with gzip.open(path) as lines:
        rows = [msgspec.json.decode(line) for line in islice(lines, 4_000)]
    times = {row["_timestamp"]: row for row in rows if row.get("fcnt") is not None}
    return [
        {"sensor": f"S{number % 7}", "time": time, "fcnt": times[time]["fcnt"], "rssi": number % 50}
        for number, time in enumerate(sorted(times))
    ]


def out(
    rows: list[dict[str, Any]], lanes: int, *, lag: str, dedup: bool = False
) -> tuple[list[dict[str, Any]], tm.Report]:
    sink = ListSink()
    first = [tm.Dedup(within="10000d", max_records=2_000)] if dedup else []
    plan = tm.Plan(*first, tm.Aggregate(tm.tumbling("1h"), WINDOWS))
    report = tm.run(
        tm.Pipeline(tm.sources.Records(rows), plan, sink, lag=lag, max_ahead="10000d"), lanes=lanes, state=False
    )
    return sink.rows, report


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["window_start"], row["sensor"]))


@pytest.mark.parametrize("seed", range(2))
def test_shuffled_and_doubled_frames_give_what_they_give_in_order(
    frames: list[dict[str, Any]], seed: int, lanes: int
) -> None:
    """With as much lag as the shuffle takes: the very rows, and each double counted."""
    chance = random.Random(seed)
    doubled = [*frames, *(chance.choice(frames) for _ in range(500))]
    chance.shuffle(doubled)
    plain, _ = out(frames, lanes, lag="5s")
    made, report = out(doubled, lanes, lag="10000d", dedup=True)
    assert in_order(made) == in_order(plain)
    assert (report.late, report.deduplicated, report.in_flight) == (0, 500, 0)


@pytest.mark.parametrize("lag_s", [0, 600, 20_000])
def test_what_comes_too_late_is_counted_exactly(frames: list[dict[str, Any]], lag_s: int) -> None:
    """As a plain loop counts it: a record is late when its window has ended at the newest time before it, less the lag."""
    chance = random.Random(lag_s)
    places = sorted(range(len(frames)), key=lambda place: place + chance.uniform(0, 60))
    shuffled = [frames[place] for place in places]
    times = np.array([frame["time"] * 10**6 for frame in shuffled])
    newest = np.maximum.accumulate(times) - lag_s * 10**9
    ends = (times // HOUR_NS + 1) * HOUR_NS
    late = int(np.count_nonzero(ends[1:] <= newest[:-1]))
    _, report = out(shuffled, 0, lag=f"{lag_s}s")
    assert report.late == late
    assert lag_s == 20_000 or late > 0


@pytest.mark.parametrize("max_records", [1, 4, 32_768])
def test_a_recording_that_begins_with_a_wrong_clock_loses_nothing(max_records: int, lanes: int) -> None:
    """The first record's time is no better than any other; the same wherever batches end."""
    rows = [{"sensor": f"S{n % 2}", "time": 1_700_000_000 + 3 * n, "value": 1.0} for n in range(12)]
    wrong = {"sensor": "gateway", "time": 1_700_000_000 + 936 * 86_400, "value": 9.0}
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "sum"}))
    made = []
    for records in (rows, [wrong, *rows]):
        sink = ListSink()
        report = tm.run(
            tm.Pipeline(tm.sources.Records(records), plan, sink, lag=0),
            lanes=lanes,
            limits=tm.Limits(max_records=max_records),
        )
        assert report.late == 0
        made.append([row for row in sink.rows if row["sensor"] != "gateway"])
    assert made[0] == made[1]
    assert report.counters == {"time_ahead": 1}


@pytest.mark.parametrize(
    "stage",
    [
        tm.Ewm("value", halflife="5s"),
        tm.Rolling("value", window=10, stats=["count"], max_gap_s=60),
        tm.scan(lambda state, row: (state + 1, {"seen": state}), 0, ttl="10s"),
        tm.Silence("30s"),
        tm.Select("sensor", "value"),
    ],
    ids=lambda stage: stage.name,
)
def test_a_time_that_is_far_ahead_is_counted_whatever_the_plan_is(stage: tm.Stage, lanes: int) -> None:
    """Also without a stage that follows the watermark: the time of such a record spoils others, or goes to the sinks."""
    rows = [{"sensor": "a", "time": 1_700_000_000 + n, "value": 1.0} for n in range(60)]
    rows.insert(20, {"sensor": "a", "time": 1_700_000_000 + 936 * 86_400, "value": 100.0})
    limits = tm.Limits(max_records=16)
    report = tm.run(tm.Pipeline(tm.sources.Records(rows), tm.Plan(stage), ListSink()), lanes=lanes, limits=limits)
    assert report.counters == {"time_ahead": 1}


@pytest.mark.parametrize("stage", [tm.Rolling("value", 3), tm.Silence("30s"), tm.Dedup(), tm.Select("sensor", "value")])
@pytest.mark.parametrize("time", [0, 1_700_000_000 - 936 * 86_400])
@pytest.mark.parametrize("place", [0, 20])
def test_a_time_of_the_far_past_is_counted_whatever_the_plan_is(stage: tm.Stage, time: int, place: int) -> None:
    """It moves nothing, but it is as wrong as one far ahead: a clock without its battery says 1970."""
    rows = [{"sensor": "a", "time": 1_700_000_000 + n, "value": 1.0} for n in range(60)]
    rows.insert(place, {"sensor": "b", "time": time, "value": 100.0})
    limits = tm.Limits(max_records=16)
    report = tm.run(tm.Pipeline(tm.sources.Records(rows), tm.Plan(stage), ListSink()), lanes=0, limits=limits)
    assert report.counters["time_behind"] == 1


def test_a_checkpoint_has_all_that_a_watermark_counts() -> None:
    """One of a version before knows no times that were far behind."""
    mark = Watermark(lag_ns=0)
    mark.advance(np.array([1_700_000_000, 1_700_000_001, 0, 2_700_000_000]) * 10**9, wall_ns=None)
    assert (mark.ahead, mark.behind) == (1, 1)
    told = msgspec.json.decode(msgspec.json.encode(mark.snapshot()))
    assert msgspec.structs.asdict(msgspec.convert(told, _Watermark)) == mark.snapshot()
    del told["behind"]
    assert msgspec.convert(told, _Watermark).behind == 0


def test_eight_records_in_a_row_that_are_far_ahead_are_counted_as_a_leap() -> None:
    """They are taken for what follows a hole in the recording, also where max_ahead= was given."""
    rows = [{"sensor": "a", "time": 1_700_000_000 + n, "value": 1.0} for n in range(60)]
    rows[20:20] = [{"sensor": "g", "time": 1_700_000_000 + 936 * 86_400 + n, "value": 9.0} for n in range(8)]
    plan = tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": "count"}))
    report = tm.run(tm.Pipeline(tm.sources.Records(rows), plan, ListSink(), max_ahead="1h"), lanes=0)
    assert (report.late, report.counters) == (40, {"time_behind": 40, "time_leaps": 1})
