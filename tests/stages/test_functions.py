"""Map, MapFrame, Filter and Select: what a function may return, and what is refused."""

from array import array
from collections import deque
from collections.abc import Callable
from datetime import datetime
from functools import partial, wraps
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.engine.entrance import run
from tidemill.engine.pipeline import Pipeline
from tidemill.engine.plan import Plan
from tidemill.errors import BadResult, MissingExtra, PlanError, StageError
from tidemill.schema import Field, Kind, Schema
from tidemill.sources.records import Records
from tidemill.stages.filter import Filter, Select
from tidemill.stages.map import Map, MapFrame
from tidemill.stages.map_rows import MapRows
from tidemill.stages.map_windows import MapWindows
from tidemill.stages.rolling import Rolling
from tidemill.testing import ListSink

ROWS = [
    {"sensor": "S1", "value": 4, "unit": "C", "on": True, "tags": [1]},
    {"sensor": "S2", "value": 9.5, "unit": None, "on": False, "tags": {"a": 2}},
]


@pytest.fixture
def batch():
    made = Batch.from_rows(ROWS)
    made.origin = None  # as in a lane
    return made


def made_by(fn, batch, **options):
    return Map(fn, **options).opened().step(batch, None)


def test_arrays_lists_series_and_scalars(batch):
    """Arrays, lists and Series are columns; a single value is one for all records; numbers are float64."""
    made = made_by(
        lambda b: {
            "array": np.arange(len(b)),
            "list": [1, 2],
            "series": pd.Series([1.5, 2.5]),
            "small": np.float32([1, 2]),
            "one": 7,
            "text": "x",
            "flag": np.array([True, False]),
            "at": np.array(["2026-01-01", "2026-01-02"], "datetime64[s]"),
            "names": np.array(["a", "b"]),
            "things": [{"a": 1}, None],
        },
        batch,
    )
    kinds = {name: column.kind.value for name, column in made.columns.items() if name not in batch}
    assert kinds == {
        "array": "float", "list": "float", "series": "float", "small": "float", "one": "float", "text": "text",
        "flag": "bool", "at": "time", "names": "text", "things": "object",
    }  # fmt: skip
    assert made.to_rows()[1]["things"] is None
    assert made["one"].tolist() == [7.0, 7.0]
    assert made["text"].tolist() == ["x", "x"]
    assert made["at"].dtype == "datetime64[ns]"


@pytest.mark.parametrize(
    "line",
    [
        *(range, deque, reversed, memoryview, dict.keys, dict.values, iter),
        *(lambda values: array("d", values), lambda values: map(abs, values), lambda values: (one for one in values)),
    ],
)
def test_what_has_values_in_a_line_is_a_column(batch, line):
    """As a list is: not one value for all records, which no sink could write."""
    given = {range: 2, reversed: [1, 0], memoryview: np.arange(2), dict.keys: {0: "", 1: ""}, dict.values: {0: 0, 1: 1}}
    made = made_by(lambda b: {"n": line(given.get(line, [0, 1]))}, batch)
    assert made["n"].tolist() == [0.0, 1.0]
    with pytest.raises(BadResult, match="values of 'n' for 2 records"):
        made_by(lambda b: {"n": count()}, batch)


def test_a_sorted_series_is_put_back_by_its_index(batch):
    """As a DataFrame is, also as a mask, and with times of a zone; an index that is none of the rows says nothing."""

    def largest_first(b):
        return pd.Series(b["value"]).sort_values(ascending=False)

    assert made_by(lambda b: {"same": largest_first(b)}, batch)["same"].tolist() == batch["value"].tolist()
    assert made_by(largest_first, batch, into="same")["same"].tolist() == batch["value"].tolist()
    odd = made_by(lambda b: {"odd": pd.Series([1.0, 2.0], index=[7, 3])}, batch)
    assert odd["odd"].tolist() == [1.0, 2.0]
    kept = Filter(lambda b: largest_first(b) > 5).opened().step(batch, None).batch
    assert kept["value"].tolist() == [9.5]
    when = pd.Series(pd.to_datetime([1, 2], unit="s", utc=True)).sort_index(ascending=False)
    made = made_by(lambda b: {"when": when}, batch)
    assert made.columns["when"].kind is Kind.TIME
    assert made.to_rows()[1]["when"] == 2_000_000_000


