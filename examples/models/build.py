"""Makes the models of the examples and the tests, the same bytes each time: python examples/models/build.py

scorer.onnx   how far a reading is from the mean of its sensor's last readings, in their standard deviations
classes.onnx  a small neural network over four features: the probabilities of three classes, and the likeliest of them.
              Its weights are random: it shows how a model is used, not what one knows
"""

import itertools
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

FOLDER = Path(__file__).parent


def scorer() -> ModelProto:
    """x (rows, 3): reading, mean, std -> score (rows, 1) = |reading - mean| / max(std, 0.05)."""
    return model(
        "scorer",
        [
            helper.make_node("Split", ["x"], ["reading", "mean", "std"], axis=1, num_outputs=3),
            helper.make_node("Sub", ["reading", "mean"], ["difference"]),
            helper.make_node("Abs", ["difference"], ["distance"]),
            helper.make_node("Max", ["std", "least"], ["width"]),
            helper.make_node("Div", ["distance", "width"], ["score"]),
        ],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        outputs=[helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows", 1])],
        weights={"least": np.array([0.05], np.float32)},
    )


def classes() -> ModelProto:
    """x (rows, 4) -> probability (rows, 3), label (rows,)."""
    random = np.random.default_rng(4)
    sizes = (4, 32, 32, 3)
    weights, nodes, last = {}, [], "x"
    for layer, (wide, narrow) in enumerate(itertools.pairwise(sizes), 1):
        weights[f"w{layer}"] = random.normal(0, 0.5, (wide, narrow)).astype(np.float32)
        weights[f"b{layer}"] = random.normal(0, 0.1, narrow).astype(np.float32)
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"sum{layer}"]))
        last = f"sum{layer}"
        if layer < len(sizes) - 1:
            nodes.append(helper.make_node("Tanh", [last], [f"layer{layer}"]))
            last = f"layer{layer}"
    nodes.append(helper.make_node("Softmax", [last], ["probability"], axis=1))
    nodes.append(helper.make_node("ArgMax", ["probability"], ["label"], axis=1, keepdims=0))
    return model(
        "classes",
        nodes,
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        outputs=[
            helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows", 3]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
        ],
        weights=weights,
    )


def model(name: str, nodes: list, inputs: list, outputs: list, weights: dict[str, np.ndarray]) -> ModelProto:
    """A checked model of one graph; versions are fixed, so that every ONNX Runtime of the last years runs it."""
    own = [numpy_helper.from_array(array, weight) for weight, array in weights.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, own)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(made, full_check=True)
    return made


if __name__ == "__main__":
    for build in (scorer, classes):
        path = FOLDER / f"{build.__name__}.onnx"
        path.write_bytes(build().SerializeToString(deterministic=True))
        print(f"{path.name}: {path.stat().st_size:,} bytes")
