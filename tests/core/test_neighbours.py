"""Functions are found out by the same records in other batches."""

from __future__ import annotations

import numpy as np
import pytest

import tidemill as tm
from tidemill.core.apply import with_roles
from tidemill.core.neighbours import Habit, habit_of, whole_of

BATCH = with_roles(
    [{"sensor": f"S{n % 3}", "time": n, "value": float(n * 7 % 11), "unit": "C"} for n in range(50)],
    "sensor",
    None,
    "UTC",
)


class Adding:
    def __init__(self):
        self.sum = 0.0

    def __call__(self, rows):
        made = []
        for row in rows:
            self.sum += row["value"]
            made.append({**row, "sum": self.sum})
        return made


class Weighing:
    """An object that is only expensive to make."""

    def __init__(self):
        self.weights = np.random.default_rng(1).normal(size=3)

    def __call__(self, batch):
        return {"y": batch["value"] * self.weights[0] + self.weights[1]}


def matrix(batch):
    """As a product whose last digits depend on the shape may do, on every machine."""
    return {"y": batch["value"] * (1 + len(batch) * 2.0**-52)}


def habit(stage, *, singles=1000, more=lambda: True):
    return habit_of(stage, BATCH, whole_of(stage, BATCH), singles=singles, more=more)


@pytest.mark.parametrize(
    "stage",
    [
        tm.Map(lambda batch: {"y": np.sqrt(batch["value"])}),
        tm.Map(lambda batch: {"y": batch["unit"] == "C", "z": "same"}),
        tm.Map(Weighing),
        tm.MapRows(lambda rows: [{**row, "y": 1 / row["value"]} for row in rows]),  # fails on some records
        tm.MapFrame(lambda frame: frame.assign(y=frame["value"].clip(2, 5))),
        tm.Filter(lambda batch: batch["value"] > 4),
    ],
    ids=lambda stage: stage.name,
)
def test_what_is_row_wise_is_said_to_be(stage):
    """Also with rejects, an object per lane, rows that are dropped; each record was tried alone."""
    found = habit(stage)
    assert (found.habit, found.records, found.singles, found.change) == (Habit.ROW_WISE, 50, 50, None)


@pytest.mark.parametrize(
    "stage",
    [
        tm.Map(lambda batch: {"y": batch["value"] - batch["value"].mean()}),
        tm.MapFrame(lambda frame: frame.assign(y=frame["value"].shift())),
        tm.MapFrame(lambda frame: frame.assign(y=frame["value"].rolling(3, min_periods=1).sum())),
        tm.MapFrame(lambda frame: frame.assign(y=frame.groupby("sensor")["value"].cumsum())),
        tm.Map(lambda batch: {"y": np.diff(batch["value"], prepend=0.0)}),
        tm.Map(lambda batch: {"y": np.sort(batch["value"])}),
        tm.MapRows(lambda rows: [{**row, "y": len(rows)} for row in rows]),
        tm.Filter(lambda batch: batch["value"] > np.median(batch["value"])),
    ],
    ids=["mean", "shift", "rolling", "cumsum", "diff", "sort", "len", "median"],
)
def test_what_notebooks_contain_is_found(stage):
    """The record and the batches it differed in are told."""
    found = habit(stage)
    assert found.habit is Habit.NEIGHBOURS
    assert found.how in ("in batches of 25 and 25", "alone")
    assert found.change is not None
    assert 0 <= found.change.record < 50


def test_a_function_that_only_a_lone_record_shows():
    """Halves agree, single records do not."""
    found = habit(tm.Map(lambda batch: {"y": np.full(len(batch), min(len(batch), 2))}))
    assert (found.habit, found.how, found.change.record) == (Habit.NEIGHBOURS, "alone", 0)


def test_other_ways_to_be_unsteady():
    """Chance, memory, and last digits are told apart from neighbours; `tile` cures the last."""
    numbers = np.random.default_rng(3)
    assert habit(tm.Map(lambda batch: {"y": numbers.normal(size=len(batch))})).habit is Habit.CHANCE
    found = habit(tm.MapRows(Adding))
    assert found.habit is Habit.MEMORY
    assert found.change.record == 25
    assert habit(tm.Map(matrix)).habit is Habit.DIGITS
    assert habit(tm.Map(matrix, tile=16)).habit is Habit.ROW_WISE


def test_the_time_that_single_records_take_is_bounded():
    """As many as there is time for, one at least; or as many as were asked for."""
    stage = tm.Map(lambda batch: {"y": batch["value"]})
    answers = iter([True, True, False])
    assert habit(stage, more=lambda: next(answers)).singles == 3
    assert habit(stage, more=lambda: False).singles == 1
    assert habit(stage, singles=7).singles == 7
