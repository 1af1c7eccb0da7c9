"""MapWindows against pandas and NumPy, and against itself in other batches."""

import os
import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.chain import Chain
from tidemill.errors import PlanError
from tidemill.letters import DEADLINE, KILLED, RAISED
from tidemill.schema import Field, Kind, Schema
from tidemill.stages import windows as machinery
from tidemill.stages.state import StateMemory
from tidemill.stages.statistics.compiled import interpreted_kernels, load_kernels

VALUES = st.one_of(st.floats(-1e6, 1e6), st.just(float("nan")), st.sampled_from([0.0, -0.0, 1.0]))
WILD = st.one_of(VALUES, st.floats())


@st.composite
def streams(draw, values=VALUES, most=100):
    """Records of a few sensors in random order, and where the stream is cut into batches."""
    rows = draw(st.lists(st.tuples(st.sampled_from("abcd"), values), min_size=1, max_size=most))
    cuts = sorted(draw(st.sets(st.integers(1, len(rows)), max_size=8)) - {len(rows)})
    return [k for k, _ in rows], np.array([v for _, v in rows]), [0, *cuts, len(rows)]


@pytest.fixture(autouse=True, params=[13, machinery._CELLS_AT_ONCE], ids=["few at once", "many at once"])
def cells_at_once(request, monkeypatch):
    """Everything holds however few windows a call gets."""
    monkeypatch.setattr(machinery, "_CELLS_AT_ONCE", request.param)


def run(driver, keys, values, bounds, **more):
    parts = []
    for start, stop in pairwise(bounds):
        columns = {name: Column(Kind.FLOAT, given[start:stop]) for name, given in {"v": values, **more}.items()}
        parts.append(driver.step(Batch(columns, rows=stop - start), keys[start:stop]).batch)
    return Batch.concat(parts)


def windows_of(keys, values, window):
    """The windows themselves, the slow way."""
    made = np.full((len(values), window), np.nan)
    for row, key in enumerate(keys):
        own = [v for k, v in zip(keys[: row + 1], values[: row + 1], strict=True) if k == key][-window:]
        made[row, window - len(own) :] = own
    return made


def several(windows):
    """What people compute: reductions, differences, sorts, transforms."""
    centred = windows - windows.mean(axis=1, keepdims=True)
    return {
        "mean": windows.mean(axis=1),
        "std": windows.std(axis=1, ddof=0),
        "range": windows.max(axis=1) - windows.min(axis=1),
        "median": np.median(windows, axis=1),
        "skew": (centred**3).mean(axis=1),
        "turns": (np.diff(np.sign(centred), axis=1) != 0).sum(axis=1),
        "power": (np.abs(np.fft.rfft(centred, axis=1)) ** 2).max(axis=1),
        "last": windows[:, -1],
    }


ignoring = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN and infinities meet


@ignoring
@settings(max_examples=60)
@given(streams(WILD), st.sampled_from([1, 2, 3, 8, 17]))
def test_the_function_sees_each_sensors_last_records(drive, stream, window):
    """Oldest left, the record itself rightmost, NaN before the first reading, to the last bit."""
    keys, values, bounds = stream
    seen = []

    def look(windows):
        assert windows.dtype == np.float64
        assert not windows.flags.writeable
        seen.append(windows.copy())
        return windows[:, -1]

    run(drive(tm.MapWindows(look, "v", window, into="last")), keys, values, bounds)
    assert np.concatenate(seen).tobytes() == windows_of(keys, values, window).tobytes()


@ignoring
@settings(max_examples=60)
@given(streams(WILD), st.sampled_from([1, 2, 8, 17]))
def test_batches_do_not_show(drive, stream, window):
    """However the stream is cut into batches, every bit of what a function makes of its rows is the same."""
    keys, values, bounds = stream
    stage = tm.MapWindows(several, "v", window)
    whole = run(drive(stage), keys, values, [0, len(keys)])
    cut = run(drive(stage), keys, values, bounds)
    single = run(drive(stage), keys, values, list(range(len(keys) + 1)))
    for name in whole.names:
        assert whole[name].tobytes() == cut[name].tobytes() == single[name].tobytes(), name


@ignoring
@settings(max_examples=60)
@given(streams(), st.sampled_from([1, 2, 7]))
def test_equals_pandas(drive, stream, window):
    """What ``groupby.rolling(window).apply(fn, raw=True)`` gives where the window is full of values."""
    keys, values, bounds = stream
    made = run(drive(tm.MapWindows(several, "v", window)), keys, values, bounds)
    frame = pd.DataFrame({"k": keys, "v": values})
    rolled = frame.groupby("k")["v"].rolling(window)
    for name in ("mean", "std", "range", "median", "skew", "turns"):
        expected = rolled.apply(lambda own, name=name: several(own[None, :])[name][0], raw=True)
        expected = expected.droplevel(0).sort_index().to_numpy()
        full = ~np.isnan(expected)
        np.testing.assert_allclose(made[name][full], expected[full], rtol=1e-12, err_msg=name)


