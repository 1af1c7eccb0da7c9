"""W1: 1,000 sensors in random order; calibrate, statistics of the last 50 readings of each, and a function in NumPy."""

from __future__ import annotations

import asyncio
import functools
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind
from tidemill.sources.base import SourceContext
from tidemill.stages.statistics import kernels as places
from tidemill.stages.statistics.blocks import Blocks
from tidemill.stages.statistics.compiled import load_kernels

SENSORS = 1_000
WINDOW = 50
STATISTICS = ("mean", "std", "min", "max")
BATCH = 32_768
"""Records of one input batch: as many as a slab holds."""


def feature(batch: tm.Batch) -> dict[str, np.ndarray]:
    """The user's function."""
    return {"feature": np.sqrt(np.abs(batch["normalized"])) * np.log1p(np.abs(batch["value"]))}


@dataclass
class W1:
    """The input, as columns."""

    ids: np.ndarray
    time: np.ndarray
    value: np.ndarray
    texts: np.ndarray
    baseline: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, records: int, seed: int = 0) -> W1:
        random = np.random.default_rng(seed)
        return cls(
            random.integers(0, SENSORS, records).astype(np.int32),
            1.7e9 + np.arange(records) * 1e-3,
            random.normal(50, 15, records),
            np.array([f"S{number}" for number in range(SENSORS)], object),
            random.normal(20, 1, SENSORS),
            random.uniform(40, 80, SENSORS),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int = BATCH) -> Iterator[Batch]:
        for start in range(0, len(self.ids), size):
            part = slice(start, start + size)
            sensor = Column(Kind.TEXT, self.ids[part], texts=self.texts)
            columns = {
                "sensor": sensor,
                "time": Column(Kind.FLOAT, self.time[part]),
                "value": Column(Kind.FLOAT, self.value[part]),
            }
            yield Batch(columns, key=sensor, time=(self.time[part] * 1e9).astype(np.int64))

    def plan(self, *more: tm.Map) -> tm.Plan:
        table = {"sensor": self.texts.tolist(), "baseline": self.baseline.tolist(), "scale": self.scale.tolist()}
        rolling = tm.Rolling("normalized", window=WINDOW, stats=STATISTICS)
        return tm.Plan(tm.Calibrate(table), rolling, tm.Map(feature), *more)


class Gated(tm.sources.Records):
    """Records held back until the lanes and sinks are ready, so that the rate is that of the flow and not of the start;
    ``began`` is the time at which the first was accepted."""

    def __init__(self, records: object, **options: str) -> None:
        super().__init__(records, **options)  # type: ignore[arg-type]
        self.gate = asyncio.Event()
        self.began = 0.0

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        await self.gate.wait()
        self.began = time.perf_counter()
        async for batch in super().stream(context):
            yield batch


async def flow(source: Gated, plan: tm.Plan, sink: object, **options: object) -> tuple[float, tm.Report]:
    """Run; the time at which everything had ended, and the report."""
    async with tm.serve(tm.Pipeline(source, plan, sink), **options) as run:
        source.gate.set()
        report = await run.wait()
    return time.perf_counter(), report


