"""Model: a model's signature, the wiring to columns, and that a record's bits never depend on its batch."""

import asyncio
import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import BadResult, InputError, MissingExtra, PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.model import Model
from tidemill.stages.onnx_signature import Signature, Tensor, read_signature
from tidemill.testing import ListSink

MODELS = Path(__file__).parents[2] / "examples" / "models"
CLASSES = (MODELS / "classes.onnx").read_bytes()
FEATURES = ["a", "b", "c", "d"]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def made(nodes, inputs, outputs, weights=(), **more):
    """A model's bytes: ``inputs`` and ``outputs`` are (name, type, shape)."""
    infos = [[helper.make_tensor_value_info(*one) for one in some] for some in (inputs, outputs)]
    own = [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    graph = helper.make_graph([helper.make_node(*node, **more) for node in nodes], "g", *infos, own)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def identity(shape_in=("n", 2), shape_out=("n", 2), kind=FLOAT):
    return made([("Identity", ["x"], ["y"])], [("x", kind, shape_in)], [("y", kind, shape_out)])


def run(stage, drive, floats, **columns):
    rows = max(map(len, columns.values()))
    return drive(stage).step(floats(**columns), ["S1"] * rows).batch


# -- the signature -----------------------------------------------------------------------------------------

WORDS = {1: "float32", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16", 11: "float64"}
dimensions = st.none() | st.integers(1, 9) | st.sampled_from(["rows", "n"])
tensors = st.lists(
    st.tuples(st.sampled_from(sorted(WORDS)), st.none() | st.lists(dimensions, max_size=4)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(tensors, tensors, st.booleans())
def test_the_signature_is_what_the_library_reads(inputs, outputs, weighted):
    """Names, types and shapes of every input without a value of its own, and of every output."""
    named = [[(f"{word}{n}", *one) for n, one in enumerate(some)] for word, some in (("i", inputs), ("o", outputs))]
    weights = {"i0": np.ones(3, np.float32), "w": np.ones((2, 2))} if weighted else {}
    model = made([("Identity", ["i0"], ["o0"])], *named, weights)

    def of(infos):
        return tuple(
            Tensor(
                info.name,
                WORDS[info.type.tensor_type.elem_type],
                tuple(d.dim_value if d.HasField("dim_value") else None for d in info.type.tensor_type.shape.dim)
                if info.type.tensor_type.HasField("shape")
                else None,
            )
            for info in infos
        )

    graph = onnx.load_from_string(model).graph
    own = {weight.name for weight in graph.initializer}
    expected = Signature(of(info for info in graph.input if info.name not in own), of(graph.output))
    assert read_signature(model, "it") == expected


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.integers(0, len(CLASSES)).map(lambda end: CLASSES[:end]))
def test_any_bytes_are_a_signature_or_refused(model):
    """What is no model, or cut short, is refused with the one documented error."""
    with contextlib.suppress(InputError):
        assert isinstance(read_signature(model, "/plant/model.onnx"), Signature)


def test_weights_in_another_file_are_told(tmp_path):
    """Such a model cannot travel with the plan."""
    model = onnx.load_from_string(CLASSES)
    onnx.save_model(
        model,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
        convert_attribute=True,
    )
    with pytest.raises(InputError, match=r"m\.onnx keeps its weights in another file; save the model as one file"):
        read_signature((tmp_path / "m.onnx").read_bytes(), "m.onnx")


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (
            (TensorProto.BFLOAT16, FLOAT),
            r"the model's input x: bfloat16 \(rows, 1\); export the model so that it takes float32",
        ),
        (
            (FLOAT, TensorProto.BFLOAT16),
            r"the model's output y: bfloat16 \(rows, 1\); export the model so that it gives float32",
        ),
        ((FLOAT, TensorProto.COMPLEX64), r"output y: complex64 \(rows, 1\)"),
    ],
)
def test_a_type_that_numpy_does_not_have_is_named(kinds, words):
    """With what to export instead."""
    model = made([("Cast", ["x"], ["y"])], [("x", kinds[0], ("n", 1))], [("y", kinds[1], ("n", 1))], to=kinds[1])
    with pytest.raises(PlanError, match=words):
        tm.Model(model, ["value"], ["y"])


# -- the numbers -------------------------------------------------------------------------------------------


def weights_of(model):
    return {w.name: numpy_helper.to_array(w) for w in onnx.load_from_string(model).graph.initializer}


def test_equals_numpy(drive, floats):
    """The example's network, written out in NumPy."""
    x = np.random.default_rng(0).normal(size=(700, 4))
    batch = run(
        Model(CLASSES, FEATURES, ["ok", "worn", "broken", "label"]),
        drive,
        floats,
        **dict(zip("abcd", x.T, strict=True)),
    )
    w = weights_of(CLASSES)
    layer = x.astype(np.float32)
    for n in (1, 2):
        layer = np.tanh(layer @ w[f"w{n}"] + w[f"b{n}"])
    power = np.exp(layer @ w["w3"] + w["b3"])
    expected = power / power.sum(axis=1, keepdims=True)
    got = np.stack([batch[name] for name in ("ok", "worn", "broken")], axis=1)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=2e-5)
    assert batch["label"].tolist() == expected.argmax(axis=1).tolist()


