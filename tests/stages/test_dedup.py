"""Dedup: each record once, in whatever order its copies arrive; and what a counter says of those that never did."""

import re
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import NULL_TAG, Column
from tidemill.errors import PlanError
from tidemill.schema import Kind, Schema


def stepped(drive, stage, seconds, keys=None, counters=None):
    """What one batch of records at these times comes to."""
    columns = {"nth": Column(Kind.INT, np.arange(len(seconds)))}
    if counters is not None:
        columns["n"] = Column(Kind.FLOAT, np.array(counters, np.float64))
    batch = Batch(columns, time=np.array([round(s * 1e9) for s in seconds], np.int64))
    driver = drive(stage)
    step = driver.step(batch, keys or ["S1"] * len(batch))
    return step, {**driver.state.counts}


def rows_of(step):
    return step.batch["nth"].tolist()


# -- by key and time ------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 12)), min_size=1), st.sampled_from([1, 2, 5, 100]))
def test_a_copy_is_what_is_among_the_times_remembered(drive, rows, max_records):
    """Per sensor, the last that went on, but for those before a forgotten one; no other is dropped, each other counted."""
    keys, seconds = zip(*rows, strict=True)
    step, counts = stepped(drive, tm.Dedup(max_records=max_records), seconds, keys)
    remembered = {key: deque(maxlen=max_records) for key in "ab"}
    newest = dict.fromkeys("ab", -1)
    forgotten = dict.fromkeys("ab", -1)
    expected, unchecked = [], 0
    for nth, (key, time) in enumerate(rows):
        known = remembered[key]
        if time in known or time == newest[key]:
            continue
        expected.append(nth)
        newest[key] = max(newest[key], time)
        if time <= forgotten[key]:
            unchecked += 1
            continue
        if len(known) == max_records:
            forgotten[key] = max(forgotten[key], known[0])
        known.append(time)
    assert rows_of(step) == expected
    dropped = len(rows) - len(expected)
    assert sum(step.gone.values()) == step.gone.get("deduplicated", 0) == dropped
    assert counts.get("unchecked", 0) == unchecked
    assert len(expected) - len({rows[nth] for nth in expected}) <= unchecked


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("block", [30, 100, 900])
def test_a_block_that_is_delivered_again_is_known_as_far_as_it_is_remembered(drive, block, times):
    """What was forgotten of it goes on and is counted, and pushes out nothing of the rest."""
    seconds = [*range(1000), *[*range(1000 - block, 1000)] * times, 1000]
    step, counts = stepped(drive, tm.Dedup(within="20s", max_records=64), seconds)
    forgotten = max(block - 64, 0)
    assert step.gone["deduplicated"] == times * (block - forgotten)
    assert counts.get("unchecked", 0) == times * forgotten
    assert rows_of(step)[-1] == len(seconds) - 1


def test_a_backlog_pushes_out_nothing_of_what_is_known(drive):
    """Records that were never seen, long before the newest: they go on, and copies of the newest are still copies."""
    step, counts = stepped(drive, tm.Dedup(within=5, max_records=10), [*range(100, 120), *range(50), *range(110, 120)])
    assert rows_of(step) == [*range(70)]
    assert counts == {"unchecked": 50}


def test_what_a_backlog_has_pushed_out_is_counted_when_it_comes_again(drive):
    """Before anything was forgotten it is remembered like others, and what it takes the place of is forgotten."""
    step, counts = stepped(drive, tm.Dedup(within=50, max_records=10), [*range(100, 110), 1, 2, 100, 101, 109])
    assert rows_of(step) == [*range(14)]
    assert counts == {"unchecked": 4}


@st.composite
def shuffled(draw, copies=3, lateness=20):
    """(sensor, number) with copies, in an order in which none comes more than ``lateness`` behind a later number."""
    numbers = draw(
        st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 200)), min_size=1, unique=True, max_size=80)
    )
    arrivals = []
    for key, number in numbers:
        delays = draw(st.lists(st.integers(0, lateness), min_size=1, max_size=copies))
        arrivals += [(number + delay, draw(st.integers(0, 99)), key, number) for delay in delays]
    return [(key, number) for _, _, key, number in sorted(arrivals)]


@settings(max_examples=100, deadline=None)
@given(shuffled(), st.sampled_from(["keep", "drop"]))
def test_each_time_goes_on_once_in_any_order_within_the_lateness(drive, rows, late):
    """However copies and records are mixed, the same (sensor, time) come out, each once, and none counts as too late."""
    keys, seconds = zip(*rows, strict=True)
    step, counts = stepped(drive, tm.Dedup(within=20, max_records=41, late=late), seconds, keys)
    out = [rows[nth] for nth in rows_of(step)]
    assert sorted(out) == sorted(set(rows))
    assert counts == {}
    assert step.gone.get("late", 0) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), min_size=1), st.sampled_from([1, 3, 50]))
