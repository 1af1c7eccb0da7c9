"""Small tables that are read at once."""

from __future__ import annotations

import csv
import io
import os

from tidemill.errors import InputError
from tidemill.files.names import absolute
from tidemill.files.reading import open_read, read_blocks

__all__ = ["read_table"]


def read_table(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """A small CSV table, such as a calibration, as one list of texts per column.

    Raises `InputError` with the absolute path when the file is missing, empty, not UTF-8, or has a row whose number
    of cells is not the header's.
    """
    tried = absolute(path)
    with open_read(tried) as handle:
        data = b"".join(read_blocks(tried, handle, 1 << 20))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{tried} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise InputError(f"{tried}, line {reader.line_num}: {error}.") from None
    if not lines:
        raise InputError(f"{tried} is empty; its first line must name the columns.")
    header = [name.strip() for name in lines[0][1]]
    if len(set(header)) < len(header):
        raise InputError(f"{tried} names a column twice in its header: {', '.join(header)}.")
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise InputError(f"{tried}, line {number}: {len(cells)} cells where the header names {len(header)}.")
    rows = [cells for _, cells in lines[1:]]
    return {name: [cells[place].strip() for cells in rows] for place, name in enumerate(header)}
