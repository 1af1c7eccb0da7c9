"""State that moves into another number of lanes goes on as if nothing had happened, for every stage of the package."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.apply import with_roles
from tidemill.core.chain import Chain
from tidemill.core.differences import first_difference
from tidemill.core.keys import KeyTable
from tidemill.core.moving import Saved, moved_objects, placed, restore, saved_arrays
from tidemill.core.order import input_order
from tidemill.core.placement import devices_of
from tidemill.core.plan import Plan
from tidemill.core.watermark import BEGIN, END, Watermark
from tidemill.engine.plan import FROM_DISK
from tidemill.schema import Kind, Schema
from tidemill.stages.base import Stage
from tidemill.stages.object_states import ObjectStates
from tidemill.stages.state import StateMemory
from tidemill.stages.state_copy import copy_used
from tidemill.testing.subject import sample

KEYS, RECORDS = 64, 256


def _laws() -> ModuleType:
    """The samples of every stage of the package, where the laws have them."""
    path = Path(__file__).parents[1] / "stages" / "test_laws.py"
    spec = importlib.util.spec_from_file_location("samples_of_the_laws", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look for it there
    spec.loader.exec_module(module)
    return module


SAMPLES = _laws().SAMPLES


@dataclass
class Snapshot:
    """A fleet's state between two slabs, as a checkpoint has it."""

    saved: Saved
    objects: list[list[ObjectStates]]
    """Per stage and lane."""
    kinds: Any
    watermark: Watermark


