"""Stages with both a state and a function of the user's: every record enters once, whatever is made of it."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.blame import Orders
from tidemill.core.chain import Chain
from tidemill.errors import StageError
from tidemill.letters import KILLED, RAISED, WRONG_TYPE, Reject
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.base import Entered, Stage, Step
from tidemill.stages.narrowing import narrowed, rejected
from tidemill.stages.state import NOWHERE, StateField, StateLayout, StateMemory

KEYS = 3


class Summing(Stage):
    """The running sum of a sensor enters the state; a function that fails on 13 is called on what entered."""

    runs_user_code = True

    def __init__(self, at_once=4, **options):
        super().__init__(**options)
        self.at_once = at_once
        self.calls = []

    def bind(self, schema):
        return schema.adding([Field("sum", Kind.FLOAT)])

    def state_fields(self):
        return {"sum": StateField("float64")}

    def add(self, batch, state):
        state.save("sum", np.unique(state.slots))
        state.seal()
        made = []
        for slot, value in zip(state.slots.tolist(), batch["value"].tolist(), strict=True):
            state["sum"][slot] += value
            made.append(state["sum"][slot])
        return np.array(made)

    def enter(self, batch, state):
        slots = state.slots
        for start in range(0, len(batch), self.at_once):
            stop = min(start + self.at_once, len(batch))
            state.slots = slots[start:stop]
            sums = self.add(batch.slice(start, stop), state)

            def work(part, at, sums=sums, start=start):
                self.calls.append(len(part))
                return self.call(part, sums[at - start : at - start + len(part)])

            yield Entered(start, stop, work)

    def call(self, part, sums):
        if (part["value"] == 13).any():
            raise ValueError("unlucky")
        return part.with_columns({"sum": Column(Kind.FLOAT, sums)})

    def step(self, batch, state):
        raise AssertionError("the chain enters")


class Counting(Stage):
    """An object of the user's per sensor, which cannot be called twice; it says how many records it has seen."""

    runs_user_code = True
    narrows_itself = True

    def bind(self, schema):
        return schema.adding([Field("nth", Kind.FLOAT)])

    def opened(self):
        lane = super().opened()
        lane.seen = dict.fromkeys(range(KEYS), 0)
        lane.calls = []
        return lane

    def know(self, kinds):
        self.kinds = dict(kinds)

    def step(self, batch, state):
        self.calls.append(len(batch))
        made, kept, rejects = [], [], []
        for row, (slot, value) in enumerate(zip(state.slots.tolist(), batch["value"].tolist(), strict=True)):
            state.calling()
            self.seen[slot] += 1
            try:
                made.append(self.made(value, self.seen[slot]))
                kept.append(row)
            except ValueError as error:
                rejects.append(rejected(self, error, row))
        rows = np.array(kept, np.intp)
        return Step(batch.take(rows).with_columns({"nth": column_of(made)}), rows, rejects)

    def made(self, value, seen):
        if value == 13:
            raise ValueError("unlucky")
        return "text" if value == 7 else float(seen)


def column_of(items):
    if any(isinstance(item, str) for item in items):
        return Column(Kind.OBJECT, np.array(items, object))
    return Column(Kind.FLOAT, np.array(items, np.float64))


def batch_of(values):
    return Batch({"value": Column(Kind.FLOAT, np.array(values, np.float64))}, rows=len(values))


def chain_of(stage, now=lambda: 0):
    layout = StateLayout((dict(stage.state_fields()),), 8, 4096)
    memory = StateMemory(layout, bytearray(layout.total_bytes))
    return Chain([stage], memory, now), memory


def run(made, values, orders=None, slab=1, start=0):
    chain, memory = made
    memory.begin(slab)
    slots = (np.arange(len(values), dtype=np.int32) + start) % KEYS
    outcome = chain.run(batch_of(values), slots, orders)
    memory.commit(slab)
    return outcome


values = st.lists(st.sampled_from([1, 2, 3, 13]), min_size=1, max_size=60)


def sums_of(values):
    sums, own = np.zeros(KEYS), []
    for row, value in enumerate(values):
        sums[row % KEYS] += value
        own.append(sums[row % KEYS])
    return own


@given(values, st.integers(1, 70), st.booleans())
def test_a_record_enters_once_whether_its_function_fails_or_not(values, at_once, isolate):
    """The sums count the failing records too, and each once, however often the function was called again."""
    outcome = run(chain_of(Summing(at_once)), values, Orders(isolate={0}) if isolate else None)
    alive = [row for row, value in enumerate(values) if value != 13]
    assert [(d.row, d.reason_code) for d in outcome.dead] == [(r, RAISED) for r, v in enumerate(values) if v == 13]
    assert outcome.batch["value"].tolist() == [values[row] for row in alive]
    if alive:
        assert outcome.batch["sum"].tolist() == [sums_of(values)[row] for row in alive]
    assert outcome.carried == {"value": "value"}


