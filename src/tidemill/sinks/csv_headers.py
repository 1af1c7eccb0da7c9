"""The header of a CSV file: the one that is there, and the one that is to be."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

from tidemill import files
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import InputError
from tidemill.schema import Kind

__all__ = ["csv_header", "header_of"]


def header_of(path: Path, *, plain: bool) -> tuple[str, ...] | None:
    """The names in the first record, as `csv_header` has written them; None for an empty file."""
    names = _first_record(path)
    if plain:
        from tidemill.formats.csv_encode import plain_cell

        names = [name[1:] if name[:1] == "'" and plain_cell(name[1:]) == name else name for name in names]
    return tuple(names) or None


def _first_record(path: Path) -> list[str]:
    """Of a file, which is unpacked when it is .gz; one with a line break in a name has several lines."""
    with io.TextIOWrapper(files.open_read(path), "utf-8-sig", "replace", newline="") as lines:
        try:
            return next(csv.reader(lines), [])
        except csv.Error as error:
            raise InputError(f"{path} cannot be added to, its header cannot be read: {error}.") from error
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} cannot be added to, it is not a whole gzip file: {error}.") from error


def csv_header(names: Sequence[str], *, plain: bool) -> bytes:
    """The line; see `tidemill.formats.csv_encode.encode_csv`."""
    from tidemill.formats.csv_encode import encode_csv

    return encode_csv(Batch({name: Column.missing(Kind.OBJECT, 0) for name in names}, rows=0), header=True, plain=plain)
