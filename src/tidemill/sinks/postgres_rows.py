"""Rows in the binary format of PostgreSQL's COPY, built column by column.

A row is an int16 with the number of fields, and for each field an int32 with its length (-1 for NULL) and its bytes, all
big-endian. Neighbouring columns of fixed width are one packed NumPy array, whose bytes are the rows' as they stand; where
some are NULL, their bytes are taken out of it by one mask. What is between columns of text is cut into one piece for each
row, and all pieces are joined.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, groupby
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.column import NAT, Column
from tidemill.schema import Kind
from tidemill.sinks.postgres_values import NUL_SHOWN
from tidemill.sinks.text import bare, clean_text, json_text

__all__ = ["HEADER", "TRAILER", "TextPieces", "copied"]

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""Begins the data of a COPY."""
TRAILER: Final = b"\xff\xff"
"""Ends it."""

LONG: Final = 256
MOST_TEXTS: Final = 65_536

_NULL: Final = b"\xff\xff\xff\xff"
_EPOCH_US: Final = 946_684_800_000_000
"""PostgreSQL counts microseconds from 2000-01-01 UTC."""
_DTYPES: Final = {Kind.FLOAT: ">f8", Kind.INT: ">i8", Kind.BOOL: "u1", Kind.TIME: ">i8"}
_INT64: Final = range(-(2**63), 2**63)
_ESCAPED_NUL: Final = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def copied(columns: Sequence[Column], types: Sequence[str], rows: int, texts: TextPieces) -> tuple[bytes, list[int]]:
    """The rows of these columns, and for each column how many of its values PostgreSQL cannot hold as they are.

    ``types`` are PostgreSQL's short names of the table's types; ``texts`` is kept from batch to batch.
    """
    changed = [0] * len(columns)
    pieces: list[Iterable[bytes]] = []
    places = range(len(columns))
    head = len(columns)
    for fixed, group in groupby(places, lambda place: columns[place].kind in _DTYPES):
        if fixed:
            members = list(group)
            segment = _Segment(rows, head)
            for place in members:
                changed[place] = segment.add(columns[place])
            if len(members) == len(columns):
                return segment.whole(), changed
            pieces.append(segment.by_row())
        else:
            if head:
                pieces.append([head.to_bytes(2, "big")] * rows)
            for place in group:
                column = columns[place]
                text = column.kind is Kind.TEXT
                made, changed[place] = texts.of(column) if text else _objects(column, types[place])
                pieces.append(made)
        head = 0
    return b"".join(chain.from_iterable(zip(*pieces, strict=True))), changed


