"""The laws of the stages that keep a few numbers of each sensor: what every one of them must obey."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.state import StateLayout, StateMemory
from tidemill.stages.statistics.compiled import interpreted_kernels, load_kernels

STAGES = [
    tm.Ewm("v", alpha=0.3, stats=["mean", "var", "std"]),
    tm.Ewm(["v", "w"], span=4, stats=["std", "mean"], adjust=False, bias=True, min_periods=2),
    tm.Ewm("v", halflife="2s", stats=["mean", "std"]),
    tm.Ewm("v", halflife=0.5, stats=["var", "mean"], adjust=False),
    tm.Lag("v"),
    tm.Lag(["v", "w"], 3),
    tm.Diff("v", 2),
    tm.Rate(["v", "w"]),
    tm.Rate("v", "1min", counter=True),
    tm.Stuck("v", 3),
    tm.Stuck(["v", "w"], 4, tolerance=1.5),
    tm.Dedup(within="3s", max_records=4),
    tm.Dedup(within="2s", max_records=3, late="drop"),
    tm.Dedup(counter="v", within="2s"),
    tm.Dedup(counter="v", modulo=8, max_gap=3, reorder=3, within="2s", names=("gap", "anew")),
]
NAMES = [f"{stage.name} {number}" for number, stage in enumerate(STAGES)]
every_stage = pytest.mark.parametrize("stage", STAGES, ids=NAMES)

VALUES = st.one_of(st.integers(0, 9).map(float), st.floats(), st.just(float("nan")))
TIMES = st.one_of(st.integers(-5, 20).map(lambda s: s * 10**9), st.integers(-(2**63), 2**63 - 1))


@st.composite
def streams(draw, most=60):
    """Records of a few sensors in random order, of every float and time there is; and cuts into batches."""
    row = st.tuples(st.sampled_from(["a", "b", "c"]), VALUES, VALUES, TIMES)
    rows = draw(st.lists(row, min_size=1, max_size=most))
    cuts = sorted(draw(st.sets(st.integers(1, len(rows)), max_size=8)) - {len(rows)})
    return rows, [0, *cuts, len(rows)]


def batch_of(rows):
    keys, v, w, times = zip(*rows, strict=True) if rows else ([], [], [], [])
    columns = {
        "nth": Column(Kind.INT, np.arange(len(rows))),
        "v": Column(Kind.FLOAT, np.array(v, np.float64)),
        "w": Column(Kind.FLOAT, np.array(w, np.float64)),
    }
    return Batch(columns, key=Column.of_texts(keys), time=np.array(times, np.int64))


def run(driver, rows, bounds=None):
    """What comes out in all, to the bit, and what was counted on the way."""
    batch = batch_of(rows)
    parts, counts = [], {}
    for start, stop in pairwise(bounds or [0, len(rows)]):
        step = driver.step(batch.slice(start, stop), [row[0] for row in rows[start:stop]])
        parts.append(step.batch)
        for what, times in (*step.gone.items(), *driver.state.counts.items()):
            counts[what] = counts.get(what, 0) + times
        driver.state.counts = {}
    whole = Batch.concat(parts)
    told = {name: (column.kind, column.values.tobytes()) for name, column in whole.columns.items()}
    return told, {what: times for what, times in counts.items() if times}


@every_stage
@settings(max_examples=25, deadline=None)
@given(stream=streams())
def test_batches_do_not_show(drive, stage, stream):
    """However the stream is cut into batches, every bit of every value is the same, and so is every count."""
    rows, bounds = stream
    whole = run(drive(stage), rows)
    assert whole == run(drive(stage), rows, bounds) == run(drive(stage), rows, range(len(rows) + 1))


@every_stage
@settings(max_examples=25, deadline=None)
@given(stream=streams())
def test_compiled_equals_interpreted(drive, stage, stream):
    """Machine code and plain Python give the same bits, for every float and every time there is."""
    rows, bounds = stream
    compiled, plain = drive(stage, kernels=load_kernels()), drive(stage, kernels=interpreted_kernels())
    assert run(compiled, rows, bounds) == run(plain, rows, bounds)
    assert compiled.snapshot() == plain.snapshot()


@every_stage
@settings(max_examples=25, deadline=None)
@given(stream=streams())
def test_other_sensors_do_not_show(drive, stage, stream):
    """A sensor's values are those that it has when it is alone."""
    rows, _ = stream
    mixed = drive(stage).step(batch_of(rows), [row[0] for row in rows]).batch
    for key in {row[0] for row in rows}:
        own = [row for row in rows if row[0] == key]
        alone = drive(stage).step(batch_of(own), [key] * len(own)).batch
        among = mixed.take(np.flatnonzero(mixed.keys[mixed.key] == key))
        for name in ("v", "w", *stage.adds):
            assert alone[name].tobytes() == among[name].tobytes()


