"""CSV: one record a line, the first line naming the columns.

A cell that starts with a quote may hold commas, doubled quotes and line ends. Columns have one kind for the whole
run: declared, or learned from a first look (numbers, when most of the cells are), never per block.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT_TAG, INTEGER_TAG, NULL_TAG, Column, object_array
from tidemill.errors import InputError
from tidemill.formats.edge import Edge
from tidemill.formats.json_lines import encode_json_lines, time_texts
from tidemill.formats.lines import LINE_LIMIT, LineSplitter, shown
from tidemill.formats.times import TimeReader
from tidemill.letters import INFINITE, MALFORMED, OVERSIZE, WRONG_TYPE, DeadLetter, Reject
from tidemill.rows import Kinds
from tidemill.schema import Kind

__all__ = ["CsvDecoder", "encode_csv", "learn_kind", "parse_header"]

_NOT_A_NUMBER: Final = frozenset({"nan", "+nan", "-nan"})
_INFINITIES: Final = frozenset({"inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"})
_TRUE: Final = frozenset({"true", "1", "yes"})
_FALSE: Final = frozenset({"false", "0", "no"})
_MOST_LINES: Final = 100
"""Lines that one quoted record may reach over."""
_LOOK: Final = 4_000
"""Cells of a column from which its kind is learned."""


def parse_header(line: bytes, named: str) -> list[str]:
    """The column names in a header line. Raises `InputError`, naming the input ``named``."""
    try:
        cells = next(csv.reader([line.decode("utf-8")]), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the first line of {named} is no CSV header: {error}.") from None
    header = [cell.strip() or f"column{place}" for place, cell in enumerate(cells)]
    if not header:
        raise InputError(f"{named} is empty; its first line must name the columns.")
    twice = [name for place, name in enumerate(header) if name in header[:place]]
    if twice:
        raise InputError(f"{named} names the column {twice[0]!r} twice; a record has each field once.")
    return header


def learn_kind(cells: Sequence[str]) -> Kind | None:
    """FLOAT when more than half of the cells that hold something are numbers, else TEXT; None when none does."""
    filled = [cell for cell in cells[:_LOOK] if cell.strip() and cell.strip().lower() not in _NOT_A_NUMBER]
    if not filled:
        return None
    numbers = sum(_number(cell) is not None for cell in filled)
    return Kind.FLOAT if 2 * numbers > len(filled) else Kind.TEXT


@dataclass
class _Block:
    """The cells of some records, by column, and how to show a record."""

    cells: list[list[str]]
    rows: int
    lines: Callable[[], list[str]]


def _block(rows: list[list[str]], lines: list[str]) -> _Block | None:
    return _Block(list(map(list, zip(*rows, strict=True))), len(rows), lambda: lines) if rows else None


def _even(block: bytes, width: int) -> bool:
    """Whether every line has ``width`` cells, and none is empty."""
    glyphs = np.frombuffer(block if block.endswith(b"\n") else block + b"\n", np.uint8)
    ends = np.flatnonzero(glyphs == ord("\n"))
    commas = np.searchsorted(np.flatnonzero(glyphs == ord(",")), ends)
    whole = np.array_equal(commas, np.arange(1, len(ends) + 1) * (width - 1))
    return whole and bool((np.diff(ends, prepend=-1) > 1).all())


class CsvDecoder:
    """Bytes of one CSV input, fed as they come, as batches through an `Edge`.

    The edge's kinds are shared by all the inputs of a source, so that a column has one kind in all of them.

    >>> decoder = CsvDecoder(Edge(time="t"), named="plant.csv")
    >>> batch, letters = decoder.feed(b"sensor,t,value\\nS1,0,20\\nS1,1\\n")
    >>> batch["value"], letters[0].reason
    (array([20.]), 'the line has 2 cells where the header names 3')
    """

    def __init__(
        self,
        edge: Edge,
        *,
        named: str,
        known: Mapping[str, str] | None = None,
        limit: int = LINE_LIMIT,
        header: Sequence[str] | None = None,
    ) -> None:
        self.edge = edge
        self.header = list(header) if header is not None else None
        self._named = named
        self._known = known or {}
        self._splitter = LineSplitter(limit)
        self._open: list[bytes] = []  # lines of a record whose quotes have not closed yet
        self._open_bytes = 0
        self._limit = limit

    def feed(self, data: bytes, *, arrived_ns: int = 0, wall_ns: int = 0) -> tuple[Batch, list[DeadLetter]]:
        """The records that ``data`` completes, and what was rejected."""
        return self._decode(self._splitter.feed(data), False, arrived_ns, wall_ns)

    def finish(self, *, arrived_ns: int = 0, wall_ns: int = 0) -> tuple[Batch, list[DeadLetter]]:
        """The last record, when the input ended without a line's end."""
        return self._decode(self._splitter.finish(), True, arrived_ns, wall_ns)

    def _decode(self, block: bytes, last: bool, arrived_ns: int, wall_ns: int) -> tuple[Batch, list[DeadLetter]]:
        letters = [
            self.edge.refuse(OVERSIZE, f"the line is longer than {self._limit} bytes", shown(line.head))
            for line in self._splitter.oversize
        ]
        self._splitter.oversize.clear()
        if self.header is None and block:
            block = self._take_header(block)
        quoted = bool(self._open) or b'"' in block
        made = self._quoted(block, last, letters) if quoted else self._plain(block, letters)
        if made is None or self.header is None:
            return Batch({}, rows=0, arrived_ns=arrived_ns), letters
        columns, rejects = self._columns(made.cells)
        batch, more = self.edge.columns(
            columns,
            rows=made.rows,
            arrived_ns=arrived_ns,
            wall_ns=wall_ns,
            known=self._known,
            rejects=rejects,
            raw_of=partial(_line_of, made.lines),
        )
        return batch, letters + more

    # -- lines -------------------------------------------------------------------------------------

    def _take_header(self, block: bytes) -> bytes:
        while block:
            line, _, block = block.partition(b"\n")
            if line.strip():
                self.header = parse_header(line.rstrip(b"\r"), self._named)
                break
        return block

    def _plain(self, block: bytes, letters: list[DeadLetter]) -> _Block | None:
        """Lines without a quote: cells are what stands between commas."""
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n")
        if self.header is not None and block and _even(block, len(self.header)):
            with contextlib.suppress(UnicodeDecodeError):
                text = block.decode().removesuffix("\n")
                cells = text.replace("\n", ",").split(",")
                width = len(self.header)
                return _Block(
                    [cells[place::width] for place in range(width)], len(cells) // width, partial(text.split, "\n")
                )
        try:
            lines = block.decode().split("\n")
        except UnicodeDecodeError:
            lines = self._readable(block.split(b"\n"), letters)
        lines = [line for line in lines if line]
        if not lines or self.header is None:
            return None
        width = len(self.header)
        rows = [line.split(",") for line in lines]
        if set(map(len, rows)) != {width}:
            rows, lines = self._fitting(rows, lines, letters)
        return _block(rows, lines)

    def _readable(self, lines: list[bytes], letters: list[DeadLetter]) -> list[str]:
        kept = []
        for line in lines:
            try:
                kept.append(line.decode())
            except UnicodeDecodeError:
                letters.append(self.edge.refuse(MALFORMED, "the line is not UTF-8", shown(line)))
        return kept

    def _fitting(
        self, rows: list[list[str]], lines: list[str], letters: list[DeadLetter]
    ) -> tuple[list[list[str]], list[str]]:
        assert self.header is not None
        kept_rows, kept_lines = [], []
        for cells, line in zip(rows, lines, strict=True):
            if len(cells) == len(self.header):
                kept_rows.append(cells)
                kept_lines.append(line)
            else:
                reason = f"the line has {len(cells)} cells where the header names {len(self.header)}"
                letters.append(self.edge.refuse(MALFORMED, reason, shown(line.encode())))
        return kept_rows, kept_lines

    def _quoted(self, block: bytes, last: bool, letters: list[DeadLetter]) -> _Block | None:
        """Records that may reach over several lines."""
        if self.header is None:
            return None
        lines = self._readable(self._records(block, last), letters)
        rows: list[list[str]] = []
        for line in lines:
            cells = _cells_of(line)
            if len(cells) != len(self.header) and "\n" in line:  # a stray quote must not swallow its neighbours
                singles = line.split("\n")
                lines = lines[: len(rows)] + singles + lines[len(rows) + 1 :]
                return self._singly(lines, letters)
            rows.append(cells)
        rows, lines = self._fitting(rows, lines, letters)
        return _block(rows, lines)

    def _singly(self, lines: list[str], letters: list[DeadLetter]) -> _Block | None:
        assert self.header is not None
        rows, shown_lines = [], []
        for line in lines:
            cells = _cells_of(line)
            parts = [line] if len(cells) == len(self.header) else line.split("\n")
            for part in parts:
                if part.strip("\r"):
                    rows.append(_cells_of(part))
                    shown_lines.append(part)
        rows, shown_lines = self._fitting(rows, shown_lines, letters)
        return _block(rows, shown_lines)

    def _records(self, block: bytes, last: bool) -> list[bytes]:
        """Lines, joined while a quoted cell is open, up to the limit of a line and `_MOST_LINES`."""
        records = []
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        for line in lines:
            if not self._open and not line.strip(b"\r"):
                continue
            still_open = _open_after(line, bool(self._open))
            self._open.append(line)
            self._open_bytes += len(line) + 1
            if not still_open:
                records.append(b"\n".join(self._open).removesuffix(b"\r"))
                self._open.clear()
                self._open_bytes = 0
            elif len(self._open) >= _MOST_LINES or self._open_bytes > self._limit:
                records += self._given_up()
        if last and self._open:
            records += self._given_up()
        return records

    def _given_up(self) -> list[bytes]:
        """The quote never closes: it was no quote, and each line stands for itself."""
        lines = [line.removesuffix(b"\r") for line in self._open if line.strip(b"\r")]
        self._open.clear()
        self._open_bytes = 0
        return lines

    # -- cells -------------------------------------------------------------------------------------

    def _columns(self, cells: list[list[str]]) -> tuple[dict[str, Column], dict[int, Reject]]:
        assert self.header is not None
        columns: dict[str, Column] = {}
        rejects: dict[int, Reject] = {}
        for name, items in zip(self.header, cells, strict=True):
            kind = self.kind_of(name, items)
            columns[name], wrong = column_of_cells(name, items, kind, self.edge.times)
            for reject in wrong:
                rejects.setdefault(reject.row, reject)
        return columns, rejects

    def kind_of(self, name: str, cells: Sequence[str]) -> Kind:
        """The column's kind in this run. Fields of the key are text: sensor 007 is not sensor 7."""
        kinds: Kinds = self.edge.kinds
        known = kinds.get(name)
        if known is not None:
            return known
        if name in self.edge.key_fields:
            return kinds.learn(name, Kind.TEXT)
        learned = learn_kind(cells)
        return Kind.OBJECT if learned is None else kinds.learn(name, learned)


