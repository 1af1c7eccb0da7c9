"""ONNX models in lanes against a bare loop over the same session, 1,000 records a batch.

The bare loop is ONNX Runtime alone, one thread, called with ready float32 rows of 1,000 records, which nobody has in a
pipeline: no columns are put side by side, and what comes out is left as it is. There are as many of them at once as
lanes, since two cores that share their arithmetic units do not do twice the work of one. Beside it are the stage alone,
from float64 columns to float64 columns, in tiles of 256 and of 1,000, and a whole run: records in memory to a callback,
rows in order. Outputs are compared before a number counts.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import tidemill as tm
from bench import _common, _w1
from bench._common import Table, Wrong, median, spread
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind
from tidemill.stages.state import StageState

_BATCH = 1_000
_SENSORS = 1_000
_MILLION = 1e6


@dataclass(frozen=True)
class _Net:
    """A network of dense layers with tanh between them, weights at random."""

    name: str
    sizes: tuple[int, ...]
    records: int

    @property
    def inputs(self) -> list[str]:
        return [f"x{n}" for n in range(self.sizes[0])]

    @property
    def outputs(self) -> list[str]:
        return [f"y{n}" for n in range(self.sizes[-1])]

    def model(self) -> bytes:
        random = np.random.default_rng(0)
        nodes, weights, last = [], [], "x"
        for layer, (wide, narrow) in enumerate(pairwise(self.sizes)):
            arrays = {"w": random.normal(0, wide**-0.5, (wide, narrow)), "b": random.normal(0, 0.1, narrow)}
            weights += [numpy_helper.from_array(array.astype(np.float32), f"{n}{layer}") for n, array in arrays.items()]
            ended = layer == len(self.sizes) - 2
            nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], ["y" if ended else f"s{layer}"]))
            if not ended:
                last = f"t{layer}"
                nodes.append(helper.make_node("Tanh", [f"s{layer}"], [last]))
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
            for name, size in (("x", self.sizes[0]), ("y", self.sizes[-1]))
        ]
        graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        return bytes(made.SerializeToString())

    def stage(self, tile: int | None = None) -> tm.Model:
        return tm.Model(self.model(), self.inputs, self.outputs, tile=tile, providers=["CPUExecutionProvider"])

    def readings(self) -> np.ndarray:
        """Shape ``(columns, records)``."""
        return np.random.default_rng(1).normal(size=(self.sizes[0], self.records))


_NETS = (
    _Net("8-64-64-1", (8, 64, 64, 1), 1_000_000),
    _Net("16-256-256-4", (16, 256, 256, 4), 300_000),
    _Net("32-512-512-4", (32, 512, 512, 4), 100_000),
)
"""A small network, a middling one, and one that is all arithmetic: some 0.2, 2 and 7 us a record."""


def measure(options: argparse.Namespace, table: Table) -> None:
    for net in _NETS:
        rates: dict[str, list[float]] = {"bare": [], "bare at once": [], "stage": [], "tile=1000": [], "run": []}
        for number in range(1, options.runs + 1):
            expected = _bare_outputs(net)
            rates["bare"].append(_bare(net))
            rates["bare at once"].append(asyncio.run(_bare_at_once(net, options.lanes)))
            rates["stage"].append(_stage(net, expected))
            rates["tile=1000"].append(_stage(net, expected, tile=_BATCH))
            rates["run"].append(_run(net, expected, options.lanes))
            each = ", ".join(f"{name} {rate[-1] / _MILLION:.3f}" for name, rate in rates.items())
            print(f"{net.name}, run {number}: {each} M records/s", flush=True)
        for name, what in (
            ("bare", "one bare loop"),
            ("bare at once", f"as many at once as lanes, {options.lanes}, all together"),
        ):
            table.note(f"ONNX {net.name}: {what}", f"{median(rates[name]) / _MILLION:.3f} M records/s")
        for name, what, bare in (
            ("stage", "stage / bare loop", "bare"),
            ("tile=1000", "stage with tile=1000 / bare loop", "bare"),
            ("run", "whole run / as many bare loops at once", "bare at once"),
        ):
            ratios = [rate / reference for rate, reference in zip(rates[name], rates[bare], strict=True)]
            table.at_least(f"ONNX {net.name}: {what}", median(ratios), 0.8, note=spread(ratios))


def _bare_calls(net: _Net) -> Iterator[np.ndarray]:
    """A loop; the first output, which is not part of it, comes once it is ready to begin."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(net.model(), options, providers=["CPUExecutionProvider"])
    rows = np.ascontiguousarray(net.readings().T, np.float32)
    yield session.run(None, {"x": rows[:_BATCH]})[0]
    for at in range(0, len(rows), _BATCH):
        yield session.run(None, {"x": rows[at : at + _BATCH]})[0]


