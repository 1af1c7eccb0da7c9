"""What every peer's program shares: its input, the statistics of a window in plain Python and in NumPy, its answer.

A program is started as ``python -m bench.peers.NAME FOLDER OUT --idiom ... --records N``. FOLDER holds the input as
``input.csv`` and as ``.npy`` columns, OUT is for what it makes. Its last line is JSON; the rows of the sampled sensors
lie in ``OUT/*.npy`` as (rows, 8) float64: sensor, ts, x, mean, std, min, max, feature.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import deque
from collections.abc import Callable
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np

WINDOW = 50
SAMPLED = 20
"""The rows of every 20th sensor are kept for the comparison, the most frequent one's among them."""

Statistics = tuple[float, float, float, float, float]
Reading = tuple[int, int, float]
"""sensor, ts in ms, value"""
Made = tuple[int, int, float, float, float, float, float, float]


# -- a sensor's window, in plain Python --------------------------------------------------------------------


class Afresh:
    """Each window gone through afresh: no error builds up. The built-in functions do the loops."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: deque[float] = deque(maxlen=WINDOW)

    def add(self, x: float) -> Statistics:
        last = self.last
        last.append(x)
        count = len(last)
        mean = sum(last) / count
        std = math.sqrt(max(sum(map(mul, last, last)) / count - mean * mean, 0.0))
        low, high = min(last), max(last)
        return mean, std, low, high, math.tanh((x - mean) / (std + 1e-9)) * math.log1p(high - low)


class Running:
    """Sums to which the newest is added and from which the oldest is taken, and two monotonic queues.

    The fastest in plain Python; its rounding errors stay in the sums for ever, which is why tidemill refuses it.
    """

    __slots__ = ("highs", "last", "lows", "squares", "total")

    def __init__(self) -> None:
        self.last: deque[float] = deque()
        self.lows: deque[float] = deque()
        self.highs: deque[float] = deque()
        self.total = self.squares = 0.0

    def add(self, x: float) -> Statistics:
        last, lows, highs = self.last, self.lows, self.highs
        last.append(x)
        self.total += x
        self.squares += x * x
        if len(last) > WINDOW:
            oldest = last.popleft()
            self.total -= oldest
            self.squares -= oldest * oldest
            if lows[0] == oldest:
                lows.popleft()
            if highs[0] == oldest:
                highs.popleft()
        while lows and lows[-1] > x:
            lows.pop()
        lows.append(x)
        while highs and highs[-1] < x:
            highs.pop()
        highs.append(x)
        count = len(last)
        mean = self.total / count
        std = math.sqrt(max(self.squares / count - mean * mean, 0.0))
        low, high = lows[0], highs[0]
        return mean, std, low, high, math.tanh((x - mean) / (std + 1e-9)) * math.log1p(high - low)


WINDOWS: dict[str, Callable[[], Afresh | Running]] = {"afresh": Afresh, "running": Running}


# -- the same over the records of a micro-batch, in NumPy ---------------------------------------------------


def statistics_of(windows: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of (rows, 50) windows, the newest last, NaN before the sensor's first reading; NaN is looked for only if there."""
    if np.isnan(windows[:, 0]).any():
        there = ~np.isnan(windows)
        count = there.sum(axis=1)
        filled = np.where(there, windows, 0.0)
        mean = filled.sum(axis=1) / count
        away = np.where(there, windows - mean[:, None], 0.0)
        low, high = np.fmin.reduce(windows, axis=1), np.fmax.reduce(windows, axis=1)
    else:
        count = WINDOW
        mean = windows.mean(axis=1)
        away = windows - mean[:, None]
        low, high = windows.min(axis=1), windows.max(axis=1)
    std = np.sqrt(np.einsum("ij,ij->i", away, away) / count)
    return mean, std, low, high, np.tanh((x - mean) / (std + 1e-9)) * np.log1p(high - low)


class OfOneSensor:
    """One sensor's records, some at a time."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = np.full(WINDOW - 1, np.nan)

    def add(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        joined = np.concatenate((self.last, x))
        self.last = joined[len(x) :]
        return statistics_of(np.lib.stride_tricks.sliding_window_view(joined, WINDOW), x)


class OfAllSensors:
    """A micro-batch of all sensors at once: keyed windows by hand, so that the engine around them has nothing to do."""

    def __init__(self, sensors: int) -> None:
        self.last = np.full((sensors, WINDOW - 1), np.nan)

    def add(self, sensors: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, ...]:
        order = np.argsort(sensors, kind="stable")
        present, starts, counts = np.unique(sensors[order], return_index=True, return_counts=True)
        width = WINDOW - 1
        joined = np.empty(len(x) + width * len(present))
        heads = starts + width * np.arange(len(present))
        joined[heads[:, None] + np.arange(width)] = self.last[present]
        places = np.arange(len(x)) + width * np.repeat(np.arange(1, len(present) + 1), counts)
        joined[places] = x[order]
        ends = heads + width + counts
        self.last[present] = joined[ends[:, None] - width + np.arange(width)]
        windows = np.lib.stride_tricks.sliding_window_view(joined, WINDOW)[places - width]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return tuple(column[back] for column in statistics_of(windows, x[order]))


# -- a program's input and answer ---------------------------------------------------------------------------


class Program:
    """The command line of a peer's program, its input, and what it says at its end."""

    def __init__(self, idioms: tuple[str, ...], arguments: list[str] | None = None) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("folder", type=Path)
        parser.add_argument("out", type=Path)
        parser.add_argument("--idiom", choices=idioms, default=idioms[0])
        parser.add_argument("--records", type=int, default=100_000)
        parser.add_argument("--batch", type=int, default=32_768, help="records of a micro-batch")
        parser.add_argument("--runs", type=int, default=1)
        parser.add_argument("--warm-s", type=float, default=0.0, help="run for so long before the first run counts")
        parser.add_argument("--workers", type=int, default=2)
        options = parser.parse_args(arguments)
        self.idiom: str = options.idiom
        self.records: int = options.records
        self.batch: int = options.batch
        self.runs: int = options.runs
        self.warm_s: float = options.warm_s
        self.workers: int = options.workers
        self.folder: Path = options.folder
        self.out: Path = options.out

    def column(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy")[: self.records]

    def calibration(self) -> tuple[np.ndarray, np.ndarray]:
        return np.load(self.folder / "mu.npy"), np.load(self.folder / "sd.npy")

    def readings(self) -> list[Reading]:
        columns = (self.column(name).tolist() for name in ("sensor", "ts", "value"))
        return list(zip(*columns, strict=True))

    def keep(self, rows: list[Made], name: str = "rows") -> None:
        """The sampled rows, for the comparison."""
        np.save(self.out / f"{name}.npy", np.array([row for row in rows if row[0] % SAMPLED == 0]).reshape(-1, 8))

    def keep_columns(self, columns: list[tuple[np.ndarray, ...]], name: str = "rows") -> None:
        made = np.concatenate([np.column_stack([part[0] * 1.0, *part[1:]]) for part in columns])
        np.save(self.out / f"{name}.npy", made[made[:, 0] % SAMPLED == 0])


def answer(seconds: list[float], rows: int, **more: Any) -> None:
    """``first_at`` is the clock's time at which the first output was there."""
    print(json.dumps({"seconds": seconds, "rows": rows, **more}), flush=True)


def now() -> float:
    """Seconds of a clock that all processes share."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