def test_where_late_records_are_dropped_nothing_ever_goes_on_twice(drive, rows, max_records):
    """Not even when there are more times than can be remembered; what is dropped is a copy or is counted as late."""
    keys, seconds = zip(*rows, strict=True)
    step, _ = stepped(drive, tm.Dedup(within=10, max_records=max_records, late="drop"), seconds, keys)
    out = [rows[nth] for nth in rows_of(step)]
    assert len(set(out)) == len(out)
    assert len(rows) == len(out) + sum(step.gone.values())


def test_records_too_old_to_be_told_go_on_and_are_counted(drive):
    """A copy may have gone on before them and been forgotten; which of them are known is known all the same."""
    stage = tm.Dedup(within=10, max_records=3)
    step, counts = stepped(drive, stage, [100, 101, 80, 80, 102, 103, 100])
    assert rows_of(step) == [0, 1, 2, 4, 5, 6]
    assert counts == {"unchecked": 2}  # 80 is more than 10 s old; 100 was forgotten for 103
    assert step.gone["deduplicated"] == 1


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_times_in_the_far_future_are_forgotten_after_as_many_records_as_are_remembered(drive, ahead):
    """They are no measure of how old the others are for longer than that."""
    far = [10**9 + nth for nth in range(ahead)]
    step, counts = stepped(drive, tm.Dedup(within=10, max_records=3), [1, *far, 2, 3, 4, 5, 5, 6, 5])
    assert rows_of(step) == [*range(5 + ahead), 6 + ahead]
    assert counts == {"unchecked": 3}


def test_columns_that_are_left_alone_need_no_way_back(drive):
    """What the stage says it had before it holds the same columns."""
    step, _ = stepped(drive, tm.Dedup(counter="n"), [1, 1, 2], counters=[5, 5, 6])
    assert step.before is not None
    assert [name for name, column in step.batch.columns.items() if step.before.columns.get(name) is column] == [
        "nth",
        "n",
    ]