def _bare(net: _Net) -> float:
    """Records per second."""
    calls = _bare_calls(net)
    next(calls)
    start = time.perf_counter()
    deque(calls, maxlen=0)
    return net.records / (time.perf_counter() - start)


async def _bare_at_once(net: _Net, count: int) -> float:
    """Records per second of ``count`` processes together."""
    async with tm.Lanes(count) as lanes:
        return sum(await asyncio.gather(*(lanes.run(_bare, net) for _ in range(count))))


def _bare_outputs(net: _Net) -> np.ndarray:
    calls = _bare_calls(net)
    next(calls)
    return np.concatenate(list(calls))


def _stage(net: _Net, expected: np.ndarray, tile: int | None = None) -> float:
    lane = net.stage(tile).opened()
    state: Any = StageState.__new__(StageState)  # it keeps none
    batches = [Batch(dict(zip(net.inputs, map(_floats, part), strict=True))) for part in _parts(net.readings())]
    lane.step(batches[0], state)
    start = time.perf_counter()
    made = [lane.step(batch, state) for batch in batches]
    rate = net.records / (time.perf_counter() - start)
    _compare(np.stack([np.concatenate([batch[name] for batch in made]) for name in net.outputs], axis=1), expected)
    return rate


def _run(net: _Net, expected: np.ndarray, lanes: int) -> float:
    """From the first record accepted to the last row delivered, as in W1."""
    values = net.readings()
    ids = np.random.default_rng(2).integers(0, _SENSORS, net.records).astype(np.int32)
    texts = np.array([f"S{number}" for number in range(_SENSORS)], object)
    out: list[np.ndarray] = []
    ended = 0.0

    def batches() -> Iterator[Batch]:
        for place, part in enumerate(_parts(values, _w1.BATCH)):
            at = place * _w1.BATCH
            key = Column(Kind.TEXT, ids[at : at + _w1.BATCH], texts=texts)
            columns = {"sensor": key, **dict(zip(net.inputs, map(_floats, part), strict=True))}
            yield Batch(columns, key=key, time=np.arange(at, at + part.shape[1]) * 1_000_000)

    def take(batch: Batch) -> None:
        nonlocal ended
        out.append(np.stack([batch[name] for name in net.outputs], axis=1))
        ended = time.perf_counter()

    source = _w1.Gated(batches())
    limits = tm.Limits(max_records=_BATCH * lanes, target_s=1.0)
    asyncio.run(_w1.flow(source, tm.Plan(net.stage()), tm.sinks.Callback(take), lanes=lanes, limits=limits))
    _compare(np.concatenate(out), expected)
    return net.records / (ended - source.began)


def _parts(values: np.ndarray, size: int = _BATCH) -> Iterator[np.ndarray]:
    for start in range(0, values.shape[1], size):
        yield values[:, start : start + size]


def _floats(values: np.ndarray) -> Column:
    return Column(Kind.FLOAT, values)


def _compare(made: np.ndarray, expected: np.ndarray) -> None:
    if made.shape != expected.shape or not np.allclose(made, expected, rtol=1e-4, atol=1e-5):
        raise Wrong("the model's outputs are not those of the bare loop")


if __name__ == "__main__":
    from tidemill.engine.lanes_count import resolved_lanes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lanes", type=int, default=resolved_lanes(None))
    _common.main(measure, parser, runs=3)
