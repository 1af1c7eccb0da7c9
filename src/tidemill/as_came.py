"""A batch as the same kind of table as the data that it came from: a column keeps the type that it had there, if that holds it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import INTEGER_TAG, Column
from tidemill.errors import PlanError
from tidemill.interchange import (
    arrow_of_polars,
    column_of_arrow,
    column_of_pandas,
    is_naive_arrow,
    is_naive_pandas,
    kind_of_table,
    to_arrow,
    to_pandas,
)
from tidemill.schema import Kind

__all__ = ["like"]


def like(data: Any, batch: Batch) -> Any:
    """``batch`` as the same kind of table as ``data``: what went in decides what comes out.

    A column of ``data`` keeps its own type (an int stays an int, a time its zone) where that holds what the batch has under
    its name: values of the same kind, every one of them and what is missing. Any other has the type that `to_pandas` and
    `to_arrow` give its kind; times are without a zone where those of ``data`` are. A pandas index is kept when the batch has
    as many rows as ``data``.
    """
    match kind_of_table(data):
        case "batch":
            return batch
        case "rows":
            return batch.to_rows()
        case "pandas":
            return _like_pandas(data, batch)
        case "polars":
            return _like_polars(data, batch)
        case "arrow":
            return _like_arrow(data, batch)
        case _:
            raise PlanError(f"a {type(data).__name__} is no table.")


# -- one library each --------------------------------------------------------------------------------


def _like_pandas(data: Any, batch: Batch) -> Any:
    made = to_pandas(batch)
    whole = len(batch) == len(data)
    if whole:
        made.index = data.index
    own = {str(name): name for name in data.columns}
    for name, column in batch.columns.items():
        if name not in own:
            continue
        came = data[own[name]]
        if whole and _same(column_of_pandas(came), column, nan_is_missing=_has_no_null(came.dtype)):
            made[name] = came
            continue
        if column.kind is Kind.TIME and is_naive_pandas(came):
            made[name] = made[name].dt.tz_localize(None)
        fitting = _fitting_pandas(made[name], column, came.dtype)
        if fitting is not None:
            made[name] = fitting
    return made.rename(columns=own)


def _fitting_pandas(series: Any, column: Column, dtype: Any) -> Any:
    """The column in a type, or None where that cannot hold it."""
    if series.dtype == dtype:
        return None
    if str(dtype) == "category" and not series.dropna().isin(dtype.categories).all():
        return None  # which pandas tells by a warning alone
    import pandas as pd

    integers = _integers(column)
    given = series
    if isinstance(dtype, np.dtype) and dtype.kind == "O" and column.kind is not Kind.TIME:
        given = pd.Series(column.to_list(absent=None), dtype=object, index=series.index)
    elif integers is not None:
        given = pd.Series(pd.arrays.IntegerArray(*integers), index=series.index)
    try:
        cast = given.astype(dtype)
        return cast if _same(column_of_pandas(cast), column, nan_is_missing=_has_no_null(dtype)) else None
    except (TypeError, ValueError, OverflowError, NotImplementedError):
        return None


def _has_no_null(dtype: Any) -> bool:
    """NumPy's floats, in which what is missing is NaN."""
    return isinstance(dtype, np.dtype) and dtype.kind == "f"


def _like_arrow(data: Any, batch: Batch) -> Any:
    import pyarrow as pa

    made = to_arrow(batch)
    whole = len(batch) == data.num_rows
    for place, name in enumerate(made.schema.names):
        natural, column = made.column(place), batch.columns[name]
        own = data.schema.field(name).type if name in data.schema.names else None
        if own == natural.type:
            continue
        fitting = None
        if own is not None and whole and _same(column_of_arrow(data.column(name)), column):
            fitting = data.column(name)
        elif own is not None:
            fitting = _fitting_arrow(natural, column, own)
        if fitting is None and column.kind is Kind.TIME and own is not None and is_naive_arrow(own):
            fitting = natural.cast(pa.timestamp("ns"))
        if fitting is None and column.kind is Kind.TEXT:
            fitting = natural.cast(pa.string())
        if fitting is not None:
            made = made.set_column(place, name, fitting)
    return made


