"""State that moves into another number of lanes goes on as if nothing had happened, for every stage of the package."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from tidemill.core.keys import KeyTable, in_turn, place
from tidemill.core.moving import Saved, moved_objects, placed, restore, saved_arrays
from tidemill.core.order import input_order
from tidemill.core.placement import devices_of
from tidemill.core.plan import Plan
from tidemill.core.resume import check_resume, identify, matched
from tidemill.core.watermark import BEGIN, END, Watermark
from tidemill.engine.plan import FROM_DISK
from tidemill.errors import InputError, PlanError
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
    example = sample_of_stage.batch
    if example is None:
        example = sample(Plan(stage).prepared(FROM_DISK).stages[0])
    elif isinstance(example, Batch):
        example = example.to_rows()
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


def doubled(batch: Batch) -> dict[str, Any]:
    return {"twice": batch["value"] * 2}


def again(batch: Batch) -> dict[str, Any]:
    return {"four": batch["twice"] * 2}


@given(names=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), unique=True, max_size=40),
       lanes=st.integers(1, 4), now=st.integers(1, 4))  # fmt: skip
def test_what_was_placed_by_bytes_is_found_and_placed_by_turns(names: list[str], lanes: int, now: int) -> None:
    """States that an older tidemill saved: each sensor's row of its old lane goes to its lane and slot of today."""
    old: list[list[str]] = [[] for _ in range(lanes)]
    for name in names:
        old[place(name.encode(), lanes)].append(name)
    table = KeyTable(now, 100)
    places = placed(lanes, names, table, now, by_bytes=True)
    assert not places.same
    for lane, mine in enumerate(old):
        codes = np.array([names.index(name) for name in mine], np.int32)
        assert (
            places.lane_of[lane].tolist()
            == table.lanes(codes).tolist()
            == in_turn(codes.astype(np.int64), now).tolist()
        )
        assert places.slot_of[lane].tolist() == table.slots(codes).tolist()


def test_a_lane_knows_the_columns_that_others_have_seen() -> None:
    """A sensor is told silent in a lane to which no record has come yet, and a function behind looks at a column that the
    plan does not declare."""
    plan = Plan(tm.Map(doubled), tm.Silence("20s"), tm.Map(again, adds={"four": float}))
    rows = [{"sensor": sensor, "time": time, "value": 1.0} for time, sensor in enumerate(SENSORS)]
    rows += [{"sensor": "S1", "time": time, "value": 2.0} for time in range(40, 80)]
    batch = with_roles(rows, "sensor", None, "UTC")
    ready, by = prepared(plan, batch, "sensor")
    expected = worked(ready, batch, [], [1], kinds={})
    assert expected["silent"].sum() == len(SENSORS)
    for before, now in itertools.product((1, 2, 3, 5), repeat=2):
        require_same(worked(ready, batch, [len(SENSORS)], [before, now], by=by, kinds={}), expected)


# -- a changed plan ------------------------------------------------------------------------------------------------


def column(batch: Batch, name: str) -> Batch:
    return batch.select({name: name})