@ignoring
@settings(max_examples=40)
@given(streams(WILD), st.sampled_from([1, 3, 8]))
def test_compiled_equals_interpreted(drive, stream, window):
    """Machine code and plain Python copy the same windows."""
    keys, values, bounds = stream
    stage = tm.MapWindows(several, "v", window)
    fast = run(drive(stage, kernels=load_kernels()), keys, values, bounds)
    slow = run(drive(stage, kernels=interpreted_kernels()), keys, values, bounds)
    assert all(fast[name].tobytes() == slow[name].tobytes() for name in fast.names)


@settings(max_examples=40)
@given(streams(WILD), st.sampled_from([1, 3, 8]))
def test_roll_back_restores_every_bit(drive, stream, window):
    """After any batch, rolled back, the state is what it was before it; done again, the values are the same."""
    keys, values, bounds = stream
    driver = drive(tm.MapWindows(lambda w: {"x": w["v"][:, 0], "y": w["u"][:, 0]}, ["v", "u"], window))
    for start, stop in pairwise(bounds):
        own = Column(Kind.FLOAT, values[start:stop])
        batch = Batch({"v": own, "u": Column(Kind.FLOAT, -values[start:stop])})
        before = driver.snapshot()
        once = driver.step(batch, keys[start:stop], commit=False).batch
        assert driver.memory.roll_back()
        assert driver.snapshot() == before
        again = driver.step(batch, keys[start:stop]).batch
        assert all(once[name].tobytes() == again[name].tobytes() for name in once.names)


@settings(max_examples=40)
@given(streams(st.sampled_from([1.0, 2.0, 13.0])), st.sampled_from([1, 3]))
def test_a_record_on_which_the_function_fails_stays_in_the_window(stream, window):
    """The failure costs the records whose windows have a 13, no others; and that reading is in the later windows."""
    keys, values, _ = stream

    def unlucky(windows):
        if (windows == 13).any():
            raise ValueError("unlucky")
        return {"sum": np.nansum(windows, axis=1)}

    sink, rows = tm.testing.ListSink(), rows_of(keys, values)
    plan = tm.Plan(tm.MapWindows(unlucky, "v", window, on_error="nan"))
    tm.run(tm.Pipeline(tm.sources.Records(rows), plan, sink), lanes=0)
    own = windows_of(keys, values, window)
    expected = [None if (w == 13).any() else float(np.nansum(w)) for w in own]
    assert [row.get("sum") for row in sink.rows] == ([None] * len(rows) if set(expected) == {None} else expected)


def rows_of(keys, values):
    return [
        {"sensor": key, "time": float(row), "v": float(value)}
        for row, (key, value) in enumerate(zip(keys, values, strict=True))
    ]


def ran(stage, rows, tmp_path, lanes, **options):
    sink = tm.testing.ListSink()
    letters = tmp_path / "dead.ndjson"
    pipeline = tm.Pipeline(tm.sources.Records(rows), stage, sink)
    report = tm.run(pipeline, lanes=lanes, dead_letters=letters, **options)
    return sink.rows, report.dead_letters_by_reason


def test_lanes_and_a_notebook_agree(tmp_path, lanes):
    """A run gives what `Plan.apply` gives, in the order of the input."""
    rng = np.random.default_rng(1)
    rows = rows_of(rng.choice(list("abcdefg"), 3_000), rng.normal(size=3_000))
    stage = tm.MapWindows(several, "v", 20)
    made, _ = ran(stage, rows, tmp_path, lanes)
    assert [str(row) for row in made] == [str(row) for row in tm.Plan(stage).apply(rows)]


def test_a_raised_record_is_a_dead_letter_and_its_reading_stays(tmp_path, lanes):
    """Dead letters for the records whose windows made the function fail; the next are worked out of all readings."""

    def fail_on_the_newest(windows):
        if (windows[:, -1] == 13).any():
            raise ValueError("unlucky")
        return windows[:, 0]

    rows = rows_of("aaaa", [1, 13, 3, 4])
    made, reasons = ran(tm.MapWindows(fail_on_the_newest, "v", 2, into="first"), rows, tmp_path, lanes)
    assert [row["v"] for row in made] == [1, 3, 4]
    assert [row["first"] for row in made[1:]] == [13, 3]
    assert reasons == {RAISED: 1}


