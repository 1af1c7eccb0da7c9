"""The chain: which records die at which stage, why, and that nothing before them is done twice."""

import asyncio
import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import NULL_TAG, Column
from tidemill.core.blame import Orders
from tidemill.core.chain import Chain
from tidemill.core.outcome import Dead
from tidemill.errors import EngineError, StageError
from tidemill.letters import KILLED, RAISED, WRONG_LENGTH, WRONG_TYPE, Reject
from tidemill.schema import Kind, Schema
from tidemill.stages.base import Stage, Step
from tidemill.stages.functions import FunctionStage
from tidemill.stages.state import StateField, StateLayout, StateMemory


class Counting(Stage):
    """A stage of ours with state: the number of the record within its sensor, so that a second run would show."""

    def __init__(self, name="nth"):
        super().__init__()
        self.column = name

    def bind(self, schema: Schema) -> Schema:
        return schema

    def state_fields(self):
        return {"count": StateField("int64")}

    def step(self, batch, state):
        counts = state["count"]
        state.save("count", np.unique(state.slots))
        state.seal()
        nth = []
        for slot in state.slots.tolist():
            counts[slot] += 1
            nth.append(float(counts[slot]))
        return batch.with_columns({self.column: Column(Kind.FLOAT, np.array(nth))})


class Calls:
    """A function that fails on the records whose ``bad`` is 1, and remembers the sizes it was called with."""

    def __init__(self, error=ValueError, make=None):
        self.sizes = []
        self.seen = []
        self.error = error
        self.make = make or (lambda batch: {"feature": batch["value"] * 2})

    def __call__(self, batch):
        self.sizes.append(len(batch))
        self.seen.append(batch["value"].tolist())
        if (batch["bad"] == 1).any():
            raise self.error("no good")
        return self.make(batch)


def batch_of(bad, **more):
    rows = len(bad)
    columns = {
        "value": Column(Kind.FLOAT, np.arange(rows, dtype=np.float64)),
        "bad": Column(Kind.FLOAT, np.array(bad, np.float64)),
        **more,
    }
    return Batch(columns, rows=rows, key=Column.of_texts([f"S{n % 3}" for n in range(rows)]))


def chain_of(*stages, now=lambda: 0):
    layout = StateLayout(tuple(dict(stage.state_fields()) for stage in stages), 8, 40_000)
    memory = StateMemory(layout, bytearray(layout.total_bytes))
    return Chain(stages, memory, now), memory


def run(chain, batch, orders=None, slab=1):
    made, memory = chain
    memory.begin(slab)
    outcome = made.run(batch, np.arange(len(batch), dtype=np.int32) % 3, orders)
    memory.commit(slab)
    return outcome


def survivors(outcome, batch):
    return list(range(len(batch))) if outcome.rows is None else outcome.rows.tolist()


bads = st.lists(st.sampled_from([0, 0, 0, 1]), min_size=1, max_size=80)


