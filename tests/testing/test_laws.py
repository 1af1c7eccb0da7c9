"""The laws catch what breaks them, and say it in one sentence; each by a stage that breaks this one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Emitted, Stage, Step
from tidemill.stages.places import Places
from tidemill.stages.state import StageState, StateField
from tidemill.testing import LawBroken, check_map, check_stage
from tidemill.testing.laws import LAWS, applies_as_it_runs, hold
from tidemill.testing.subject import Subject

TEN_S = 10 * 10**9


class Plain(Stage):
    """Adds one to every value: keeps all laws."""

    def bind(self, schema: Schema) -> Schema:
        return schema.adding([Field("more", Kind.FLOAT)])

    def reads(self) -> frozenset[str]:
        return frozenset({"value"})

    def step(self, batch: Batch, state: StageState) -> Batch | Step:
        return self.made(batch, batch["value"] + 1)

    def made(self, batch: Batch, values: Any) -> Batch:
        return batch.with_columns({"more": Column(Kind.FLOAT, np.asarray(values, np.float64))})


class Locked(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Misdeclared(Plain):
    def bind(self, schema: Schema) -> Schema:
        return schema.adding([Field("more", Kind.TEXT)])


class Undeclared(Plain):
    def bind(self, schema: Schema) -> Schema:
        return schema


class Absent(Plain):
    def bind(self, schema: Schema) -> Schema:
        return schema.adding([Field("more", Kind.FLOAT), Field("yet_more", Kind.FLOAT)])


class Dropping(Plain):
    def step(self, batch: Batch, state: StageState) -> Step:
        kept = np.flatnonzero(batch["value"] > 50)
        return Step(super().step(batch, state).take(kept), kept)


class Turning(Plain):
    def step(self, batch: Batch, state: StageState) -> Step:
        kept = np.arange(len(batch) - 1)[::-1]
        return Step(super().step(batch, state).take(kept), kept)


class Losing(Plain):
    def step(self, batch: Batch, state: StageState) -> Batch:
        return super().step(batch.slice(0, len(batch) - 1), state)


class Centred(Plain):
    def step(self, batch: Batch, state: StageState) -> Batch:
        return self.made(batch, batch["value"] - np.nanmean(batch["value"]))


class Overwriting(Plain):
    """Works in the memory of its batch, which belongs to whoever has made it."""

    def step(self, batch: Batch, state: StageState) -> Batch:
        values = batch.columns["value"].values
        values += 1
        return self.made(batch, values.copy())


class Retiming(Plain):
    def step(self, batch: Batch, state: StageState) -> Batch:
        batch.time[:] = 0
        return super().step(batch, state)


def forcing(batch: Batch) -> dict[str, Any]:
    values = batch["value"]
    values.flags.writeable = True
    values[:] = 0.0
    return {"more": values.copy()}


class Running(Plain):
    """Counts all records it sees, of whichever sensor."""

    def opened(self) -> Running:
        lane = super().opened()
        lane.seen = 0
        return lane

    def step(self, batch: Batch, state: StageState) -> Batch:
        self.seen += len(batch)
        return self.made(batch, np.arange(self.seen - len(batch), self.seen))


class Remembering(Plain):
    """Counts the records of each sensor, in memory that dies with its lane."""

    def opened(self) -> Remembering:
        lane = super().opened()
        lane.counts = {}
        return lane

    def step(self, batch: Batch, state: StageState) -> Batch:
        made = []
        for slot in state.slots.tolist():
            self.counts[slot] = self.counts.get(slot, 0) + 1
            made.append(self.counts[slot])
        return self.made(batch, made)


class Unsaved(Plain):
    """The same in state memory, overwritten without having been saved."""

    def state_fields(self) -> dict[str, StateField]:
        return {"count": StateField("int64")}

    def step(self, batch: Batch, state: StageState) -> Batch:
        made = []
        for slot in state.slots.tolist():
            state["count"][slot] += 1
            made.append(state["count"][slot])
        return self.made(batch, made)


class Forgetful(Plain):
    """The same, in one array for the whole lane, which it leaves behind when it moves."""

    def state_fields(self) -> dict[str, StateField]:
        return {"count": StateField("int64", (99,), per_lane=True)}

    def moved(self, old: Any, places: Places) -> list[dict[str, Any]]:
        return [{} for _ in range(places.lanes)]

    def step(self, batch: Batch, state: StageState) -> Batch:
        state.save("count", state.slots)
        state.seal()
        return Unsaved.step(self, batch, state)


class Keeping(Plain):
    """Gives the first value that it ever saw, out of an array that was lent to it."""

    def opened(self) -> Keeping:
        lane = super().opened()
        lane.first = None
        return lane

    def step(self, batch: Batch, state: StageState) -> Batch:
        self.first = batch["value"][:1] if self.first is None else self.first
        return self.made(batch, np.repeat(self.first, len(batch)))


class Proud(Plain):
    def step(self, batch: Batch, state: StageState) -> Batch:
        assert len(batch)
        return super().step(batch, state)


class Strict(Plain):
    def step(self, batch: Batch, state: StageState) -> Batch:
        if len(batch) and np.isnan(batch["value"]).all():
            raise ValueError("no values")
        return super().step(batch, state)


class Small(Plain):
    def step(self, batch: Batch, state: StageState) -> Batch:
        return self.made(batch, np.zeros(1000)[state.slots])


class Hasty(Plain):
    """Looks at what only `Plan.apply` has: the user's own dicts."""

    def step(self, batch: Batch, state: StageState) -> Batch:
        return self.made(batch, np.full(len(batch), batch.origin is None))


