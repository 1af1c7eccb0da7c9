"""W1, the workload of the benchmarks, at test size: calibrate, roll, and a function of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tidemill as tm
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind

STATISTICS = ["mean", "std", "min", "max"]


@dataclass
class W1:
    """Interleaved readings of many sensors, and what makes features of them."""

    ids: np.ndarray
    time: np.ndarray
    value: np.ndarray
    texts: np.ndarray
    calibration: dict[str, list[Any]]

    @classmethod
    def of(cls, records: int, sensors: int, seed: int = 0) -> W1:
        random = np.random.default_rng(seed)
        names = [f"S{number}" for number in range(sensors)]
        return cls(
            random.integers(0, sensors, records).astype(np.int32),
            1.7e9 + np.arange(records) * 1e-3,
            random.normal(50, 15, records),
            np.array(names, object),
            {
                "sensor": names,
                "baseline": random.normal(20, 1, sensors).tolist(),
                "scale": random.uniform(40, 80, sensors).tolist(),
            },
        )

    def batches(self, size: int = 4096) -> Iterator[Batch]:
        for start in range(0, len(self.ids), size):
            part = slice(start, start + size)
            sensor = Column(Kind.TEXT, self.ids[part], texts=self.texts)
            yield Batch(
                {
                    "sensor": sensor,
                    "time": Column(Kind.FLOAT, self.time[part]),
                    "value": Column(Kind.FLOAT, self.value[part]),
                },
                key=sensor,
                time=(self.time[part] * 1e9).astype(np.int64),
            )

    def source(self, size: int = 4096) -> tm.sources.Source:
        return tm.sources.Records(self.batches(size))

    def plan(self) -> tm.Plan:
        return tm.Plan(
            tm.Calibrate(self.calibration),
            tm.Rolling("normalized", window=50, stats=STATISTICS),
            tm.Map(feature),
        )

    def features(self, folder: Path, name: str, **options: Any) -> bytes:
        """The output of a whole run, as NDJSON bytes."""
        path = folder / f"{name}.ndjson"
        report = tm.run(tm.Pipeline(self.source(), self.plan(), tm.sinks.Lines(path)), **options)
        assert report.in_flight == 0
        assert report.rows_out == report.records_in == len(self.ids)
        return path.read_bytes()


def feature(batch: tm.Batch) -> dict[str, np.ndarray]:
    return {"feature": np.sqrt(np.abs(batch["normalized"])) * np.log1p(np.abs(batch["value"]))}


@pytest.fixture(scope="session")
def small_w1() -> W1:
    return W1.of(records=6_000, sensors=60)


@pytest.fixture(scope="session")
def w1() -> W1:
    return W1.of(records=400_000, sensors=1_000)
