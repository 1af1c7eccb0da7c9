"""What stages cost: ns a record of every statistic, with and without Numba, and how cost grows with windows and sensors.

One stage steps over batches of 32,768 records in memory as a lane has it (shared, with the undo log written), without an
engine. Rings are full and every sensor has been seen before anything is timed. Times are CPU time, so that others on the
machine count less; ratios are of medians over batches, taken in turn in one run.

The strict rescan that growth is measured against goes through the whole window of each record with the same folds, or
selects its median, in one compiled loop without undo log, copies or missing values.

``--page docs/statistics.md`` writes the table of statistics into that page, between its marks.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import _common
from bench._common import Table, median, spread
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind
from tidemill.stages.rolling import STATISTICS, Rolling, quantile
from tidemill.stages.state import StateLayout, StateMemory
from tidemill.stages.statistics import compiling, folds, ranks, spans
from tidemill.stages.statistics.compiled import interpreted_kernels, load_kernels

BATCH = 32_768
SENSORS = 1_000
SECOND = 10**9
DEFAULT = ("mean", "std", "min", "max")
MARK = "<!-- python -m bench.stages --page docs/statistics.md -->"


class Driven:
    """One opened stage over full rings of so many sensors; each step is a batch in some order of arrival."""

    def __init__(self, stage: Rolling, sensors: int, order: str, *, batch: int = BATCH, kernels: Any = None) -> None:
        layout = StateLayout((stage.state_fields(),), sensors, batch)
        self._memory = StateMemory(layout, mmap.mmap(-1, layout.total_bytes))
        self._stage = stage.opened()
        self._stage._kernels = kernels or load_kernels()
        self._stage.admit([""] * sensors, 0)
        self._sensors, self._batch, self._order = sensors, batch, order
        self._random = np.random.default_rng(0)
        self._at = self._slab = 0
        self._fill(stage)
        warm = "robin" if order != "zipf" else order
        for _ in range(-(-sensors // batch)):
            self.step(warm)

    def _fill(self, stage: Rolling) -> None:
        """Rings that are full, as after a long run; one reading a second of each sensor."""
        state = self._memory.stages[0]
        cells = stage.state_fields()["ring0"].shape[0]
        row = self._random.normal(size=cells)
        for start in range(0, self._sensors, 4096):
            state["ring0"][start : start + 4096] = row
            if "times" in stage.state_fields():
                state["times"][start : start + 4096] = np.arange(-cells, 0) * SECOND
        state["head"][:] = cells << 32
        if "runs" in stage.state_fields():
            state["runs"][:], state["newest"][:], state["lost"][:] = cells, -SECOND, -(2**63)

    def step(self, order: str = "") -> float:
        """Nanoseconds a record."""
        slots, at = self._slots(order or self._order), self._at
        self._at += self._batch
        # One reading a second of each sensor, if they took turns.
        times = (at + np.arange(self._batch)) // self._sensors * SECOND
        batch = Batch({"v": Column(Kind.FLOAT, self._random.normal(size=self._batch))}, time=times)
        state = self._memory.stages[0]
        state.slots = slots
        self._slab += 1
        self._memory.begin(self._slab)
        began = time.thread_time_ns()
        self._stage.step(batch, state)
        spent = time.thread_time_ns() - began
        self._memory.commit(self._slab)
        return spent / self._batch

    def _slots(self, order: str) -> np.ndarray:
        if order == "robin":
            return ((self._at + np.arange(self._batch)) % self._sensors).astype(np.int32)
        if order == "random":
            return self._random.integers(0, self._sensors, self._batch).astype(np.int32)
        shares = np.cumsum(1 / np.arange(1, self._sensors + 1) ** 1.1)
        return np.searchsorted(shares, self._random.random(self._batch) * shares[-1]).astype(np.int32)


def in_turn(driven: dict[str, Any], rounds: int) -> dict[str, float]:
    """The median step of each, all of them in every round, so that a slow second is a slow one for all."""
    taken: dict[str, list[float]] = {name: [] for name in driven}
    for _ in range(rounds):
        for name, one in driven.items():
            taken[name].append(one.step())
    return {name: median(each) for name, each in taken.items()}


# -- the strict rescan --------------------------------------------------------------------------------------


class Rescan:
    """A window gone through whole for each record, compiled: mean, std, min and max, or the median."""

    def __init__(self, window: int, sensors: int, what: str) -> None:
        self._step = _rescan(what)
        self._random = np.random.default_rng(0)
        self._ring = self._random.normal(size=(sensors, window))
        self._heads = np.zeros(sensors, np.int64)
        self._scratch = np.empty(window)
        self._sensors = sensors
        self._out = np.empty((4, BATCH))
        self.step()  # compiles

    def step(self) -> float:
        slots = self._random.integers(0, self._sensors, BATCH).astype(np.int32)
        values = self._random.normal(size=BATCH)
        arrays = (slots, values, self._heads, self._ring, self._scratch, self._out)
        began = time.thread_time_ns()
        self._step(BATCH, self._ring.shape[1], *(array.ctypes.data for array in arrays))
        return (time.thread_time_ns() - began) / BATCH


def _rescan(what: str) -> Callable[..., None]:
    """Compiled as the kernels are: over bare memory, with their folds in line."""
    import numba

    numba.config.SLP_VECTORIZE = 1

    helpers = compiling.intrinsics()
    for module in (folds, ranks, spans):
        compiling.with_helpers(module, helpers)
    total, squares = helpers["total_of"], helpers["squares_of"]
    lowest, highest = helpers["lowest_of"], helpers["highest_of"]
    select, between = helpers["select_of"], helpers["between"]

    def spread_of(n, window, slots, values, heads, ring, _scratch, out):  # type: ignore[no-untyped-def]
        for i in range(n):
            s = slots[i]
            base = s * window
            ring[base + heads[s]] = values[i]
            heads[s] = (heads[s] + 1) % window
            mean = total(ring, base, base + window) / window
            out[i] = mean
            out[n + i] = np.sqrt(squares(ring, base, base + window, mean) / (window - 1))
            out[2 * n + i] = lowest(ring, base, base + window)
            out[3 * n + i] = highest(ring, base, base + window)

    def median_of(n, window, slots, values, heads, ring, scratch, out):  # type: ignore[no-untyped-def]
        for i in range(n):
            s = slots[i]
            base = s * window
            ring[base + heads[s]] = values[i]
            heads[s] = (heads[s] + 1) % window
            for j in range(window):
                scratch[j] = ring[base + j]
            place = (window - 1) * 0.5
            low = select(scratch, window, int(place))
            high = low
            if place > int(place):
                high = lowest(scratch, int(place) + 1, window)
            out[i] = between(low, high, place - int(place))

    ints, longs, floats = (numba.types.CPointer(kind) for kind in (numba.int32, numba.int64, numba.float64))
    signature = numba.void(numba.int64, numba.int64, ints, floats, longs, floats, floats, floats)
    made = numba.cfunc(signature, error_model="numpy")(spread_of if what == "spread" else median_of)
    kinds = (ctypes.c_int64,) * 2 + (ctypes.c_void_p,) * 6
    call = ctypes.CFUNCTYPE(None, *kinds)(made.address)
    call.owner = made  # its machine code lives as long
    return call


# -- every statistic ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """ns a record of one statistic."""

    name: str
    counted: float
    long: float
    timed: float
    interpreted: float
    interpreted_timed: float


def costs(rounds: int) -> Iterator[Cost]:
    """Of every statistic alone, and of the default ones together."""
    wanted: list[tuple[str, Any]] = [(name, [name]) for name in STATISTICS]
    wanted += [
        ("quantile(0.95)", [quantile(0.95)]),
        ("mean, std, min, max", list(DEFAULT)),
        ("all of them", [*STATISTICS]),
    ]
    slow = interpreted_kernels()
    for name, stats in wanted:
        each = in_turn(
            {
                "counted": Driven(Rolling("v", 50, stats), SENSORS, "random"),
                "long": Driven(Rolling("v", 5_000, stats), 100, "random"),
                "timed": Driven(Rolling("v", "50s", stats, max_records=64), SENSORS, "robin"),
            },
            rounds,
        )
        plain = in_turn(
            {
                "counted": Driven(Rolling("v", 50, stats), 20, "random", batch=1_000, kernels=slow),
                "timed": Driven(Rolling("v", "50s", stats, max_records=64), 20, "robin", batch=1_000, kernels=slow),
            },
            3,
        )
        yield Cost(name, each["counted"], each["long"], each["timed"], plain["counted"], plain["timed"])


def page_text(each: list[Cost]) -> str:
    head = ("statistic", "last 50", "last 5,000", "last 50 s", "last 50, no Numba", "last 50 s, no Numba")
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * 5]
    for cost in each:
        numbers = (cost.counted, cost.long, cost.timed, cost.interpreted, cost.interpreted_timed)
        lines.append(f"| {cost.name} | " + " | ".join(f"{number:,.0f}" for number in numbers) + " |")
    return "\n".join(lines)


def write_page(page: Path, text: str) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(MARK + "\n")
    _, mark, after = rest.partition(MARK)
    if not mark:
        raise SystemExit(f"{page} has no place for the table: it needs the line {MARK} twice")
    page.write_text(f"{before}{MARK}\n{text}\n{mark}{after}", encoding="utf-8")


# -- growth -------------------------------------------------------------------------------------------------


def growth_with_windows(table: Table, rounds: int, runs: int) -> None:
    ratios: dict[str, list[float]] = {"spread": [], "median": []}
    shown = {}
    for _ in range(runs):
        for what, stats in (("spread", list(DEFAULT)), ("median", ["median"])):
            each = in_turn(
                {
                    "rescan": Rescan(50, 100, what),
                    **{str(window): Driven(Rolling("v", window, stats), 100, "random") for window in (50, 500, 5_000)},
                },
                rounds,
            )
            ratios[what].append(each["5000"] / each["rescan"])
            shown[what] = ", ".join(f"{name}: {ns:.0f}" for name, ns in each.items())
    for what, name, target in (("spread", "mean, std, min, max", 3), ("median", "median", 16)):
        table.note(f"{name}, ns a record, strict rescan at 50 and windows of 50, 500, 5,000; 100 sensors", shown[what])
        values = ratios[what]
        label = f"{name}: window 5,000 / strict rescan at window 50"
        table.below(label, median(values), target, shown="{:.2f}x", note=spread(values))


def growth_with_sensors(table: Table, rounds: int, runs: int) -> None:
    targets = {
        ("random", 100_000): 0.25, ("random", 1_000_000): 0.18, ("robin", 100_000): 0.9, ("robin", 1_000_000): 0.9,
    }  # fmt: skip
    ratios: dict[tuple[str, int], list[float]] = {each: [] for each in targets}
    zipf: dict[int, list[float]] = {100_000: [], 1_000_000: []}
    shown = []
    for _ in range(runs):
        for sensors in (100_000, 1_000_000):
            driven = {
                f"{order} {many}": Driven(Rolling("v"), many, order)
                for many in (1_000, sensors)
                for order in ("random", "robin")
            }
            driven["zipf"] = Driven(Rolling("v"), sensors, "zipf")
            each = in_turn(driven, rounds)
            for order in ("random", "robin"):
                ratios[order, sensors].append(each[f"{order} 1000"] / each[f"{order} {sensors}"])
            zipf[sensors].append(each[f"random {sensors}"] / each["zipf"])
            shown.append(", ".join(f"{name}: {ns:.0f}" for name, ns in each.items()))
    for line in shown[:2]:
        table.note("mean, std, min, max of the last 50, ns a record, by order and sensors", line)
    for (order, sensors), values in ratios.items():
        name = "random arrival" if order == "random" else "round-robin"
        label = f"{name}: rate at {sensors:,} sensors / at 1,000"
        table.at_least(label, median(values), targets[order, sensors], shown="{:.2f}x", note=spread(values))
    for sensors, values in zipf.items():
        label = f"Zipf(1.1) keys / uniform ones, {sensors:,} sensors"
        table.at_least(label, median(values), 0.6, shown="{:.2f}x", note=spread(values))


def memory(table: Table) -> None:
    for window in (50, 5_000):
        for name, stats, each in (
            ("mean, std, min, max", DEFAULT, 9), ("median", ("median",), 20), ("rate, slope", ("rate", "slope"), 20),
        ):  # fmt: skip
            stage = Rolling("v", window, stats)
            state = sum(field.bytes_per_key for field in stage.state_fields().values())
            whole, most = state + stage.kept_bytes_per_key, each * window + 512
            label = f"memory of a sensor, {name} of the last {window:,}, state and kept"
            table.below(label, whole, most, shown="{:,.0f} bytes", note=f" (state {state:,})")


def measure(options: argparse.Namespace, table: Table) -> None:
    each = []
    for cost in costs(options.rounds):
        each.append(cost)
        print(f"  {cost.name}: {cost.counted:.0f} ns", flush=True)
    print(page_text(each), flush=True)
    if options.page:
        write_page(options.page, f"Measured on {_common.machine()}.\n\n{page_text(each)}")
    memory(table)
    growth_with_windows(table, options.rounds, options.runs)
    growth_with_sensors(table, options.rounds, options.runs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="batches of each kind in a run (default 9)")
    parser.add_argument("--page", type=Path, help="write the table of statistics into this page, between its marks")
    _common.main(measure, parser, runs=3)