class Tally(Stage):
    """How many records each sensor has in each ten seconds; the row comes when the watermark passes their end."""

    follows_watermark = True
    absorbs = True
    hasty = False

    def bind(self, schema: Schema) -> Schema:
        return Schema([Field("sensor", Kind.TEXT), Field("count", Kind.FLOAT)])

    def reads(self) -> frozenset[str]:
        return frozenset()

    def state_fields(self) -> dict[str, StateField]:
        return {"end": StateField("int64"), "count": StateField("int64")}

    def step(self, batch: Batch, state: StageState) -> Step:
        ends, counts, rows = state["end"], state["count"], []
        everybody = np.union1d(state.slots, np.flatnonzero(ends[: len(state.keys)]))
        state.save("end", everybody)
        state.save("count", everybody)
        state.seal()
        own = dict(zip(state.places.tolist(), range(len(batch)), strict=True))
        for place, mark in enumerate(state.marks[1:].tolist()):
            passed = state.marks[-1] if self.hasty else mark
            for slot in everybody[(ends[everybody] > 0) & (ends[everybody] <= passed)].tolist():
                rows.append((place, int(ends[slot]), slot, float(counts[slot])))
                ends[slot] = counts[slot] = 0
            if place in own:
                slot = int(state.slots[own[place]])
                ends[slot] = batch.time[own[place]] // TEN_S * TEN_S + TEN_S
                counts[slot] += 1
        places, when, slots, sums = (
            (np.array(column) for column in zip(*rows, strict=True)) if rows else [np.empty(0)] * 4
        )
        columns = {
            "sensor": Column.of_texts(state.keys[slots.astype(int)].tolist()),
            "count": Column(Kind.FLOAT, sums.astype(np.float64)),
        }
        made = Batch(columns, rows=len(rows), time=when.astype(np.int64))
        emitted = Emitted(made, slots.astype(np.int32), places.astype(np.int32), when.astype(np.int64))
        nothing = np.empty(0, np.intp)
        left = batch.take(nothing).select({}).with_columns({name: one.slice(0, 0) for name, one in columns.items()})
        return Step(left, nothing, gone={"absorbed": len(batch)}, emitted=emitted)


class HastyTally(Tally):
    """Closes windows by where the watermark is at the end of the batch."""

    hasty = True


CHANCE = np.random.default_rng(1)


def by_chance(batch: Batch) -> dict[str, Any]:
    return {"more": CHANCE.normal(size=len(batch))}


