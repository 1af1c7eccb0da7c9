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


def header_of(path: Path) -> tuple[str, ...] | None:
    line = first_line(path).decode("utf-8", "replace").removeprefix("\ufeff")
    return tuple(next(csv.reader([line]), ())) or None


def csv_header(names: Sequence[str]) -> bytes:
    from tidemill.formats.csv_encode import encode_csv

    return encode_csv(Batch({name: Column.missing(Kind.OBJECT, 0) for name in names}, rows=0), header=True)