@given(bads)
@settings(deadline=None)
def test_exactly_the_failing_records_die(bad):
    """Whichever records a function fails on, those and no others are rejected, and the others have their values."""
    calls = Calls()
    batch = batch_of(bad)
    outcome = run(chain_of(Counting(), tm.Map(calls), Counting("after")), batch)
    dead = [row for row, is_bad in enumerate(bad) if is_bad]
    alive = [row for row, is_bad in enumerate(bad) if not is_bad]
    assert [(d.row, d.stage, d.reason_code) for d in outcome.dead] == [(row, 1, RAISED) for row in dead]
    assert survivors(outcome, batch) == alive
    assert outcome.batch["value"].tolist() == alive
    # Nothing before the failing stage ran twice, and the stage after it saw each record once, under its own sensor.
    assert outcome.batch["nth"].tolist() == [float(row // 3 + 1) for row in alive]
    seen = {}
    expected = [float(seen.setdefault(row % 3, []).append(row) or len(seen[row % 3])) for row in alive]
    assert outcome.batch["after"].tolist() == expected
    if alive:
        assert outcome.batch["feature"].tolist() == [2.0 * row for row in alive]
        assert outcome.carried == {"value": "value", "bad": "bad"}, "what nobody changed is not sent back"


@given(bads)
@settings(deadline=None)
def test_nan_keeps_every_record(bad):
    """on_error="nan" loses no record: where the function failed its columns are missing, and that is counted."""
    batch = batch_of(bad)
    outcome = run(chain_of(tm.Map(Calls(), adds={"feature": float}, on_error="nan")), batch)
    assert not outcome.dead
    assert survivors(outcome, batch) == list(range(len(bad)))
    feature = outcome.batch.columns["feature"]
    assert feature.kind is Kind.FLOAT
    assert feature.to_list() == [None if is_bad else 2.0 * row for row, is_bad in enumerate(bad)]
    assert outcome.counts.get("failed_as_nan", 0) == sum(bad)
    assert outcome.carried == {"value": "value", "bad": "bad"}


def test_nan_of_a_filter_changes_no_column():
    """A Filter adds nothing, so a record that it fails on goes on as it is."""
    calls = Calls(make=lambda batch: batch["value"] > 0)
    outcome = run(chain_of(tm.Filter(calls, on_error="nan")), batch_of([0, 0, 1, 0]))
    assert outcome.batch.to_rows() == [{"value": float(n), "bad": float(n == 2)} for n in (1, 2, 3)]
    assert outcome.rows.tolist() == [1, 2, 3]


def test_one_bad_record_of_many_costs_few_calls():
    """Among 32,768 records one is found within 32 calls after the first, and each good one is worked on once or twice."""
    calls = Calls()
    bad = np.zeros(32_768)
    bad[20_000] = 1
    outcome = run(chain_of(tm.Map(calls)), batch_of(bad))
    assert [d.row for d in outcome.dead] == [20_000]
    assert len(calls.sizes) <= 1 + 32


def test_many_bad_records_cost_few_calls_for_the_good():
    """Past its budget the narrowing goes row by row, but only in the pieces that fail: the largest were split first."""
    calls = Calls()
    bad = np.zeros(32_768)
    bad[[5, 20_000]] = 1
    outcome = run(chain_of(tm.Map(calls)), batch_of(bad))
    assert [d.row for d in outcome.dead] == [5, 20_000]
    assert len(calls.sizes) <= 1 + 32 + 2 * 32_768 // 2**7


def test_all_bad_records_are_tried_once_each():
    """When every record fails, each is called alone once, after the budget."""
    calls = Calls()
    outcome = run(chain_of(tm.Map(calls)), batch_of([1] * 200))
    assert len(outcome.dead) == 200
    assert not len(outcome.batch)
    assert len(calls.sizes) <= 1 + 32 + 200


def test_a_lone_bad_record_is_tried_once():
    """There is nothing to narrow in a batch of one."""
    calls = Calls()
    assert len(run(chain_of(tm.Map(calls)), batch_of([1])).dead) == 1
    assert calls.sizes == [1]


def test_stop_ends_the_run():
    """on_error="stop" raises with the stage, the error and the remote traceback."""
    with pytest.raises(StageError, match=r"(?s)Map\(Calls\) failed: ValueError: no good .*Traceback"):
        run(chain_of(tm.Map(Calls(), on_error="stop")), batch_of([0, 1]))


@pytest.mark.parametrize("bad", [[0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
def test_filters(bad):
    """A Filter's drops are neither dead nor changed, also when it fails on some records."""
    calls = Calls(make=lambda batch: batch["value"] != 2)
    batch = batch_of(bad)
    outcome = run(chain_of(Counting(), tm.Filter(calls), Counting("after")), batch)
    assert [d.row for d in outcome.dead] == [row for row, is_bad in enumerate(bad) if is_bad]
    alive = [row for row, is_bad in enumerate(bad) if not is_bad and row != 2]
    assert survivors(outcome, batch) == alive
    assert outcome.batch["value"].tolist() == alive
    assert outcome.carried == {"value": "value", "bad": "bad"}


def test_rows_are_counted_from_the_start():
    """After a filter, dead and surviving rows are still told by their place in the batch that entered."""
    batch = batch_of([0, 0, 1, 0, 1, 0])
    stages = [tm.Filter(lambda b: b["value"] >= 1), tm.Map(Calls()), tm.Filter(lambda b: b["value"] != 3)]
    outcome = run(chain_of(*stages), batch)
    assert [d.row for d in outcome.dead] == [2, 4]
    assert outcome.rows.tolist() == [1, 5]


def test_quarantined_rows_never_reach_their_stage():
    """A row that killed its lane is set aside before the stage, after all stages before it have seen it."""
    calls = Calls()
    orders = Orders(quarantine={2: {1: (KILLED, "it killed")}})
    stages = [tm.Filter(lambda b: b["value"] >= 1), Counting(), tm.Map(calls)]
    chain = chain_of(*stages)
    outcome = run(chain, batch_of([0, 0, 0]), orders)
    assert calls.seen == [[2.0]]
    assert outcome.dead == [Dead(1, 2, KILLED, "it killed")]
    assert outcome.rows.tolist() == [2]
    assert chain[1].stages[1]["count"].tolist()[:3] == [0, 1, 1], "it passed the stages before"


def test_isolation_marks_every_row():
    """Row by row, the crash cursor names stage and row before each call, so that a death there has a name."""
    marks = []
    chain = chain_of(
        tm.Filter(lambda b: b["value"] != 1),
        tm.Map(lambda b: marks.append(chain[1].cursor[1:3]) or {"feature": b["value"]}),
    )
    outcome = run(chain, batch_of([0, 0, 0, 0]), Orders(isolate={1}))
    assert marks == [(1, 0), (1, 2), (1, 3)]
    assert outcome.batch["feature"].tolist() == [0.0, 2.0, 3.0]
    assert outcome.carried == {"value": "value", "bad": "bad"}
    assert chain[1].cursor == (0, -1, -1, 0), "nowhere, once the chain is through"


def test_each_call_of_a_function_says_since_when_it_is_on():
    """With a deadline or without: a call that hangs is told of, or stopped; and the time of each stage is measured."""
    armed, ticks = [], iter(range(1, 100))
    chain = chain_of(
        tm.Map(lambda b: armed.append(chain[1].cursor[3]) or {}),
        tm.Map(lambda b: armed.append(chain[1].cursor[3]) or {}, deadline_s=1.0),
        now=lambda: next(ticks),
    )
    outcome = run(chain, batch_of([0]))
    assert armed == [4, 6], "two stages were opened before"
    assert outcome.stage_ns == [2, 2]


def kinds_by_batch(made, sizes):
    """A function that returns what ``made`` says for each value, in batches of these sizes."""
    chain = chain_of(tm.Map(lambda b: {"x": [made[int(v)] for v in b["value"]]}))
    out = []
    batch = batch_of([0] * len(made))
    start = 0
    for slab, size in enumerate(sizes, 1):
        outcome = run(chain, batch.slice(start, start + size), slab=slab)
        alive = survivors(outcome, batch.slice(start, start + size))
        if alive:
            items = outcome.batch.columns["x"].to_list()
            out += [(start + row, item) for row, item in zip(alive, items, strict=True)]
        start += size
    return out


@pytest.mark.parametrize(
    ("made", "alive"),
    [
        ([1.0, "a", 2.0, None, 3.0], [0, 2, 3, 4]),
        (["a", "b", 2.0, None, "c"], [0, 1, 3, 4]),
        ([None, 1.0, 2.0, "a", 3.0], [0, 1, 2, 4]),
        ([[1], "a", 2.0, None, {"b": 1}], [0, 1, 2, 3, 4]),
        ([True, 1.0, False, None, "a"], [0, 2, 3]),
    ],
)
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [1, 1, 3], [1, 1, 2, 1]])
def test_a_column_has_one_kind(made, alive, sizes):
    """The first value fixes a column's kind, however the rest is batched; what is of another kind is rejected alone."""
    got = kinds_by_batch(made, sizes)
    assert got == [(row, made[row]) for row in alive]


def test_a_changed_kind_names_both():
    """The dead letter for a changed type says what the column was and what came."""
    chain = chain_of(tm.Map(lambda b: {"x": ["a" if v == 1 else 1.0 for v in b["value"]]}))
    run(chain, batch_of([0]))
    outcome = run(chain, batch_of([0, 0]), slab=2)
    assert outcome.dead == [Dead(1, 0, WRONG_TYPE, outcome.dead[0].reason)]
    assert outcome.dead[0].reason.endswith("returned 'x' as text; it has been float so far")


def test_a_wrong_length_is_found_by_halves():
    """A function that loses the records it does not like costs those, with a code of its own."""
    outcome = run(chain_of(tm.Map(lambda b: {"x": b["value"][b["bad"] == 0]})), batch_of([0, 1, 0]))
    assert [(d.row, d.reason_code) for d in outcome.dead] == [(1, WRONG_LENGTH)]
    assert not outcome.dead[0].reason.startswith("BadResult")


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no")


class Panic(BaseException):
    pass


class Surrogate(Exception):
    def __str__(self):
        return "\ud800 oh"


class Lying(Exception):
    reason_code = 5


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (lambda _: SystemExit(3), "SystemExit: 3"),
        (lambda _: GeneratorExit(), "GeneratorExit: "),
        (lambda _: asyncio.CancelledError(), "CancelledError: "),
        (lambda _: Panic("in Rust"), "Panic: in Rust"),
        (lambda _: Unprintable(), "Unprintable: its message cannot be shown"),
        (lambda _: Surrogate(), r"Surrogate: \ud800 oh"),
        (lambda _: Lying("x"), "Lying: x"),
        (lambda _: ValueError("x" * 10_000), "ValueError: " + "x" * 1000),
        (lambda _: StopIteration(), "StopIteration: "),
        (lambda _: MemoryError(), "MemoryError: "),
    ],
)
def test_whatever_is_raised_is_told(error, told):
    """sys.exit, what is no Exception, hopeless messages, endless ones: each costs its record, with a reason that can be sent and written."""
    outcome = run(chain_of(tm.Map(Calls(error))), batch_of([0, 1]))
    (dead,) = outcome.dead
    assert (dead.row, dead.reason_code) == (1, RAISED)
    assert dead.reason.startswith(told)
    assert dead.reason.endswith("(__call__, line " + dead.reason.rpartition("line ")[2])
    assert len(dead.reason.encode()) < 1200


def parsed(batch):
    return {"parsed": json.loads("{")}


def calling(batch):
    return parsed(batch)


class Picky:
    def __call__(self, batch, unit):
        return {}


PARSED = f"(parsed, line {parsed.__code__.co_firstlineno + 1})"


@pytest.mark.parametrize(
    ("fn", "end"),
    [
        (parsed, PARSED),
        (calling, PARSED),
        (Picky, "missing 1 required positional argument: 'unit'"),
    ],
)
def test_where_it_raised_is_a_line_of_the_users(fn, end):
    """Not of a library that it called, nor of ours."""
    (dead,) = run(chain_of(tm.Map(fn)), batch_of([0])).dead
    assert dead.reason.endswith(end)


def test_ctrl_c_is_not_the_records_fault():
    """KeyboardInterrupt ends what runs; it is never blamed on a record."""
    with pytest.raises(KeyboardInterrupt):
        run(chain_of(tm.Map(Calls(KeyboardInterrupt))), batch_of([0, 1]))


def test_nothing_in_nothing_out():
    """An empty batch, and one that a filter has emptied, call no function of the user's; our stages add their columns."""
    calls = Calls()
    outcome = run(chain_of(tm.Map(calls), Counting()), batch_of([]))
    assert (len(outcome.batch), outcome.dead, calls.sizes) == (0, [], [])
    outcome = run(chain_of(tm.Filter(lambda b: b["value"] < 0), tm.Map(calls), Counting()), batch_of([0, 0]))
    assert (len(outcome.batch), outcome.rows.tolist(), calls.sizes) == (0, [], [])
    assert "nth" in outcome.batch


def test_carried_columns_are_known_by_name():
    """Selecting, renaming and replacing: what is still an input column is told by the name it entered with."""
    stages = [
        tm.Select("value", "bad", renamed="unit"),
        tm.Map(lambda b: {"value": b["value"] + 1}),
    ]
    batch = batch_of([0, 0], unit=Column.of_texts(["C", "F"]), other=Column.of_texts(["x", "y"]))
    outcome = run(chain_of(*stages), batch)
    assert outcome.carried == {"bad": "bad", "renamed": "unit"}
    assert list(outcome.batch.columns) == ["value", "bad", "renamed"]


class Refusing(Stage):
    """A stage of ours that rejects what is infinite."""

    def bind(self, schema: Schema) -> Schema:
        return schema

    def step(self, batch, state):
        state.count("looked_at", len(batch))
        kept = np.flatnonzero(np.isfinite(batch["value"]))
        rejects = [Reject(int(row), "infinite", "too far") for row in np.flatnonzero(~np.isfinite(batch["value"]))]
        return Step(batch.take(kept), kept, rejects)


def test_a_stage_may_reject():
    """Rejects of a stage of ours are told by their place in the batch that entered, and its counters are added up."""
    batch = batch_of([0, 0, 0])
    batch.columns["value"] = Column(Kind.FLOAT, np.array([1.0, np.inf, 3.0]))
    outcome = run(chain_of(tm.Filter(lambda b: b["value"] > 1), Refusing(), Refusing()), batch)
    assert outcome.dead == [Dead(1, 1, "infinite", "too far")]
    assert outcome.rows.tolist() == [2]
    assert outcome.counts == {"looked_at": 3}


def test_missing_columns_take_the_known_kind():
    """A batch in which a function has nothing to say keeps the column's kind, as nulls."""
    chain = chain_of(tm.Map(lambda b: {"x": [None if v == 1 else "a" for v in b["value"]]}))
    run(chain, batch_of([0]))
    outcome = run(chain, batch_of([0, 0]).slice(1, 2), slab=2)
    column = outcome.batch.columns["x"]
    assert (column.kind, column.tags.tolist()) == (Kind.TEXT, [NULL_TAG])


def test_columns_of_few_records_are_there_in_each_batch():
    """What a function added once, or is declared to add, the next stage finds also where no record of the batch got it."""
    stage = tm.MapRows(lambda rows: [{**row, "x": 1.0} if row["value"] == 0 else row for row in rows], adds={"y": str})
    chain = chain_of(stage)
    batch = batch_of([0, 0])
    for slab, start in enumerate((0, 1), 1):
        columns = run(chain, batch.slice(start, start + 1), slab=slab).batch.columns
        assert {name: column.kind for name, column in columns.items() if name in "xy"} == {
            "x": Kind.FLOAT,
            "y": Kind.TEXT,
        }
    assert columns["x"].is_absent


@pytest.mark.parametrize("stages", [(), (tm.Map(lambda batch: {"twice": batch["few"] * 2}),)])
def test_columns_that_nobody_has_shown_do_not_come_out(stages):
    """A column that came without a value is there for the stages behind a function, and is no column of the output."""
    few = Column.missing(Kind.FLOAT, 2)
    outcome = run(chain_of(tm.MapRows(lambda rows: rows), *stages), batch_of([0, 0], few=few))
    assert not outcome.dead
    assert "few" not in outcome.batch.columns
    assert "few" not in outcome.carried


def texts_below_zero(rows):
    return [{**row, "x": "bad" if row["value"] < 0 else row["value"] * 2} for row in rows]


def test_rows_functions_know_what_the_run_knows():
    """In a lane that replaces a dead one, or that hears of a kind from another, the odd record is still rejected alone."""
    chain = chain_of(tm.MapRows(texts_below_zero))
    chain[0].kinds[0] = {"x": Kind.FLOAT}
    outcome = run(chain, batch_of([0, 0, 0], value=Column(Kind.FLOAT, np.array([-1.0, 2.0, 3.0]))))
    assert [(d.row, d.reason_code) for d in outcome.dead] == [(0, WRONG_TYPE)]
    assert outcome.batch["x"].tolist() == [4.0, 6.0]


def test_rows_functions_fix_the_kinds_of_what_they_leave_alone():
    """A field that was left alone so far has its kind: the chain knows it, so that a replacement does too."""
    chain = chain_of(tm.MapRows(lambda rows: rows))
    run(chain, batch_of([0]))
    assert chain[0].kinds[~0] == {"value": Kind.FLOAT, "bad": Kind.FLOAT}


@pytest.mark.parametrize("bad", [{"lock": threading.Lock()}, {"lock": (n for n in ())}, {"x\ud800": 1.0}])
def test_what_cannot_be_sent_costs_its_record(bad):
    """A value or a name that could not leave the process is found where it was made, and its record alone is rejected."""
    chain = chain_of(tm.MapRows(lambda rows: [{**row, **(bad if row["bad"] else {})} for row in rows]))
    outcome = run(chain, batch_of([0, 0, 1, 0]))
    assert [(d.row, d.reason_code) for d in outcome.dead] == [(2, WRONG_TYPE)]
    assert outcome.batch.names == ("value", "bad")


def test_nan_of_a_rows_function_keeps_what_came():
    """A record whose row is no dict, or breaks a field's kind, goes on as it came, with nulls in what was added."""
    made = {1: None, 3: {"value": "broken", "f": 1.0}}

    def fn(rows):
        return [made.get(int(row["value"]), {**row, "f": 2.0}) for row in rows]

    for sizes in ([5], [1] * 5, [1, 4]):
        chain = chain_of(tm.MapRows(fn, adds={"f": float}, on_error="nan"))
        batch, out, start = batch_of([0] * 5), [], 0
        for slab, size in enumerate(sizes, 1):
            outcome = run(chain, batch.slice(start, start + size), slab=slab)
            assert not outcome.dead
            out += outcome.batch.to_rows()
            start += size
        assert out == [{"value": float(n), "bad": 0.0, "f": None if n in made else 2.0} for n in range(5)]


def test_objects_that_fit_take_the_known_kind():
    """A column of objects whose values are all of the kind the column has had is of that kind."""
    chain = chain_of(tm.Map(lambda b: {"x": Column(Kind.OBJECT, np.array([True, None], object))}))
    chain[0].kinds[0] = {"x": Kind.BOOL}
    outcome = run(chain, batch_of([0, 0]))
    assert outcome.batch.columns["x"].kind is Kind.BOOL
    assert outcome.batch.columns["x"].to_list() == [True, None]


class Thinned(Stage):
    """A stage of ours that lets every other record go on, and says what the others count as."""

    def __init__(self, gone):
        super().__init__()
        self.gone = gone

    def bind(self, schema: Schema) -> Schema:
        return schema

    def step(self, batch, state):
        kept = np.arange(0, len(batch), 2)
        return Step(batch.take(kept), kept, gone=self.gone)


def test_what_does_not_go_on_is_counted_as_its_stages_say():
    """The counts of several stages add up; what they leave unsaid is the caller's to count as filtered."""
    chain = chain_of(Thinned({"late": 2, "absorbed": 1}), Thinned({"late": 1}), Thinned({}))
    outcome = run(chain, batch_of([0] * 8))
    assert survivors(outcome, batch_of([0] * 8)) == [0]
    assert outcome.gone == {"late": 3, "absorbed": 1}


@pytest.mark.parametrize("gone", [{"late": 5}, {"late": 3, "dropped": 2}, {"late": -1}, {"lost": 1}])
def test_books_that_do_not_balance_are_the_stages_fault(gone):
    """A stage that counts more records than did not go on, or under a name that nobody reads, is named."""
    with pytest.raises(EngineError, match=r"Thinned counts .* of 4 records"):
        run(chain_of(Thinned(gone)), batch_of([0] * 8))


class ThinnedByCode(FunctionStage):
    """A stage of user code that fails on bad records and counts what it does not let go on."""

    def bind(self, schema: Schema) -> Schema:
        return schema

    def step(self, batch, state):
        kept = np.flatnonzero(self._call(batch))
        return Step(batch.take(kept), kept, gone={"absorbed": len(batch) - len(kept)})


def test_the_pieces_of_a_failing_batch_count_together():
    """Where a batch is narrowed down to its failing record, what the pieces let go adds up to the same."""
    calls = Calls(make=lambda batch: batch["value"] % 2 == 0)
    outcome = run(chain_of(ThinnedByCode(calls)), batch_of([0, 0, 0, 1, 0, 0]))
    assert survivors(outcome, batch_of([0] * 6)) == [0, 2, 4]
    assert [d.row for d in outcome.dead] == [3]
    assert outcome.gone == {"absorbed": 2}