@pytest.mark.slow
@pytest.mark.parametrize(("end", "reason"), [("exit", KILLED), ("hang", DEADLINE)])
def test_a_record_that_ends_its_lane_is_not_in_the_window(tmp_path, hangs, end, reason):
    """Killed or hung, the record is taken out before the stage: its neighbours' windows do not strike again."""

    def strike(windows):
        if (windows == 13).any():
            if end == "exit":
                os._exit(3)
            hangs()
        return {"sum": np.nansum(windows, axis=1)}

    rng = np.random.default_rng(1)
    keys, values = rng.choice(list("abc"), 200), rng.integers(1, 5, 200).astype(float)
    values[[20, 21, 150]] = 13
    stage = tm.MapWindows(strike, "v", 5, deadline_s=60)
    made, reasons = ran(stage, rows_of(keys, values), tmp_path, 2)
    alive = values != 13
    assert reasons == {reason: 3}
    assert [row["v"] for row in made] == values[alive].tolist()
    expected = np.nansum(windows_of(keys[alive], values[alive], 5), axis=1)
    assert [row["sum"] for row in made] == expected.tolist()


def test_several_columns_in_and_out(drive, floats):
    """Column -> windows; the function may take them out of the dict, which is its own."""

    def ratio(windows):
        return {"ratio": windows.pop("a")[:, 0] / windows.pop("b")[:, 0]}

    made = drive(tm.MapWindows(ratio, ["a", "b"], 2)).step(floats(a=[1, 2, 3], b=[10, 20, 40], c=[0, 0, 0])).batch
    assert made.names == ("a", "b", "c", "ratio")
    assert made["ratio"].tolist()[1:] == [0.1, 0.1]


def test_one_column_as_a_list_is_a_mapping(drive, floats):
    """Only the name itself gives the array itself."""
    made = drive(tm.MapWindows(lambda w: w["a"][:, -1] * 2, ["a"], 2, into="x")).step(floats(a=[1, 2])).batch
    assert made["x"].tolist() == [2, 4]


def test_what_is_returned_may_be_a_view_of_the_window(drive, floats):
    """A view of what it was given stays good, whatever is worked on next."""
    driver = drive(tm.MapWindows(lambda w: {"same": w[:, 0], "rows": list(w)}, "a", 1))
    first = driver.step(floats(a=[1, 2, 3])).batch
    for _ in range(3):
        driver.step(floats(a=[7, 8, 9]))
    assert first["same"].tolist() == [1, 2, 3]
    assert [row.tolist() for row in first["rows"]] == [[1], [2], [3]]


def test_memory_of_windows_is_used_again(drive, floats):
    """As long as nobody keeps a view of it, and never while somebody does."""
    kept = []
    driver = drive(tm.MapWindows(lambda w: kept.append(w) or w.sum(axis=1), "a", 1, into="x"))
    driver.step(floats(a=[1, 2, 3]))
    driver.step(floats(a=[4, 5, 6]))
    assert np.concatenate(kept).ravel().tolist() == [1, 2, 3, 4, 5, 6]
    place = kept[-1].__array_interface__["data"]
    kept.clear()
    places = []
    for _ in range(4):
        driver.step(floats(a=[7, 8, 9]))
        places.append(kept.pop().__array_interface__["data"])
    assert place in places
    assert len(set(places)) <= 2


@pytest.mark.parametrize(
    "staged", [lambda fn: tm.MapWindows(fn, "a", 1, into="x"), lambda fn: tm.Rolling("a", 1, ["mean", fn])]
)
def test_the_windows_of_a_batch_take_turns_in_one_memory(staged, floats, monkeypatch):
    """It is a function's own until it returns, and nobody else's after: so one call's windows are all that there is."""
    monkeypatch.setattr(machinery, "_CELLS_AT_ONCE", 2)
    places = []

    def newest(windows):
        places.append(windows.__array_interface__["data"][0])
        return windows[:, -1] * 2

    plan = tm.Plan(staged(newest))
    layout = plan.layout(1, 6)
    memory = StateMemory(layout, np.zeros(layout.total_bytes, np.uint8))
    memory.begin(1)
    Chain(plan.stages, memory, lambda: 0).run(floats(a=[1, 2, 3, 4, 5, 6]), np.zeros(6, np.int32))
    assert len(places) == 3
    assert len(set(places)) == 1


class Scaled:
    """Built once per lane."""

    def __init__(self):
        self.scale = 10.0

    def __call__(self, windows):
        return windows.max(axis=1) * self.scale


def test_a_class_is_built_in_its_lane(drive, floats):
    """Its object is the function."""
    made = drive(tm.MapWindows(Scaled, "a", 1, into="x")).step(floats(a=[1, 2])).batch
    assert made["x"].tolist() == [10, 20]


