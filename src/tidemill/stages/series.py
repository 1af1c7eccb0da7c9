"""A pandas or polars Series as an array of one value per record, and pandas' rows in the order of the records."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.column import object_array

__all__ = ["array_of_series", "in_row_order", "is_series"]


def is_series(value: object) -> bool:
    """Whether it is a Series, told without importing either library."""
    return type(value).__name__ == "Series" and type(value).__module__.split(".")[0] in ("pandas", "polars")


def in_row_order(given: Any, rows: int) -> Any:
    """A DataFrame or Series of pandas whose rows were moved, put back by its index: where that is 0 to ``rows - 1`` in another
    order. Any other is as it comes."""
    if not hasattr(given, "iloc"):
        return given
    index = given.index.to_numpy()
    present = np.arange(rows)
    if index.dtype.kind in "iu" and not np.array_equal(index, present) and np.array_equal(np.sort(index), present):
        return given.iloc[np.argsort(index)]
    return given


def array_of_series(series: Any) -> NDArray[Any]:
    """A Series as a NumPy array of a kind that columns know; times in ns UTC."""
    kind = str(series.dtype)
    if kind.startswith("datetime64") and "," in kind:  # pandas, with a zone
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    if kind.startswith(("string", "str", "category")):
        missing = series.isna().tolist()
        return object_array([None if gone else item for item, gone in zip(series.tolist(), missing, strict=True)])
    array: NDArray[Any] = np.asarray(series.to_numpy())
    return array