@every_stage
@settings(max_examples=25, deadline=None)
@given(stream=streams(most=30))
def test_roll_back_restores_every_bit(drive, stage, stream):
    """After any batch, rolled back, the state is what it was before it; done again, all is the same."""
    rows, bounds = stream
    driver = drive(stage)
    for start, stop in pairwise(bounds):
        batch, keys = batch_of(rows[start:stop]), [row[0] for row in rows[start:stop]]
        before = driver.snapshot()
        once = driver.step(batch, keys, commit=False)
        after = driver.snapshot()
        assert driver.memory.roll_back()
        assert driver.snapshot() == before
        again = driver.step(batch, keys)
        assert driver.snapshot() == after
        assert once.gone == again.gone
        for name in once.batch.names:
            assert once.batch[name].tobytes() == again.batch[name].tobytes()


@every_stage
@settings(max_examples=10, deadline=None)
@given(stream=streams(most=30))
def test_no_instant_is_too_early_for_a_roll_back(drive, stage, stream):
    """Killed before any one of its kernels, a batch leaves nothing behind."""
    rows, bounds = stream
    middle = bounds[1]
    for survived in range(12):
        driver = drive(stage)
        run(driver, rows[:middle])
        before = driver.snapshot()
        driver.stage._kernels = Mortal(load_kernels(), survived)
        try:
            driver.step(batch_of(rows), [row[0] for row in rows], commit=False)
        except InterruptedError:
            driver.memory.roll_back()
            driver.stage._kernels = load_kernels()
            # Slots of new sensors may hold zeros or not be there: none was written to for good.
            assert driver.snapshot() == before
        else:
            return
    raise AssertionError("the stage has more kernels than were tried")


class Mortal:
    """Kernels that die at a call."""

    def __init__(self, kernels, calls):
        self.kernels, self.calls = kernels, calls

    def __getitem__(self, name):
        if not self.calls:
            raise InterruptedError(name)
        self.calls -= 1
        return self.kernels[name]


@every_stage
def test_an_empty_batch_has_the_declared_columns(drive, stage):
    """No records make no rows, and the schema is what `bind` said."""
    made = drive(stage).step(batch_of([])).batch
    schema = stage.bind(batch_of([]).schema)
    assert [(field.name, field.kind) for field in schema] == [(n, c.kind) for n, c in made.columns.items()]
    assert len(made) == 0


@every_stage
def test_one_record_goes_on(drive, stage):
    """A sensor's first record comes out, whatever is in it."""
    for value in (1.0, float("nan"), float("inf")):
        assert len(drive(stage).step(batch_of([("a", value, value, 0)])).batch) == 1


@every_stage
def test_a_million_sensors_have_one_record_each(stage):
    """Each starts on its own, also with the slots far apart."""
    keys = 1_000_000
    layout = StateLayout((stage.state_fields(),), keys, 2_000)
    memory = StateMemory(layout, np.zeros(layout.total_bytes, np.uint8))
    lane, state = stage.opened(), memory.stages[0]
    slots = np.arange(0, keys, 1_000, dtype=np.int32)
    batch = batch_of([("a", 3.0, 4.0, 10**18)] * len(slots))
    for slab, expected in ((1, 1), (2, 2)):
        memory.begin(slab)
        state.slots = slots
        made = lane.step(batch, state)
        memory.commit(slab)
        made = made if isinstance(made, Batch) else made.batch
        assert len(made) == len(slots) or (expected == 2 and len(made) == 0)
        for name in stage.adds:
            assert len(np.unique(made[name][: len(made)])) <= 1
    assert sum(field.bytes_per_key for field in stage.state_fields().values()) <= 128


@every_stage
def test_stages_can_be_sent(stage):
    """A stage is the same after its way to a lane."""
    sent = pickle.loads(pickle.dumps(stage))
    assert (sent.name, sent.adds, sent.state_fields()) == (stage.name, stage.adds, stage.state_fields())


