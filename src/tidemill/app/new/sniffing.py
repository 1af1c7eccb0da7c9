"""The first bytes of a recording → how it is written, and its first records. No I/O."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from tidemill.errors import InputError
from tidemill.formats.csv_lines import parse_header
from tidemill.formats.influx_lines import InfluxLines
from tidemill.formats.json_lines import decode_json_lines
from tidemill.formats.times import TimeReader

__all__ = ["Head", "Layout", "number_of", "numbers_in", "sniffed"]

SUFFIXES: Final = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson"}
BLANKS: Final = " "
"""The separator of cells that stand apart by any number of blanks and tabs."""
_SEPARATORS: Final = (",", ";", "\t", "|", BLANKS)
_LINES: Final = 1_000
"""Records that are looked at."""
_TRIED_LETTERS: Final = 1 << 16
"""Of a first line, by which line protocol is told."""
_TRIED: Final = 100
"""Lines by which separators are compared."""


@dataclass(frozen=True)
class Layout:
    """How a recording is written."""

    kind: Literal["csv", "ndjson"]
    named: bool = True
    """Whether the file's suffix says so."""
    separator: str = ","
    quote: str = '"'
    skipped: int = 0
    """Lines before the header."""
    decimal: str = "."
    encoding: str = "utf-8"
    spaced: bool = False
    """Whether blanks stand before texts, which do not belong to them."""
    padded: bool = False
    """Whether blanks stand behind names or cells: `sources.Replay` passes over them, pandas does not."""

    @property
    def plain(self) -> bool:
        """Whether `sources.Replay` reads it; else pandas does, with other words."""
        return self.kind == "ndjson" or replace(self, named=True, padded=False) == Layout("csv")

    def __str__(self) -> str:
        if self.kind == "ndjson":
            return "NDJSON"
        told = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", BLANKS: "blanks"}[self.separator]
        parts = [f"CSV with {told}"]
        if self.decimal == ",":
            parts.append("decimal commas")
        if self.quote == "'":
            parts.append("single quotes")
        if self.skipped:
            parts.append(f"{self.skipped} line{'s' * (self.skipped > 1)} before the header")
        if self.spaced or self.padded:
            sides = "behind" if not self.spaced else "around" if self.padded else "before"
            parts.append(f"blanks {sides} cells")
        if self.encoding != "utf-8":
            parts.append(self.encoding)
        return ", ".join(parts)


@dataclass(frozen=True)
class Head:
    """The beginning of a recording."""

    named: str
    layout: Layout
    fields: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    """The first records; of CSV, cells as they are written but for blanks around them, and None for empty ones."""


def sniffed(named: str, suffix: str, data: bytes, *, whole: bool) -> Head:
    """What the first bytes of the file ``named`` show; ``whole`` when they are all there is.

    Raises `InputError` for what is no recording of lines, saying what it is and what to do.

    >>> head = sniffed("a.txt", ".txt", b"Zeit;Wert\\n2024-03-01;20,5\\n", whole=True)
    >>> str(head.layout), head.rows
    ('CSV with semicolons, decimal commas', ({'Zeit': '2024-03-01', 'Wert': '20,5'},))
    """
    if suffix == ".parquet" or data.startswith(b"PAR1"):
        raise InputError(
            f"{named} is Parquet; new looks at CSV and NDJSON. Write a few rows of it as CSV and use these."
        )
    if not data.strip():
        raise InputError(f"{named} is empty; give a recording with a few records in it.")
    text, encoding = _decoded(named, data)
    if _is_line_protocol(text):
        raise InputError(
            f"{named} is line protocol; new looks at CSV and NDJSON. Write a plan whose source is "
            f'tm.sources.Lines("-", format="influx"), and give it the recording: tidemill check PLAN.py --input FILE.influx'
        )
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if not whole and len(lines) > 1 and not text.endswith("\n"):
        lines.pop()  # cut in the middle
    begin = text.lstrip()[:1]
    if begin == "[" and SUFFIXES.get(suffix) != "csv":
        raise InputError(
            f"{named} holds one JSON array; tidemill reads one object on each line. "
            f"Make it so with: jq -c '.[]' FILE > FILE.ndjson"
        )
    if begin == "{":
        return _json(named, lines, named_so=SUFFIXES.get(suffix) == "ndjson")
    return _csv(named, lines, encoding, named_so=suffix == ".csv")


def _is_line_protocol(text: str) -> bool:
    """Whether its first line is, but for comments."""
    lines = text[:_TRIED_LETTERS].split("\n")
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    return bool(InfluxLines().decode(first.encode("utf-8", "replace")).rows)


def number_of(item: Any, decimal: str = ".") -> float | None:
    """A finite number, as a cell or as a value; None for everything else, true and false among it."""
    if isinstance(item, str):
        if decimal == ",":
            item = item.replace(",", ".")
        try:
            number = float(item) if "_" not in item else math.nan
        except ValueError:
            return None
    elif isinstance(item, (int, float)) and not isinstance(item, bool):
        try:
            number = float(item)
        except OverflowError:
            return None
    else:
        return None
    return number if math.isfinite(number) else None


