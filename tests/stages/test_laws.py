"""Laws that every stage keeps; each class found in the package is put through all of them.

A new stage needs one line in ``SAMPLES``: an instance, and where they help, records of its own and an oracle.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tidemill as tm
from tidemill.column import NULL_TAG, Column
from tidemill.core.trial import change
from tidemill.schema import Kind
from tidemill.stages.base import Stage
from tidemill.testing import check_stage
from tidemill.testing.subject import Subject

TABLE = {"S1": (20.0, 60.0), "S2": (10.0, 5.0), "S9": (0.0, 1.0)}  # S3 and S4 are unknown to it
MODELS = Path(__file__).parents[2] / "examples" / "models"
DATED = [{"sensor": f"S{n % 3}", "baseline": n, "scale": 2.0, "valid_from": 1_700_000_000 + 100 * n} for n in range(9)]
PLACES = {"S1": {"line": "A", "limit": 80.0}, "S2": {"line": "B", "limit": 75.0}}

WIDE = [
    {"sensor": f"S{n % 3}", "time": n // 2, "flow" if n % 5 == 0 else "temp": float(n * 7 % 11)}
    for n in np.random.default_rng(3).permutation(300).tolist()
]

MIXED = [
    {"sensor": f"S{n % 3}", "time": n, "value": float(n % 7), **({} if n < 10 or n % 4 == 1 else {"any": any_})}
    for n, any_ in enumerate([[1], 5, "t", 2.5, None, {"a": 1}, True, 6, 7, [2]] * 8)
]
"""One field holds values of any type, and is not in the first records."""


COUNTED = tm.Batch.from_rows([{"sensor": f"S{n % 3}", "time": n, "value": float(n % 7)} for n in range(40)])
COUNTED = COUNTED.with_columns(
    {"count": Column(Kind.INT, np.arange(40) % 9, tags=np.where(np.arange(40) % 6 == 5, NULL_TAG, 0).astype(np.uint8))}
)
"""Integers by declaration, of which some are null."""


def counted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(more=frame["value"] + 1, count=frame["count"].mask(frame["count"] > 6, 0) + 1)


def halved(batch: tm.Batch) -> dict[str, Any]:
    return {"half": batch["value"] / 2, "above": batch["value"] > 50}


class Thirds:
    """Built once in each lane."""

    def __call__(self, batch: tm.Batch) -> dict[str, Any]:
        return {"third": batch["value"] / 3}


def labelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "label": f"{row['sensor']}: {row['value']}"} for row in rows]


def picky(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "root": row["value"] ** 0.5 if row["value"] else 1 / 0} for row in rows]


def spread(values: np.ndarray[Any, Any]) -> float:
    return float(values.max() - values.min())


def squared(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(square=frame["value"] ** 2)


def rolled(frame: pd.DataFrame) -> dict[str, Any]:
    windows = frame["value"].rolling(5, min_periods=1)
    stats = ("count", "sum", "mean", "std", "var", "min", "max", "median")
    return {f"value_{stat}_5": getattr(windows, stat)() for stat in stats}


def lagged(frame: pd.DataFrame) -> dict[str, Any]:
    return {"value_lag_2": frame["value"].shift(2)}


def weighted(frame: pd.DataFrame) -> dict[str, Any]:
    return {"value_ewm_mean_span5": frame["value"].ewm(span=5).mean()}


def peak_to_peak(windows: Any) -> Any:
    return np.fmax.reduce(windows, axis=1) - np.fmin.reduce(windows, axis=1)  # without a warning where all are missing


def tallied(frame: pd.DataFrame) -> dict[str, Any]:
    """Windows of ten seconds that have a record."""
    groups = frame["value"].groupby(frame["time"] // 10)
    return {"value_max": groups.max(), "value_count": groups.count().astype(float)}


class Welford:
    """Mean and deviation of the readings so far."""

    count, mean, squares = 0, 0.0, 0.0

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        value = record.get("value")
        if value is not None and not np.isnan(value):
            self.count += 1
            step = value - self.mean
            self.mean += step / self.count
            self.squares += step * (value - self.mean)
        return {"mean": self.mean, "std": (self.squares / max(self.count - 1, 1)) ** 0.5, "seen": self.count > 0}


def deviating(frame: pd.DataFrame) -> dict[str, Any]:
    so_far = frame["value"].expanding()
    return {"mean": so_far.mean().fillna(0.0), "std": so_far.std().fillna(0.0)}


class Picky:
    """Fails on some records, after it has changed itself."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def update(self, record: dict[str, Any]) -> dict[str, Any]:
        self.seen.append(record["value"])
        if record["value"] < 49:
            raise ValueError("too low")
        return {
            "seen": len(self.seen),
            "text": f"{self.seen[-1]}" if len(self.seen) % 3 else None,
            "all": self.seen[-3:],
        }


class Together:
    """Gets all records of a batch at once."""

    total = 0.0

    def update_many(self, batch: tm.Batch) -> dict[str, Any]:
        totals = []
        for value in np.nan_to_num(batch["value"]).tolist():
            self.total += value
            totals.append(self.total)
        return {"total": np.array(totals)}


def totalled(frame: pd.DataFrame) -> dict[str, Any]:
    return {"total": frame["value"].fillna(0.0).cumsum()}