class _Segment:
    """Neighbouring fields of fixed width; ``head`` is the number of fields of a row when its first field is here."""

    def __init__(self, rows: int, head: int) -> None:
        self._rows = rows
        self._head = head
        self._fields: list[tuple[str, NDArray[Any], NDArray[np.bool_] | None]] = []

    def add(self, column: Column) -> int:
        """Take a column; returns how many of its values have no place."""
        values, missing, changed = _fixed(column)
        self._fields.append((_DTYPES[column.kind], values, missing))
        return changed

    def whole(self) -> bytes:
        """All rows."""
        packed, kept, _ = self._packed()
        return packed.tobytes() if kept is None else packed.view(np.uint8).reshape(kept.shape)[kept].tobytes()

    def by_row(self) -> list[bytes]:
        """Each row's part."""
        packed, kept, ends = self._packed()
        if kept is None or ends is None:
            parts: list[bytes] = packed.view(f"V{packed.dtype.itemsize}").tolist()
            return parts
        whole = packed.view(np.uint8).reshape(kept.shape)[kept].tobytes()
        stops = ends.tolist()
        return [whole[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]

    def _packed(self) -> tuple[NDArray[Any], NDArray[np.bool_] | None, NDArray[np.int64] | None]:
        """The rows as if no field was NULL; where one is, which of their bytes to keep, and where each row then ends."""
        packed = np.empty(self._rows, _layout(tuple(dtype for dtype, _, _ in self._fields), head=self._head > 0))
        if self._head:
            packed["head"] = self._head
        holed: list[tuple[int, int, NDArray[np.bool_]]] = []
        for place, (dtype, values, missing) in enumerate(self._fields):
            size = np.dtype(dtype).itemsize
            packed[f"value{place}"] = values
            packed[f"length{place}"] = size if missing is None else np.where(missing, -1, size)
            if missing is not None:
                assert packed.dtype.fields is not None
                holed.append((packed.dtype.fields[f"value{place}"][1], size, missing))
        if not holed:
            return packed, None, None
        kept = np.ones((self._rows, packed.dtype.itemsize), np.bool_)
        widths = np.full(self._rows, packed.dtype.itemsize)
        for offset, size, missing in holed:
            kept[:, offset : offset + size] = ~missing[:, None]
            widths -= size * missing
        return packed, kept, widths.cumsum()


@lru_cache(256)
def _layout(dtypes: tuple[str, ...], *, head: bool) -> np.dtype[Any]:
    layout = [("head", ">i2")] if head else []
    for place, dtype in enumerate(dtypes):
        layout += [(f"length{place}", ">i4"), (f"value{place}", dtype)]
    return np.dtype(layout)


def _fixed(column: Column) -> tuple[NDArray[Any], NDArray[np.bool_] | None, int]:
    """The values, which of them are NULL (None: none of them), how many have no place.

    NaN is NULL: of PostgreSQL's NaN it is true that it is greater than every number, so one in a column would be what
    ``max`` gives and what ``WHERE value > 80`` finds.
    """
    values, missing, changed = column.values, column.missing_rows(), 0
    match column.kind:
        case Kind.FLOAT:
            missing |= np.isnan(values)
            changed = sum(bool(missing[row]) for row in column.exact or ())  # ints that no float can stand for
        case Kind.TIME:
            missing |= values == NAT
            values = values // 1000 - _EPOCH_US
        case Kind.INT if column.exact:
            values = values.copy()
            for row, exact in column.exact.items():
                if exact in _INT64:
                    values[row] = exact
                else:
                    missing[row] = True
                    changed += 1
    return values, missing if missing.any() else None, changed


class TextPieces(dict[str | None, bytes]):
    """Texts → their fields, ready to be sent: most of what a stream says it has said before.

    Holds up to 65,536 texts of up to 256 characters and then begins anew.
    """

    def __init__(self) -> None:
        super().__init__({None: _NULL})
        self._changed: set[str] = set()
        self._changed_long = 0

    def __missing__(self, text: str) -> bytes:
        data, changed = _utf8(text)
        piece = len(data).to_bytes(4, "big") + data
        if len(text) > LONG:
            self._changed_long += changed
            return piece
        if len(self) > MOST_TEXTS:
            self.clear()
            self[None] = _NULL
        if changed:
            self._changed.add(text)
        self[text] = piece
        return piece

    def of(self, column: Column) -> tuple[list[bytes], int]:
        """The field of each row, and how many of the texts could not be sent as they are."""
        assert column.texts is not None
        codes = column.values
        missing = (codes < 0) | column.missing_rows()
        if missing.all():
            return [_NULL] * len(codes), 0
        texts = column.texts[codes]
        texts[missing] = None
        items = texts.tolist()
        self._changed_long = 0
        pieces = list(map(self.__getitem__, items))
        changed = sum(map(self._changed.__contains__, items)) if self._changed else 0
        return pieces, changed + self._changed_long


def _utf8(text: str) -> tuple[bytes, bool]:
    """The text, and whether something in it had to be replaced: NUL, half a surrogate pair."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return clean_text(text).replace("\0", NUL_SHOWN).encode(), True
    return (data, False) if 0 not in data else (text.replace("\0", NUL_SHOWN).encode(), True)


def _objects(column: Column, stored: str) -> tuple[list[bytes], int]:
    version = b"\1" if stored == "jsonb" else b""
    made, changed = [], 0
    for item, missing in zip(column.values, column.missing_rows().tolist(), strict=True):
        if item is None or missing:
            made.append(_NULL)
            continue
        text = json_text(item)
        if "\\u0000" in text:
            text, found = _ESCAPED_NUL.subn(rf"\1{NUL_SHOWN}", text)
            changed += bool(found)
        data = version + (bare(text) if stored == "text" else _standard(text)).encode()
        made.append(len(data).to_bytes(4, "big") + data)
    return made, changed


def _standard(text: str) -> str:
    """JSON without the words NaN and Infinity, which Python's writer may have used: null, as everywhere else."""
    if "NaN" not in text and "Infinity" not in text:
        return text
    return json.dumps(json.loads(text, parse_constant=lambda _: None), ensure_ascii=False)
