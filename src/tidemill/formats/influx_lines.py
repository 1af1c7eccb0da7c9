"""InfluxDB line protocol: one record as ``measurement,tag=a field=1.5 1700000000000000000`` on each line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any, Final

from tidemill.formats.decoded import BadLine, Decoded
from tidemill.formats.json_limits import DIGITS
from tidemill.formats.lines import text_of
from tidemill.letters import BAD_TIME, INFINITE, MALFORMED, OVERSIZE

__all__ = ["MEASUREMENT", "MOST_FIELDS", "PRECISIONS", "SERIES", "TIME", "InfluxLines"]

MEASUREMENT: Final = "measurement"
TIME: Final = "time"
SERIES: Final = "series"
"""What is known of a line besides its fields: its measurement and tags as one text, the tags sorted."""
PRECISIONS: Final = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
"""Nanoseconds in one unit of a timestamp."""
MOST_FIELDS: Final = 1_024
"""Tags, and fields, of one line."""

_MOST_SERIES: Final = 16_384
_MOST_SERIES_LETTERS: Final = 4 << 20

# A backslash takes away the meaning of the one character behind it that would have one there; before any other it is
# itself. Possessive, so that no line makes them go back and try again.
_MEASUREMENT: Final = re.compile(r"((?:[^ ,\\]++|\\[ ,]?+)++)")
_TAG: Final = re.compile(r"((?:[^ ,=\\]++|\\[ ,=]?+)++)=((?:[^ ,=\\]++|\\[ ,=]?+)++)(?=[ ,]|\Z)")
_FIELD: Final = re.compile(r'((?:[^ ,=\\]++|\\[ ,=]?+)++)=(?:"((?:[^"\\]++|\\["\\]?+)*+)"|([^ ,"]++))(?=[ ,]|\Z)')
_NAME: Final = re.compile(r"((?:[^ ,=\\]++|\\[ ,=]?+)*+)(=?)")
_ESCAPED: Final = re.compile(r"\\([ ,=])")
_ESCAPED_IN_MEASUREMENT: Final = re.compile(r"\\([ ,])")
_ESCAPED_IN_TEXT: Final = re.compile(r'\\(["\\])')

_FLOAT: Final = re.compile(r"-?(?:[0-9]{1,64}(?:\.[0-9]{0,64})?|\.[0-9]{1,64})(?:[eE][-+]?[0-9]{1,4})?").fullmatch
_LONG_NUMBER: Final = re.compile(r"-?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?[iu]?").fullmatch
_INTEGER: Final = re.compile(r"(-?[0-9]{1,64})([iu])").fullmatch
_STAMP: Final = re.compile(r"-?[0-9]{1,19}").fullmatch
_RANGES: Final = {"i": range(-(2**63), 2**63), "u": range(2**64)}
_TIMES: Final = range(-(2**63) + 1, 2**63)
"""Nanoseconds that an int64 holds; its least value means no time."""
_WORDS: Final = {
    **dict.fromkeys(("t", "T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("f", "F", "false", "False", "FALSE"), False),
}
_NO_NUMBERS: Final = re.compile(r"[-+]?(?:nan|inf|infinity)", re.IGNORECASE).fullmatch
_SHOWN: Final = 40


class _Bad(Exception):
    """A line that is no record."""

    def __init__(self, reason: str, reason_code: str = MALFORMED, *, sound: bool = False) -> None:
        super().__init__(reason)
        self.reason_code = reason_code
        self.sound = sound


_Series = tuple[dict[str, Any], Mapping[str, str]]
"""The measurement and the tags as the first fields of a record, and what is known of it."""
_Record = tuple[dict[str, Any], Mapping[str, str]]


class InfluxLines:
    """Lines as records with the fields ``measurement``, then one for each tag, ``time`` and one for each field.

    ``precision``  nanoseconds of one unit of a line's timestamp

    ``time`` is in nanoseconds, and absent of a line without a timestamp. Comments and empty lines are passed over. A line
    is refused whole, with a reason that names the tag or field, when a name comes twice in it (also as ``measurement``
    or ``time``, which are taken), or a value is none: NaN, infinities, numbers beyond 64 bits or 64 digits. A text must end on its line.

    >>> lines = InfluxLines()
    >>> decoded = lines.decode(b'mill,line=L1 speed=41,on=t,count=7i 1700000000000000000\\nmill speed=fast\\n')
    >>> decoded.rows
    [{'measurement': 'mill', 'line': 'L1', 'time': 1700000000000000000, 'speed': 41.0, 'on': True, 'count': 7}]
    >>> decoded.bad[0].reason
    "field 'speed' holds 'fast', which is no number, truth value or text in double quotes"
    """

    name = "influx"
    fallback: str | None = SERIES
    uses_kernels = False

    def __init__(self, precision: int = 1) -> None:
        self.precision = precision
        self._series: dict[str, _Series] = {}
        self._letters = 0

    def decode(self, block: bytes) -> Decoded:
        """The records of a block of whole lines, in order, and the lines that are none; never raises."""
        rows: list[dict[str, Any]] = []
        known: list[Mapping[str, str]] = []
        bad: list[BadLine] = []
        for line in _lines_of(block, bad):
            made = self._quick(line)
            if made is None:
                try:
                    made = self._scanned(line)
                except _Bad as error:
                    bad.append(BadLine(error.reason_code, str(error), line, error.sound))
                    continue
                if made is None:
                    continue
            rows.append(made[0])
            known.append(made[1])
        return Decoded(rows, bad, known)

    def parts(self, block: bytes) -> Iterator[Decoded]:
        """The same, whole: it takes as long as its lines are many."""
        yield self.decode(block)

    def by_field(self, block: bytes) -> None:
        """Nothing: lines of one shape are told by no cheaper way than reading them."""

    def items(self, items: list[Any]) -> None:
        """There is no JSON of it."""

    def _quick(self, line: str) -> _Record | None:
        """The record of a line whose series is known, with numbers and truth values alone; None for any other."""
        parts = line.split(" ")
        if len(parts) != 3:
            return None
        head, pairs, stamp = parts
        series = self._series.get(head)
        if series is None or '"' in pairs or "\\" in pairs or pairs.count(",") >= MOST_FIELDS:
            return None
        if not _STAMP(stamp) or (time_ns := int(stamp) * self.precision) not in _TIMES:
            return None
        row = {**series[0], TIME: time_ns}
        fields = pairs.split(",")
        wanted = len(row) + len(fields)
        for pair in fields:
            name, _, item = pair.partition("=")
            if _FLOAT(item):
                row[name] = float(item)
                if not isfinite(row[name]):
                    return None
            elif item in _WORDS:
                row[name] = _WORDS[item]
            elif (whole := _INTEGER(item)) and (number := int(whole[1])) in _RANGES[whole[2]]:
                row[name] = number
            else:
                return None
        return (row, series[1]) if len(row) == wanted and "" not in row else None

    # -- the whole grammar ---------------------------------------------------------------------------

    def _scanned(self, line: str) -> _Record | None:
        """The record of any line; None when there is none in it. Raises `_Bad`."""
        start = _after_spaces(line, 0)
        if start == len(line) or line[start] == "#":
            return None
        head = line.partition(" ")[0]
        known_series = self._series.get(head)
        series, end = (known_series, len(head)) if known_series else self._scanned_series(line, start)
        first, known = series
        row = dict(first)
        if end == len(line):
            raise _Bad(f"the line ends behind measurement {_short(first[MEASUREMENT])}, without a field")
        place = self._scanned_fields(line, _after_spaces(line, end), row)
        if known_series is None:
            self._remember(line[start:end], series)
        place = _after_spaces(line, place)
        if place < len(line):
            time_ns = self._stamp(line[place:].rstrip(" "))
            fields = list(row.items())[len(first) :]
            row = {**first, TIME: time_ns, **dict(fields)}
        return row, known

    def _scanned_series(self, line: str, start: int) -> tuple[_Series, int]:
        found = _MEASUREMENT.match(line, start)
        if found is None:
            raise _Bad("the line begins without a measurement")
        first = {MEASUREMENT: _unescaped(found[1], _ESCAPED_IN_MEASUREMENT)}
        tags: list[str] = []
        place = found.end()
        while line.startswith(",", place):
            tag = _TAG.match(line, place + 1)
            if tag is None:
                raise _Bad(_bad_tag(line, place + 1))
            name = _unescaped(tag[1])
            _require_free(name, first, "tag")
            if len(tags) == MOST_FIELDS:
                raise _Bad(f"the line has more than {MOST_FIELDS} tags", OVERSIZE, sound=True)
            first[name] = _unescaped(tag[2])
            tags.append(tag[0])
            place = tag.end()
        return (first, {SERIES: ",".join((found[1], *sorted(tags)))}), place

    def _remember(self, text: str, series: _Series) -> None:
        """Of a line with fields: no space behind such a ``text`` is one that a backslash stands before, as it would be behind the
        text of a line that is cut at one. Whoever sends ever new series makes us forget the old ones, and costs no more memory."""
        if len(self._series) >= _MOST_SERIES or self._letters > _MOST_SERIES_LETTERS:
            self._series, self._letters = {}, 0
        self._series[text] = series
        self._letters += len(text)

    def _scanned_fields(self, line: str, place: int, row: dict[str, Any]) -> int:
        """Puts the fields into ``row``; where they end."""
        count = 0
        while True:
            found = _FIELD.match(line, place)
            if found is None:
                raise _Bad(_bad_field(line, place))
            name = _unescaped(found[1])
            _require_free(name, row, "field")
            count += 1
            if count > MOST_FIELDS:
                raise _Bad(f"the line has more than {MOST_FIELDS} fields", OVERSIZE, sound=True)
            text = found[2]
            row[name] = _value(name, found[3]) if text is None else _unescaped(text, _ESCAPED_IN_TEXT)
            place = found.end()
            if not line.startswith(",", place):
                return place
            place += 1

    def _stamp(self, text: str) -> int:
        if _STAMP(text) is None:
            raise _Bad(f"the timestamp {_short(text)} is no whole number of up to 19 digits", BAD_TIME)
        time_ns = int(text) * self.precision
        if time_ns not in _TIMES:
            raise _Bad(
                f"the timestamp {text} is beyond the years 1677 to 2262 that nanoseconds reach", BAD_TIME, sound=True
            )
        return time_ns


def _lines_of(block: bytes, bad: list[BadLine]) -> list[str]:
    """The lines that are text; others are ``bad``."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").removesuffix(b"\r")
    try:
        return block.decode().split("\n")
    except UnicodeDecodeError:
        pass
    lines = []
    for line in block.split(b"\n"):
        try:
            lines.append(line.decode())
        except UnicodeDecodeError:
            bad.append(BadLine(MALFORMED, "the line is not UTF-8", text_of(line)))
    return lines