def test_is_what_the_library_gives_bit_for_bit(drive, floats):
    """One session of one's own, called with the same tile."""
    x = np.random.default_rng(1).normal(size=(256, 4))
    ours = run(
        Model(CLASSES, FEATURES, {"probability": ["p", "q", "r"]}), drive, floats, **dict(zip("abcd", x.T, strict=True))
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(CLASSES, options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(["probability"], {"x": x.astype(np.float32)})
    np.testing.assert_array_equal(np.stack([ours[name] for name in "pqr"], axis=1), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 600),
    st.lists(st.integers(0, 600), max_size=4),
    st.sampled_from([None, 1, 7, 64]),
)
def test_how_records_come_in_batches_changes_no_bit(drive, floats, seed, rows, cuts, tile):
    """Whole, in pieces of any size, or one by one: the same columns, bit for bit, with any tile."""
    values = np.random.default_rng(seed).normal(size=(4, rows))
    values[0, ::11] = np.nan
    driver = drive(Model(CLASSES, FEATURES, ["p", "q", "r", "label"], tile=tile))
    whole = driver.step(floats(**dict(zip("abcd", values, strict=True))), ["S"] * rows).batch
    edges = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    parts = [
        driver.step(floats(**dict(zip("abcd", values[:, start:stop], strict=True))), ["S"] * (stop - start)).batch
        for start, stop in itertools.pairwise(edges)
        if stop > start
    ]
    for name in ("p", "q", "r", "label"):
        assert np.concatenate([part[name] for part in parts]).tobytes() == whole[name].tobytes()


def test_a_single_record_has_the_bits_that_it_has_among_many(drive, floats):
    """Wherever in a tile a record lies: also for a product wide enough to be blocked."""
    random = np.random.default_rng(2)
    weights = {
        "w": random.normal(size=(40, 77)).astype(np.float32),
        "v": random.normal(size=(77, 1)).astype(np.float32),
    }
    model = made(
        [("MatMul", ["x", "w"], ["h"]), ("Sigmoid", ["h"], ["s"]), ("MatMul", ["s", "v"], ["y"])],
        [("x", FLOAT, ["n", 40])],
        [("y", FLOAT, ["n", 1])],
        weights,
    )
    names = [f"c{n}" for n in range(40)]
    driver = drive(Model(model, names, "y"))
    x = random.normal(size=(40, 300))
    whole = driver.step(floats(**dict(zip(names, x, strict=True))), ["S"] * 300).batch["y"]
    alone = [
        driver.step(floats(**dict(zip(names, x[:, n : n + 1], strict=True))), ["S"]).batch["y"][0] for n in range(300)
    ]
    assert whole.tolist() == alone


def test_no_records_are_no_calls(drive, floats):
    """An empty batch gets its columns."""
    batch = drive(Model(CLASSES, FEATURES, ["p", "q", "r", "label"])).step(floats(a=[], b=[], c=[], d=[]), []).batch
    assert batch.names == ("a", "b", "c", "d", "p", "q", "r", "label")
    assert len(batch) == 0


# -- the wiring --------------------------------------------------------------------------------------------


def test_several_inputs_by_name(drive, floats):
    """One dimension, two, and another type, each filled with the columns that were named."""
    model = made(
        [("ReduceSum", ["x", "axis"], ["rowsum"])],
        [("x", FLOAT, ["n", 2])],
        [("rowsum", FLOAT, ["n"])],
        {"axis": np.array([1])},
        keepdims=0,
    )
    assert run(Model(model, {"x": ["b", "a"]}, {"rowsum": "sum"}), drive, floats, a=[1, 2], b=[10, 20])[
        "sum"
    ].tolist() == [11, 22]
    model = made(
        [("Sub", ["x", "z"], ["y"]), ("Identity", ["k"], ["same"])],
        [("x", FLOAT, ["n"]), ("z", FLOAT, ["n"]), ("k", INT64, ["n", 1])],
        [("y", FLOAT, ["n"]), ("same", INT64, ["n", 1])],
    )
    stage = Model(model, {"k": "c", "x": "a", "z": ["b"]}, {"same": "copy", "y": "difference"})
    batch = run(stage, drive, floats, a=[1, 2], b=[10, 20], c=[5, 6])
    assert batch["difference"].tolist() == [-9, -18]
    assert batch["copy"].tolist() == [5, 6]
    assert str(stage.bind(Schema([Field(name, Kind.FLOAT) for name in "abc"]))) == (
        "a: float, b: float, c: float, difference: float, copy: float"
    )


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "INT64", "INT32", "UINT8", "BOOL"])
def test_values_are_cast_to_the_models_type(drive, floats, kind):
    """And come back as float, or as bool."""
    batch = run(
        Model(identity(kind=getattr(TensorProto, kind)), ["a", "b"], ["y", "z"]), drive, floats, a=[0, 1], b=[1, 1]
    )
    assert batch["y"].tolist() == [0, 1]
    assert batch["z"].dtype == (np.bool_ if kind == "BOOL" else np.float64)