def test_declared_kinds(batch):
    """``adds`` says the kinds, and the schema knows them before anything runs."""
    stage = Map(lambda b: {"n": np.array([1.0, 2.0]), "t": ["a", None]}, adds={"n": int, "t": str})
    assert str(stage.bind(batch.schema)).endswith("n: int, t: text")
    made = stage.opened().step(batch, None)
    assert made.columns["n"].kind is Kind.INT
    assert made.to_rows()[1]["t"] is None
    assert Map(lambda b: {}).bind(batch.schema).open


def test_frames_and_batches_as_results(batch):
    """A DataFrame of either library and a Batch are dicts of columns."""
    assert made_by(lambda b: pd.DataFrame({"x": b["value"] * 2}), batch)["x"].tolist() == [8, 19]
    assert made_by(lambda b: pl.DataFrame({"x": b["value"] * 2, "t": ["a", None]}), batch)["t"].tolist() == ["a", None]
    assert made_by(lambda b: b.select({"copy": "value"}), batch)["copy"].tolist() == [4, 9.5]
    assert made_by(lambda b: b["value"] + 1, batch, into="y")["y"].tolist() == [5, 10.5]


def test_what_comes_back_unchanged_is_carried(batch):
    """A column given back as it was stays the very same column: an integer an integer, a null a null."""
    made = made_by(lambda b: {name: b[name] for name in b.names}, batch)
    assert all(made.columns[name] is batch.columns[name] for name in batch.names if name != "tags")
    assert made.to_rows() == ROWS, "nested values are copied, since the function might have changed them"
    made = made_by(lambda b: {"value": b["value"].copy(), "unit": b["unit"].copy()}, batch)
    assert made.columns["value"] is batch.columns["value"]
    assert made.to_rows() == ROWS
    assert type(made.to_rows()[0]["value"]) is int


def test_arrays_are_read_only(batch):
    """A function cannot change the records it is shown."""

    def spoil(b):
        b["value"][0] = 1

    with pytest.raises(ValueError, match="read-only"):
        made_by(spoil, batch)


def test_columns_limits_what_is_seen(batch):
    """With ``columns=`` the function sees those alone, and its results join all of them."""
    stage = Map(lambda b: {"seen": ",".join(b.names)}, columns=["value", "unit"])
    assert stage.reads() == {"value", "unit"}
    assert stage.opened().step(batch, None)["seen"].tolist() == ["value,unit"] * 2
    with pytest.raises(PlanError, match=r"Map\(<lambda>\) needs a column 'gone'"):
        Map(lambda b: {}, columns=["gone"]).bind(batch.schema)


def test_a_class_is_built_once_per_lane(batch):
    """A class is called once when a lane opens the stage; its object is the function."""
    built = []

    class Scorer:
        def __init__(self):
            built.append(self)

        def __call__(self, b):
            return {"score": float(len(built))}

    stage = Map(Scorer)
    assert built == []
    lane = stage.opened()
    lane.step(batch, None)
    assert lane.step(batch, None)["score"].tolist() == [1, 1]


def test_tiles_have_one_size(floats):
    """Every call sees exactly ``tile`` records, so that a matrix product gives the same bits in any batch."""
    sizes = []
    weights = np.random.default_rng(1).normal(size=(3, 3))

    def product(b):
        sizes.append(len(b))
        x = np.column_stack([b["a"], b["b"], b["c"]]) @ weights
        return {"p": x[:, 0], "q": x[:, 1]}

    data = {name: np.random.default_rng(ord(name)).normal(size=70) for name in "abc"}
    whole = made_by(product, floats(**data), tile=16)
    assert set(sizes) == {16}
    assert len(whole) == 70
    for row in (0, 15, 16, 69):
        alone = made_by(product, floats(**{n: v[row : row + 1] for n, v in data.items()}), tile=16)
        np.testing.assert_allclose(alone["p"], whole["p"][row], rtol=1e-12)