def _unescaped(text: str, escaped: re.Pattern[str] = _ESCAPED) -> str:
    return escaped.sub(r"\1", text) if "\\" in text else text


def _after_spaces(line: str, place: int) -> int:
    while line.startswith(" ", place):
        place += 1
    return place


def _require_free(name: str, row: Mapping[str, Any], what: str) -> None:
    if name == TIME:
        raise _Bad(f"a {what} is called 'time', which names the timestamp; rename it where it is made", sound=True)
    if name in row:
        taken = "names the measurement" if name == MEASUREMENT else "is there twice, among tags or fields"
        raise _Bad(
            f"{what} {_short(name)} {taken}; a record has each name once: rename one where it is made", sound=True
        )


def _value(name: str, item: str) -> Any:
    """What stands behind a field's ``=``, but for text. Raises `_Bad` that names the field."""
    if item in _WORDS:
        return _WORDS[item]
    if _FLOAT(item):
        number = float(item)
        if number - number != 0:
            raise _Bad(
                f"field {_short(name)} holds {_short(item)}, which is too large for a float", INFINITE, sound=True
            )
        return number
    if whole := _INTEGER(item):
        number = int(whole[1])
        if number < 0 and whole[2] == "u":
            raise _Bad(f"field {_short(name)} holds {_short(item)}, an unsigned integer below 0")
        if number not in _RANGES[whole[2]]:
            raise _Bad(f"field {_short(name)} holds {_short(item)}, an integer beyond 64 bits")
        return number
    if _NO_NUMBERS(item):
        code = MALFORMED if item.lower().endswith("nan") else INFINITE
        raise _Bad(f"field {_short(name)} holds {item}, which line protocol does not know; leave the field out", code)
    if len(item) > DIGITS and _LONG_NUMBER(item):
        raise _Bad(f"field {_short(name)} holds {_short(item)}, a number of more than {DIGITS} digits")
    raise _Bad(f"field {_short(name)} holds {_short(item)}, which is no number, truth value or text in double quotes")


def _bad_tag(line: str, place: int) -> str:
    name, equals = _name_at(line, place)
    if not name:
        return f"there is a tag without a name at character {place + 1}"
    if not equals:
        return f"tag {_short(name)} has no value: there is no = behind it"
    return f"tag {_short(name)} has no value, or one with an = that no backslash stands before"


def _bad_field(line: str, place: int) -> str:
    if place == len(line):
        return "there is no field at the line's end"
    name, equals = _name_at(line, place)
    if not name:
        return f"there is a field without a name at character {place + 1}"
    if not equals:
        return f"field {_short(name)} has no value: there is no = behind it"
    return f"field {_short(name)} has no value that ends where it should: is a double quote missing, or too much?"


def _name_at(line: str, place: int) -> tuple[str, str]:
    found = _NAME.match(line, place)
    return (_unescaped(found[1]), found[2]) if found is not None else ("", "")


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
