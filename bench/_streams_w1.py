"""The input that all stream engines get, what pandas makes of it, and W1 in tidemill."""

from __future__ import annotations

import asyncio
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tidemill as tm
from bench import _w1
from bench._common import Wrong
from bench.peers._w1 import SAMPLED, WINDOW
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind

TOLERANCE = 1e-9
_MADE = ("x", "mean", "std", "min", "max", "feature")


@dataclass(frozen=True)
class Readings:
    """``sensor`` counts from 0, ``ts`` is in ms and rises, so that it names a record."""

    sensor: np.ndarray
    ts: np.ndarray
    value: np.ndarray
    mu: np.ndarray
    sd: np.ndarray

    @classmethod
    def of(cls, records: int, sensors: int, zipf: bool, seed: int = 0) -> Readings:
        """Random arrival; each sensor as likely as the others, or the r-th in proportion to r ** -1.1."""
        chance = np.random.default_rng(seed)
        weights = np.arange(1, sensors + 1) ** (-1.1 if zipf else 0.0)
        return cls(
            chance.choice(sensors, records, p=weights / weights.sum()).astype(np.int32),
            1_700_000_000_000 + np.arange(records),
            chance.normal(50, 15, records),
            chance.normal(20, 1, sensors),
            chance.uniform(40, 80, sensors),
        )

    def __len__(self) -> int:
        return len(self.sensor)

    def write(self, folder: Path) -> None:
        """As ``.npy`` columns for programs in Python, and as CSV for engines that read their input themselves."""
        for name in ("sensor", "ts", "value", "mu", "sd"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        with (folder / "calibration.csv").open("w", newline="") as file:
            rows = zip(range(len(self.mu)), self.mu.tolist(), self.sd.tolist(), strict=True)
            csv.writer(file).writerows([("sid", "mu", "sd"), *rows])

    # -- the oracle ---------------------------------------------------------------------------------------

    def expected(self, records: int) -> np.ndarray:
        """The sampled sensors' rows as pandas makes them, (rows, 8), each sensor's in order."""
        import pandas as pd

        frame = pd.DataFrame({"sensor": self.sensor[:records], "ts": self.ts[:records], "value": self.value[:records]})
        frame = frame[frame.sensor % SAMPLED == 0].sort_values(["sensor", "ts"], ignore_index=True)
        frame["x"] = (frame.value - self.mu[frame.sensor]) / self.sd[frame.sensor]
        rolling = frame.groupby("sensor").x.rolling(WINDOW, min_periods=1)
        for name in ("mean", "min", "max"):
            frame[name] = getattr(rolling, name)().to_numpy()
        frame["std"] = rolling.std(ddof=0).to_numpy()
        away = (frame.x - frame["mean"]) / (frame["std"] + 1e-9)
        frame["feature"] = np.tanh(away) * np.log1p(frame["max"] - frame["min"])
        return frame[["sensor", "ts", *_MADE]].to_numpy(np.float64)

    def check(self, made: np.ndarray, records: int, rows: int) -> float:
        """The largest error of the sampled rows, which must be all there, each sensor's in order."""
        if rows != records:
            raise Wrong(f"{rows:,} rows for {records:,} records")
        right = self.expected(records)
        made = made[np.argsort(made[:, 0], kind="stable")]  # leaves each sensor's rows in the order they came in
        if made.shape != right.shape or not (made[:, :2] == right[:, :2]).all():
            raise Wrong("the sampled rows are not one for each record, each sensor's in order")
        error = float(np.abs(made[:, 2:] - right[:, 2:]).max())
        if not error < TOLERANCE:
            column = _MADE[int(np.abs(made[:, 2:] - right[:, 2:]).max(axis=0).argmax())]
            raise Wrong(f"off by {error:.1e}, in {column}")
        return error


# -- W1 in tidemill ----------------------------------------------------------------------------------------


def feature(batch: tm.Batch) -> dict[str, np.ndarray]:
    away = (batch["normalized"] - batch["normalized_mean_50"]) / (batch["normalized_std_50"] + 1e-9)
    spread = batch["normalized_max_50"] - batch["normalized_min_50"]
    return {"feature": np.tanh(away) * np.log1p(spread)}


def plan(readings: Readings) -> tm.Plan:
    texts = [f"S{number}" for number in range(len(readings.mu))]
    table = {"sensor": texts, "baseline": readings.mu.tolist(), "scale": readings.sd.tolist()}
    rolling = tm.Rolling("normalized", window=WINDOW, stats=["mean", "std", "min", "max"], ddof=0)
    return tm.Plan(tm.Calibrate(table), rolling, tm.Map(feature))


def batches(readings: Readings, records: int, size: int = _w1.BATCH) -> list[Batch]:
    texts = np.array([f"S{number}" for number in range(len(readings.mu))], object)
    made = []
    for start in range(0, records, size):
        part = slice(start, min(start + size, records))
        sensor = Column(Kind.TEXT, readings.sensor[part], texts=texts)
        columns = {
            "sensor": sensor,
            "ts": Column(Kind.INT, readings.ts[part]),
            "value": Column(Kind.FLOAT, readings.value[part]),
        }
        made.append(Batch(columns, key=sensor, time=readings.ts[part] * 1_000_000))
    return made


def tidemill(readings: Readings, records: int, lanes: int) -> tuple[float, float, tm.Report]:
    """Records per second, the largest error of the sampled rows, and the report."""
    keep = _Kept()
    source = _w1.Gated(batches(readings, records), time="ts")
    ended, report = asyncio.run(_w1.flow(source, plan(readings), tm.sinks.Callback(keep.add), lanes=lanes))
    error = readings.check(keep.sampled(), records, keep.rows)
    return records / (ended - source.began), error, report


class _Kept:
    """All rows' columns, copied; the sampled ones are looked at when the clock has stopped."""

    def __init__(self) -> None:
        self.rows = 0
        self._parts: list[list[np.ndarray]] = []

    def add(self, batch: Batch) -> None:
        self.rows += len(batch)
        names = (
            "ts",
            "normalized",
            *(f"normalized_{name}_{WINDOW}" for name in ("mean", "std", "min", "max")),
            "feature",
        )
        self._parts.append([batch.codes("sensor").copy(), *(batch.columns[name].values.copy() for name in names)])

    def sampled(self) -> np.ndarray:
        made = [np.column_stack([part[0] * 1.0, *part[1:]])[part[0] % SAMPLED == 0] for part in self._parts]
        return np.concatenate(made)