@pytest.mark.parametrize(
    ("fn", "options", "code", "told"),
    [
        (lambda b: {"x": [1.0]}, {}, "wrong_length", "1 values of 'x' for 2 records"),
        (lambda b: {"x": np.zeros((2, 2))}, {}, "wrong_length", "shape"),
        (lambda b: pd.DataFrame({"x": [1]}), {}, "wrong_length", "DataFrame of 1 rows for 2"),
        (lambda b: b.slice(0, 1), {}, "wrong_length", "Batch of 1 records for 2"),
        (lambda b: None, {}, "wrong_type", "returned None; a dict"),
        (lambda b: [1, 2], {}, "wrong_type", "returned list"),
        (lambda b: {3: [1, 2]}, {}, "wrong_type", "names must be text"),
        (lambda b: {}, {"adds": {"x": float}}, "wrong_type", "did not return 'x', which it declares"),
        (lambda b: {"x": 1.0, "y": 1.0}, {"adds": {"x": float}}, "wrong_type", "'y', which it does not declare"),
        (lambda b: {"x": ["a", "b"]}, {"adds": {"x": float}}, "wrong_type", "'x' as str; it is declared as float"),
        (
            lambda b: {"x": np.array([1.5, 2])},
            {"adds": {"x": int}},
            "wrong_type",
            "with 1.5, which is no whole number of 64 bits; it is declared as int",
        ),
        (lambda b: {"x": [True, False]}, {"adds": {"x": float}}, "wrong_type", "bool; it is declared as float"),
    ],
)
def test_bad_results(batch, fn, options, code, told):
    """A wrong length or type names the stage, the column, and what was expected."""
    with pytest.raises(BadResult, match=told) as caught:
        made_by(fn, batch, **options)
    assert caught.value.reason_code == code


def test_refused_at_construction():
    """What is no function, or contradicts itself, is refused before anything runs."""
    with pytest.raises(PlanError, match="Map needs a function; it was given int"):
        Map(3)

    async def later(b):
        return {}

    class Later:
        async def __call__(self, b):
            return {}

    for fn, told in ((later, "later is async"), (Later, "Later is async"), (Later(), "Later is async")):
        with pytest.raises(PlanError, match=told):
            Map(fn)
    with pytest.raises(PlanError, match=r"with one argument, and this is scaled\(b, factor\); .* functools.partial"):
        Map(scaled)
    with pytest.raises(PlanError, match=r"this is batchless\(\)"):
        Map(batchless)
    for fits in (partial(scaled, factor=2), doubled, max):
        Map(fits)
    Map(max)
    with pytest.raises(PlanError, match="name different columns"):
        Map(len, into="x", adds={"y": float})
    with pytest.raises(PlanError, match="tile=0"):
        Map(len, tile=0)
    with pytest.raises(PlanError, match="not a kind of column"):
        Map(len, adds={"y": "flaot"})


def scaled(b, factor):
    return {"scaled": b["value"] * factor}


def batchless():
    return {}


@wraps(scaled)
def doubled(*arguments):
    return scaled(*arguments, 2)


class Scorer:
    def __init__(self):
        raise FileNotFoundError(2, "No such file or directory", "weights.bin")

    def __call__(self, batch):
        return {}


@pytest.mark.parametrize(
    "make_stage",
    [
        *(Map, MapFrame, MapRows, Filter),
        lambda fn: MapWindows(fn, "value", 3, name="own"),
        lambda fn: Rolling("value", 3, [fn], name="own"),
    ],
)
def test_a_class_whose_object_cannot_be_made_is_told(make_stage):
    """With the stage, the class and the line: it is the user's error, in a notebook as in a run, and no fault of ours."""
    told = r"(\(Scorer\)|own): an object of the class Scorer could not be made: FileNotFoundError: .*weights.bin' \(__init__, line"
    with pytest.raises(PlanError, match=told):
        Plan(make_stage(Scorer)).apply(ROWS)


def test_a_class_whose_object_cannot_be_made_ends_a_run():
    """With the same sentence, and not with our traceback."""
    with pytest.raises(
        PlanError, match=r"^Map\(Scorer\): an object of the class Scorer could not be made: FileNot"
    ) as caught:
        run(Pipeline(Records(ROWS), Plan(Map(Scorer)), ListSink()), lanes=1)
    assert "Traceback" not in str(caught.value)


class Estimator:
    def predict(self, values):
        return values


