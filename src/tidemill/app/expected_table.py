"""The table of ``--expect``: read from a file, its columns made comparable with those of an output."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np

from tidemill import files
from tidemill.batch import Batch
from tidemill.column import NULL_TAG, Column
from tidemill.errors import InputError, MissingExtra, TidemillError
from tidemill.formats.csv_cells import column_of_cells
from tidemill.formats.json_lines import decode_json_lines
from tidemill.formats.times import TimeReader
from tidemill.interchange import columns_of_arrow, naive_times
from tidemill.schema import Kind
from tidemill.sources.readers import FORMATS, format_of

__all__ = ["alike", "check_format", "is_text_alone", "read_expected"]

_INDEX: Final = re.compile(r"__index_level_\d+__|Unnamed: \d+|")
_TRUTHS: Final = {"true": True, "false": False}


def check_format(path: Path) -> None:
    """Raises `InputError` for a table of which nothing says that it can be read here."""
    if files.suffix(path) not in FORMATS:
        raise InputError(
            f"nothing says what {path} is: --expect reads a table whose name ends in {', '.join(FORMATS)} (all but the last "
            "also with .gz); write it as one of them, as with to_csv or to_parquet in pandas."
        )


def is_text_alone(path: Path) -> bool:
    """Whether the cells of this file are text, whatever they say."""
    return format_of(path, None) == "csv"


def read_expected(path: Path, times: TimeReader) -> Batch:
    """The rows of a CSV, NDJSON or Parquet file, by its suffix; the first two also with ``.gz``.

    The index that pandas writes along, under a name of its own, is left out. The cells of CSV are text, since the output says what they are. Raises `InputError` for a file that cannot be read.
    """
    check_format(path)
    table = _read(path, times)
    return table.select({name: name for name in table.names if not _INDEX.fullmatch(name)})


def _read(path: Path, times: TimeReader) -> Batch:
    match format_of(path, None):
        case "csv":
            table = files.read_table(path)
            columns = {name: column_of_cells(name, cells, Kind.TEXT, times)[0] for name, cells in table.items()}
            return Batch(columns, rows=len(next(iter(table.values()), [])))
        case "parquet":
            return _of_parquet(path, times)
        case _:
            with files.open_read(path) as handle:
                rows, bad = decode_json_lines(b"".join(files.read_blocks(path, handle, 1 << 20)))
            if bad:
                raise InputError(f"{path} holds a line that is no record: {bad[0].reason}.")
            try:
                return Batch.from_rows(rows)
            except TidemillError as error:
                raise InputError(f"{path} is no table of columns of one kind each: {error}") from None


def _of_parquet(path: Path, times: TimeReader) -> Batch:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("pyarrow", "parquet", "Parquet files") from None
    with files.open_read(path) as handle:
        try:
            table = pq.read_table(handle)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is not a readable Parquet file: {error}.") from error
    columns = columns_of_arrow(table)
    for name in naive_times(table):
        if columns[name].kind is Kind.TIME:
            columns[name] = Column(Kind.TIME, times.localised(columns[name].values))
    return Batch(columns, rows=table.num_rows)


def alike(batch: Batch, other: Batch, times: TimeReader, time: str, *, cells: bool) -> Batch:
    """Its columns as the kinds that ``other`` has, where they can be read so: ``cells`` of CSV, and times in any form.

    ``time`` names the column of the records' own times.
    """
    made = {}
    for name, column in batch.columns.items():
        own = other.columns.get(name)
        if own is None:
            continue
        kind = Kind.TIME if name == time else own.kind
        if column.kind is not kind and (cells or kind is Kind.TIME):
            made[name] = _as_kind(column, kind, times)
    return batch.with_columns(made)


def _as_kind(column: Column, kind: Kind, times: TimeReader) -> Column:
    if kind is Kind.TIME:
        ns, bad = times.column(column)
        return column if bad.any() else Column(Kind.TIME, ns)
    if column.kind is not Kind.TEXT:
        return column
    cells = column.to_list()
    nulls = np.array([NULL_TAG if cell is None else 0 for cell in cells], np.uint8)
    try:
        if kind in (Kind.FLOAT, Kind.INT):
            made, misfits = column_of_cells("", [cell or "" for cell in cells], Kind.FLOAT, times)
            if not misfits:
                return made  # which knows what was written as an integer
            return Column(Kind.FLOAT, np.array([float(cell or "nan") for cell in cells]), tags=nulls)
        if kind is Kind.BOOL:
            truths = [_TRUTHS[cell.lower()] if cell else False for cell in cells]
            return Column(Kind.BOOL, np.array(truths, np.bool_), tags=nulls)
    except (ValueError, KeyError):
        return column  # its first cell that is text is the difference
    return column