def numbers_in(items: Iterable[Any], decimal: str = ".") -> list[float]:
    """Those of the items that are finite numbers."""
    return [number for item in items if (number := number_of(item, decimal)) is not None]


def _decoded(named: str, data: bytes) -> tuple[str, str]:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data[: len(data) // 2 * 2].decode("utf-16", "replace"), "utf-16"
    if b"\0" in data:
        raise InputError(f"{named} is not text; new looks at CSV and NDJSON, each also with .gz.")
    cut = max(data.rfind(b"\n") + 1, 0) or len(data)
    try:
        return data[:cut].decode("utf-8-sig") + data[cut:].decode("utf-8", "replace"), "utf-8"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "latin-1"


# -- NDJSON --------------------------------------------------------------------------------------------------


def _json(named: str, lines: Sequence[str], *, named_so: bool) -> Head:
    rows, bad = decode_json_lines("\n".join(lines[:_LINES]).encode("utf-8", "replace"))
    if not rows:
        why = bad[0].reason if bad else "there is no line"
        raise InputError(
            f"{named} begins as JSON, and no line of it is one JSON object ({why}). "
            f"Put each record on a line of its own: jq -c . FILE > FILE.ndjson"
        )
    fields = tuple(dict.fromkeys(name for row in rows for name in row))
    return Head(named, Layout("ndjson", named=named_so), fields, tuple(rows))


# -- CSV -----------------------------------------------------------------------------------------------------


def _csv(named: str, lines: Sequence[str], encoding: str, *, named_so: bool) -> Head:
    skipped = next((place for place, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
    body = lines[skipped : skipped + _LINES]
    quote = _quote(body[:_TRIED])
    separator = max(_SEPARATORS, key=lambda one: _share(body[:_TRIED], one, quote))
    if not any(line.startswith("#") for line in lines[:skipped]):
        skipped = 0  # empty lines alone are in nobody's way
    table = [row for row in _cells(body, separator, quote) if row]
    if not table:
        raise InputError(
            f"{named} has no line that can be read as CSV; new looks at CSV and NDJSON, each also with .gz."
        )
    header = parse_header(",".join(map(_as_cell, table[0])).encode(), named)
    if 2 * sum(map(_is_value, header)) > len(header):
        shown = ", ".join(map(repr, header[:4]))
        raise InputError(
            f"{named} has no header: its first line holds values ({shown}). Put a line with the columns' names before it."
        )
    rows = tuple(
        {name: cell.strip() or None for name, cell in zip(header, row, strict=True)}
        for row in table[1:]
        if len(row) == len(header)
    )
    if not rows:
        raise InputError(f"{named} has a header ({', '.join(map(repr, header[:8]))}) and no record that fits it.")
    spaced = separator not in (BLANKS, "\t") and _spaced(body[1:_TRIED], separator, quote)
    padded = any(cell != cell.rstrip() for row in table for cell in row)
    layout = Layout("csv", named_so, separator, quote, skipped, _decimal(rows, separator), encoding, spaced, padded)
    return Head(named, layout, tuple(header), rows)


def _share(lines: Sequence[str], separator: str, quote: str) -> float:
    """The share of lines that have as many cells as the first, which must have several."""
    widths = [len(row) for row in _cells(lines, separator, quote) if row]
    return widths.count(widths[0]) / len(widths) if widths and widths[0] > 1 else 0.0


def _cells(lines: Sequence[str], separator: str, quote: str, *, spaced: bool = True) -> list[list[str]]:
    if separator == BLANKS:
        return [line.split() for line in lines]
    try:
        return list(csv.reader(lines, delimiter=separator, quotechar=quote, skipinitialspace=spaced))
    except csv.Error:
        return []


def _spaced(lines: Sequence[str], separator: str, quote: str) -> bool:
    """Whether a blank stands before a cell that is neither a number nor a time."""
    if quote != '"':
        return False
    cells = (cell for row in _cells(lines, separator, quote, spaced=False) for cell in row if cell[:1] == " ")
    return any(cell.strip() and not _is_value(cell.strip()) for cell in cells)


def _quote(lines: Sequence[str]) -> str:
    """Single quotes, where they stand in pairs around cells, and no double ones do."""
    single = sum(re.search(r"(^|[,;\t|])\s*'[^']*'\s*([,;\t|]|$)", line) is not None for line in lines)
    return "'" if 2 * single > len(lines) and not any('"' in line for line in lines) else '"'


def _decimal(rows: Sequence[dict[str, str | None]], separator: str) -> str:
    if separator == ",":
        return "."
    cells = [cell for row in rows[:_TRIED] for cell in row.values() if cell]
    with_comma = sum(re.fullmatch(r"[+-]?\d+,\d+", cell) is not None for cell in cells)
    with_point = sum(re.fullmatch(r"[+-]?\d+\.\d+", cell) is not None for cell in cells)
    return "," if with_comma > with_point else "."


def _as_cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _is_value(cell: str) -> bool:
    return number_of(cell) is not None or (cell[:1].isdigit() and TimeReader().one(cell) >= 0)