class Forest:
    """As estimators of scikit-learn take what they are given."""

    def predict(self, values):
        return np.asarray(values, float)[:, 0] * 2.0

    def first(self, values):
        return values[:, 0]


@pytest.mark.parametrize("method", ["predict", "first"])
def test_a_method_that_wants_rows_is_told_how_to_make_an_array_of_them(method):
    """`Map` gives columns by name; the line that is told works."""
    rows = [{"sensor": "S1", "temp": float(n), "flow": 2.0 * n, "unit": "C"} for n in range(3)]
    stack = "np.stack([batch['temp'], batch['flow']], axis=1)"
    with pytest.raises(StageError) as raised:
        Plan(Map(getattr(Forest(), method), into="score", name="forest")).apply(rows)
    assert f"A function gets a Batch, columns by name; an array with a row for each record is {stack}." in str(
        raised.value
    )
    made = Plan(Map(lambda batch: Forest().predict(eval(stack, {"np": np, "batch": batch})), into="score")).apply(rows)
    assert [row["score"] for row in made] == [0.0, 2.0, 4.0]


class Totals:
    def update(self, record):
        return {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            Estimator,
            r"Estimator cannot be called: give the class Estimator a method __call__ that calls predict\(\)\.$",
        ),
        (Estimator(), r"was given .*Estimator: give the class Estimator a method __call__ that calls predict\(\)\.$"),
        (Totals, r"Totals cannot be called: tm\.Keyed takes classes with update\(\) or update_many\(\)\.$"),
        (object(), r"was given object: give the class object a method __call__\.$"),
        (None, r"was given None\.$"),
    ],
)
def test_what_cannot_be_called_is_told_how_it_could(given, told):
    """Where the stage is made."""
    for make_stage in (Map, lambda fn: Rolling("value", 3, [fn, "mean"])) if isinstance(given, type) else (Map,):
        with pytest.raises(PlanError, match=told):
            make_stage(given)


# -- MapFrame ----------------------------------------------------------------------------------------------


def test_pandas_functions_run_unchanged(batch):
    """Columns may be added, changed and dropped; what is left alone is the record's own."""

    def f(df):
        df["double"] = df["value"] * 2
        df.loc[0, "value"] = 5.0
        return df.drop(columns=["unit", "tags"])

    made = MapFrame(f).opened().step(batch, None)
    assert made.names == ("sensor", "value", "on", "double")
    assert made["double"].tolist() == [8, 19]
    assert made["value"].tolist() == [5, 9.5]
    assert made.columns["on"] is batch.columns["on"]
    assert batch["value"].tolist() == [4, 9.5], "the function had memory of its own"


def test_untouched_frames_keep_every_value(batch):
    """A function that returns its frame changes nothing, down to the integer among floats and the null text."""
    for frame in ("pandas", "polars"):
        subset = batch.select({name: name for name in ("sensor", "value", "unit", "on")})
        made = MapFrame(lambda df: df, frame=frame).opened().step(subset, None)
        assert made.to_rows() == subset.to_rows()
        assert type(made.to_rows()[0]["value"]) is int


def test_sorted_rows_go_back_to_their_places(batch):
    """A pandas function that sorts does not move values to other records."""
    made = MapFrame(lambda df: df.sort_values("value", ascending=False)).opened().step(batch, None)
    assert made["sensor"].tolist() == ["S1", "S2"]


def test_polars_by_annotation(batch):
    """The annotation of the first parameter says which library."""

    def f(df: pl.DataFrame) -> pl.DataFrame:
        return df.select("sensor", x=pl.col("value") + 1)

    made = MapFrame(f).opened().step(batch.select({"sensor": "sensor", "value": "value"}), None)
    assert made.to_rows() == [{"sensor": "S1", "x": 5.0}, {"sensor": "S2", "x": 10.5}]


def test_frames_of_another_length_are_refused(batch):
    """A DataFrame function gives a row per record."""
    with pytest.raises(BadResult, match="DataFrame of 1 rows for 2 records"):
        MapFrame(lambda df: df.head(1)).opened().step(batch, None)
    with pytest.raises(BadResult, match=r"MapFrame\(<lambda>\) returned a DataFrame with the column 'value' twice"):
        MapFrame(lambda df: pd.concat([df, df], axis=1)).opened().step(batch.select({"value": "value"}), None)
    with pytest.raises(BadResult, match="returned None; a DataFrame is needed"):
        MapFrame(lambda df: None).opened().step(batch, None)


