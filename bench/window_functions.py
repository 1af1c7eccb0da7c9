"""A function of one's own over windows: what `MapWindows` costs beside the same function on a ready view of NumPy's.

The reference is ``fn(sliding_window_view(values, window))`` over one sensor's readings, as many rows a call as a slab has
records: no keys, no state, no copy. A function that reads every cell pays for its windows being copied together once
more; one that reads next to nothing (``last - first``) shows the copy alone. What comes out is checked against the view.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

import tidemill as tm
from bench import _common
from bench._common import Table, median, spread, timed
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.core.chain import Chain
from tidemill.schema import Kind
from tidemill.stages.state import StateMemory

_RECORDS_AT_ONCE = 32_768  # as many as a slab holds
_MOST = 3.0

Windows = NDArray[np.float64]


def mean(windows: Windows) -> Windows:
    return windows.mean(axis=1)


def peak_to_peak(windows: Windows) -> Windows:
    return windows.max(axis=1) - windows.min(axis=1)


def std(windows: Windows) -> Windows:
    return windows.std(axis=1)


def crest(windows: Windows) -> Windows:
    return np.abs(windows).max(axis=1) / np.sqrt((windows**2).mean(axis=1))


def skew(windows: Windows) -> Windows:
    centred = windows - windows.mean(axis=1, keepdims=True)
    return (centred**3).mean(axis=1) / (centred**2).mean(axis=1) ** 1.5


def mad(windows: Windows) -> Windows:
    return np.median(np.abs(windows - np.median(windows, axis=1, keepdims=True)), axis=1)


def last_minus_first(windows: Windows) -> Windows:
    return windows[:, -1] - windows[:, 0]


_PROMISED = (mean, peak_to_peak, std, crest, skew, mad)


def measure(options: argparse.Namespace, table: Table) -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(20, 3, options.records)
    slots = rng.integers(0, options.sensors, options.records).astype(np.int32)
    for fn in (*_PROMISED, last_minus_first):
        _check(fn, options.window)
        ratios, costs = [], []
        for _ in range(options.runs):
            ours = _tidemill(fn, values, slots, options)
            ready = _view(fn, values, options.window)
            ratios.append(ours / ready)
            costs.append((ours / options.records * 1e9, ready / options.records * 1e9))
        own, bare = (median(side) for side in zip(*costs, strict=True))
        what = f"MapWindows({fn.__name__}, window={options.window}) / on a ready view"
        note = f"{spread(ratios)}; {own:.0f} and {bare:.0f} ns/record"
        if fn is last_minus_first:
            table.note(f"{what}: the copy alone", f"{own:.0f} and {bare:.1f} ns/record")
        else:
            table.below(what, median(ratios), _MOST, shown="{:.2f}x", note=note)
        print(table.rows[-1].what, table.rows[-1].measured, sep=": ", flush=True)


def _tidemill(fn: Callable[[Windows], Windows], values: Windows, slots: NDArray[np.int32], options) -> float:
    """Seconds for a lane's chain over ready batches, of which it has seen two: its memory is there."""
    plan = tm.Plan(tm.MapWindows(fn, "value", options.window, into="made", adds={"made": float}))
    layout = plan.layout(options.sensors, _RECORDS_AT_ONCE)
    memory = StateMemory(layout, np.zeros(layout.total_bytes, np.uint8))
    chain = Chain(plan.stages, memory, lambda: 0)
    batches = [
        (Batch({"value": Column(Kind.FLOAT, values[at : at + _RECORDS_AT_ONCE])}), slots[at : at + _RECORDS_AT_ONCE])
        for at in range(0, len(values), _RECORDS_AT_ONCE)
    ]

    def run(batches: list) -> None:
        for batch, own in batches:
            memory.begin(memory.committed + 1)
            chain.run(batch, own)
            memory.commit(memory.committed + 1)

    run(batches[:2])
    return timed(lambda: run(batches))[0]


def _view(fn: Callable[[Windows], Windows], values: Windows, window: int) -> float:
    view = sliding_window_view(np.concatenate([np.zeros(window - 1), values]), window)

    def run(records: int) -> None:
        for at in range(0, records, _RECORDS_AT_ONCE):
            fn(view[at : at + _RECORDS_AT_ONCE])

    run(2 * _RECORDS_AT_ONCE)
    return timed(lambda: run(len(view)))[0]


def _check(fn: Callable[[Windows], Windows], window: int) -> None:
    values = np.random.default_rng(1).normal(size=5_000)
    rows = {"sensor": ["S"] * len(values), "time": np.arange(len(values)), "value": values}
    import pandas as pd

    made = tm.Plan(tm.MapWindows(fn, "value", window, into="made")).apply(pd.DataFrame(rows))["made"].to_numpy()
    ready = fn(sliding_window_view(values, window))
    if not np.allclose(made[window - 1 :], ready, rtol=1e-12):
        raise SystemExit(f"{fn.__name__} on a window is not what it is on a view")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=500_000)
    parser.add_argument("--sensors", type=int, default=1_000)
    parser.add_argument("--window", type=int, default=50)
    _common.main(measure, parser, runs=5)