def _line_of(lines: Callable[[], list[str]], row: int) -> str:
    return shown(lines()[row].encode())


def _cells_of(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # a cell beyond the module's own limit
        return []


def _open_after(line: bytes, opened: bool) -> bool:
    """Whether a quoted cell is open at the line's end; a quote opens one only where a cell begins."""
    place = 0
    if not opened:
        if not line.startswith(b'"'):
            place = line.find(b',"') + 1
            if not place:
                return False
        place += 1
    while True:
        quote = line.find(b'"', place)
        if quote < 0:
            return True
        if line[quote + 1 : quote + 2] == b'"':
            place = quote + 2
            continue
        place = line.find(b',"', quote + 1) + 2
        if place == 1:
            return False


# -- one maker per kind ------------------------------------------------------------------------------


def column_of_cells(name: str, cells: Sequence[str], kind: Kind, times: TimeReader) -> tuple[Column, list[Reject]]:
    """Cells as a column of ``kind``: an empty cell is null, and so is ``nan`` among numbers; misfits are rejected."""
    match kind:
        case Kind.FLOAT:
            return _floats(name, cells)
        case Kind.TEXT:
            return _texts(cells), []
        case Kind.OBJECT:
            column = Column(Kind.OBJECT, object_array([cell or None for cell in cells]))
            column.tags = _nulls(cells)
            return column, []
        case Kind.TIME:
            ns, bad = times.column(_texts(cells))
            return _misfits(name, cells, Column(Kind.TIME, ns, tags=_nulls(cells)), bad)
        case Kind.INT:
            return _parsed(name, cells, Kind.INT, _integer, 0)
        case Kind.BOOL:
            return _parsed(name, cells, Kind.BOOL, _truth, False)


def _texts(cells: Sequence[str]) -> Column:
    column = Column.of_texts(cells)
    tags = _nulls(cells)
    if tags is not None:
        column = Column(
            Kind.TEXT, np.where(tags == NULL_TAG, np.int32(-1), column.values), tags=tags, texts=column.texts
        )
    return column


def _nulls(cells: Sequence[str]) -> NDArray[np.uint8] | None:
    if "" not in cells:
        return None
    return np.fromiter((NULL_TAG if not cell else 0 for cell in cells), np.uint8, len(cells))


def _misfits(name: str, cells: Sequence[str], column: Column, bad: NDArray[np.bool_]) -> tuple[Column, list[Reject]]:
    rejects = []
    for row in np.flatnonzero(bad).tolist():
        if cells[row]:
            reason = f"field {name!r} is {column.kind.value} and this record has the text {_short(cells[row])}"
            rejects.append(Reject(row, WRONG_TYPE, reason))
    return column, rejects


def _floats(name: str, cells: Sequence[str]) -> tuple[Column, list[Reject]]:
    try:
        values = np.array(list(map(float, cells)))
    except ValueError:
        return _float_by_float(name, cells)
    if not np.isfinite(values).all() or "_" in ",".join(cells):
        return _float_by_float(name, cells)
    return _with_integers(values, cells, None), []


def _float_by_float(name: str, cells: Sequence[str]) -> tuple[Column, list[Reject]]:
    values = np.full(len(cells), np.nan)
    tags = np.zeros(len(cells), np.uint8)
    rejects = []
    for row, cell in enumerate(cells):
        number = _number(cell)
        plain = cell.strip().lower()
        if number is not None and np.isfinite(number):
            values[row] = number
        elif not plain or plain in _NOT_A_NUMBER:
            tags[row] = NULL_TAG
        elif number is not None:
            tags[row] = NULL_TAG
            rejects.append(Reject(row, INFINITE, f"field {name!r} holds an infinite number, {_short(cell)}"))
        else:
            tags[row] = NULL_TAG
            reason = f"field {name!r} is float and this record has the text {_short(cell)}"
            rejects.append(Reject(row, WRONG_TYPE, reason))
    return _with_integers(values, cells, tags), rejects


def _with_integers(values: NDArray[np.float64], cells: Sequence[str], tags: NDArray[np.uint8] | None) -> Column:
    """The numbers, remembering which cells were written as integers, and the exact ones that a float cannot hold."""
    whole = np.flatnonzero(values == np.rint(values))
    integers = [row for row in whole.tolist() if cells[row].strip().lstrip("+-").isdecimal()]
    exact = None
    if integers:
        if tags is None:
            tags = np.zeros(len(values), np.uint8)
        tags[integers] = INTEGER_TAG
        large = np.flatnonzero((np.abs(values) >= 2.0**53) & (tags == INTEGER_TAG))
        exact = {row: int(cells[row]) for row in large.tolist()} or None
    return Column(Kind.FLOAT, values, tags=tags if tags is not None and tags.any() else None, exact=exact)


def _parsed(name: str, cells: Sequence[str], kind: Kind, parse: Any, fill: Any) -> tuple[Column, list[Reject]]:
    items = [parse(cell) for cell in cells]
    bad = np.fromiter((item is None for item in items), np.bool_, len(items))
    values = np.array([fill if item is None else item for item in items], np.int64 if kind is Kind.INT else np.bool_)
    tags = np.where(bad, np.uint8(NULL_TAG), np.uint8(0)) if bad.any() else None
    return _misfits(name, cells, Column(kind, values, tags=tags), bad)


def _number(cell: str) -> float | None:
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return None


def _integer(cell: str) -> int | None:
    try:
        number = int(cell) if "_" not in cell else None
    except ValueError:
        return None
    return number if number is not None and -(2**63) <= number < 2**63 else None


def _truth(cell: str) -> bool | None:
    word = cell.strip().lower()
    return True if word in _TRUE else False if word in _FALSE else None


def _short(cell: str) -> str:
    return repr(cell) if len(cell) <= 60 else f"{cell[:57]!r}..."


# -- encoding --------------------------------------------------------------------------------------

_ENCODER: Final = msgspec.json.Encoder()


def encode_csv(batch: Batch, *, header: bool = False) -> bytes:
    """The records as CSV lines in order; null, NaN and absent are empty cells, nested values are JSON.

    >>> encode_csv(Batch.from_rows([{"sensor": "S,1", "value": 2}]), header=True)
    b'sensor,value\\n"S,1",2\\n'
    """
    lines = [b",".join(_cell(name) for name in batch.names)] if header else []
    if len(batch) and batch.columns:
        cells = [_cells(column) for column in batch.columns.values()]
        lines += map(b",".join, zip(*cells, strict=True))
    return b"\n".join((*lines, b"")) if lines else b""


def _cells(column: Column) -> list[bytes]:
    match column.kind:
        case Kind.TEXT:
            assert column.texts is not None
            table = object_array([*map(_cell, column.texts.tolist()), b""])
            cells: list[bytes] = table[column.values].tolist()
        case Kind.TIME:
            cells = [b"" if text is None else text.encode() for text in time_texts(column)]
        case Kind.OBJECT:
            cells = [_object_cell(column.slice(row, row + 1)) for row in range(len(column))]
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


def _object_cell(column: Column) -> bytes:
    item = column.values[0]
    if item is None:
        return b""
    if isinstance(item, str):
        return _cell(item)
    line = encode_json_lines(Batch({"a": Column(Kind.OBJECT, column.values)}))
    return _cell(line[len(b'{"a":') : -len(b"}\n")].decode())
