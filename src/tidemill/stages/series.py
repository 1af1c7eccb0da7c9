"""A Series of pandas or polars, or an array of Arrow, as an array of one value per record, and pandas' rows in the order of the
records."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.column import object_array

__all__ = ["array_of_series", "in_row_order", "is_series"]


def is_series(value: object) -> bool:
    """Whether it is a Series, or an array of Arrow, told without importing any library."""
    library = type(value).__module__.split(".")[0]
    return (library == "pyarrow" and hasattr(value, "null_count") and hasattr(value, "to_pylist")) or (
        library in ("pandas", "polars") and type(value).__name__ == "Series"
    )


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
    """A Series, or an array of Arrow, as a NumPy array of a kind that columns know; times in ns UTC. Where these libraries tell
    what is missing from NaN, it is None here; of times it is NaT.

    >>> import pandas as pd
    >>> array_of_series(pd.Series([1, None], dtype="Int64")), array_of_series(pd.Series([1.5, None]))
    (array([1, None], dtype=object), array([1.5, nan]))
    """
    kind = str(getattr(series, "dtype", ""))
    if kind.startswith("datetime64") and "," in kind:  # pandas, with a zone
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    missing = _missing_rows(series)
    if kind.startswith(("string", "str", "category")):
        return _with_none(series, series.isna() if missing is None else missing)
    array: NDArray[Any] = np.asarray(series.to_numpy() if kind else series.to_numpy(zero_copy_only=False))
    return array if missing is None or array.dtype.kind == "M" else _with_none(series, missing)


def _missing_rows(series: Any) -> Any:
    """Which values are missing, where a library knows that of some of them; a NaN of NumPy's in pandas is a value."""
    if hasattr(series, "null_count"):
        count = series.null_count() if callable(series.null_count) else series.null_count
        return series.is_null() if count else None
    if isinstance(series.dtype, np.dtype):
        return None
    missing = series.isna()
    return missing if missing.any() else None


def _with_none(series: Any, missing: Any) -> NDArray[Any]:
    if hasattr(series, "to_pylist"):  # Arrow's, which gives None
        return object_array(series.to_pylist())
    items = zip(series.to_list(), missing.to_list(), strict=True)
    return object_array([None if gone else item for item, gone in items])