def _fitting_arrow(natural: Any, column: Column, kind: Any) -> Any:
    """The column in a type, or None where that cannot hold it."""
    import pyarrow as pa

    integers = _integers(column)
    try:
        if column.kind is Kind.OBJECT:
            cast = pa.array(column.to_list(absent=None), kind)
        elif integers is not None:
            cast = pa.array(integers[0], mask=integers[1]).cast(kind)
        else:
            cast = natural.cast(kind)
        return cast if _same(column_of_arrow(cast), column) else None
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None


def _like_polars(data: Any, batch: Batch) -> Any:
    """By way of Arrow, which knows neither Enum nor some others of its types."""
    import polars as pl

    arrow = arrow_of_polars(data)
    table = _like_arrow(arrow, batch)
    made: Any = pl.from_arrow(table)
    for name in made.columns:
        if name in data.schema and table.schema.field(name).type == arrow.schema.field(name).type:
            try:
                made = made.with_columns(made[name].cast(data.schema[name]))
            except pl.exceptions.PolarsError:  # a text that is none of an Enum's
                made = made.with_columns(made[name].cast(pl.String))
    return made


# -- what a type holds -------------------------------------------------------------------------------


def _integers(column: Column) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
    """The integers of a column that has nothing else, to the last digit, and which are missing."""
    missing = column.missing_rows()
    if column.kind is Kind.FLOAT:
        if column.tags is None or not ((column.tags == INTEGER_TAG) | missing).all():
            return None
    elif column.kind is not Kind.INT:
        return None
    exact = column.exact or {}
    values = np.where(missing, 0, column.values)
    values[list(exact)] = 0
    kind = np.int64 if max(exact.values(), default=0) < 2**63 else np.uint64
    if kind is np.uint64 and (values < 0).any():
        return None
    made = values.astype(kind)
    try:
        for row, item in exact.items():
            made[row] = item
    except OverflowError:
        return None
    return made, missing


def _same(table: Column, column: Column, *, nan_is_missing: bool = False) -> bool:
    """Whether a table's column holds what a batch's does: its values, of the same kind, and what is missing.

    Texts may be numbered differently, and integers declared or not. ``nan_is_missing``: the table cannot tell them apart.
    """
    if len(table) != len(column):
        return False
    kinds = {table.kind, column.kind}
    if len(kinds) > 1 and kinds != {Kind.FLOAT, Kind.INT}:
        return False
    if column.kind in (Kind.TEXT, Kind.OBJECT):
        return all(map(_equal, table.to_list(absent=None), column.to_list(absent=None)))
    if column.kind is Kind.TIME:
        return np.array_equal(table.values, column.values)
    if not nan_is_missing and not np.array_equal(table.missing_rows(), column.missing_rows()):
        return False
    integers = _integers(table), _integers(column)
    if integers[0] is not None and integers[1] is not None:
        return np.array_equal(integers[0][0], integers[1][0])
    if len(kinds) > 1:
        return False
    if column.kind is Kind.FLOAT:
        return _same_floats(table, column)
    there = ~column.missing_rows()
    return np.array_equal(table.values[there], column.values[there])


def _same_floats(table: Column, column: Column) -> bool:
    if not np.array_equal(table.values, column.values, equal_nan=True):
        return False
    zeros = column.values == 0
    if not np.array_equal(np.signbit(table.values[zeros]), np.signbit(column.values[zeros])):
        return False
    same_integers = np.array_equal(_were_integers(table), _were_integers(column))
    return same_integers and (table.exact or {}) == (column.exact or {})


def _were_integers(column: Column) -> NDArray[np.bool_]:
    return np.zeros(len(column), np.bool_) if column.tags is None else column.tags == INTEGER_TAG


def _equal(item: Any, other: Any) -> bool:
    """Also of values whose comparison is no bool, as of arrays."""
    if item is other:
        return True
    try:
        return type(item) is type(other) and bool(item == other)
    except Exception:  # noqa: BLE001 - whatever a class of the user's raises
        return False