def test_integers_and_bools_need_not_be_floats(drive):
    """Declared columns keep every digit on their way into an input of integers."""
    batch = Batch(
        {"n": Column(Kind.INT, np.array([2**62 + 1, -3])), "flag": Column(Kind.BOOL, np.array([True, False]))}
    )
    model = made(
        [("Mod", ["x", "m"], ["y"])], [("x", INT64, ["n", 2])], [("y", INT64, ["n", 2])], {"m": np.array([10])}
    )
    out = drive(Model(model, ["n", "flag"], ["digit", "f"])).step(batch, ["S", "S"]).batch
    assert out["digit"].tolist() == [(2**62 + 1) % 10, -3 % 10]
    assert out["f"].tolist() == [1, 0]


def test_texts_are_texts(drive, floats):
    """A model that names its classes."""
    model = made(
        [("Gather", ["names", "x"], ["y"])],
        [("x", INT64, ["n"])],
        [("y", TensorProto.STRING, ["n"])],
        {"names": np.array(["ok", "worn"], object)},
    )
    stage = Model(model, {"x": "a"}, "state")
    assert run(stage, drive, floats, a=np.arange(600) % 2)["state"].tolist() == ["ok", "worn"] * 300
    assert str(stage.bind(Schema([Field("a", Kind.FLOAT)]))) == "a: float, state: text"


def test_more_dimensions_are_filled_in_c_order(drive, floats):
    """Six columns into (rows, 3, 2); what comes out so becomes six columns."""
    model = made(
        [("Transpose", ["x"], ["y"])], [("x", FLOAT, ["n", 3, 2])], [("y", FLOAT, ["n", 2, 3])], perm=[0, 2, 1]
    )
    columns = {f"c{n}": [n, n + 10] for n in range(6)}
    batch = run(Model(model, list(columns), [f"y{n}" for n in range(6)]), drive, floats, **columns)
    assert [batch[f"y{n}"][0] for n in range(6)] == [0, 2, 4, 1, 3, 5]
    free = Model(identity(("n", 2, "any"), None), list(columns), [f"y{n}" for n in range(6)])
    assert run(free, drive, floats, **columns)["y5"].tolist() == [5, 15]


def test_a_model_for_batches_of_one_number_is_called_so(drive, floats):
    """Many exporters fix the batch; then that is the tile."""
    one = Model(identity((1, 2), (1, 2)), ["a", "b"], ["y", "z"])
    assert run(one, drive, floats, a=[1, 2, 3], b=[4, 5, 6])["z"].tolist() == [4, 5, 6]
    eight = Model(identity((8, 2), ("n", 2)), ["a", "b"], ["y", "z"], tile=8)
    assert run(eight, drive, floats, a=np.arange(9), b=np.arange(9))["z"].tolist() == list(range(9))


def test_missing_readings_are_nan_and_large_ones_infinite(drive):
    """For an input of floats; nothing fails, and the model decides."""
    batch = Batch.from_rows([{"a": 1.0, "b": None}, {"a": 1e300, "b": 2}])
    out = drive(Model(identity(), ["a", "b"], ["y", "z"])).step(batch, ["S", "S"]).batch
    np.testing.assert_array_equal(out["y"], [1, np.inf])
    np.testing.assert_array_equal(out["z"], [np.nan, 2])