@every_stage
@pytest.mark.filterwarnings("ignore:late:RuntimeWarning", "ignore:unchecked:RuntimeWarning")
@settings(max_examples=10, deadline=None)
@given(stream=streams(most=30))
def test_apply_gives_what_a_run_gives(told, stage, stream):
    """`Plan.apply` in a notebook and a run over the same records make the same rows."""
    rows, _ = stream
    finite = [row for row in rows if not np.isinf(row[1:3]).any()]  # the edge refuses infinities
    records = [{"sensor": k, "time": 1_700_000_000 + t // 10**9 % 30, "v": v, "w": w} for k, v, w, t in finite]
    sink = tm.testing.ListSink()
    report = tm.run(tm.Pipeline(tm.sources.Records(records), stage, sink), lanes=0)
    assert told(tm.Plan(stage).apply(records)) == told(sink.rows)
    assert report.records_in == report.rows_out + report.deduplicated + report.late
    assert report.filtered == 0


@every_stage
def test_where_times_count_a_notebook_must_say_where_they_are(stage):
    """Arrivals are all the same there; a stage that works without times does not ask for them."""
    rows = [{"sensor": "S", "v": 1.0, "w": 2.0}]
    if stage.needs_times:
        with pytest.raises(PlanError, match=r'works in event time: name its column with time="..."'):
            tm.Plan(stage).apply(rows)
    else:
        assert len(tm.Plan(stage).apply(rows)) == 1


@pytest.mark.slow
@every_stage
def test_lanes_do_not_show(told, stage):
    """One lane, two, and none, in batches of any size, make the same rows and count the same."""
    random = np.random.default_rng(1)
    records = [
        {
            "sensor": f"S{random.integers(40)}",
            "time": int(n // 40 + random.integers(-3, 4)) + 10**9,
            "v": float(random.integers(0, 9)),
            "w": random.normal(),
            "note": "a" * int(random.integers(5)),
        }
        for n in range(4_000)
    ]
    made = []
    for lanes in (0, 1, 2):
        sink = tm.testing.ListSink()
        limits = tm.Limits(max_records=1000 - 300 * lanes)
        report = tm.run(tm.Pipeline(tm.sources.Records(records), stage, sink), lanes=lanes, limits=limits)
        made.append((told(sink.rows), report.deduplicated, report.late, report.filtered, report.counters))
    assert made[0] == made[1] == made[2]


COLUMN_STAGES = [stage for stage in STAGES if not isinstance(stage, tm.Dedup)]


@pytest.mark.parametrize("make", [lambda c, **o: tm.Ewm(c, span=3, **o), tm.Lag, tm.Diff, tm.Rate, tm.Stuck])
def test_columns_and_names_are_checked(make):
    """A column that is not there, is text, or is named twice is refused, and so are names that do not fit."""
    name = make("v").name
    with pytest.raises(PlanError, match=r"needs a column 'v'; the columns there are: unit"):
        make("v").bind(Schema([Field("unit", Kind.TEXT)]))
    with pytest.raises(PlanError, match="'unit' to be float or int or bool; it is text"):
        make("unit").bind(Schema([Field("unit", Kind.TEXT)]))
    with pytest.raises(PlanError, match="column 'v' is named twice"):
        make(["v", "v"])
    with pytest.raises(PlanError, match="at least one column"):
        make([])
    with pytest.raises(PlanError, match="2 different names"):
        make(["v", "w"], names=["x", "x"])
    assert "'v'" in name
    assert make("v", names="x").adds == ("x",)
    assert make("v", name="mine").name == "mine"


def test_integers_booleans_and_missing_values_read_as_numbers(drive):
    """Null and absent read as NaN, and so does a column that no record has."""
    tags = np.array([0, 1, 2, 0], np.uint8)
    batch = Batch({
        "n": Column(Kind.INT, np.array([1, 0, 0, 5]), tags=tags),
        "on": Column(Kind.BOOL, np.array([True, False, True, True])),
    })  # fmt: skip
    made = drive(tm.Lag(["n", "on", "gone"])).step(batch).batch
    np.testing.assert_array_equal(made["n_lag_1"], [np.nan, 1, np.nan, np.nan])
    np.testing.assert_array_equal(made["on_lag_1"], [np.nan, 1, 0, 1])
    assert np.isnan(made["gone_lag_1"]).all()