# -- Filter and Select ---------------------------------------------------------------------------------------


def test_filter_by_function_and_expression(batch):
    """A mask or an expression says which records go on; nothing is said of the others but that they were filtered."""
    step = Filter(lambda b: b["value"] > 5).opened().step(batch, None)
    assert step.kept.tolist() == [1]
    assert step.rejects == []
    assert step.batch.to_rows() == ROWS[1:]
    stage = Filter("value > 5 or unit in ('C', 'F') and not (sensor == 'S9')")
    assert stage.reads() == {"value", "unit", "sensor"}
    assert stage.opened().step(batch, None).kept is None
    assert Filter("0 <= value * 2 < 9 and on == True").opened().step(batch, None).kept.tolist() == [0]
    assert Filter(lambda b: False).opened().step(batch, None).kept.tolist() == []
    with pytest.raises(PlanError, match="needs a column 'vaule'"):
        Filter("vaule > 1").bind(batch.schema)


@pytest.mark.parametrize(
    ("fn", "code"),
    [
        (lambda b: np.array([True]), "wrong_length"),
        (lambda b: np.array([1, 0]), "wrong_type"),
        (lambda b: None, "wrong_type"),
        (lambda b: np.ones((2, 2), bool), "wrong_length"),
    ],
)
def test_bad_masks(batch, fn, code):
    """Anything but a bool mask of the batch's length is refused."""
    with pytest.raises(BadResult) as caught:
        Filter(fn).opened().step(batch, None)
    assert caught.value.reason_code == code


@pytest.mark.parametrize(
    "text", ["__import__('os')", "value.real", "value >", "(lambda: 1)()", "value[0]", "f'{value}'"]
)
def test_expressions_run_no_code(text):
    """An expression is names, values and operators; nothing else is accepted."""
    with pytest.raises(PlanError, match="expression"):
        Filter(text)


def test_select_orders_and_renames(batch):
    """Columns come in the order named; renamed ones are the same column."""
    stage = Select("value", where="sensor")
    made = stage.opened().step(batch, None)
    assert made.to_rows() == [{"value": 4, "where": "S1"}, {"value": 9.5, "where": "S2"}]
    assert made.columns["where"] is batch.columns["sensor"]
    assert stage.bind(batch.schema) == Schema([Field("value", Kind.FLOAT), Field("where", Kind.TEXT)])
    with pytest.raises(PlanError, match="needs a column 'gone'"):
        Select("gone").bind(batch.schema)
    with pytest.raises(PlanError, match="two columns named 'a'"):
        Select("a", a="b")


def test_select_of_a_field_no_record_has(batch):
    """Where a schema was open and the column never came, its field is absent."""
    made = Select("value", "gone").opened().step(batch, None)
    assert made.to_rows() == [{"value": 4}, {"value": 9.5}]


def test_object_results_with_nulls(batch):
    """A list of numbers with None is a column of floats with nulls; text with None likewise."""
    made = made_by(lambda b: {"n": [1.5, None], "t": ["a", None], "i": [None, 3]}, batch)
    assert made.columns["n"].kind is Kind.FLOAT
    assert made.columns["t"].kind is Kind.TEXT
    assert [row["n"] for row in made.to_rows()] == [1.5, None]
    assert isinstance(made.columns["i"], Column)


@pytest.mark.parametrize(
    ("items", "kind"),
    [
        ([True, None], Kind.BOOL),
        ([None, np.bool_(False)], Kind.BOOL),
        (["a", None], Kind.TEXT),
        ([1.5, None], Kind.FLOAT),
        ([None, 1], Kind.FLOAT),
        ([True, 1.0], Kind.OBJECT),
        ([True, "a"], Kind.OBJECT),
        ([None, None], Kind.OBJECT),
    ],
)
def test_values_with_nulls_keep_their_kind(items, kind):
    """Nulls among values of one kind are nulls of a column of that kind."""
    batch = Batch.from_rows([{"value": 1.0}, {"value": 2.0}])
    made = Map(lambda b: {"x": items}).opened().step(batch, None).columns["x"]
    assert made.kind is kind
    assert made.to_list() == items