def test_an_untouched_column_survives_bit_for_bit(lanes, told):
    """Fields of any shape are in the rows that go on as they came, and the books balance."""
    note = {"nested": [1, {"a": None}], "big": 2**70}
    rows = [{"sensor": f"S{n % 3}", "time": n // 6, "n": n // 6, "value": n, "note": note} for n in range(60)]
    for stage in (tm.Dedup(), tm.Dedup(counter="n", names=None)):
        sink = tm.testing.ListSink()
        report = tm.run(tm.Pipeline(tm.sources.Records(rows), stage, sink), lanes=lanes)
        assert told(sink.rows) == told([row for n, row in enumerate(rows) if n % 6 < 3])
        assert (report.records_in, report.rows_out, report.deduplicated, report.filtered) == (60, 30, 30, 0)


# -- by a counter ---------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(shuffled(), st.sampled_from([None, 256]), st.booleans())
def test_each_counter_goes_on_once_in_any_order_within_the_lateness(drive, rows, modulo, arrival):
    """However they are mixed, the same counters come out, each once, and the losses add up to what is missing."""
    keys, counters = zip(*rows, strict=True)
    shown = [(counter + 250) % modulo for counter in counters] if modulo else counters
    seconds = range(len(rows)) if arrival else counters
    gap = {"modulo": modulo, "max_gap": 220} if modulo else {}
    stage = tm.Dedup(counter="n", reorder=20, within="1h", **gap)
    step, counts = stepped(drive, stage, seconds, keys, shown)
    out = [rows[nth] for nth in rows_of(step)]
    assert sorted(out) == sorted(set(rows))
    missing = 0
    for key in set(keys):
        own = {counter for k, counter in rows if k == key}
        missing += max(own) - min(own) + 1 - len(own)
    assert step.batch["lost"].sum() == missing == counts.get("lost", 0)
    assert not step.batch["reset"].any()


def test_a_gap_is_in_the_row_that_shows_it(drive):
    """And what comes later than its turn takes its loss back."""
    step, counts = stepped(drive, tm.Dedup(counter="n"), range(6), counters=[1, 2, 6, 4, 4, 7])
    assert step.batch.columns["lost"].kind is Kind.INT
    assert step.batch["lost"].tolist() == [0, 0, 3, -1, 0]
    assert rows_of(step) == [0, 1, 2, 3, 5]
    assert counts == {"lost": 2}


def test_a_counter_comes_round(drive):
    """Behind 255 comes 0, and a loss is counted across."""
    step, counts = stepped(drive, tm.Dedup(counter="n", modulo=256), range(4), counters=[254, 255, 0, 3])
    assert step.batch["lost"].tolist() == [0, 0, 0, 2]
    assert counts == {"lost": 2}


@pytest.mark.parametrize(
    ("counters", "seconds", "options"),
    [
        ([40_000, 0], [0, 1], {"modulo": 65_536}),  # neither close ahead nor close behind
        ([40_000, 0], [0, 1], {}),
        ([7, 0], [0, 61], {}),  # close behind, but a minute after
        ([7, 0], [0, 1], {"reorder": 5}),
        ([7, 6], [0, 0], {"reorder": 0}),
        ([7, 600], [0, 1], {"max_gap": 500}),
    ],
)
def test_a_counter_that_begins_anew_is_a_reset(drive, counters, seconds, options):
    """It shows no loss, and what came before it is forgotten."""
    counters, seconds = [*counters, counters[1], counters[1] + 1], [*seconds, 62, 63]
    step, counts = stepped(drive, tm.Dedup(counter="n", **options), seconds, counters=counters)
    assert step.batch["reset"].tolist() == [False, True, False]
    assert step.batch["lost"].tolist() == [0, 0, 0]
    assert step.gone["deduplicated"] == 1
    assert counts == {"resets": 1}


def test_records_without_a_counter_go_on(drive):
    """Null, absent, NaN, a fraction, or beyond the modulo: it says nothing, and does not count as a gap."""
    counters = [1, np.nan, 2.5, -1, 300, np.inf, 1e300, 2]
    step, counts = stepped(drive, tm.Dedup(counter="n", modulo=256), range(8), counters=counters)
    assert rows_of(step) == list(range(8))
    assert step.batch["lost"].tolist() == [0] * 8
    assert counts == {"unchecked": 6}
    tags = np.array([0, NULL_TAG, 0], np.uint8)
    batch = Batch({"n": Column(Kind.INT, np.array([0, 0, 1]), tags=tags)}, time=np.zeros(3, np.int64))
    assert len(drive(tm.Dedup(counter="n")).step(batch).batch) == 3


def test_the_columns_have_names_of_ones_own_or_none(drive):
    """Without them the losses are in the run's counters alone."""
    schema = tm.Dedup(counter="n", names=("gap", "anew")).bind(Schema(open=True))
    assert str(schema).startswith("gap: int, anew: bool")
    step, counts = stepped(drive, tm.Dedup(counter="n", names=None), [0, 1], counters=[1, 3])
    assert step.batch.names == ("nth", "n")
    assert counts == {"lost": 1}


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"within": "soon"}, "Dedup: within='soon' is not a duration"),
        ({"max_records": 0}, "Dedup: max_records=0 must be a whole number from 1 to 1,000,000"),
        ({"late": "never"}, "Dedup: late='never' is not one of"),
        ({"modulo": 256}, "Dedup: modulo=256 is for Dedup by a counter"),
        ({"counter": "n", "late": "drop"}, "Dedup('n'): late='drop' is for Dedup without a counter"),
        ({"counter": "n", "modulo": 1}, "modulo=1 must be a whole number from 2"),
        ({"counter": "n", "modulo": 256, "max_gap": 256}, "max_gap=256 must be a whole number from 1 to 255"),
        ({"counter": "n", "reorder": 63}, "reorder=63 must be a whole number from 0 to 62"),
        ({"counter": "n", "modulo": 256, "max_gap": 250, "reorder": 6}, "reorder=6 must be a whole number from 0 to 5"),
        ({"counter": "n", "names": ("lost",)}, "names=('lost',) must be two"),
        ({"counter": "n", "names": "ab"}, "names='ab' must be two"),
    ],
)
def test_refused_at_construction(options, culprit):
    """What makes no sense, or belongs to the other way of telling copies, naming the stage and the value."""
    with pytest.raises(PlanError, match=re.escape(culprit)):
        tm.Dedup(**options)


def test_a_counter_that_is_not_there_is_refused():
    """By the schema, with the columns that are."""
    with pytest.raises(PlanError, match=r"Dedup\('fCnt'\) needs a column 'fCnt'; the columns there are: value"):
        tm.Dedup(counter="fCnt").bind(Batch.from_rows([{"value": 1.0}]).schema)