@given(values, st.sets(st.integers(1, 59), max_size=5))
def test_batches_do_not_show(values, cuts):
    """Wherever the stream is cut, the sums are the same."""
    bounds = [0, *sorted(cut for cut in cuts if cut < len(values)), len(values)]
    made, parts = chain_of(Summing(on_error="nan")), []
    for slab, (start, stop) in enumerate(pairwise(bounds), 1):
        parts += run(made, values[start:stop], slab=slab, start=start).batch.columns["sum"].to_list()
    assert parts == [None if v == 13 else s for v, s in zip(values, sums_of(values), strict=True)]


def test_a_quarantined_record_has_not_entered():
    """What killed its lane is set aside before the stage; its neighbours do not find it in their state."""
    made = chain_of(Summing())
    outcome = run(made, [1, 1, 1, 5], Orders({0}, {0: {0: (KILLED, "it killed")}}))
    assert [d.row for d in outcome.dead] == [0]
    assert outcome.batch["sum"].tolist() == [1, 1, 5]


def test_the_largest_pieces_are_called_first():
    """What a stage takes in at once is what its function is called with."""
    stage = Summing(at_once=4)
    run(chain_of(stage), [1] * 10)
    assert stage.calls == [4, 4, 2]


@given(values, st.booleans())
def test_a_stage_that_narrows_itself_is_called_once(values, isolate):
    """Its object sees each record once, and its rejects are told by their place in the batch."""
    made = chain_of(Counting())
    outcome = run(made, values, Orders(isolate={0}) if isolate else None)
    assert outcome.carried == {"value": "value"}, "what it left alone is not sent back, though records are missing"
    dead = [row for row, value in enumerate(values) if value == 13]
    assert [(d.row, d.reason_code) for d in outcome.dead] == [(row, RAISED) for row in dead]
    seen = outcome.batch["nth"].tolist() if len(outcome.batch) else []
    assert seen == [r // KEYS + 1 for r, v in enumerate(values) if v != 13]
    (stage,) = made[0]._stages
    assert stage.calls == ([1] * len(values) if isolate else [len(values)])


@given(values)
def test_a_stage_that_narrows_itself_may_keep_what_failed(values):
    """With on_error="nan" its rejects go on in their places, its columns missing; the chain sees to that."""
    outcome = run(chain_of(Counting(on_error="nan")), values)
    assert not outcome.dead
    assert outcome.batch["value"].tolist() == values
    assert outcome.carried == {"value": "value"}
    expected = [None if v == 13 else r // KEYS + 1 for r, v in enumerate(values)]
    assert outcome.batch.columns["nth"].to_list() == expected
    assert outcome.counts.get("failed_as_nan", 0) == values.count(13)


def test_a_wrong_kind_is_found_without_calling_again():
    """What an object returned is looked through by halves; the object is not called for that."""
    made = chain_of(Counting())
    run(made, [1, 1, 1])
    outcome = run(made, [1, 7, 13, 1, 1], slab=2)
    assert [(d.row, d.reason_code) for d in outcome.dead] == [(1, WRONG_TYPE), (2, RAISED)]
    assert outcome.batch["nth"].tolist() == [2, 3, 3]
    (stage,) = made[0]._stages
    assert stage.calls == [3, 5]
    assert stage.kinds == {"nth": Kind.FLOAT}


def test_a_stage_that_narrows_itself_may_stop_the_run():
    """With on_error="stop" the first failure ends it, named."""
    with pytest.raises(StageError, match=r"(?s)Counting failed: ValueError: unlucky .*Traceback"):
        run(chain_of(Counting(on_error="stop")), [1, 13])


def test_each_call_has_the_deadline_to_itself():
    """A stage that narrows itself says when a call begins; each reads the clock, and names its row when alone."""
    ticks = iter(range(1, 100))
    made = chain_of(Counting(deadline_s=1.0), now=lambda: next(ticks))
    marks = []
    (stage,) = made[0]._stages
    plain = stage.step
    stage.step = lambda batch, state: (plain(batch, state), marks.append(made[1].cursor[1:]))[0]
    run(made, [1, 1, 1], Orders(isolate={0}))
    run(made, [1, 1, 1], slab=2)
    assert [row for _, row, _ in marks] == [0, 1, 2, NOWHERE]
    assert [since for *_, since in marks][:2] == [4, 7]


def test_a_schema_knows_what_entering_adds():
    """Nothing about it is special to a plan."""
    assert str(Summing().bind(Schema([Field("value", Kind.FLOAT)]))) == "value: float, sum: float"


@given(st.sets(st.integers(0, 99), max_size=10), st.integers(1, 100))
def test_narrowing_covers_all_in_order(bad, stop):
    """The pieces are consecutive, and only those of one bad record are rejected."""
    calls = []

    def attempt(low, high):
        calls.append(high - low)
        return Reject(0, RAISED, "no") if bad & set(range(low, high)) else "made"

    pieces = narrowed(0, stop, attempt)
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == stop
    failed = [piece for piece in pieces if piece.made != "made"]
    assert {piece.start for piece in failed} == {row for row in bad if row < stop}
    assert all(piece.stop - piece.start == 1 for piece in failed)
    assert len(calls) <= 1 + 32 + stop
