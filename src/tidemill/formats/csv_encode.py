"""Batches as lines of CSV."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT_TAG, INTEGER_TAG, NULL_TAG, Column, object_array
from tidemill.formats.json_lines import encode_json_lines, time_texts
from tidemill.schema import Kind

__all__ = ["encode_csv", "plain_cell"]

_ENCODER: Final = msgspec.json.Encoder()
_FORMULA: Final = re.compile(r"\s*[=+\-@\t\r]")
"""What a cell begins with that a spreadsheet works out instead of showing it."""


def encode_csv(batch: Batch, *, header: bool = False, plain: bool = False) -> bytes:
    """The records as CSV lines in order; null, NaN and absent are empty cells, nested values are JSON, and
    what JSON has as a text (a time, a UUID, a Decimal, bytes as base64) is that text.

    ``plain``: a text that a spreadsheet would take for a formula gets an apostrophe before it.

    >>> encode_csv(Batch.from_rows([{"sensor": "S,1", "value": 2}]), header=True)
    b'sensor,value\\n"S,1",2\\n'
    """
    text = _plain if plain else _cell
    lines = [b",".join(map(text, batch.names))] if header else []
    if len(batch) and batch.columns:
        cells = [_cells(column, text) for column in batch.columns.values()]
        if len(cells) == 1:
            cells = [[cell or b'""' for cell in cells[0]]]  # readers pass over an empty line
        lines += map(b",".join, zip(*cells, strict=True))
    return b"\n".join((*lines, b"")) if lines else b""


def plain_cell(text: str) -> str:
    """The text, which no spreadsheet takes for a formula.

    >>> plain_cell("=1+1"), plain_cell("pump-1")
    ("'=1+1", 'pump-1')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def _cells(column: Column, text: Callable[[str], bytes]) -> list[bytes]:
    match column.kind:
        case Kind.TEXT:
            assert column.texts is not None
            table = object_array([*map(text, column.texts.tolist()), b""])
            cells: list[bytes] = table[column.values].tolist()
        case Kind.TIME:
            cells = [b"" if time is None else time.encode() for time in time_texts(column)]
        case Kind.OBJECT:
            cells = [_object_cell(column.slice(row, row + 1), text) for row in range(len(column))]
        case _:
            cells = _ENCODER.encode(column.values.tolist())[1:-1].split(b",")
            if b"null" in cells:
                cells = [b"" if cell == b"null" else cell for cell in cells]
    return cells if column.tags is None else _tagged(column, column.tags, cells)


def _tagged(column: Column, tags: NDArray[np.uint8], cells: list[bytes]) -> list[bytes]:
    boxed = object_array(cells)
    integers = np.flatnonzero(tags == INTEGER_TAG)
    if len(integers):
        whole = column.values[integers]
        numbers = np.where(np.abs(whole) < 2.0**63, whole, 0.0).astype(np.int64).tolist()
        boxed[integers] = object_array(_ENCODER.encode(numbers)[1:-1].split(b","))
    boxed[(tags == NULL_TAG) | (tags == ABSENT_TAG)] = b""
    for row, item in (column.exact or {}).items():
        boxed[row] = str(item).encode()
    made: list[bytes] = boxed.tolist()
    return made


def _cell(text: str) -> bytes:
    if any(glyph in text for glyph in ',"\r\n') or text != text.strip():
        text = '"' + text.replace('"', '""') + '"'
    return text.encode("utf-8", "backslashreplace")


def _plain(text: str) -> bytes:
    return _cell(plain_cell(text))


def _object_cell(column: Column, text: Callable[[str], bytes]) -> bytes:
    item = column.values[0]
    if item is None:
        return b""
    if isinstance(item, str):
        return text(item)
    cell = encode_json_lines(Batch({"a": Column(Kind.OBJECT, column.values)}))[len(b'{"a":') : -len(b"}\n")]
    return text(msgspec.json.decode(cell)) if cell.startswith(b'"') else _cell(cell.decode())