@dataclass
class Fleet:
    """A prepared plan on several lanes, without processes: what the engine does with slabs, in its shortest form."""

    plan: Plan
    lanes: int
    watermark: Watermark
    by: str | None = None
    kinds: Any = field(default_factory=dict)
    keys: KeyTable = field(init=False)
    rows: list[Batch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = KeyTable(self.lanes, KEYS)
        layout = self.plan.layout(KEYS, RECORDS)
        self.memories = [StateMemory(layout, np.zeros(layout.total_bytes, np.uint8)) for _ in range(self.lanes)]
        self.objects = [[ObjectStates.of({}) for _ in range(self.lanes)] for _ in self.plan.stages]
        self.slab = 0
        self.chains: list[Chain] = []

    def start(self) -> None:
        self.chains = [Chain(self.plan.stages, memory, lambda: 0) for memory in self.memories]
        for lane, chain in enumerate(self.chains):
            chain.kinds = {stage: dict(kinds) for stage, kinds in self.kinds.items()}
            for stage, states in enumerate(self.objects):
                if len(states[lane].slots):
                    chain.hold_objects(stage, states[lane])

    def feed(self, batch: Batch) -> None:
        if not self.chains:
            self.start()
        marks = self.watermark.advance(batch.time, wall_ns=None)
        assert batch.key_column is not None
        if self.by is None:
            codes = devices = self.keys.encode(batch.key_column)
        else:
            codes, devices = self.keys.encode_placed(batch.key_column, devices_of(batch, self.by))
        owners, slots, own = self.keys.lanes(codes), self.keys.slots(codes), self.keys.slots(devices)
        for lane, chain in enumerate(self.chains):
            first, fresh = self.keys.untold(lane)
            if fresh:
                chain.admit(fresh, first)
        self._work(batch, owners, slots, own, marks)

    def finish(self) -> None:
        """The end of input, without the last step to the newest time."""
        nothing = np.empty(0, np.int32)
        self._work(self._nothing, nothing, nothing, nothing, np.array([self.watermark.mark, END]))

    _nothing: Batch = field(default_factory=lambda: Batch({}))

    def _work(self, batch: Batch, owners: Any, slots: Any, devices: Any, marks: Any) -> None:
        self.slab += 1
        self._nothing = batch.slice(0, 0)
        parts, order = [], [[], [], [], []]
        for lane, (chain, memory) in enumerate(zip(self.chains, self.memories, strict=True)):
            mine = np.flatnonzero(owners == lane)
            if not len(mine) and not self.plan.follows_watermark:
                continue
            memory.begin(self.slab)
            part = batch.take(mine)
            part.key_column = Column(Kind.TEXT, slots[mine], texts=chain.key_texts)
            places = mine.astype(np.int32)
            out = chain.run(
                part, slots[mine], places=places, marks=marks, devices=devices[mine] if self.by is not None else None
            )
            for stage, states in chain.changed_objects().items():
                self.objects[stage][lane] = ObjectStates.joined([self.objects[stage][lane], states])
            memory.commit(self.slab)
            rows = np.arange(len(mine)) if out.rows is None else out.rows
            ends = np.full(len(rows), BEGIN) if out.ends is None else out.ends
            parts.append(out.batch)
            order[0].append(places[rows] if out.ends is None else out.places)
            order[1].append(ends)
            order[2].append(out.batch.keys[out.batch.key] if len(out.batch) else np.empty(0, object))
        self.kinds = {
            stage: {name: kind for chain in self.chains for name, kind in chain.kinds.get(stage, {}).items()}
            for stage in range(len(self.plan.stages))
        }
        if not parts:
            return
        places, ends, names = (np.concatenate(column) for column in order[:3])
        if len(places):
            full = Batch.concat([part for part in parts if len(part)])
            self.rows.append(full.take(input_order(places, ends, np.arange(len(names)), names)))

    def snapshot(self) -> Snapshot:
        """By way of a copy, which must do without anything that is not used."""
        arrays = {}
        for lane, memory in enumerate(self.memories):
            count = self.keys.statistics().by_lane[lane]
            copy = np.zeros(memory.layout.total_bytes, np.uint8)
            copy_used(memory, copy, count)
            arrays.update(saved_arrays(lane, StateMemory(memory.layout, copy), count))
        saved = Saved(self.lanes, self.memories[0].layout.stages, self.keys.entries(), arrays)
        return Snapshot(saved, self.objects, self.kinds, self.watermark)

    def go_on(self, snapshot: Snapshot, sources: Sequence[int | None]) -> None:
        saved = snapshot.saved
        places = placed(saved.lanes, saved.keys, self.keys, self.lanes)
        restore(saved, places, self.plan.stages, self.memories, sources)
        for stage, source in enumerate(sources):
            if source is not None:
                self.objects[stage] = moved_objects(snapshot.objects[source], places)
                self.kinds[stage] = snapshot.kinds.get(source, {})


def prepared(plan: Plan, batch: Batch, key: str) -> tuple[Plan, str | None]:
    plan = plan.prepared(FROM_DISK)
    schema = Schema(batch.schema, key=key)
    plan.bind(schema)
    return plan.settled(schema), plan.placed_by(schema, key)


def learned(plan: Plan, batch: Batch, by: str | None = None) -> Any:
    """The kinds of what functions make, which a run has learned before it goes on to more lanes than one."""
    fleet = Fleet(plan, 1, Watermark(lag_ns=0), by)
    fleet.feed(batch)
    return fleet.kinds


def worked(
    plan: Plan,
    batch: Batch,
    cuts: Sequence[int],
    lanes: Sequence[int],
    *,
    lag_ns: int = 0,
    by: str | None = None,
    kinds: Any,
) -> Batch:
    """Everything that comes out when the records up to each cut go to one fleet, and the next fleet goes on."""
    fleet = Fleet(plan, lanes[0], Watermark(lag_ns=lag_ns), by, kinds=kinds)
    rows: list[Batch] = []
    bounds = [0, *cuts, len(batch)]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if number:
            snapshot = fleet.snapshot()
            rows += fleet.rows
            fleet = Fleet(plan, lanes[number], snapshot.watermark, by)
            fleet.go_on(snapshot, range(len(plan.stages)))
        half = (start + stop) // 2
        fleet.feed(batch.slice(start, half))
        fleet.feed(batch.slice(half, stop))
    if plan.follows_watermark:
        fleet.finish()
    rows += fleet.rows
    return Batch.concat(rows) if rows else batch.slice(0, 0)


def require_same(got: Batch, expected: Batch) -> None:
    assert len(got) == len(expected)
    found = first_difference(got, expected)
    assert found is None, f"row {found.row}: {found}"
    assert got.time.tolist() == expected.time.tolist()
    assert got.keys[got.key].tolist() == expected.keys[expected.key].tolist()


SENSORS = [f"S{number}" for number in range(1, 10)]
VALUES = st.sampled_from([float("nan"), 0.0, -0.0, 49.5, 50.0, 50.5, 51.0, 1e300, 7.0])


@st.composite
def streams(draw: st.DrawFn, names: Sequence[str]) -> list[dict[str, Any]]:
    """Sensors that speak out of turn, some times twice, some behind others."""
    count = draw(st.integers(2, 60))
    steps = draw(st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0, 4.0, 25.0, -3.0]), min_size=count, max_size=count))
    times = 1_700_000_000 + np.cumsum(steps)
    who = draw(st.lists(st.sampled_from(SENSORS), min_size=count, max_size=count))
    values = draw(st.lists(st.tuples(*[VALUES for _ in names]), min_size=count, max_size=count))
    return [
        {"sensor": sensor, "time": time, **dict(zip(names, own, strict=True))}
        for sensor, time, own in zip(who, times.tolist(), values, strict=True)
    ]


