"""Batches as pandas or polars DataFrames for a user's function, and back."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT_TAG, NULL_TAG, Column
from tidemill.errors import BadResult, MissingExtra
from tidemill.interchange import first_twice
from tidemill.letters import WRONG_LENGTH, WRONG_TYPE
from tidemill.schema import Kind
from tidemill.stages.functions import are_integers, made_column
from tidemill.stages.series import array_of_series, in_row_order

__all__ = ["Library", "column_from_shown", "columns_of_frame", "frame_of_batch", "is_frame", "require_library"]

Library = Literal["pandas", "polars"]


def is_frame(value: object) -> bool:
    """Whether it is a DataFrame, told without importing either library."""
    return type(value).__name__ == "DataFrame" and type(value).__module__.split(".")[0] in ("pandas", "polars")


def require_library(library: Library) -> None:
    """Raise `MissingExtra` where it is not installed; to import it takes a second."""
    if importlib.util.find_spec(library) is None:
        raise MissingExtra(library, "all", f"Functions over {library} DataFrames")


def frame_of_batch(batch: Batch, library: Library) -> Any:
    """The columns as a DataFrame of its own memory, which the function may change; times are ns, UTC."""
    module: Any = importlib.import_module(library)
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


def columns_of_frame(
    stage: str, frame: Any, batch: Batch, column_of: Callable[[str, NDArray[Any]], Column]
) -> dict[str, Column]:
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
        made[name] = column_of(name, array_of_series(frame[name]))
    return made


def column_from_shown(
    stage: str,
    name: str,
    array: NDArray[Any],
    batch: Batch,
    known: Kind | None,
    kind_alone: Callable[[int], Kind | None],
) -> Column:
    """What a function made of a column that it was shown by `frame_of_batch`: the batch's own where it left that alone.

    Integers among which one is missing are shown as floats, so a float that is whole says nothing of what was meant. It is of
    the kind that the run knows of the column, or else that ``kind_alone`` tells of a row that has a value; and NaN, which these floats
    have for what is missing, is null. So neither depends on which records are in the batch.
    """
    own = batch.columns.get(name)
    if own is None or own.kind not in (Kind.INT, Kind.BOOL):
        return made_column(stage, name, array, batch, None)
    shown = _shown(own)
    same = _same_rows(array, shown)
    if same.all() and array.dtype == shown.dtype:
        if known is None and shown.dtype.kind == "f" and own.has_values:
            known = kind_alone(int(np.flatnonzero(~own.missing_rows())[0]))
        if known is None or known is own.kind:
            return own
        if not own.has_values:
            return _tagged_as(own, Column.missing(known, len(own), NULL_TAG))
        if (own.kind, known) != (Kind.INT, Kind.FLOAT):
            return own
    integers = own.kind is Kind.INT and are_integers(array)
    others = batch.select({other: other for other in batch.columns if other != name})
    column = made_column(stage, name, array, others, Kind.INT if integers else None)
    if own.kind is Kind.INT and column.kind in (Kind.INT, Kind.FLOAT):
        column = _of_integers(own, same, column, known, kind_alone)
    return _tagged_as(own, column)


def _of_integers(
    own: Column,
    same: NDArray[np.bool_],
    column: Column,
    known: Kind | None,
    kind_alone: Callable[[int], Kind | None],
) -> Column:
    """Numbers that a function made of integers, as integers where it is so; the ``same`` ones are the record's own."""
    nothing = column.missing_rows() | np.isnan(column.values)
    if nothing.all():
        return Column.missing(known or Kind.OBJECT, len(own), NULL_TAG)  # of no kind, until another row shows one
    whole = column.kind is Kind.INT or _are_whole(column.values[~nothing])
    kind = known or column.kind
    if known is None and whole and kind is Kind.FLOAT:
        rows = np.flatnonzero(~nothing & ~own.missing_rows())
        kind = (kind_alone(int(rows[0])) if len(rows) else None) or Kind.INT
    tags = np.where(nothing, NULL_TAG, 0).astype(np.uint8)
    if kind is Kind.INT and whole:
        values = np.where(nothing, 0, column.values).astype(np.int64)
        values[same] = own.values[same]  # to the last digit
        exact = {row: item for row, item in (own.exact or {}).items() if same[row]}
        return Column(Kind.INT, values, tags=tags, exact=exact or None)
    if kind is Kind.FLOAT:
        return Column(Kind.FLOAT, np.where(nothing, np.nan, column.values.astype(np.float64)), tags=tags)
    return column


def _same_rows(array: NDArray[Any], shown: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows hold what the function was shown, be it integers that it made floats of, or floats again integers."""
    if np.dtype(object) in (array.dtype, shown.dtype):
        pairs = zip(array.tolist(), shown.tolist(), strict=True)
        return np.fromiter((item is was for item, was in pairs), np.bool_, len(shown))  # bools and None
    if array.dtype != shown.dtype and (array.dtype.kind not in "if" or shown.dtype.kind not in "if"):
        return np.zeros(len(shown), np.bool_)
    same: NDArray[np.bool_] = (array == shown) | (np.isnan(array) & np.isnan(shown))
    return same


def _are_whole(values: NDArray[Any]) -> bool:
    return bool(((values == np.rint(values)) & (np.abs(values) < 2.0**63)).all())


def _tagged_as(own: Column, column: Column) -> Column:
    """``column``, with what the record said of a value that is still missing: null, or no such field."""
    if column.tags is None:
        return column
    tags = (
        column.tags if own.tags is None else np.where(own.missing_rows() & column.missing_rows(), own.tags, column.tags)
    )
    return Column(column.kind, column.values, tags=tags if tags.any() else None, texts=column.texts, exact=column.exact)
