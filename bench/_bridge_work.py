"""What the bridge's benchmark runs in the workers, the inputs, and how a result is compared with the inline one.

Every function is found by its module's name, so that each pool sends it in its own cheapest way.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

import tidemill as tm
from bench._common import Wrong

Columns = dict[str, np.ndarray]
Point = tuple[str, float, float]

LARGE = 10_000_000 // 8
"""Float64 numbers in 10 MB."""

_kept: dict[int, np.ndarray] = {}


# -- light: one vectorised function -----------------------------------------------------------------------


def light(columns: Any) -> Columns:
    """NumPy on one column of a dict of arrays or of a Batch: 10 us at 20 records."""
    value = columns["value"]
    normalized = (value - 20.0) / 60.0
    return {"normalized": normalized, "feature": np.sqrt(np.abs(normalized)) * np.log(np.abs(value) + 1.0)}


@dataclass
class Readings:
    """The same data in a type that no bridge knows: it goes through the generic pickle."""

    sensor: np.ndarray
    time: np.ndarray
    value: np.ndarray


@dataclass
class Features:
    normalized: np.ndarray
    feature: np.ndarray


def light_object(readings: Readings) -> Features:
    return Features(**light({"value": readings.value}))


def columns_of(size: int, seed: int) -> Columns:
    chance = np.random.default_rng(seed)
    return {
        "sensor": chance.integers(0, 1_000, size).astype(np.int32),
        "time": 1.7e9 + np.arange(size) * 1e-3,
        "value": chance.normal(50, 15, size),
    }


def batch_of(columns: Columns) -> tm.Batch:
    from tidemill.column import Column
    from tidemill.schema import Kind

    floats = {name: Column(Kind.FLOAT, columns[name]) for name in ("time", "value")}
    texts = np.array([f"S{number}" for number in range(1_000)], object)
    return tm.Batch({"sensor": Column(Kind.TEXT, columns["sensor"], texts=texts), **floats})


def object_of(columns: Columns) -> Readings:
    return Readings(**columns)


# -- rows: pure Python, 8-10 us a record -------------------------------------------------------------------

_TURNS = range(1, 150)


def _smoothed(value: float) -> float:
    """The work: pure Python, with nothing that leaves the interpreter but a square root."""
    distance, smoothed = abs(value - 20.0) / 60.0, 0.0
    for turn in _TURNS:
        smoothed = smoothed * 0.9 + math.sqrt(distance + turn)
    return smoothed


def tuples(points: list[Point]) -> list[tuple[str, float, float]]:
    return [(sensor, at, _smoothed(value)) for sensor, at, value in points]


def dicts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**record, "smoothed": _smoothed(record["value"])} for record in records]


def points_of(count: int) -> list[Point]:
    values = np.random.default_rng(0).normal(50, 15, count).tolist()
    return [(f"S{number % 100}", 1.7e9 + number * 1e-3, value) for number, value in enumerate(values)]


def records_of(count: int) -> list[dict[str, Any]]:
    return [{"sensorId": sensor, "timestamp": at, "value": value} for sensor, at, value in points_of(count)]


# -- small and large ---------------------------------------------------------------------------------------


def same(value: Any) -> Any:
    """Nothing to do: what is left is the way there and back."""
    return value


def doubled(values: list[int]) -> list[int]:
    """For `batched`: a list in, a list out."""
    return [2 * value for value in values]


def ends(array: np.ndarray) -> float:
    """A large argument, a small result, and next to no work."""
    return float(array[0] + array[len(array) // 2] + array[-1])


def large(seed: int) -> np.ndarray:
    """A small argument and a result of 10 MB, made once."""
    if seed not in _kept:
        _kept[seed] = np.arange(LARGE, dtype=np.float64) + seed
    return _kept[seed]


def busy(seconds: float) -> float:
    """Hold a lane."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return seconds


# -- equality ----------------------------------------------------------------------------------------------


def require_same(own: Any, right: Any, what: str) -> None:
    """Equal in type, in every name and in every bit, or `Wrong`: its number does not count."""
    if not _equal(own, right):
        raise Wrong(f"{what}: what came back is not what the function returns inline: {own!r:.200}")


def _equal(own: Any, right: Any) -> bool:
    if type(own) is not type(right):
        return False
    if isinstance(own, np.ndarray):
        return bool(own.dtype == right.dtype and own.shape == right.shape and own.tobytes() == right.tobytes())
    if isinstance(own, dict):
        return list(own) == list(right) and all(_equal(own[name], right[name]) for name in own)
    if isinstance(own, (list, tuple)):
        return len(own) == len(right) and all(map(_equal, own, right))
    if isinstance(own, Features):
        return all(_equal(getattr(own, field.name), getattr(right, field.name)) for field in fields(own))
    return bool(own == right)
