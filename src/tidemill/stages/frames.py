"""Batches as pandas or polars DataFrames for a user's function, and back."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT_TAG, NULL_TAG, Column
from tidemill.errors import BadResult, MissingExtra
from tidemill.interchange import first_twice
from tidemill.letters import WRONG_LENGTH, WRONG_TYPE
from tidemill.schema import Kind
from tidemill.stages.functions import made_column
from tidemill.stages.series import array_of_series, in_row_order

__all__ = ["Library", "columns_of_frame", "frame_of_batch", "is_frame"]

Library = Literal["pandas", "polars"]


def is_frame(value: object) -> bool:
    """Whether it is a DataFrame, told without importing either library."""
    return type(value).__name__ == "DataFrame" and type(value).__module__.split(".")[0] in ("pandas", "polars")


def frame_of_batch(batch: Batch, library: Library) -> Any:
    """The columns as a DataFrame of its own memory, which the function may change; times are ns, UTC.

    Raises `MissingExtra` without the library.
    """
    try:
        module: Any = importlib.import_module(library)
    except ImportError:
        raise MissingExtra(library, "all", f"Functions over {library} DataFrames") from None
    data = {name: _shown(column) for name, column in batch.columns.items()}
    if library == "polars":
        return module.DataFrame(data)
    return module.DataFrame(data, index=module.RangeIndex(len(batch)))


def _shown(column: Column) -> NDArray[Any]:
    missing = None if column.tags is None else (column.tags == NULL_TAG) | (column.tags == ABSENT_TAG)
    if missing is not None and missing.any() and column.kind in (Kind.INT, Kind.BOOL):
        shown = column.values.astype(np.float64 if column.kind is Kind.INT else object)
        shown[missing] = np.nan if column.kind is Kind.INT else None
        return shown
    return column.array.copy()


def columns_of_frame(stage: str, frame: Any, batch: Batch, declared: Mapping[str, Kind]) -> dict[str, Column]:
    """The columns of a pandas or polars DataFrame; rows of a pandas one are matched by its index where they moved."""
    rows = len(batch)
    if len(frame) != rows:
        raise BadResult(WRONG_LENGTH, f"{stage} returned a DataFrame of {len(frame)} rows for {rows} records")
    if (twice := first_twice(frame.columns)) is not None:
        raise BadResult(WRONG_TYPE, f"{stage} returned a DataFrame with the column {twice!r} twice")
    frame = in_row_order(frame, rows)
    made = {}
    for name in frame.columns:
        if not isinstance(name, str):
            raise BadResult(WRONG_TYPE, f"{stage} returned a DataFrame with the column {name!r}; names must be text")
        made[name] = made_column(stage, name, array_of_series(frame[name]), batch, declared.get(name))
    return made
