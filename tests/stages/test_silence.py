"""`Silence` against its rules told record by record, and against itself: other batches, other lanes, killed lanes."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.core.watermark import BEGIN, Watermark
from tidemill.testing import EOF, PAUSE, ListSink, ManualClock, ScriptedSource

S = 1_000_000_000
DAY = 86_400


def told(rows, after, lag):
    """What comes out, in the most simple-minded way: (sensor, silent, last_seen) in seconds."""
    last, reported, made = {}, set(), []
    watermark = Watermark(lag_ns=lag * S)

    def look(mark):
        due = [(time + after, key) for key, time in last.items() if key not in reported and (time + after) * S < mark]
        for _, key in sorted(due, key=lambda pair: (pair[0], pair[1].encode())):
            reported.add(key)
            made.append((key, True, last[key]))

    for key, time in rows:
        mark = int(watermark.advance(np.array([time * S]), wall_ns=None)[-1])
        made.append((key, False, time))
        before = last.get(key)
        if before is not None and mark != BEGIN and before * S > mark + 30 * DAY * S:
            del last[key]  # from when nobody knew that it was wrong
            before = None
            reported.discard(key)
        if mark == BEGIN or time * S <= mark + 30 * DAY * S:  # else its clock is wrong
            if before is not None and key not in reported and (before + after) * S < mark:
                late = (before + after, key)  # silent until this very record
                last[key] = before
                look(mark)
                assert key in reported, late
            if before is None or time > before:
                last[key] = time
                if (time + after) * S >= mark:
                    reported.discard(key)
        look(mark)
    watermark.catch_up()
    look(watermark.mark)
    return made


def seen(rows):
    return [(row["sensor"], row["silent"], row["last_seen"] // S) for row in rows]


def dicts(rows):
    return [{"sensor": key, "time": time, "value": 1.0} for key, time in rows]


def run(plan, rows, *, lanes=0, max_records=32_768, **options):
    sink = ListSink()
    report = tm.run(
        tm.Pipeline(tm.sources.Records(rows), plan, sink, **options),
        lanes=lanes,
        limits=tm.Limits(max_records=max_records),
    )
    assert report.in_flight == 0
    assert report.records_in == report.rows_from_records == len(rows)
    assert report.rows_out == report.emitted + report.rows_from_records == len(sink.rows)
    return sink.rows, report


names = st.sampled_from(["a", "b", "é", "B"])
in_order = st.lists(st.tuples(names, st.integers(0, 15)), min_size=1, max_size=50).map(
    lambda steps: [(key, 1_000 + int(t)) for (key, _), t in zip(steps, np.cumsum([s for _, s in steps]), strict=True)]
)
in_no_order = st.lists(st.tuples(names, st.integers(1_000, 1_120)), min_size=1, max_size=50)
with_wrong_clocks = st.lists(
    st.tuples(names, st.integers(1_000, 1_120) | st.sampled_from([-DAY, 936 * DAY, 936 * DAY + 1])),
    min_size=1,
    max_size=30,
)
recordings = in_order | in_no_order | with_wrong_clocks


@given(rows=recordings, after=st.integers(1, 60), lag=st.integers(0, 30))
def test_events_come_out_where_the_rules_told_record_by_record_say(rows, after, lag):
    made = tm.Plan(tm.Silence(after)).apply(dicts(rows), lag=lag)
    assert seen(made) == told(rows, after, lag)


@pytest.mark.parametrize("cut", [1, 2, 3, 100])
def test_a_sensor_whose_first_time_was_wrong_is_told_silent_later(cut):
    """The clock of a device that has just been switched on: nothing says that it is wrong before others have spoken."""
    rows = [("a", 936 * DAY), *((key, 1_000 + at) for at in range(0, 60, 10) for key in "ab"), ("b", 1_200)]
    made, _ = run(tm.Silence(60), dicts(rows), max_records=cut, lag=5)
    assert ("a", True, 1_050) in seen(made)
    assert seen(made) == told(rows, 60, 5)


def test_with_a_lag_of_months_nobody_who_speaks_is_silent():
    """Then every time is far ahead of the watermark, and none tells anything."""
    rows = [(key, day * DAY) for day in range(100) for key in "ab"]
    made, _ = run(tm.Silence(3 * DAY), dicts(rows), lag="40d")
    assert seen(made) == told(rows, 3 * DAY, 40 * DAY)
    assert not any(silent for _, silent, _ in seen(made))


@settings(max_examples=25)
@given(rows=recordings, after=st.integers(1, 60), lag=st.integers(0, 30), cut=st.integers(1, 7))
def test_rows_do_not_depend_on_where_batches_end(rows, after, lag, cut):
    parts, _ = run(tm.Silence(after), dicts(rows), max_records=cut, lag=lag)
    assert seen(parts) == told(rows, after, lag)


@pytest.fixture(scope="module")
def many():
    """Two hundred sensors in bursts, some times off by seconds: 20,000 records."""
    dice = np.random.default_rng(8)
    times = np.cumsum(dice.exponential(0.5, 20_000)) + dice.normal(0, 2, 20_000)
    weights = 1 / np.arange(1, 201)
    sensors = dice.choice(200, 20_000, p=weights / weights.sum())
    return [(f"S{sensor}", 1_000 + int(time)) for sensor, time in zip(sensors, times, strict=True)]


def test_lanes_give_what_the_rules_say(many, lanes):
    made, report = run(tm.Silence("60s"), dicts(many), lanes=lanes, max_records=997, lag=5)
    assert seen(made) == told(many, 60, 5)
    assert report.emitted > 1_000


@pytest.mark.slow
async def test_killed_lanes_change_nothing(many):
    dice, killed = random.Random(3), set()

    def kill(batch):
        busy = [lane for lane in run.statistics().lanes if lane.in_flight and lane.pid not in {None, *killed}]
        if busy and len(killed) < 8:
            victim = dice.choice(busy).pid
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)

    sink = ListSink()
    source = tm.sources.Records(dicts(many))
    pipeline = tm.Pipeline(source, tm.Silence("60s"), [sink, tm.sinks.Callback(kill)], lag=5)
    async with tm.serve(pipeline, lanes=2, limits=tm.Limits(max_records=256)) as run:
        await run.wait()
    assert sum(lane.restarts for lane in run.report.lanes) == len(killed) == 8
    assert seen(sink.rows) == told(many, 60, 5)


def test_records_pass_unchanged_and_the_event_has_no_field_of_theirs():
    rows = [
        {"sensor": "a", "time": "1970-01-01T00:00:01Z", "value": 5, "note": None},
        {"sensor": "b", "time": "1970-01-01T00:02:00Z", "value": 5.5, "deep": {"n": [1]}},
    ]
    made, _ = run(tm.Silence("1min"), rows, lag=0)
    assert [(row, list(row)) for row in made[:2]] == [
        (expected, list(expected))
        for expected in (row | {"silent": False, "last_seen": n * S} for row, n in zip(rows, (1, 120), strict=True))
    ]
    assert made[2:] == [{"sensor": "a", "silent": True, "last_seen": 1 * S}]


def test_a_gap_ended_by_the_record_that_carries_the_watermark_is_told_behind_it():
    """As in a recording of one sensor, or after a hole in which all were silent."""
    rows = [("a", 0), ("b", 1), ("a", 100), ("b", 101)]
    assert told(rows, 60, 0) == seen(tm.Plan(tm.Silence(60)).apply(dicts(rows)))
    assert [row for row in told(rows, 60, 0) if row[1]] == [("a", True, 0), ("b", True, 1)]


def test_a_sensor_that_speaks_in_steps_of_just_after_is_never_silent():
    rows = [(key, 60 * n) for n in range(5) for key in "ab"]
    assert not any(row["silent"] for row in tm.Plan(tm.Silence(60)).apply(dicts(rows)))


def test_one_event_per_silence_however_long_and_another_after_speaking_again():
    rows = [("a", 0), *(("b", t) for t in range(0, 500, 10)), ("a", 500), *(("b", t) for t in range(500, 700, 10))]
    events = [row for row in seen(tm.Plan(tm.Silence(60)).apply(dicts(rows))) if row[1]]
    assert events == [("a", True, 0), ("a", True, 500)]


def test_the_event_time_is_that_of_the_deadline():
    """What a stage behind it sees: here a window of ten seconds."""
    rows = [("a", 0), *(("b", t) for t in range(0, 200, 10))]
    plan = tm.Plan(tm.Silence(65), tm.Filter("silent"), tm.Aggregate(tm.tumbling("10s"), {"value": "count"}))
    made = plan.apply(dicts(rows))
    assert [(row["sensor"], row["window_start"] // S) for row in made] == [("a", 60)]


@pytest.mark.parametrize(
    ("keys", "kind"), [([7, 8], int), ([7.5, 8.5], float), (["a", "b"], str), ([True, False], bool)]
)
def test_the_sensors_name_is_of_the_kind_it_has_in_the_records(keys, kind, lanes):
    """Where the schema is known before, and where the first record shows it."""
    rows = [{"machine": keys[n > 0], "time": 1.7e9 + 10 * n, "value": n} for n in range(20)]
    plan = tm.Plan(tm.Silence("60s"))
    sources = [tm.sources.Records(rows, key="machine"), ScriptedSource([rows[:9], rows[9:], EOF], key="machine")]
    for source in sources:
        sink = ListSink()
        tm.run(tm.Pipeline(source, plan, sink), lanes=lanes)
        (event,) = [row for row in sink.rows if row["silent"]]
        assert event["machine"] == keys[0]
        assert type(event["machine"]) is kind


def test_a_key_made_of_several_fields_names_the_sensor():
    rows = [{"line": "L1", "machine": n > 0, "time": 10 * n, "value": n} for n in range(20)]
    sink = ListSink()
    tm.run(tm.Pipeline(tm.sources.Records(rows, key="{line}/{machine}"), tm.Silence("60s"), sink), lanes=0)
    (event,) = [row for row in sink.rows if row["silent"]]
    assert event == {"silent": True, "last_seen": 0, "sensor": "L1/False"}


def test_the_report_and_a_second_sink_take_the_events_alone(lanes):
    rows = dicts([("a", 0), *(("b", t) for t in range(0, 200, 10))])
    everything, alerts = ListSink(), ListSink(where="silent", columns=["sensor", "last_seen"])
    report = tm.run(tm.Pipeline(tm.sources.Records(rows), tm.Silence("60s"), [everything, alerts]), lanes=lanes)
    assert alerts.rows == [{"sensor": "a", "last_seen": 0}]
    assert len(everything.rows) == len(rows) + 1
    assert report.emitted == 1


class Endless(ScriptedSource):
    """One that has no end of its own, as live ones have none."""

    finite = False


class Awaited(ListSink):
    """A sink whose rows can be waited for."""

    def __init__(self, **options):
        super().__init__(**options)
        self._written = asyncio.Condition()

    async def write(self, batch):
        async with self._written:
            await super().write(batch)
            self._written.notify_all()

    async def until(self, rows):
        async with self._written:
            await self._written.wait_for(lambda: len(self.rows) >= rows)


def asks_for_value(batch):
    """A function behind the events that looks at a field of the records."""
    return {"hot": np.nan_to_num(batch["value"]) > 50}


@pytest.mark.parametrize("behind", [[], [tm.Map(asks_for_value)]], ids=["alone", "with a function behind it"])
async def test_in_a_live_run_the_event_comes_with_no_record_at_all(lanes, behind, tmp_path):
    """Both sensors fall silent; the clock alone carries the watermark on."""
    clock, sink, alerts = ManualClock(), Awaited(), Awaited(where="silent", columns=["sensor"])
    source = Endless([[{"sensor": "a", "value": 1.0}, {"sensor": "b", "value": 99.0}], PAUSE(1e9)])
    pipeline = tm.Pipeline(source, tm.Plan(tm.Silence("60s"), *behind), [sink, alerts], lag=5, idle_after=10)
    letters = tmp_path / "letters.ndjson"
    async with tm.serve(pipeline, lanes=lanes, clock=clock, dead_letters=letters) as run:
        await sink.until(2)
        clock.advance(64)
        clock.advance(2)  # 66 s behind the records, less the lag of 5: a second past the deadline
        await alerts.until(2)
        await run.stop()
    assert alerts.rows == [{"sensor": "a"}, {"sensor": "b"}]
    assert run.report.emitted == 2
    assert run.report.dead_letters == run.report.counters.get("dead_rows", 0) == 0
    if behind:
        assert [row["hot"] for row in sink.rows] == [False, True, False, False]


async def test_an_asynchronous_iterable_that_is_live_needs_no_record_for_the_event_either(lanes, tmp_path):
    """What an application hands over itself is no recording when it says so."""
    clock, sink, alerts, over = ManualClock(), Awaited(), Awaited(where="silent", columns=["sensor"]), asyncio.Event()

    async def readings():
        yield {"sensor": "a", "value": 1.0}
        await over.wait()

    source = tm.sources.Records(readings(), live=True)
    pipeline = tm.Pipeline(source, tm.Silence("60s"), [sink, alerts], lag=5, idle_after=10)
    async with tm.serve(pipeline, lanes=lanes, clock=clock, state=False) as run:
        await sink.until(1)
        clock.advance(66)
        await alerts.until(1)
        over.set()
        await run.wait()
    assert alerts.rows == [{"sensor": "a"}]
    assert run.report.emitted == 1


def test_what_came_before_a_lane_was_replaced_is_known_behind_it(tmp_path):
    """An event that comes alone has the records' columns also where the lane that saw them is gone."""

    def dies(batch):
        batch["value"]
        if len(batch) and np.isnan(batch["value"]).all() and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os._exit(3)
        return {"seen": True}

    rows = [{"sensor": "a", "time": 0, "value": 1}, {"sensor": "b", "time": 62, "value": 1}]
    sink = ListSink()
    source = ScriptedSource([rows, EOF])
    plan = tm.Plan(tm.Silence("60s"), tm.Map(dies))
    report = tm.run(tm.Pipeline(source, plan, sink, lag=5), lanes=1, dead_letters=tmp_path / "letters")
    assert (tmp_path / "died").exists()
    assert sum(lane.restarts for lane in report.lanes) == 1
    assert sink.rows[2:] == [{"sensor": "a", "silent": True, "last_seen": 0, "seen": True}]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: tm.Silence(0), "Silence: after=0 must be at least a nanosecond"),
        (lambda: tm.Silence("soon"), "is not a duration"),
        (lambda: tm.Plan(tm.Silence(1), tm.Silence(2)).apply(dicts([("a", 1)])), "a column 'silent', and there is one"),
        (lambda: tm.Plan(tm.Silence(1)).apply([{"sensor": "a", "v": 1}]), "works in event time"),
    ],
)
def test_what_cannot_be_meant_is_refused(made, said):
    with pytest.raises(tm.PlanError, match=said):
        made()


def test_an_after_of_centuries_waits_for_ever():
    assert not any(row["silent"] for row in tm.Plan(tm.Silence("100000d")).apply(dicts([("a", 0), ("b", 10**9)])))


def test_it_gives_frames_too():
    frame = pd.DataFrame({"sensor": ["a", "b"], "time": pd.to_datetime([0, 100], unit="s"), "value": [1, 2]})
    made = tm.Plan(tm.Silence("60s")).apply(frame)
    assert made["silent"].tolist() == [False, False, True]
    assert made["last_seen"].tolist() == [*frame["time"].dt.tz_localize("UTC"), pd.Timestamp(0, tz="UTC")]
    assert made["value"].isna().tolist() == [False, False, True]


def test_of_many_sensors_each_is_told_once():
    """All keys of a lane are looked through only when one may be due."""
    keys = [f"S{n}" for n in range(100_000)]
    frame = pd.DataFrame({"sensor": [*keys, "last"], "time": [*[0] * len(keys), 100], "value": 0.0})
    made = tm.Plan(tm.Silence("60s")).apply(frame, time="time")
    assert made.loc[made["silent"], "sensor"].tolist() == sorted(keys)
