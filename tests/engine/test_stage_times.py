"""Where a run says its time went, and which function it says is slow."""

import contextlib
import logging
import os
import threading
import time

import pytest

import tidemill as tm
from tidemill.core.plan import Plan
from tidemill.engine.lane import Lane, LaneWork
from tidemill.engine.run import Run
from tidemill.engine.stage_times import StageTimes
from tidemill.stages.state import opening
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
    plan.stages[1].deadline_s = 1.5
    caplog.clear()
    lane.memory.mark(1, 4, since_ns=1_000_000_000)
    times.watch([lane], 2_000_000_000)
    assert times.over_budget == 2
    assert "for row 4 of its batch, has taken more than 0.5 s and goes on; it is stopped at 1.5 s, its" in caplog.text
    lane.state.close()


def test_a_function_that_hangs_is_told_of_and_with_a_deadline_costs_its_records_alone(caplog):
    plan = tm.Plan(tm.Map(wait, deadline_s=0.2).within(0.05))
    report = tm.run(tm.Pipeline(tm.sources.Records(ROWS[:1]), plan, ListSink()), lanes=1)
    assert report.dead_letters_by_reason == {"deadline": 1}
    assert report.counters["over_budget"] >= 1
    assert "one call of Map(wait)" in caplog.text
    assert "a call of Map(wait) has passed its deadline of 0.2 s and is stopped" in caplog.text


class Hanging:
    """A class of the user's whose objects are made when a file is there."""

    there = None

    def __init__(self):
        while not self.there.exists():
            time.sleep(0.001)

    def __call__(self, batch):
        return {"total": 1.0}


@contextlib.contextmanager
def when_told(text, act):
    """Do something when the log says this."""

    class Told(logging.Handler):
        def emit(self, record):
            if text in record.getMessage():
                act()

    handler = Told()
    logging.getLogger("tidemill").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("tidemill").removeHandler(handler)


def test_a_class_whose_object_is_long_in_the_making_is_told_of(tmp_path, caplog):
    """With its stage, once for each lane and while it goes on: the file that it waits for comes when that is told."""

    class Waiting(Hanging):
        there = tmp_path / "there"

    plan = tm.Plan(tm.Filter("value >= 0"), tm.Map(Waiting, deadline_s=60).within(0.1))
    with when_told("opening Map(Waiting)", Waiting.there.touch):
        report = tm.run(tm.Pipeline(tm.sources.Records(ROWS[:1]), plan, ListSink()), lanes=1)
    assert (
        "lane 0: opening Map(Waiting), which makes its object or loads its model, has taken more than 0.1 s and goes on; its lane "
        "works on nothing before, and no deadline stops it"
    ) in caplog.text
    assert (report.dead_letters, report.lanes[0].restarts) == (0, 0)


def test_no_deadline_stops_the_making_of_an_object():
    """There is no record to go on without; a call of the same stage is stopped."""
    plan = Plan(tm.Filter("value > 1"), tm.Map(busy, deadline_s=1.0))
    lane = Lane(0, plan.layout(4, 4), LaneWork())
    lane.memory.mark(opening(1), since_ns=1_000)
    assert lane.overdue(10**12, [None, 10**9]) is None
    lane.memory.mark(1, since_ns=1_000)
    assert lane.overdue(10**12, [None, 10**9]) == 1
    lane.state.close()


async def test_who_stops_a_run_whose_lanes_never_begin_is_told_what_they_wait_for(tmp_path):
    """The stage is named."""

    class Waiting(Hanging):
        there = tmp_path / "never"

    run = Run(
        tm.Pipeline(tm.sources.Records(ROWS[:1]), tm.Plan(tm.Map(Waiting).within(0.05)), ListSink()), lanes=1, grace=0.0
    )
    expected = pytest.raises(tm.OutsideError, match=r"within the grace of 0 s .*: Map\(Waiting\) was being opened")
    with expected, when_told("opening Map(Waiting)", run.stop_soon):
        await run.execute()


class Deadly:
    def __init__(self):
        os.abort()

    def __call__(self, batch):
        return {"total": 1.0}


def test_a_class_that_ends_every_lane_is_named():
    """No function of the user's was called with a record; it is the user's class all the same."""
    plan = tm.Plan(tm.Filter("value >= 0"), tm.Map(Deadly))
    with pytest.raises(tm.StageError, match=r"Map\(Deadly\): lane 0 dies again and again \(killed by signal 6\)"):
        tm.run(tm.Pipeline(tm.sources.Records(ROWS[:1]), plan, ListSink()), lanes=1)


@pytest.mark.parametrize("wrong", [0, -1.0, "1s", None, True, float("nan"), float("inf"), 1e300, 10**400])
def test_a_budget_or_deadline_that_is_no_number_of_seconds_is_refused(wrong):
    """With the stage's name, and what it must be: the names of other durations' options do not end in _s."""
    with pytest.raises(tm.PlanError, match=r"Map\(busy\): within\(.*\) must be a number of seconds, more than 0"):
        tm.Map(busy).within(wrong)
    if wrong is not None:
        with pytest.raises(tm.PlanError, match=r"Map: deadline_s=.* must be a number of seconds, more than 0"):
            tm.Map(busy, deadline_s=wrong)
