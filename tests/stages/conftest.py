"""Drives one stage over batches by hand, with real state memory and undo log."""

import numpy as np
import pytest
import scipy.stats

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind
from tidemill.stages.base import Step
from tidemill.stages.state import StateLayout, StateMemory
from tidemill.stages.statistics.wanted import Quantile


class Driver:
    """One opened stage and its state memory; each `step` is one slab."""

    def __init__(self, stage, *, max_keys=64, max_records=4096, kernels=None):
        layout = StateLayout((stage.state_fields(),), max_keys, max_records)
        self.memory = StateMemory(layout, np.zeros(layout.total_bytes, np.uint8))
        self.stage = stage.opened()
        if kernels is not None:
            self.stage._kernels = kernels
        self.slots = {}
        self.slab = 0

    @property
    def state(self):
        return self.memory.stages[0]

    def begin(self, keys):
        fresh = [key for key in dict.fromkeys(keys) if key not in self.slots]
        first = len(self.slots)
        self.slots.update((key, first + i) for i, key in enumerate(fresh))
        if fresh:
            self.stage.admit(fresh, first)
        self.state.slots = np.array([self.slots[key] for key in keys], np.int32)
        self.slab += 1
        self.memory.begin(self.slab)

    def step(self, batch, keys=None, *, commit=True):
        self.begin(list(keys) if keys is not None else ["S1"] * len(batch))
        made = self.stage.step(batch, self.state)
        if commit:
            self.memory.commit(self.slab)
        return made if isinstance(made, Step) else Step(made)

    def snapshot(self):
        return {name: array.tobytes() for name, array in self.state._arrays.items()}


@pytest.fixture(scope="session")
def drive():
    return Driver


@pytest.fixture(scope="session")
def floats():
    """A batch of float columns."""
    return lambda **columns: Batch({n: Column(Kind.FLOAT, np.asarray(v, np.float64)) for n, v in columns.items()})


def statistic_of(stat, values, times, own, *, ddof=1, min_periods=1):
    """A window's statistic as NumPy and scipy have it; ``values`` from the oldest on, ``own`` is the record's."""
    kept = ~np.isnan(values)
    x, t = values[kept], times[kept]
    if stat == "count":
        return len(x) if len(values) >= min_periods else np.nan
    if len(x) < min_periods or (not len(x) and stat != "sum"):
        return np.nan
    if stat == "zscore" and len(x) and x.min() == x.max():
        return np.nan  # NumPy's spread of equal values need not be 0
    if stat in ("var", "std", "zscore"):
        spread = getattr(x, "std" if stat == "zscore" else stat)(ddof=ddof) if len(x) > ddof else np.nan
        return spread if stat != "zscore" else (own - x.mean()) / spread if spread > 0 else np.nan
    if stat == "rate":
        return (x[-1] - x[0]) / ((t[-1] - t[0]) / 1e9) if t[-1] != t[0] else np.nan
    if stat == "slope":
        seconds = (t - t[0]) / 1e9
        return scipy.stats.linregress(seconds, x).slope if len(set(t)) > 1 else np.nan
    made = {
        "median": np.median,
        "range": np.ptp,
        "rms": lambda x: np.sqrt(np.mean(x**2)),
        "first": lambda x: x[0],
        "last": lambda x: x[-1],
        "delta": lambda x: x[-1] - x[0],
    }
    if isinstance(stat, Quantile):
        return np.quantile(x, stat.q)
    return made.get(stat, getattr(np, stat, None))(x)


@pytest.fixture(scope="session")
def expected():
    return statistic_of