BREAKERS = [
    (
        "input",
        Overwriting(),
        r"it changes the batch that it is given: record 0 .*column 'value' is 53.0 instead of 52.0",
    ),
    ("input", Retiming(), r"it changes the batch that it is given: record 0 .*the time of the record"),
    (
        "input",
        tm.Map(forcing),
        r"it changes the batch that it is given: record 0 .*column 'value' is 0.0 instead of 52.0",
    ),
    ("repetition", tm.Map(by_chance), "it gives other values each time: a second time, record 0"),
    ("pickling", Locked(), "cannot be sent to a lane"),
    ("the schema", Misdeclared(), "'more' is declared as text and came as float"),
    ("the schema", Undeclared(), "'more' came out and is not declared"),
    ("the schema", Absent(), "'yet_more' is declared and did not come out"),
    ("rows", Dropping(), r"record \d+ did not come out and was not rejected"),
    ("rows", Turning(), "row 1 is of record 58, behind the row of record 59"),
    ("rows", Losing(), "made 60 rows of 61"),
    ("splits", HastyTally(), r"cut before record \d+, row \d+: \d+ rows came out instead of"),
    ("splits", Centred(), r"cut before record 1, record 0 \(sensor 'S9'\): column 'more' is 0.0 instead of 4\.86\d+"),
    ("interleaving", Running(), r"without other sensors, record \d+ .*column 'more' is 0.0 instead of 1.0"),
    ("restoring", Remembering(), r"restored before record 30, record 30.*column 'more' is 1.0 instead of 9.0"),
    ("restoring", Unsaved(), r"rolled back to record 1, record 1 .*column 'more' is 14.0 instead of 1.0"),
    ("moving", Forgetful(), r"moved from 3 lanes into 2 before record 30, record 32 .*'more' is 1.0 instead of 6.0"),
    ("lent arrays", Keeping(), r"overwritten behind it.*is nan instead of 52.0"),
    ("empty batches", Proud(), "AssertionError"),
    ("missing values", Strict(), "with NaN in value: no values"),
    ("many sensors", Small(), "out of bounds"),
]


@pytest.mark.parametrize(("law", "stage", "words"), BREAKERS, ids=lambda item: str(item) if len(str(item)) < 20 else "")
def test_each_law_is_broken_by_somebody(law: str, stage: Stage, words: str) -> None:
    """The sentence names the stage and what is wrong; the laws before it say nothing of it."""
    subject = Subject.of(stage, None, key="sensor", time=None, tz="UTC")
    with pytest.raises(LawBroken, match=words) as broken:
        hold(subject, law, LAWS[law])
    assert stage.name in str(broken.value)
    assert "\n" not in str(broken.value)


@pytest.mark.parametrize("stage", [Overwriting(), Retiming(), tm.Map(forcing)], ids=lambda stage: stage.name)
def test_a_changed_input_is_told_before_what_comes_of_it(stage: Stage) -> None:
    """Every other law would be tried on other records than were given."""
    with pytest.raises(LawBroken, match="law of input"):
        check_stage(stage, lanes=0)


def test_every_law_has_its_breaker() -> None:
    """A law that nothing breaks proves nothing ("records" refuses with another error, see below)."""
    assert {law for law, _, _ in BREAKERS} == LAWS.keys() - {"records"}