A_YEAR = 365 * 86400 * 10**9
YEARS = [datetime.fromisoformat(year) for year in ("1970-01-01", "1971-01-01")]


@pytest.mark.parametrize("library", ["pandas", "pandas of Arrow", "polars", "Arrow", "Arrow in chunks"])
@pytest.mark.parametrize(
    ("values", "kind", "items"),
    [
        ([1, None, 2**53 + 1], Kind.FLOAT, [1.0, None, 2.0**53]),
        ([1.5, None, 2.5], Kind.FLOAT, [1.5, None, 2.5]),
        ([True, None, False], Kind.BOOL, [True, None, False]),
        (["a", None, "b"], Kind.TEXT, ["a", None, "b"]),
        ([YEARS[1], None, YEARS[0]], Kind.TIME, [A_YEAR, None, 0]),
    ],
    ids=lambda given: given.value if isinstance(given, Kind) else "",
)
def test_what_a_library_tells_from_nan_is_missing(library, values, kind, items):
    """NA of pandas, null of polars and Arrow: NaN in the column, or the least number there is for a time, would be data."""
    batch = Batch.from_rows([{"value": 1.0}] * 3)
    column = COLUMNS[library](values)
    made = Map(lambda b: {"x": column}).opened().step(batch, None).columns["x"]
    assert (made.kind, made.to_list()) == (kind, items)
    if library in ("pandas", "pandas of Arrow", "polars"):
        frame = column.to_frame("x")
        made = Map(lambda b: frame).opened().step(batch, None).columns["x"]
        assert (made.kind, made.to_list()) == (kind, items)


def of_pandas(values: list[Any]) -> Any:
    return pd.Series(values).convert_dtypes()


COLUMNS: dict[str, Callable[[list[Any]], Any]] = {
    "pandas": of_pandas,
    "pandas of Arrow": lambda values: pd.Series(values, dtype=pd.ArrowDtype(pa.array(values).type)),
    "polars": pl.Series,
    "Arrow": pa.array,
    "Arrow in chunks": lambda values: pa.chunked_array([values[:1], values[1:]], pa.array(values).type),
}


@pytest.mark.parametrize(
    ("values", "kind", "items"),
    [
        ([1.5, 2.5], Kind.FLOAT, [None, 2.5]),
        ([1, 2], Kind.FLOAT, [None, 2.0]),
        ([True, False], Kind.BOOL, [None, False]),
        (["a", "b"], Kind.TEXT, [None, "b"]),
        (np.array(["1970", "1971"], "datetime64[ns]"), Kind.TIME, [None, 365 * 86400 * 10**9]),
    ],
    ids=lambda given: given.value if isinstance(given, Kind) else "",
)
def test_what_a_mask_hides_is_missing(values, kind, items):
    """A masked array of NumPy gives no value where it is masked: what lies under the mask is no data."""
    batch = Batch.from_rows([{"value": 1.0}, {"value": 2.0}])
    masked = np.ma.masked_array(values, [True, False])
    made = Map(lambda b: {"x": masked, "y": [np.ma.masked] * 2, "z": np.ma.masked})
    columns = made.opened().step(batch, None).columns
    assert (columns["x"].kind, columns["x"].to_list()) == (kind, items)
    assert [columns[name].to_list() for name in "yz"] == [[None, None]] * 2
    assert Map(lambda b: {"x": masked[1:]}).opened().step(batch.slice(1, 2), None).columns["x"].to_list() == items[1:]
    with pytest.raises(BadResult, match="a bool array is needed"):
        Filter(lambda b: np.ma.masked_array([True, True], [True, False])).opened().step(batch, None)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_of_a_library_that_is_missing_are_refused_before_the_first_record(library, monkeypatch):
    """With the command that installs it: else each record would be a dead letter."""
    monkeypatch.setattr("tidemill.stages.frames.importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=rf"{library} .*tidemill\[all\]"):
        run(Pipeline(Records(ROWS), Plan(MapFrame(lambda frame: frame, frame=library)), ListSink()), lanes=0)