@settings(max_examples=30)
@given(rows=streams(["value"]), data=st.data())
def test_a_changed_plan_goes_on_where_it_is_the_same(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    """What a kept stage adds is what it adds without a stop; what is new adds what it adds to the records after the change."""
    batch = with_roles(rows, "sensor", None, "UTC")
    cut = data.draw(st.integers(0, len(rows)))
    before, now = data.draw(st.tuples(*[st.sampled_from([1, 2, 3])] * 2))
    kept = [tm.Rolling("value", 4, stats=["mean", "max"]), tm.Lag("value", 2), tm.Keyed(Seen)]
    gone = [tm.Ewm("value", span=3), tm.Rolling("value", 9)]
    fresh = [tm.Diff("value"), tm.Rolling("value", 5, stats=["sum"]), tm.scan(rising)]
    old, _ = prepared(Plan(_mixed(data, kept, gone)), batch, "sensor")
    new, _ = prepared(Plan(_mixed(data, kept, fresh)), batch, "sensor")
    matching = matched(identify(old), identify(new))
    check_resume(matching, {stage.name for stage in gone})
    with pytest.raises(PlanError, match="--drop-state"):
        check_resume(matching)

    fleet = Fleet(old, before, Watermark(lag_ns=0))
    fleet.feed(batch.slice(0, cut))
    after = Fleet(new, now, Watermark(lag_ns=0))
    after.go_on(fleet.snapshot(), matching.sources)
    after.feed(batch.slice(cut, len(batch)))
    if cut == len(batch):
        return
    (got,) = after.rows
    for stage in kept:
        alone = worked(prepared(Plan(stage), batch, "sensor")[0], batch, [], [1], kinds={})
        for name in set(alone.names) - set(batch.names):
            assert first_difference(column(got, name), column(alone.slice(cut, len(batch)), name)) is None
    for stage in fresh:
        part = batch.slice(cut, len(batch))
        alone = worked(prepared(Plan(stage), part, "sensor")[0], part, [], [1], kinds={})
        for name in set(alone.names) - set(batch.names):
            assert first_difference(column(got, name), column(alone, name)) is None


class Seen:
    """How many records there have been."""

    n = 0

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        self.n += 1
        return {"seen": self.n}


def rising(state: float | None, record: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return record["value"], {"rise": float("nan") if state is None else record["value"] - state}


def _mixed(data: st.DataObject, kept: list[Any], others: list[Any]) -> list[Stage]:
    """The kept stages in their order, the others among them anywhere."""
    places = data.draw(st.permutations([True] * len(kept) + [False] * len(others)))
    ours, theirs = iter(kept), iter(others)
    return [next(ours) if own else next(theirs) for own in places]


# -- what does not fit ---------------------------------------------------------------------------------------------


def waiting(lanes: int, *, most: int = 100) -> Fleet:
    rows = [{"sensor": sensor, "time": time, "value": 1.0} for time, sensor in enumerate(SENSORS)]
    batch = with_roles(rows, "sensor", None, "UTC")
    stage = tm.Aggregate(tm.tumbling("1h"), {"value": "max"}, max_waiting=most)
    fleet = Fleet(prepared(Plan(stage), batch, "sensor")[0], lanes, Watermark(lag_ns=0))
    fleet.feed(batch)
    return fleet


def test_records_that_wait_must_find_room() -> None:
    """Refused before anything runs; room is no part of what a stage is known by, so that it can be made."""
    snapshot = waiting(5).snapshot()
    small = Fleet(waiting(1, most=8).plan, 1, Watermark(lag_ns=0))
    with pytest.raises(
        PlanError, match=r"Aggregate\(tumbling\('1h'\)\) has 9 entries .* room for 8: give it a larger max_waiting"
    ):
        small.go_on(snapshot, [0])
    large = Fleet(waiting(1, most=9).plan, 1, Watermark(lag_ns=0))
    large.go_on(snapshot, [0])
    assert large.memories[0].stages[0]["head"][0, 1] == 9


def test_a_stage_that_cannot_move_says_so() -> None:
    """One of the user's that keeps something for a whole lane: the same number of lanes is no matter."""

    class Whole(tm.Silence):
        moved = Stage.moved

    batch = with_roles([{"sensor": "S1", "time": 1.0, "value": 1.0}], "sensor", None, "UTC")
    plan, _ = prepared(Plan(Whole("20s")), batch, "sensor")
    fleet = Fleet(plan, 2, Watermark(lag_ns=0))
    fleet.feed(batch)
    Fleet(plan, 2, Watermark(lag_ns=0)).go_on(fleet.snapshot(), [0])
    with pytest.raises(PlanError, match="does not say what becomes of its state with another number of lanes"):
        Fleet(plan, 3, Watermark(lag_ns=0)).go_on(fleet.snapshot(), [0])


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("lane/0/stage/0/times0", lambda array: array[:-1]),
        ("lane/0/stage/0/times0", lambda array: array.astype(np.int32)),
        ("lane/0/stage/0/times0", lambda array: array.reshape(-1, 1)),
        ("lane/0/stage/0/slots0", lambda array: array + 1),
        ("lane/0/stage/0/slots0", lambda array: array - 1),
        ("lane/0/stage/0/head", lambda array: array * 0 + 2),
        ("lane/0/stage/0/head", lambda array: array * 0 - 1),
        ("lane/0/stage/0/head", lambda array: array + 1000),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name: str, harm: Callable[[Any], Any]) -> None:
    """Whatever is in them: by a sentence, not by a crash, and not in silence."""
    fleet = waiting(1)
    snapshot = fleet.snapshot()
    arrays = dict(snapshot.saved.arrays)
    arrays[name] = harm(arrays[name])
    harmed = replace(snapshot, saved=replace(snapshot.saved, arrays=arrays))
    with pytest.raises(InputError, match="saved"):
        Fleet(fleet.plan, 2, Watermark(lag_ns=0)).go_on(harmed, [0])
    del arrays[name]
    with pytest.raises(InputError, match=f"has no array {name}"):
        Fleet(fleet.plan, 2, Watermark(lag_ns=0)).go_on(
            replace(snapshot, saved=replace(snapshot.saved, arrays=arrays)), [0]
        )