NO_INTEGERS = [None, float("nan"), 1.5, 1e300, 9.3e18]


@pytest.mark.parametrize("value", [*NO_INTEGERS, float("inf")])
def test_integers_must_be_integers(drive, value):
    """There is no NaN among them, and nothing is rounded."""
    stage = Model(identity(kind=INT64), ["a", "b"], ["y", "z"])
    with pytest.raises(BadResult, match=r"needs column 'b' as int64 for the model's input 'x'; it holds"):
        drive(stage).step(Batch.from_rows([{"a": 1, "b": value}]), ["S"])


@pytest.mark.parametrize("value", NO_INTEGERS)
def test_what_is_no_integer_costs_its_record_alone(value):
    """The others of its batch have their numbers."""
    rows = [{"sensor": "S", "time": float(n), "a": 1.0, "b": value if n == 3 else float(n)} for n in range(9)]
    sink = ListSink()
    stage = Model(identity(kind=INT64), ["a", "b"], ["y", "z"], on_error="nan")
    tm.run(tm.Pipeline(tm.sources.Records(rows), stage, sink), lanes=0)
    assert [row["z"] for row in sink.rows] == [0, 1, 2, None, 4, 5, 6, 7, 8]


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "outputs", "culprit"),
    [
        (["a", "b", "c"], ["y"], r"input x: float32 \(rows, 2\) does not take 3 columns \(a, b, c\)"),
        ("a", ["y"], r"does not take 1 column \(a\)"),
        ({"z": ["a", "b"]}, ["y"], r"has no input 'z'; its inputs are x: float32 \(rows, 2\)"),
        ({}, ["y"], "inputs names no column"),
        ([], ["y"], "inputs names no column"),
        ([1, 2], ["y"], "inputs needs names of columns, or a dict of them; it was given 1"),
        (["a", "b"], ["y"], r"names 1 column \(y\) for what the model gives: y: float32 \(rows, 2\)\. Name as many"),
        (["a", "b"], ["y", "y"], "outputs names the column 'y' twice"),
        (["a", "b"], {"score": "s"}, r"has no output 'score'; its outputs are y: float32 \(rows, 2\)"),
        (["a", "b"], {"y": "s"}, r"names 1 column \(s\) for the model's output y: float32 \(rows, 2\)"),
    ],
)
def test_a_model_that_does_not_match_is_refused(inputs, outputs, culprit):
    """Where it is made, naming what the model has."""
    with pytest.raises(PlanError, match=culprit):
        Model(identity(), inputs, outputs)


@pytest.mark.parametrize(
    ("model", "inputs", "outputs", "culprit"),
    [
        (
            identity(kind=TensorProto.STRING),
            ["a", "b"],
            ["y", "z"],
            "numbers cannot be put into the model's input x: string",
        ),
        (identity(kind=TensorProto.COMPLEX64), ["a", "b"], ["y", "z"], "input x: complex64"),
        (identity((), ()), "a", "y", "does not take 1 column"),
        (identity(("n", None, None), None), ["a"], ["y"], "does not take 1 column"),
        (identity((4, 2), ("n", 2)), ["a", "b"], ["y", "z"], "made for batches of 4 records, and tile=2"),
        (identity((4, 2), (1, 2)), ["a", "b"], ["y", "z"], "made for batches of 1 and of 4 records"),
        (identity(shape_out=()), ["a", "b"], ["y"], r"for the model's output y: float32 \(\)"),
        (
            made([("Sub", ["x", "z"], ["y"])], [("x", FLOAT, ["n"]), ("z", FLOAT, ["n"])], [("y", FLOAT, ["n"])]),
            ["a", "b"],
            ["y"],
            r"has 2 inputs \(x: float32 \(rows,\); z: float32 \(rows,\)\); say which columns",
        ),
        (
            made([("Sub", ["x", "z"], ["y"])], [("x", FLOAT, ["n"]), ("z", FLOAT, ["n"])], [("y", FLOAT, ["n"])]),
            {"x": "a"},
            ["y"],
            "does not say what goes into the model's input 'z'",
        ),
    ],
)
def test_shapes_and_types_that_do_not_match_are_refused(model, inputs, outputs, culprit):
    """The model's side of it."""
    with pytest.raises(PlanError, match=culprit):
        Model(model, inputs, outputs, tile=2 if "tile=2" in culprit else None)