@pytest.mark.parametrize("sample_of_stage", SAMPLES, ids=lambda sample: sample.stage.name)
def test_every_stage_goes_on_in_another_number_of_lanes(sample_of_stage: Any) -> None:
    """What comes out is, to the last bit, what one lane makes of the whole input without a stop."""
    stage: Stage = sample_of_stage.stage
    example = (
        sample(Plan(stage).prepared(FROM_DISK).stages[0]) if sample_of_stage.batch is None else sample_of_stage.batch
    )
    names = sorted({name for row in example for name in row} - {"sensor", "time"})

    @settings(max_examples=25)
    @given(rows=streams(names), data=st.data())
    def holds(rows: list[dict[str, Any]], data: st.DataObject) -> None:
        batch = with_roles(rows, "sensor", None, "UTC")
        plan, by = prepared(Plan(stage), batch, "sensor")
        assert by is None
        cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), min_size=1, max_size=2), label="cuts"))
        lanes = data.draw(st.lists(st.sampled_from([1, 2, 3, 5]), min_size=3, max_size=3), label="lanes")
        lag_ns = data.draw(st.sampled_from([0, 3_000_000_000]), label="lag")
        expected = worked(plan, batch, [], [1], lag_ns=lag_ns, kinds=kinds)
        require_same(worked(plan, batch, cuts, lanes, lag_ns=lag_ns, kinds=kinds), expected)

    records = with_roles(example, "sensor", None, "UTC")
    kinds = learned(prepared(Plan(stage), records, "sensor")[0], records)
    holds()


DEVICES = {
    "one row per device": tm.Plan(tm.Align(["temp", "flow"], by="pump", tolerance="20s")),
    "interpolated, and rolled": tm.Plan(
        tm.Rolling("value", window=3, stats=["mean"]),
        tm.Align(["temp", "flow"], by="pump", method="linear", tolerance="20s", allowed_lateness="1s"),
        tm.Rolling("temp", window=4),
        tm.Aggregate(tm.session("30s"), {"temp_mean_4": ["mean", "count"]}),
    ),
}


@pytest.mark.parametrize("plan", DEVICES.values(), ids=DEVICES)
@given(data=st.data())
@settings(max_examples=40)
def test_devices_move_with_all_their_sensors(plan: Plan, data: st.DataObject) -> None:
    """Where sensors are placed by their device, their names need not differ between devices."""
    rows = data.draw(streams(["value"]))
    pumps = data.draw(st.lists(st.sampled_from("ABCD"), min_size=len(rows), max_size=len(rows)))
    names = data.draw(st.lists(st.sampled_from(["temp", "flow", "other"]), min_size=len(rows), max_size=len(rows)))
    rows = [
        {**row, "sensor": name, "channel": name, "pump": pump}
        for row, name, pump in zip(rows, names, pumps, strict=True)
    ]
    batch = with_roles(rows, "sensor", None, "UTC")
    ready, by = prepared(plan, batch, "sensor")
    assert by == "pump"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), min_size=1, max_size=2)))
    lanes = data.draw(st.lists(st.sampled_from([1, 2, 3, 5]), min_size=3, max_size=3))
    lag_ns = data.draw(st.sampled_from([0, 3_000_000_000]))
    expected = worked(ready, batch, [], [1], lag_ns=lag_ns, by=by, kinds={})
    require_same(worked(ready, batch, cuts, lanes, lag_ns=lag_ns, by=by, kinds={}), expected)
