"""The plant on record: what the harness runs, kills and runs again. Input, table and output are in the current folder.

PLANT_INPUT   the recording
PLANT_SINKS   which sinks, by the names below
PLANT_WORK    seconds that a lane sleeps for each record, so that work is under way when a signal comes
PLANT_PACE    at how many times its speed the recording is read; as fast as it goes where this is not set
PLANT_PLAN    "rows" (one for each record, and one for each silence) or "windows" (one for each sensor and window)
"""

from __future__ import annotations

import os
import time

import numpy as np

import tidemill as tm

WORK = float(os.environ.get("PLANT_WORK", "0"))
POISON = 999.0


class Baseline:
    """A running mean of each sensor's readings, as an object of Python."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0

    def update(self, record: dict[str, float]) -> dict[str, float]:
        if record["value"] == POISON:
            raise ValueError("nobody believes this reading")
        self.count += 1
        self.mean += (record["value"] - self.mean) / self.count
        return {"above": record["value"] - self.mean, "nth": float(self.count)}


def labour(batch: tm.Batch) -> dict[str, np.ndarray]:
    """Slow, and the same for each row wherever batches end."""
    if WORK:
        time.sleep(WORK * len(batch))
    return {"feature": np.sqrt(np.abs(batch["normalized"])) * np.log1p(np.abs(batch["value"]))}


def sink(name: str) -> tm.sinks.Sink:
    match name:
        case "sqlite":
            return tm.sinks.SQLite("rows.db", name=name)
        case "ndjson" | "csv" | "ndjson.gz" | "csv.gz":
            return tm.sinks.Lines(f"rows.{name}", name=name)
        case "parquet":
            return tm.sinks.Parquet("rows", name=name)
        case "postgres":
            return tm.sinks.PostgreSQL(os.environ["PLANT_POSTGRES"], table=os.environ["PLANT_TABLE"], name=name)
    raise ValueError(name)


PLANS = {
    "rows": tm.Plan(
        tm.Calibrate("calibration.csv"),
        tm.Rolling("normalized", window=50, stats=["mean", "std", "min", "max"]),
        tm.Lag("value"),
        tm.Keyed(Baseline, columns=["value"], adds={"above": float, "nth": float}),
        tm.Map(labour),
        tm.Silence(after="30s"),
    ),
    "windows": tm.Plan(
        tm.Calibrate("calibration.csv"),
        tm.Diff("value"),
        tm.Map(labour),
        tm.Aggregate(
            tm.sliding("20s", every="10s"),
            {"value": ["count", "mean", "max"], "value_diff_1": "last", "feature": "sum"},
        ),
    ),
}

pipeline = tm.Pipeline(
    tm.sources.Replay(
        os.environ.get("PLANT_INPUT", "plant.ndjson"), pace=float(os.environ.get("PLANT_PACE", "0")) or "max"
    ),
    PLANS[os.environ.get("PLANT_PLAN", "rows")],
    [sink(name) for name in os.environ.get("PLANT_SINKS", "sqlite").split(",")],
    name="plant",
)