def test_a_sequence_is_no_column():
    """What scikit-learn's converter gives unless it is told not to."""
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"]), helper.make_node("Identity", ["x"], ["same"])],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 1])],
        [
            helper.make_tensor_sequence_value_info("y", FLOAT, None),
            helper.make_tensor_value_info("same", FLOAT, ["n", 1]),
        ],
    )
    model = helper.make_model(graph).SerializeToString()
    with pytest.raises(PlanError, match=r"output 'y' is a sequence or a map.*\(zipmap=False"):
        Model(model, ["a"], ["y", "z"])
    assert Model(model, ["a"], {"same": "z"}).outputs == {"same": ("z",)}


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"model": 3}, "needs a model: the path of an .onnx file, or its bytes; it was given int"),
        ({"tile": 0}, "tile=0 must be a number of records"),
        ({"tile": True}, "tile=True must be"),
    ],
)
def test_senseless_arguments_are_refused(arguments, culprit):
    """At once."""
    with pytest.raises(PlanError, match=culprit):
        Model(**{"model": "m.onnx", "inputs": ["a"], "outputs": ["y"], **arguments})


def test_without_the_library_the_extra_is_named(monkeypatch):
    """When the stage is made, not in a lane."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r'pip install "tidemill\[onnx\]"'):
        Model("m.onnx", ["a"], ["y"])


def test_files_that_cannot_serve_are_refused_before_anything_runs(tmp_path):
    """A missing file, and one that is no model; and a column that is not there, or is text."""
    records = tm.sources.Records([{"sensor": "S", "time": 1.0, "a": 1.0, "unit": "C"}])

    def check(path, inputs=("a", "a")):
        tm.Pipeline(records, Model(path, list(inputs), ["y", "z"]), ListSink()).check()

    with pytest.raises(InputError, match=r"there is no file /.*/absent\.onnx"):
        check(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(InputError, match=r"text\.onnx is not an ONNX model"):
        check(tmp_path / "text.onnx")
    (tmp_path / "m.onnx").write_bytes(identity())
    with pytest.raises(PlanError, match=r"Model\('m\.onnx'\) needs a column 'b'"):
        check(tmp_path / "m.onnx", ["a", "b"])
    with pytest.raises(PlanError, match="needs column 'unit' to be float or int or bool; it is text"):
        check(tmp_path / "m.onnx", ["a", "unit"])
    check(tmp_path / "m.onnx")
    with pytest.raises(PlanError, match="its model has not been loaded"):
        Model(tmp_path / "m.onnx", ["a", "a"], ["y", "z"]).opened()


@pytest.mark.parametrize("lanes", [0, 1])
def test_a_model_that_the_library_cannot_run_ends_the_start(lanes):
    """Its operators are known only to the library: the lane says so when it is opened, in one sentence."""
    model = made([("NoSuchOperator", ["x"], ["y"])], [("x", FLOAT, ["n", 1])], [("y", FLOAT, ["n", 1])])
    pipeline = tm.Pipeline(
        tm.sources.Records([{"sensor": "S", "time": 1.0, "a": 1.0}]), Model(model, ["a"], ["y"]), ListSink()
    )
    with pytest.raises(PlanError, match=r"ONNX Runtime \S+ cannot run the model: .*NoSuchOperator"):
        tm.run(pipeline, lanes=lanes)


def test_a_provider_that_is_not_there_is_refused():
    """Naming those that are."""
    with pytest.raises(PlanError, match=r"there is no provider 'WoodExecutionProvider'; there are: .*CPUExecution"):
        Model(identity(), ["a", "b"], ["y", "z"], providers=["WoodExecutionProvider"]).opened()
    stage = Model(identity(), ["a", "b"], ["y", "z"], providers="CPUExecutionProvider").opened()
    assert stage._calls._session.get_providers() == ["CPUExecutionProvider"]


def test_an_output_of_another_shape_than_told_is_a_bad_result(drive, floats):
    """A model may say nothing of its outputs' shapes; then its first batch shows it."""
    model = identity(shape_out=None)
    assert run(Model(model, ["a", "b"], ["y", "z"]), drive, floats, a=[1], b=[2])["z"].tolist() == [2]
    with pytest.raises(BadResult, match=r"output 'y' has shape \(256, 2\) for 256 records; \(256, 3\) is needed"):
        run(Model(model, ["a", "b"], ["p", "q", "r"]), drive, floats, a=[1], b=[2])