def tallied(frame: pd.DataFrame) -> dict[str, Any]:
    """The same per sensor, in pandas."""
    return {"count": frame.groupby(frame["time"] // 10).size().astype(float)}


def test_a_stage_that_keeps_all_laws_passes() -> None:
    """Without an oracle, and with the right one, as dict or DataFrame."""
    check_stage(Plain(), lanes=0)
    check_stage(Tally(), lanes=0)
    check_stage(Tally(), lanes=0, oracle=tallied)
    check_stage(Plain(), oracle=lambda frame: {"more": frame["value"] + 1}, lanes=0)
    check_stage(Plain(), oracle=lambda frame: frame.assign(more=frame["value"] + 1 + 1e-12), lanes=0)


def test_an_oracle_that_says_something_else_is_heard() -> None:
    """Per sensor, with both values; also when it has other rows."""
    with pytest.raises(LawBroken, match=r"law of the oracle: record 0 \(sensor 'S9'\): column 'more' is 53.0 .* 54.0"):
        check_stage(Plain(), oracle=lambda frame: {"more": frame["value"] + 2}, lanes=0)
    with pytest.raises(LawBroken, match="made 1 rows of sensor 'S9', and 0 by the oracle"):
        check_stage(Plain(), oracle=lambda frame: frame.iloc[1:], lanes=0)
    with pytest.raises(LawBroken, match=r"column 'half' is not there instead of 26\.0"):
        check_stage(Plain(), oracle=lambda frame: {"half": frame["value"] / 2}, lanes=0)


def test_apply_is_compared_with_a_run() -> None:
    """The first row that differs, and how the run was made."""
    subject = Subject.of(Hasty(), None, key="sensor", time=None, tz="UTC")
    with pytest.raises(
        LawBroken, match=r"row 0 of a run with lanes=0, column 'more' is 1.0 instead of 0.0 by Plan.apply"
    ):
        hold(subject, "apply", applies_as_it_runs, "sensor", None, "UTC", 0)


@pytest.mark.parametrize(
    "shape",
    [pd.DataFrame, Batch.from_rows, list, lambda rows: pd.DataFrame(rows).convert_dtypes()],
    ids=["pandas", "batch", "rows", "pandas with nulls"],
)
def test_records_of_ones_own(shape: Callable[[list[dict[str, Any]]], Any]) -> None:
    """In every shape that `Plan.apply` takes, with key and time of any name."""
    rows = [{"id": f"m{n % 3}", "at": n, "temp": 20.5 + n, "unit": "C"} for n in range(20)]
    stage = tm.Rolling("temp", window=4, stats=["mean"])
    check_stage(stage, batch=shape(rows), key="id", time="at", lanes=0)
    with pytest.raises(tm.InputError, match="sensor"):
        check_stage(stage, batch=shape(rows), lanes=0)


def test_one_record_is_enough_and_none_is_not() -> None:
    """Of one record most laws say little, and none of them stumbles."""
    row = {"sensor": "S1", "time": 1, "value": 2.0}
    check_stage(tm.Rolling("value", window=4), batch=[row], lanes=0)
    grouping = tm.Align(["value"], by="device", channel=None)
    with pytest.raises(PlanError, match="give records whose key that is, with key='device'"):
        check_stage(grouping, batch=[{"sensor": "a", "device": "A", "time": 1, "value": 1.0}], lanes=0)
    with pytest.raises(PlanError, match="no records"):
        check_stage(tm.Rolling("value", window=4), batch=Batch.from_rows([row]).slice(0, 0), lanes=0)


def test_a_function_that_cannot_use_the_records_is_no_success() -> None:
    """It would keep every law by rejecting all."""
    with pytest.raises(PlanError, match=r"Map\(<lambda>\) rejected all 61 records.*give batch=.*'pressure'"):
        check_map(lambda batch: {"bar": batch["pressure"] / 100}, lanes=0)
    with pytest.raises(PlanError, match="'pressure'"):
        check_stage(tm.Rolling("pressure", window=4), batch=[{"sensor": "S1", "time": 1, "value": 2.0}], lanes=0)


@pytest.mark.parametrize("chain", [list, lambda stages: tm.Plan(*stages)], ids=["list", "plan"])
@pytest.mark.parametrize("check", [check_stage, check_map])
def test_a_chain_of_stages_is_refused(check: Callable[..., None], chain: Callable[[list[Stage]], Any]) -> None:
    """One stage is tried at a time: of a chain, the first alone would be."""
    with pytest.raises(PlanError, match=r"one stage at a time, and was given 2: Plain, Centred\. .*tidemill check"):
        check(chain([Plain(), Centred()]), lanes=0)
    with pytest.raises(PlanError, match="one stage at a time, and was given none"):
        check(chain([]), lanes=0)
    with pytest.raises(LawBroken, match="Centred breaks the law of splits"):
        check(chain([Centred()]), lanes=0)


def test_functions_are_tried_as_what_they_are() -> None:
    """`check_map` takes a function over columns, or any stage with a function."""
    check_map(lambda batch: {"root": np.sqrt(np.abs(batch["value"]))}, lanes=0)
    check_map(tm.MapRows(lambda rows: [{**row, "n": 1} for row in rows]), lanes=0)
    for looks_around in (
        tm.MapFrame(lambda frame: frame.assign(before=frame["value"].shift())),
        tm.Filter(lambda batch: batch["value"] > np.nanmean(batch["value"])),
        tm.MapRows(lambda rows: [{**row, "n": n} for n, row in enumerate(rows)]),
    ):
        with pytest.raises(LawBroken, match="law of splits"):
            check_map(looks_around, lanes=0)
