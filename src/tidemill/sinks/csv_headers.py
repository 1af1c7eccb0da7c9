"""The header of a CSV file: the one that is there, and the one that is to be."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind
from tidemill.sinks.output import first_line

__all__ = ["csv_header", "header_of"]


def header_of(path: Path, *, plain: bool) -> tuple[str, ...] | None:
    """The names in the first line, as `csv_header` has written them; None for an empty file."""
    line = first_line(path).decode("utf-8", "replace").removeprefix("\ufeff")
    names = next(csv.reader([line]), [])
    if plain:
        from tidemill.formats.csv_encode import plain_cell

        names = [name[1:] if name[:1] == "'" and plain_cell(name[1:]) == name else name for name in names]
    return tuple(names) or None


def csv_header(names: Sequence[str], *, plain: bool) -> bytes:
    """The line; see `tidemill.formats.csv_encode.encode_csv`."""
    from tidemill.formats.csv_encode import encode_csv

    return encode_csv(Batch({name: Column.missing(Kind.OBJECT, 0) for name in names}, rows=0), header=True, plain=plain)