# -- in lanes ------------------------------------------------------------------------------------------------


def rows_of(count):
    values = np.random.default_rng(3).normal(size=(count, 4)).tolist()
    return [
        {"sensor": f"S{n % 7}", "time": float(n), **dict(zip("abcd", row, strict=True))} for n, row in enumerate(values)
    ]


def plan():
    return tm.Plan(Model(MODELS / "classes.onnx", FEATURES, ["p", "q", "r", "label"]))


@pytest.mark.slow
def test_lanes_give_what_a_notebook_gives():
    """Two processes, shares of any size: bit for bit what `Plan.apply` makes."""
    rows, sink = rows_of(5_000), ListSink()
    report = tm.run(tm.Pipeline(tm.sources.Records(rows), plan(), sink), lanes=2)
    assert sink.rows == plan().apply(rows)
    assert report.dead_letters == 0


@pytest.mark.slow
async def test_a_lane_has_one_thread_and_its_loss_changes_nothing():
    """Also in a lane that replaces a killed one: the library was loaded before the fork, and survives it."""
    rows, out = rows_of(400), []
    half, more = asyncio.Event(), asyncio.Event()

    async def records():
        for row in rows[:200]:
            yield row
        await more.wait()
        for row in rows[200:]:
            yield row

    def take(batch):
        out.extend(batch.to_rows())
        if len(out) >= 200:
            half.set()

    pipeline = tm.Pipeline(tm.sources.Records(records()), plan(), tm.sinks.Callback(take))
    async with tm.serve(pipeline, lanes=1) as run_:
        await half.wait()
        (lane,) = [p for p in psutil.Process().children(recursive=True) if p.name() == "tidemill-lane"]
        assert lane.num_threads() == 1
        os.kill(lane.pid, signal.SIGKILL)
        more.set()
        report = await run_.wait()
    assert out == plan().apply(rows)
    assert report.lanes[0].restarts == 1


def test_a_record_on_which_the_model_raises_is_a_dead_letter(tmp_path):
    """Only it: an index out of range in its batch does not cost the others."""
    model = made(
        [("Gather", ["table", "x"], ["y"])],
        [("x", INT64, ["n"])],
        [("y", FLOAT, ["n"])],
        {"table": np.ones(3, np.float32)},
    )
    rows = [{"sensor": "S", "time": float(n), "a": 7.0 if n == 5 else float(n % 3)} for n in range(20)]
    sink = ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(rows), Model(model, {"x": "a"}, "y"), sink)
    report = tm.run(pipeline, lanes=0, dead_letters=tmp_path / "dead.ndjson")
    assert [row["time"] for row in sink.rows] == [float(n) for n in range(20) if n != 5]
    assert report.dead_letters_by_reason == {"raised": 1}


@pytest.mark.slow
def test_the_application_never_loads_the_library(tmp_path):
    """It reads the signature by itself; sessions and their memory are in the lanes. Nobody is told what is run."""
    code = f"""
import sys, tidemill as tm
sink = tm.testing.ListSink()
stage = tm.Model({str(MODELS / "classes.onnx")!r}, ["a", "b", "c", "d"], ["p", "q", "r", "label"])
see = tm.Map(lambda batch: {{"quiet": [__import__("os").environ["ORT_DISABLE_TELEMETRY"]] * len(batch)}})
row = dict(sensor="S", time=1.0, a=1.0, b=2.0, c=3.0, d=4.0)
tm.run(tm.Pipeline(tm.sources.Records([row]), [stage, see], sink), lanes=1)
assert sink.rows[0]["quiet"] == "1" and 0 < sink.rows[0]["p"] < 1, sink.rows
assert not {{"onnxruntime", "onnx"}} & set(sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_prepared_plan_carries_the_model():
    """It can be sent; what is opened has a session instead."""
    stage = Model(CLASSES, FEATURES, ["p", "q", "r", "label"])
    again = pickle.loads(pickle.dumps(stage))
    assert again.bind(Schema(open=True)) == stage.bind(Schema(open=True))
    assert again.opened()._model is None


def test_the_committed_models_are_what_their_maker_makes(tmp_path):
    """Byte by byte."""
    (tmp_path / "build.py").write_text((MODELS / "build.py").read_text())
    subprocess.run([sys.executable, tmp_path / "build.py"], check=True, capture_output=True)
    for path in MODELS.glob("*.onnx"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