def rising(state: float | None, record: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    value = record["value"]
    return value, {"rise": None if state is None or value is None else value - state}


def calibrated(frame: pd.DataFrame) -> dict[str, Any]:
    baseline, scale = TABLE.get(frame["sensor"].iloc[0], (np.nan, np.nan))
    return {"normalized": (frame["value"] - baseline) / scale}


@dataclass(frozen=True)
class Sample:
    """One instance of a stage, and what to try it on."""

    stage: Stage
    batch: Any = None
    """None for the records that `check_stage` makes up."""
    oracle: Callable[[pd.DataFrame], Any] | None = None

    def check(self, lanes: int) -> None:
        check_stage(self.stage, batch=self.batch, oracle=self.oracle, lanes=lanes)


SAMPLES = [
    Sample(tm.Aggregate(tm.tumbling("10s"), {"value": ["max", "count"]}), oracle=tallied),
    Sample(tm.Aggregate(tm.sliding("60s", "20s"), {"value": ["mean", "std"]})),
    Sample(tm.Aggregate(tm.session("30s"), {"value": ["median", spread]})),
    Sample(tm.Align(["value"], by=None, channel=None, tolerance="20s")),
    Sample(tm.Align(["temp", "flow"], by="sensor", channel=None, method="linear", tolerance="5s"), batch=WIDE),
    Sample(tm.Align(["temp", "flow"], by="sensor", channel=None, on="flow", allowed_lateness="1s"), batch=WIDE),
    Sample(tm.Calibrate(TABLE), oracle=calibrated),
    Sample(tm.Calibrate(TABLE, into="value", on_error="dead_letter")),
    Sample(tm.Calibrate(DATED)),
    Sample(tm.Dedup()),
    Sample(tm.Dedup(counter="value", max_gap=20)),
    Sample(tm.Diff("value"), oracle=lambda frame: {"value_diff_1": frame["value"].diff()}),
    Sample(tm.EventTime("at")),
    Sample(tm.EventTime()),
    Sample(tm.Ewm("value", span=5), oracle=weighted),
    Sample(tm.Ewm("value", halflife="5s", stats=["mean", "std"])),
    Sample(tm.Filter("value > 50"), oracle=lambda frame: frame[frame["value"] > 50]),
    Sample(tm.Filter(lambda batch: batch["value"] > 50)),
    Sample(tm.Keyed(Welford), oracle=deviating),
    Sample(tm.Keyed(Picky, ttl="30s", on_error="nan")),
    Sample(tm.Keyed(Together, columns=["value"], adds={"total": float}), oracle=totalled),
    Sample(tm.Lag("value", 2), oracle=lagged),
    Sample(tm.Lookup(PLACES)),
    Sample(tm.Map(halved), oracle=lambda frame: {"half": frame["value"] / 2, "above": frame["value"] > 50}),
    Sample(tm.Map(Thirds, adds={"third": float})),
    Sample(tm.MapFrame(squared), oracle=squared),
    Sample(tm.MapFrame(squared), batch=MIXED),
    Sample(tm.MapFrame(squared), batch=COUNTED),
    Sample(tm.MapFrame(counted), batch=COUNTED),
    Sample(tm.MapRows(labelled)),
    Sample(tm.MapRows(labelled), batch=MIXED),
    Sample(tm.MapRows(picky, on_error="nan")),
    Sample(tm.MapWindows(peak_to_peak, columns="value", window=7, into="peak")),
    Sample(tm.Model(MODELS / "classes.onnx", ["a", "b", "c", "d"], {"label": ["label"]})),
    Sample(tm.Rate("value", per="1min")),
    Sample(tm.Resample("value", "10s", max_gap="40s")),
    Sample(tm.Resample("value", "10s", "mean")),
    Sample(tm.Resample(["temp", "flow"], "1s", "linear", max_gap="5s"), batch=WIDE),
    Sample(tm.Rolling("value", window=5, stats=["count", "sum", "mean", "std", "var", "min", "max", "median"]), oracle=rolled),
    Sample(tm.Rolling("value", window=50)),
    Sample(tm.Rolling("value", window=9, max_gap_s=30, stats=["range", "first", "last", "delta", "slope", "rate", "rms"])),
    Sample(tm.Rolling("value", window=5, max_gap_s=1)),
    Sample(tm.Rolling("value", window=20, stats=[tm.quantile(0.9), "median", "zscore", peak_to_peak])),
    Sample(tm.Rolling("value", window="30s", stats=["mean", "std", "median", "slope"])),
    Sample(tm.Rolling("value", window="10s", stats=[peak_to_peak, "mean"], max_records=16)),
    Sample(tm.scan(rising, columns=["value"])),
    Sample(tm.Silence("20s")),
    Sample(tm.Stuck("value", 2)),
    Sample(tm.Select("value", where="sensor", sensor="sensor", time="time")),
]  # fmt: skip


def stages_in_the_package() -> Iterator[type[Stage]]:
    package = importlib.import_module("tidemill.stages")
    for module in pkgutil.walk_packages(package.__path__, "tidemill.stages."):
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(found, Stage) and not inspect.isabstract(found):
                yield found


def test_every_stage_of_the_package_is_under_the_laws() -> None:
    """A new stage has a sample here from the day it is written."""
    assert set(stages_in_the_package()) == {type(sample.stage) for sample in SAMPLES}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stage.name)
def test_every_stage_keeps_every_law(sample: Sample, lanes: int) -> None:
    """See `check_stage`; with processes, `Plan.apply` is compared with a run that has two of them."""
    sample.check(lanes)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stage.name)
def test_a_stage_whose_values_depend_on_times_refuses_records_without(sample: Sample) -> None:
    """Without a time column all records are of one moment, and its values would be wrong without a word."""
    subject = Subject.of(sample.stage, sample.batch, key="sensor", time="time", tz="UTC")
    timeless = subject.batch.with_columns({})
    timeless.time_ns = np.zeros(len(timeless), np.int64)
    if change(subject.on(timeless).whole, subject.whole):
        rows = [{name: value for name, value in row.items() if name != "time"} for row in subject.batch.to_rows()]
        with pytest.raises(tm.PlanError, match="works in event time: name its column with"):
            tm.Plan(sample.stage).apply(rows)