class Fold:
    """A checksum of columns that sees every bit, every row and the rows' order.

    Row i is added to cell i mod 8,191 of a ring of words of the column's width; the ring is then hashed by place.
    """

    RING = 8_191

    def __init__(self) -> None:
        self.rows = 0
        self.ended = 0.0
        self._rings: dict[str, np.ndarray] = {}

    def add(self, batch: Batch) -> None:
        self.add_columns({name: column.values for name, column in batch.columns.items()})
        self.ended = time.perf_counter()

    def add_columns(self, columns: dict[str, np.ndarray]) -> None:
        rows = 0
        for name, values in columns.items():
            bits = values.view(f"u{values.dtype.itemsize}")
            ring = self._rings.get(name)
            if ring is None:
                ring = self._rings[name] = np.zeros(self.RING, bits.dtype)
            rows = len(values)
            start, place = 0, self.rows % self.RING
            while start < rows:
                stop = min(rows, start + self.RING - place)
                cells = ring[place : place + stop - start]
                cells += bits[start:stop]
                start, place = stop, 0
        self.rows += rows

    def digest(self) -> dict[str, int]:
        weights = np.arange(1, 2 * self.RING, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return {name: int((ring.astype(np.uint64) * weights).sum()) for name, ring in sorted(self._rings.items())}


# -- the references ---------------------------------------------------------------------------------------


def inline_python(w1: W1, records: int) -> float:
    """Records per second of plain Python, one core: a deque per sensor."""
    rows = list(zip(w1.ids[:records].tolist(), w1.value[:records].tolist(), strict=True))
    baseline, scale = w1.baseline.tolist(), w1.scale.tolist()
    windows: list[deque[float]] = [deque(maxlen=WINDOW) for _ in range(SENSORS)]
    out = []
    start = time.perf_counter()
    for sensor, value in rows:
        normalized = (value - baseline[sensor]) / scale[sensor]
        window = windows[sensor]
        window.append(normalized)
        count = len(window)
        mean = sum(window) / count
        std = math.sqrt(sum((x - mean) ** 2 for x in window) / (count - 1)) if count > 1 else math.nan
        made = math.sqrt(abs(normalized)) * math.log1p(abs(value))
        out.append((sensor, value, normalized, mean, std, min(window), max(window), made))
    return len(rows) / (time.perf_counter() - start)


def _advance(slots, heads, cells, filled):  # type: ignore[no-untyped-def]
    """Each record's cell in its sensor's ring, and how many cells are filled, without an undo log."""
    for i in range(slots.shape[0]):
        head = heads[slots[i]]
        cell, count = head & 0xFFFFFFFF, head >> 32
        cells[i] = cell
        if count < WINDOW:
            count += 1
        filled[i] = count
        cell += 1
        heads[slots[i]] = (count << 32) | (0 if cell == WINDOW else cell)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """By Numba, strict: no fastmath; compiled at its first call."""
    import numba

    made: Callable[..., Any] = numba.njit(error_model="numpy")(function)
    return made


def inline_kernel(w1: W1, keep: Fold | None = None) -> float:
    """Records per second of NumPy and the strict kernel over the same batches, one core, without any engine: no undo
    log, no copies, no order to keep. ``keep`` gets every output column, outside the measured time."""
    kernels, advance = load_kernels(), _compiled(_advance)
    where = {"mean": places.MEAN, "std": places.STD, "min": places.MIN, "max": places.MAX}
    rows = np.full(8, -1, np.int64)
    for row, name in enumerate(STATISTICS):
        rows[where[name]] = row
    heads, ring = np.zeros(SENSORS, np.int64), np.zeros((SENSORS, WINDOW))
    blocks = Blocks(WINDOW)
    spent = 0.0
    for start in range(0, len(w1), BATCH):
        part = slice(start, start + BATCH)
        began = time.perf_counter()
        slots, value = w1.ids[part], w1.value[part]
        normalized = (value - w1.baseline.take(slots)) / w1.scale.take(slots)
        cells, filled = np.empty(len(slots), np.int32), np.empty(len(slots), np.int32)
        advance(slots, heads, cells, filled)
        made = np.empty((len(STATISTICS), len(slots)))
        kernels.roll(slots, cells, filled, normalized, ring, rows, blocks, made, ddof=1, min_periods=1, keys=SENSORS)
        own = np.sqrt(np.abs(normalized)) * np.log1p(np.abs(value))
        spent += time.perf_counter() - began
        if keep is not None:
            columns = {"sensor": slots, "time": w1.time[part], "value": value, "normalized": normalized}
            columns |= {f"normalized_{name}_{WINDOW}": made[row] for row, name in enumerate(STATISTICS)}
            keep.add_columns({**columns, "feature": own})
    return len(w1) / spent


def _straight(ids, value, baseline, scale, ring, counts, heads, out):  # type: ignore[no-untyped-def]
    """All of W1 in one loop, as one would write it down: strict, each window gone through twice, NaN not thought of."""
    for i in range(ids.shape[0]):
        s = ids[i]
        x = (value[i] - baseline[s]) / scale[s]
        ring[s, heads[s]] = x
        heads[s] = (heads[s] + 1) % WINDOW
        counts[s] = min(counts[s] + 1, WINDOW)
        window = ring[s, : counts[s]]
        total, low, high = 0.0, window[0], window[0]
        for each in window:
            total += each
            low = each if each < low else low  # noqa: FURB136 - what Numba makes of min() is slower
            high = each if each > high else high  # noqa: FURB136
        mean = total / len(window)
        squares = 0.0
        for each in window:
            squares += (each - mean) * (each - mean)
        out[0, i] = x
        out[1, i] = mean
        out[2, i] = math.sqrt(squares / (len(window) - 1)) if len(window) > 1 else math.nan
        out[3, i] = low
        out[4, i] = high
        out[5, i] = math.sqrt(abs(x)) * math.log1p(abs(value[i]))


def inline_straight(w1: W1, keep: Fold | None = None) -> float:
    """Records per second of a straightforward strict loop, compiled by Numba, one core: what the design's number, 11.4 M,
    was measured with. ``keep`` gets what it made; its sums are in another order, so their last bits differ."""
    step = _compiled(_straight)
    ring, counts, heads = np.zeros((SENSORS, WINDOW)), np.zeros(SENSORS, np.int64), np.zeros(SENSORS, np.int64)
    out = np.empty((6, BATCH))
    step(w1.ids[:0], w1.value[:0], w1.baseline, w1.scale, ring, counts, heads, out)  # compiles
    spent = 0.0
    for start in range(0, len(w1), BATCH):
        ids, value = w1.ids[start : start + BATCH], w1.value[start : start + BATCH]
        began = time.perf_counter()
        step(ids, value, w1.baseline, w1.scale, ring, counts, heads, out)
        spent += time.perf_counter() - began
        if keep is not None:
            names = ("normalized", *(f"normalized_{name}_{WINDOW}" for name in STATISTICS), "feature")
            keep.add_columns({name: row[: len(ids)].copy() for name, row in zip(names, out, strict=True)})
    return len(w1) / spent
