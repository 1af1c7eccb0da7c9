"""CSV: one record a line, the first line naming the columns.

A cell that starts with a quote may hold commas, doubled quotes and line ends. Blanks around a cell are part of a text, but
not of the key. Columns have one kind for the whole run: declared, or learned from a first look (numbers, when most of the
cells are, but for digits that are padded with zeros to one width: those are names), never per block.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import InputError
from tidemill.formats.csv_cells import column_of_cells, learn_kind
from tidemill.formats.decoded import BadLine
from tidemill.formats.edge import Edge
from tidemill.formats.lines import LINE_LIMIT, LineSplitter, shown, text_of
from tidemill.kinds import Kinds
from tidemill.letters import MALFORMED, OVERSIZE, WRONG_TYPE, DeadLetter, Letters, Reject
from tidemill.orders import first_repeated
from tidemill.schema import Kind

__all__ = ["CsvDecoder", "parse_header"]

_MOST_LINES: Final = 100
"""Lines that one quoted record may reach over."""
_CELL: Final = re.compile(r'(?:^|,)(?:"((?:[^"]+|"")*+)"?)?([^,]*)')


def parse_header(line: bytes, named: str) -> list[str]:
    """The column names in a header line. Raises `InputError`, naming the input ``named``."""
    try:
        cells = next(csv.reader([line.decode("utf-8")]), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the first line of {named} is no CSV header: {error}.") from None
    header = [cell.strip() or f"column{place}" for place, cell in enumerate(cells)]
    if not header:
        raise InputError(f"{named} is empty; its first line must name the columns.")
    twice = first_repeated(header)
    if twice is not None:
        raise InputError(f"{named} names the column {twice!r} twice; a record has each field once.")
    return header


_Cells = list[list[str]]
"""The cells of some records, by column."""


def _by_column(rows: list[list[str]]) -> _Cells | None:
    return list(map(list, zip(*rows, strict=True))) if rows else None


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
        self._splitter = LineSplitter(limit, begun=header is not None)
        self._open: list[bytes] = []  # lines of a record whose quotes have not closed yet
        self._open_bytes = 0
        self._limit = limit

    @property
    def between(self) -> bool:
        """Whether no record of several lines has begun: one that starts at the last line's end goes on as this does."""
        return self.header is not None and not self._open

    def feed(self, data: bytes, *, arrived_ns: int = 0, wall_ns: int = 0) -> tuple[Batch, Sequence[DeadLetter]]:
        """The records that ``data`` completes, and what was rejected."""
        return self._decode(self._splitter.feed(data), False, arrived_ns, wall_ns)

    def finish(self, *, arrived_ns: int = 0, wall_ns: int = 0) -> tuple[Batch, Sequence[DeadLetter]]:
        """The last record, when the input ended without a line's end."""
        return self._decode(self._splitter.finish(), True, arrived_ns, wall_ns)

    def _decode(self, block: bytes, last: bool, arrived_ns: int, wall_ns: int) -> tuple[Batch, Sequence[DeadLetter]]:
        reason = f"the line is longer than {self._limit} bytes"
        oversize = self.edge.refused([BadLine(OVERSIZE, reason, shown(line.head)) for line in self._splitter.oversize])
        self._splitter.oversize.clear()
        bad: list[BadLine] = []
        if self.header is None and block:
            block = self._take_header(block)
        quoted = bool(self._open) or b'"' in block
        cells = self._quoted(block, last, bad) if quoted else self._plain(block, bad)
        refused = self.edge.refused(bad, known=self._known, header=tuple(self.header or ()))
        if cells is None or self.header is None:
            return Batch({}, rows=0, arrived_ns=arrived_ns), Letters.joined(oversize, refused)
        columns, rejects, misfits = self._columns(cells)
        batch, more = self.edge.columns(
            columns,
            rows=len(cells[0]),
            arrived_ns=arrived_ns,
            wall_ns=wall_ns,
            known=self._known,
            rejects=rejects,
            raw_of=lambda row: _record(columns, cells, row, misfits.get(row, {})),
        )
        return batch, Letters.joined(oversize, refused, more)

    # -- lines -------------------------------------------------------------------------------------

    def _take_header(self, block: bytes) -> bytes:
        while block:
            line, _, block = block.partition(b"\n")
            if line.strip():
                self.header = parse_header(line.rstrip(b"\r"), self._named)
                break
        return block

    def _plain(self, block: bytes, bad: list[BadLine]) -> _Cells | None:
        """Lines without a quote: cells are what stands between commas."""
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").removesuffix(b"\r")
        if self.header is not None and block and _even(block, len(self.header)):
            with contextlib.suppress(UnicodeDecodeError):
                text = block.decode().removesuffix("\n")
                cells = text.replace("\n", ",").split(",")
                width = len(self.header)
                return [cells[place::width] for place in range(width)]
        try:
            lines = block.decode().split("\n")
        except UnicodeDecodeError:
            lines = self._readable(block.split(b"\n"), bad)
        lines = [line for line in lines if line]
        if not lines or self.header is None:
            return None
        width = len(self.header)
        rows = [line.split(",") for line in lines]
        if set(map(len, rows)) != {width}:
            rows = self._fitting(rows, lines, bad)
        return _by_column(rows)

    def _readable(self, lines: list[bytes], bad: list[BadLine]) -> list[str]:
        kept = []
        for line in lines:
            try:
                kept.append(line.decode())
            except UnicodeDecodeError:
                bad.append(BadLine(MALFORMED, "the line is not UTF-8", text_of(line)))
        return kept

    def _fitting(self, rows: list[list[str]], lines: list[str], bad: list[BadLine]) -> list[list[str]]:
        assert self.header is not None
        kept = []
        for cells, line in zip(rows, lines, strict=True):
            if len(cells) == len(self.header):
                kept.append(cells)
            else:
                reason = f"the line has {len(cells)} cells where the header names {len(self.header)}"
                bad.append(BadLine(MALFORMED, reason, line.rstrip("\r\n")))
        return kept

    def _quoted(self, block: bytes, last: bool, bad: list[BadLine]) -> _Cells | None:
        """Records that may reach over several lines."""
        if self.header is None:
            return None
        lines = self._readable(self._records(block, last), bad)
        rows: list[list[str]] = []
        for line in lines:
            cells = _cells_of(line)
            if len(cells) != len(self.header) and "\n" in line:  # a stray quote must not swallow its neighbours
                singles = _singles(line)
                lines = lines[: len(rows)] + singles + lines[len(rows) + 1 :]
                return self._singly(lines, bad)
            rows.append(cells)
        return _by_column(self._fitting(rows, lines, bad))

    def _singly(self, lines: list[str], bad: list[BadLine]) -> _Cells | None:
        assert self.header is not None
        rows, singles = [], []
        for line in lines:
            cells = _cells_of(line)
            parts = [line] if len(cells) == len(self.header) else _singles(line)
            for part in parts:
                if part:
                    rows.append(_cells_of(part))
                    singles.append(part)
        return _by_column(self._fitting(rows, singles, bad))

    def _records(self, block: bytes, last: bool) -> list[bytes]:
        """Lines, joined while a quoted cell is open, up to the limit of a line and `_MOST_LINES`."""
        records = []
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        for line in lines:
            if not self._open and line in (b"", b"\r"):
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
        lines = [line.removesuffix(b"\r") for line in self._open if line not in (b"", b"\r")]
        self._open.clear()
        self._open_bytes = 0
        return lines

    # -- cells -------------------------------------------------------------------------------------

    def _columns(self, cells: _Cells) -> tuple[dict[str, Column], dict[int, Reject], dict[int, dict[str, str]]]:
        """The columns, the rows that do not fit, and of these the cells that do not."""
        assert self.header is not None
        columns: dict[str, Column] = {}
        rejects: dict[int, Reject] = {}
        misfits: dict[int, dict[str, str]] = {}
        for name, items in zip(self.header, cells, strict=True):
            kind = self.kind_of(name, items)
            columns[name], wrong = column_of_cells(name, items, kind, self.edge.times)
            if name in self.edge.roles.key_fields and _has_blanks(columns[name]):
                columns[name], _ = column_of_cells(name, [cell.strip() for cell in items], kind, self.edge.times)
            remedy = self.edge.kinds.remedy(name) if wrong else ""
            for reject in wrong:
                told = reject if reject.reason_code != WRONG_TYPE else replace(reject, reason=reject.reason + remedy)
                rejects.setdefault(reject.row, told)
                misfits.setdefault(reject.row, {})[name] = items[reject.row]
        return columns, rejects, misfits

    def kind_of(self, name: str, cells: Sequence[str]) -> Kind | None:
        """The column's kind in this run; None while no cell has held anything. Fields of the key are text, and so are times in a
        format of their own: sensor 007 is not sensor 7, and 01032024 is not 1032024."""
        kinds: Kinds = self.edge.kinds
        known = kinds.get(name)
        if known is not None:
            return known
        if name in self.edge.roles.key_fields or (
            name == self.edge.roles.time and self.edge.times.time_format is not None
        ):
            return kinds.learn(name, Kind.TEXT)
        learned = learn_kind(cells, of_times=name == self.edge.roles.time)
        return None if learned is None else kinds.learn(name, kinds.fitting(name, learned))


def _has_blanks(column: Column) -> bool:
    """Whether blanks stand around texts: they are no part of a sensor's name, as they are not in tables of sensors."""
    texts = column.values if column.kind is Kind.OBJECT else column.texts
    return texts is not None and any(text and text != text.strip() for text in texts.tolist())


def _record(columns: Mapping[str, Column], cells: _Cells, row: int, misfits: Mapping[str, str]) -> dict[str, Any]:
    """A record as NDJSON would have it; a cell that does not fit its column, and a time, as its text."""
    record = {}
    for (name, column), items in zip(columns.items(), cells, strict=True):
        item = column.slice(row, row + 1).to_list()[0]
        is_time = column.kind is Kind.TIME and item is not None
        record[name] = items[row] if is_time else misfits.get(name, item)
    return record


def _cells_of(line: str) -> list[str]:
    """The cells of a line; without a quote, the same as `CsvDecoder._plain` reads."""
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # a line end within that is none here, or a cell beyond the module's own limit
        return [quoted.replace('""', '"') + rest for quoted, rest in _CELL.findall(line)]


def _singles(record: str) -> list[str]:
    """The lines that were taken for one record."""
    return record.replace("\r\n", "\n").split("\n")


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