def test_declared_columns_have_their_kinds(drive, floats):
    """``adds`` fixes names and kinds, and the schema knows them before anything runs."""
    stage = tm.MapWindows(lambda w: {"n": (w > 1).sum(axis=1), "any": (w > 1).any(axis=1)}, "a", 2, adds=ADDS)
    assert str(stage.bind(Schema([Field("a", Kind.FLOAT)]))) == "a: float, n: int, any: bool"
    made = drive(stage).step(floats(a=[1, 2, 3])).batch
    assert (made["n"].dtype, made["n"].tolist()) == (np.int64, [0, 1, 2])
    assert (made["any"].dtype, made["any"].tolist()) == (np.bool_, [False, True, True])


ADDS = {"n": int, "any": bool}


def test_integers_booleans_and_missing_values_are_floats(drive):
    """As Rolling reads them; what is missing is NaN."""
    batch = Batch({
        "n": Column(Kind.INT, np.array([1, 0, 5]), tags=np.array([0, 1, 0], np.uint8)),
        "on": Column(Kind.BOOL, np.array([True, False, True])),
    })  # fmt: skip
    seen = {}
    drive(tm.MapWindows(lambda w: seen.update(w) or {}, ["n", "on"], 3)).step(batch)
    last = {name: windows[-1] for name, windows in seen.items()}
    np.testing.assert_equal(last["n"], [1, np.nan, 5][-len(last["n"]) :])
    np.testing.assert_equal(last["on"], [1, 0, 1])


def test_a_window_longer_than_a_call_holds(drive, floats, monkeypatch):
    """Then each record has a call to itself."""
    monkeypatch.setattr(machinery, "_CELLS_AT_ONCE", 6)
    sizes = []
    stage = tm.MapWindows(lambda w: sizes.append(w.shape) or w[:, -1], "a", 7, into="x")
    made = drive(stage).step(floats(a=[1, 2])).batch
    assert made["x"].tolist() == [1, 2]
    assert sizes == [(1, 7), (1, 7)]


def test_state_is_small():
    """State per sensor and column is at most 9 bytes a record of the window and 512 more."""
    for window in (1, 50, 5000):
        fields = tm.MapWindows(several, ["a", "b"], window).state_fields()
        assert sum(field.bytes_per_key for field in fields.values()) <= 2 * (9 * window + 512)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (lambda w: w, "has one dimension"),
        (lambda w: w[:-1, 0], "returned 2 values of 'x' for 3 records"),
        (lambda w: {"y": w[:, 0]}, "did not return 'x'"),
        (lambda w: w.mean(), "one value of 'x' for all windows; a function is to work along axis=1"),
        (lambda w: {"x": w.mean()}, "one value of 'x' for all windows"),
    ],
)
def test_what_does_not_fit_is_told(drive, floats, result, reason):
    """One value per row; anything else says what came and what is needed."""
    with pytest.raises(tm.BadResult, match=re.escape(reason)):
        drive(tm.MapWindows(result, "a", 4, adds={"x": float}, into="x")).step(floats(a=[1, 2, 3]))


def test_an_array_without_a_name_is_told(drive, floats):
    """A function that returns one array needs ``into``."""
    with pytest.raises(tm.BadResult, match=re.escape('or into="name" for one array')):
        drive(tm.MapWindows(lambda w: w[:, 0], "a", 2)).step(floats(a=[1]))


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"window": 0}, "window=0 must be a number of records"),
        ({"window": "30s"}, "window='30s' must be a number of records"),
        ({"window": True}, "window=True"),
        ({"columns": []}, "at least one column"),
        ({"columns": ["v", "v"]}, "column 'v' is named twice"),
        ({"fn": "mean"}, "needs a function; it was given str"),
        ({"into": "x", "adds": {"y": float}}, "name different columns"),
    ],
)
def test_refused_at_construction(arguments, culprit):
    """What cannot run is refused before anything runs, naming the culprit."""
    with pytest.raises(PlanError, match=re.escape(culprit)):
        tm.MapWindows(**{"fn": several, "columns": "v", **arguments})


def test_unknown_and_unusable_columns_are_refused():
    """A column that is not there, or is text, is refused by the schema, by name."""
    stage = tm.MapWindows(several, ["v", "unit"])
    with pytest.raises(PlanError, match=r"MapWindows\(several\) needs a column 'v'; the columns there are: unit"):
        stage.bind(Schema([Field("unit", Kind.TEXT)]))
    with pytest.raises(PlanError, match="'unit' to be float or int or bool; it is text"):
        stage.bind(Schema([Field("v", Kind.FLOAT), Field("unit", Kind.TEXT)]))
