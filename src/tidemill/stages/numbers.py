"""Columns as the float64 arrays that the maths of built-in stages works on."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.schema import Kind

__all__ = ["NUMERIC", "numbers_of"]

NUMERIC: Final = (Kind.FLOAT, Kind.INT, Kind.BOOL)
"""The kinds that read as numbers."""


def numbers_of(batch: Batch, name: str, stage: str) -> NDArray[np.float64]:
    """Column ``name`` as contiguous float64, NaN where a record has no value or no such field."""
    column = batch.columns.get(name)
    if column is None:
        return np.full(len(batch), np.nan)
    if column.kind is Kind.FLOAT:
        return np.ascontiguousarray(column.values)
    missing = None if column.tags is None else column.missing_rows()
    if column.kind not in NUMERIC:
        if missing is not None and missing.all():  # a field that has only held nulls has no kind yet
            return np.full(len(batch), np.nan)
        raise PlanError(f"{stage} needs column {name!r} to be a number; it is {column.kind.value}.")
    values = column.values.astype(np.float64)
    if missing is not None:
        values[missing] = np.nan
    return values
