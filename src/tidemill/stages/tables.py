"""Small tables that the user gives: one row per sensor, from CSV, a dict or a DataFrame."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tidemill.configured import looked_up
from tidemill.errors import InputError
from tidemill.stages.base import Table

__all__ = ["ANY_SENSOR", "KeyedRow", "as_columns", "keyed_rows", "missing", "number", "path_of"]

ANY_SENSOR: Final = "*"
"""The key of the row for every sensor without one of its own."""


@dataclass(frozen=True)
class KeyedRow:
    """One row of a table."""

    key: str
    place: str
    """Where it stands, for messages: ``row 3 (sensor S7)``."""
    cells: Mapping[str, Any]


def path_of(table: object, *, option: str) -> str | None:
    """The path, when the table is one yet to be loaded. What it refers to (``${env:NAME}``) is looked up now, once, as in the
    paths of sources."""
    return looked_up(os.fspath(table), option) if isinstance(table, str | os.PathLike) else None


def as_columns(table: Any, *, stage: str, key_column: str, columns: Sequence[str]) -> Table:
    """A table as loaded values by column.

    Takes columns (``{"sensor": [...], "scale": [...]}``), rows by key (``{"S1": {"scale": 2.0}}``, lists of such, or
    tuples or single values in the order of ``columns``), a list of rows, and pandas, polars and Arrow tables.
    """
    module = type(table).__module__.split(".")[0]
    if module == "pandas":
        return {str(name): table[name].tolist() for name in table.columns}
    if module == "polars":
        return {name: table[name].to_list() for name in table.columns}
    if module == "pyarrow":
        return dict(table.to_pydict())
    if isinstance(table, Mapping):
        by_column = any(name in table and not isinstance(table[name], Mapping) for name in (key_column, *columns))
        if by_column:
            return {str(name): list(cells) for name, cells in table.items()}
        return _columns_of_rows(
            {key_column: key, **_named(row, columns, f"{stage}: the row of {key!r}")}
            for key, given in table.items()
            for row in _rows_of(given)
        )
    if isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table):
        return _columns_of_rows(table)
    raise InputError(
        f"{stage} needs a table: the path of a CSV file, a dict, a list of dicts or a DataFrame; "
        f"it was given {type(table).__name__}."
    )


def _rows_of(given: Any) -> Sequence[Any]:
    """The rows of one key: several only as a list of dicts."""
    several = isinstance(given, list) and given and all(isinstance(row, Mapping) for row in given)
    return given if several else [given]


def _named(row: Any, columns: Sequence[str], place: str) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return row
    cells = list(row) if isinstance(row, Sequence) and not isinstance(row, str) else [row]
    if not columns:
        raise InputError(f"{place} names no columns; say which they are with columns=[...], or give a dict of them.")
    if len(cells) != len(columns):
        raise InputError(f"{place} has {len(cells)} values; {len(columns)} are needed: {', '.join(columns)}.")
    return dict(zip(columns, cells, strict=True))


def _columns_of_rows(rows: Iterable[Mapping[str, Any]]) -> Table:
    rows = list(rows)
    names = dict.fromkeys(str(name) for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def keyed_rows(table: Table, *, stage: str, source: str, key_column: str, columns: Sequence[str]) -> list[KeyedRow]:
    """The rows of a table that has ``key_column`` and ``columns``; keys are compared as text, ``7`` like ``"7"``.

    Raises `InputError` naming the expected header, or the row.
    """
    if not table:
        raise InputError(f"{stage}: {source} is empty.")
    wanted = [key_column, *columns]
    absent = [name for name in wanted if name not in table]
    if absent:
        raise InputError(
            f"{stage}: {source} has no column {absent[0]!r}. Expected header: {','.join(wanted)}; "
            f"found: {','.join(table) or 'nothing'}."
        )
    lengths = {name: len(table[name]) for name in wanted}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{stage}: {source} has columns of different lengths: {lengths}.")
    if not lengths[key_column]:
        raise InputError(f"{stage}: {source} has no rows.")
    rows = []
    for number_, cells in enumerate(zip(*(table[name] for name in wanted), strict=True), 1):
        key = cells[0]
        if missing(key):
            raise InputError(f"{stage}: {source}, row {number_}: the {key_column} is empty.")
        place = f"{source}, row {number_} ({key_column} {str(key).strip()})"
        rows.append(KeyedRow(str(key).strip(), place, dict(zip(columns, cells[1:], strict=True))))
    return rows


def missing(cell: Any) -> bool:
    """An empty cell of CSV, None, NaN, NaT, or pandas' NA."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return True
    if isinstance(cell, np.datetime64):
        return bool(np.isnat(cell))
    return type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, float) and math.isnan(cell))


def number(cell: Any, *, stage: str, place: str, column: str) -> float:
    """A finite number; raises `InputError` naming the row, the column and what stands there."""
    try:
        value = math.nan if isinstance(cell, bool) or missing(cell) else float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{stage}: {place}: {column} is {cell!r}; a finite number is needed.")
    return value
