"""Where a run says its time went, and which function it says is slow."""

import threading
import time

import pytest

import tidemill as tm
from tidemill.core.plan import Plan
from tidemill.engine.lane import Lane, LaneWork
from tidemill.engine.stage_times import StageTimes
from tidemill.testing import ListSink

ROWS = [{"sensor": f"S{i % 7}", "time": i, "value": float(i)} for i in range(2_000)]


BUSY_S = 0.005


def busy(batch):
    until = time.monotonic() + BUSY_S
    while time.monotonic() < until:
        pass
    return {"total": 1.0}


def wait(batch):
    threading.Event().wait()


@pytest.mark.parametrize("lanes", [0, 2])
def test_the_report_has_the_seconds_of_every_stage(lanes):
    plan = tm.Plan(tm.Rolling("value", window=5), tm.Map(busy))
    report = tm.run(tm.Pipeline(tm.sources.Records(ROWS), plan, ListSink()), lanes=lanes)
    assert [stage.name for stage in report.stages] == ["Rolling('value', 5)", "Map(busy)"]
    assert report.stages[0].seconds > 0
    assert report.stages[1].seconds >= BUSY_S
    assert sum(stage.seconds for stage in report.stages) <= max(lanes, 1) * report.seconds


def test_a_call_that_passes_its_budget_is_told_of_once_and_goes_on(caplog):
    plan = Plan(tm.Filter("value > 1"), tm.Map(busy).within(0.5))
    lane, times = Lane(0, plan.layout(4, 4), LaneWork()), StageTimes(plan)
    lane.memory.begin(1)
    lane.memory.mark(1, 3, since_ns=1_000)
    for now_ns in (400_000_000, 600_000_000, 900_000_000):
        times.watch([lane], now_ns)
    assert times.over_budget == 1
    told = "lane 0: one call of Map(busy), for row 3 of its batch, has taken more than 0.5 s and goes on; "
    assert caplog.messages == [told + "deadline_s= would stop it there"]
    lane.memory.mark(1, 4, since_ns=1_000_000_000)
    times.watch([lane], 2_000_000_000)
    assert times.over_budget == 2
    lane.state.close()


def test_a_function_that_hangs_is_told_of_and_with_a_deadline_costs_its_records_alone(caplog):
    plan = tm.Plan(tm.Map(wait, deadline_s=0.2).within(0.05))
    report = tm.run(tm.Pipeline(tm.sources.Records(ROWS[:1]), plan, ListSink()), lanes=1)
    assert report.dead_letters_by_reason == {"deadline": 1}
    assert report.counters["over_budget"] >= 1
    assert "one call of Map(wait)" in caplog.text


@pytest.mark.parametrize("wrong", [0, -1.0, "1s", None, True, float("nan")])
def test_a_budget_or_deadline_that_is_no_number_of_seconds_is_refused(wrong):
    """With the stage's name, and what it must be: the names of other durations' options do not end in _s."""
    with pytest.raises(tm.PlanError, match=r"Map\(busy\): within\(.*\) must be a number of seconds, more than 0"):
        tm.Map(busy).within(wrong)
    if wrong is not None:
        with pytest.raises(tm.PlanError, match=r"Map: deadline_s=.* must be a number of seconds, more than 0"):
            tm.Map(busy, deadline_s=wrong)
