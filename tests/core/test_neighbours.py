"""Functions are found out by the same records in other batches."""

from __future__ import annotations

import sys

import cloudpickle
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


class Running:
    """One total over whatever comes: the first differences are in the last digits, later ones anywhere."""

    def __init__(self):
        self.total = 0.0

    def __call__(self, batch):
        made = self.total + np.cumsum(batch["value"] / 3)
        self.total = float(made[-1])
        return {"total": made}


class Counting:
    """How many records it has seen with this batch: it remembers, and batches matter."""

    def __init__(self):
        self.seen = 0

    def __call__(self, batch):
        self.seen += len(batch)
        return {"seen": np.full(len(batch), self.seen)}


class Smoothing:
    def __init__(self):
        self.means = {}

    def __call__(self, batch):
        made = []
        for sensor, value in zip(batch["sensor"], batch["value"], strict=True):
            self.means[sensor] = 0.9 * self.means.get(sensor, value) + 0.1 * value
            made.append(self.means[sensor])
        return {"smooth": made}


class Shared:
    """Its objects count in one place."""

    counts = [0]  # noqa: RUF012 - which is the slip

    def update(self, record):
        self.counts[0] += 1
        return {"n": self.counts[0]}


def growing(batch):
    """Depends on the place in the batch, the more the further down; 1e-12 at first."""
    place = np.arange(len(batch), dtype=float)
    return {"y": np.where(place < 30, place * 1e-12, place)}


COUNTS = {}


def numbered(rows):
    for row in rows:
        COUNTS[row["sensor"]] = row["n"] = COUNTS.get(row["sensor"], 0) + 1
    return rows


def habit(stage, *, singles=1000, more=lambda: True):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # as what a user's file holds
    try:
        sent = cloudpickle.dumps(stage)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    return habit_of(
        stage, BATCH, whole_of(stage, BATCH), singles=singles, more=more, remade=lambda: cloudpickle.loads(sent)
    )


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
    assert habit(tm.Map(lambda batch: {"y": np.random.normal(size=len(batch))})).habit is Habit.CHANCE  # noqa: NPY002
    found = habit(tm.MapRows(Adding))
    assert found.habit is Habit.MEMORY
    assert found.change.record == 25
    assert habit(tm.Map(matrix)).habit is Habit.DIGITS
    assert habit(tm.Map(matrix, tile=16)).habit is Habit.ROW_WISE


def test_digits_are_said_only_where_all_that_differs_is_small():
    """The first cell that differs by more is the one that is told; a whole number is no rounding of another."""
    found = habit(tm.Map(growing))
    assert (found.habit, found.change.record, found.how) == (Habit.NEIGHBOURS, 30, "in batches of 25 and 25")
    ids = tm.Map(lambda batch: {"y": np.full(len(batch), 10**15 + len(batch))}, adds={"y": int})
    assert habit(ids).habit is Habit.NEIGHBOURS
    nulls = tm.Map(lambda batch: {"y": [None if len(batch) < 50 else 0.5] * len(batch)}, adds={"y": float})
    assert habit(nulls).habit is Habit.NEIGHBOURS


@pytest.mark.parametrize("stage", [tm.Map(Running), tm.Map(Running, tile=16), tm.Map(Counting)], ids=lambda stage: "")
def test_an_object_that_remembers_is_told_before_what_else_it_does(stage):
    """Rounding, or the batch's size, is the smaller evil."""
    assert habit(stage).habit is Habit.MEMORY


@pytest.mark.parametrize(
    "stage",
    [
        tm.MapRows(numbered),
        tm.Map(Smoothing()),
        tm.Keyed(Shared),
        tm.Aggregate(tm.tumbling("10s"), {"n": ("value", lambda values, seen=[]: float(len(seen) + (seen.append(1) or 0)))}),
    ],
    ids=["module", "object", "class", "default"],
)  # fmt: skip
def test_what_a_module_or_a_shared_object_remembers_is_no_chance(stage):
    """A copy from before the first call gives again what the first call gave."""
    found = habit(stage)
    assert (found.habit, found.how) == (Habit.MEMORY, "the second time")


def test_a_stage_that_cannot_be_made_again_gives_other_values():
    """Whether it remembers is then not known."""
    stage = tm.Map(Smoothing())
    found = habit_of(stage, BATCH, whole_of(stage, BATCH), singles=9, more=lambda: True, remade=lambda: None)
    assert found.habit is Habit.CHANCE


def mixed(batch):
    return {"y": ["high" if value > 8 else value for value in batch["value"].tolist()]}


def test_kinds_that_come_of_the_batch_are_no_neighbours():
    """Numbers and texts among each other: which it is to be, the first batch said; declared, it is nobody's guess."""
    found = habit(tm.Map(mixed))
    assert found.habit is Habit.KINDS
    assert "rejected as wrong_type" in str(found.change)
    assert habit(tm.Map(mixed, adds={"y": object})).habit is Habit.ROW_WISE


def test_the_time_that_single_records_take_is_bounded():
    """As many as there is time for, one at least; or as many as were asked for."""
    stage = tm.Map(lambda batch: {"y": batch["value"]})
    answers = iter([True, True, False])
    assert habit(stage, more=lambda: next(answers)).singles == 3
    assert habit(stage, more=lambda: False).singles == 1
    assert habit(stage, singles=7).singles == 7
