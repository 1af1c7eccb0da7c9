"""Batches as lines of InfluxDB line protocol."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tidemill.batch import Batch
from tidemill.column import ABSENT, INTEGER_TAG, NAT, Column, object_array
from tidemill.errors import PlanError
from tidemill.formats.influx_lines import MEASUREMENT, PRECISIONS, TIME
from tidemill.formats.influx_names import Texts, of_measurement, of_name, of_tag, quoted
from tidemill.formats.json_lines import encode_json_lines, time_texts
from tidemill.formats.key_template import KeyTemplate, is_nested
from tidemill.formats.times import TimeReader
from tidemill.schema import Kind, Schema

__all__ = ["NO_FIELD", "NO_MEASUREMENT", "InfluxEncoder"]

NO_MEASUREMENT: Final = "rows without a measurement"
NO_FIELD: Final = "rows without a field"

_ENCODER: Final = msgspec.json.Encoder()
_INT64: Final = range(-(2**63), 2**63)
_UINT64: Final = range(2**64)
_MOST_TOLD: Final = 100
"""Columns that are counted each by its name; the rest are counted together."""


_Field = tuple[str, list[int] | None, list[str]]
"""A field's name as it is written, its rows (None: all), and the texts of its values there."""


class InfluxEncoder:
    """Rows as lines; what has no place in them is counted.

    ``measurement``  the name, or a template over columns; those that it names are no fields
    ``tags``         columns that are tags, or ``"text"`` for ``sensor`` and all columns of text; a row without a value there
                     is without that tag
    ``time``         the column of the timestamp; the rows' own time, or else that of column ``time``, by default
    ``precision``    what a timestamp counts; what is finer is cut off
    ``integers``     write numbers that came as integers with an ``i``; declared ones have it always

    Raises `PlanError` for options that cannot work.

    >>> encoder = InfluxEncoder(tags=["line"])
    >>> rows = [{"measurement": "mill", "line": "L 1", "time": "2024-03-01T00:00:00Z", "speed": 4.5, "count": 7}]
    >>> encoder.encode(Batch.from_rows(rows))
    b'mill,line=L\\\\ 1 speed=4.5,count=7i 1709251200000000000\\n'
    """

    def __init__(
        self,
        *,
        measurement: str | None = None,
        tags: Sequence[str] | None = None,
        time: str | None = None,
        precision: str | None = None,
        integers: bool = True,
    ) -> None:
        self._constant, self._template = _measured(measurement)
        self._every_text = tags == "text"
        named = None if self._every_text else tags
        self._tags = {tag: _tag_texts(tag) for tag in _checked_tags(named, time)}
        self._given = {*self._tags, time} if named is not None else {time}
        self._time = time
        if precision is not None and precision not in PRECISIONS:
            raise PlanError(
                f"precision={precision!r} of line protocol is not one of {', '.join(map(repr, PRECISIONS))}."
            )
        self._unit = PRECISIONS[precision or "ns"]
        self._integers = integers
        self._written: dict[str, str | None] = {}
        self._measurements = Texts(of_measurement)
        self._quoted = Texts(quoted)
        self._left_out: Counter[str] = Counter()
        self.rows = 0
        """Lines made so far."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that are no fields."""
        return tuple(dict.fromkeys((*self._named_by, *self._tags, self._time or TIME)))

    @property
    def asks_for(self) -> tuple[str, ...]:
        """The columns that the options name, and those of the measurement."""
        return (*self._named_by, *sorted(name for name in self._given.difference(self._named_by) if name is not None))

    @property
    def _named_by(self) -> tuple[str, ...]:
        return self._template.names if self._template is not None else ()

    @property
    def left_out(self) -> dict[str, int]:
        """Values that could not be written as they are, by column; and rows that could not be written."""
        return dict(self._left_out)

    def why_left_out(self, name: str) -> str:
        """What a person is told when ``name`` is left out for the first time."""
        if name == NO_MEASUREMENT:
            sought = " or ".join(map(repr, self._named_by))
            return f'{name} in {sought} are left out, and counted; give them one with measurement="a name"'
        if name == NO_FIELD:
            texts = (
                "; of a row of texts alone all are tags: name those that are with tags=[...]"
                if self._every_text
                else ""
            )
            return f"{name} that has a value are left out, and counted: line protocol has no such line{texts}"
        return f"some values of field {name!r} have no place in line protocol as they are; the report counts them"

    def check(self, schema: Schema) -> None:
        """Raise `PlanError` when rows of these columns cannot be lines."""
        for name in (*self._named_by, *self._tags, self._time):
            if name is None or name in schema or schema.open:
                continue
            if name in self._named_by:
                raise PlanError(
                    f"A line needs a measurement, and there is no column {name!r} for it among "
                    f'{", ".join(schema.names) or "none"}; write measurement="a name".'
                )
            if name in self._given:
                schema.require(name, stage="line protocol")
        for name in schema.names:
            if name not in self.needs and of_name(name) is None:
                raise PlanError(
                    f"A line cannot have a field called {name!r}: a name there is not empty, ends in no backslash and has "
                    "no line breaks or tabs; rename it, or name the columns you want with columns=[...]."
                )

    def encode(self, batch: Batch) -> bytes:
        """The rows as lines, in order; one that has no measurement, or no field with a value, is left out."""
        if not len(batch):
            return b""
        series, fields, stamps = self._series(batch), list(self._fields(batch)), self._stamps(batch)
        if fields and all(rows is None and "" not in texts for _, rows, texts in fields) and "" not in series[0]:
            names = ",".join(f"{before.replace('%', '%%')}=%s" for before, _, _ in fields)
            line = f"{'%s' * len(series)} {names}%s\n"
            lines = list(map(line.__mod__, zip(*series, *(texts for _, _, texts in fields), stamps, strict=True)))
        else:
            lines = self._holed(series, fields, stamps)
        self.rows += len(lines)
        return "".join(lines).encode("utf-8", "replace")

    def _holed(self, series: list[list[str]], fields: list[_Field], stamps: list[str]) -> list[str]:
        """The same where something is missing: at the cost of what is there."""
        bodies: list[list[str]] = [[] for _ in stamps]
        for before, rows, texts in fields:
            for body, text in zip(bodies if rows is None else [bodies[row] for row in rows], texts, strict=True):
                if text:
                    body.append(f"{before}={text}")
        heads = list(map("".join, zip(*series, strict=True)))
        named = list(map(bool, series[0]))
        self._count(NO_MEASUREMENT, named.count(False))
        self._count(NO_FIELD, sum(has and not body for has, body in zip(named, bodies, strict=True)))
        return [
            f"{head} {','.join(body)}{stamp}\n"
            for has, head, body, stamp in zip(named, heads, bodies, stamps, strict=True)
            if has and body
        ]

    def _count(self, name: str, count: int) -> None:
        if count:
            known = name in self._left_out or len(self._left_out) < _MOST_TOLD
            self._left_out[name if known else "..."] += count

    # -- the series ----------------------------------------------------------------------------------

    def _series(self, batch: Batch) -> list[list[str]]:
        """The measurement of each row, empty where there is none, and then each tag."""
        parts = [self._measured(batch)]
        if self._every_text:
            self._learn_tags(batch)
        for tag, texts in self._tags.items():
            column = batch.columns.get(tag)
            if column is not None:
                tagged, changed = texts.of_column(column) if column.kind is Kind.TEXT else texts.of(_plain(column))
                self._count(tag, changed)
                parts.append(tagged)
        return parts

    def _learn_tags(self, batch: Batch) -> None:
        """Columns of text that are new. (One whose name cannot be written is counted among the fields.)"""
        passed = {*self.needs, MEASUREMENT, TIME}
        new = [name for name, column in batch.columns.items() if column.kind is Kind.TEXT and name not in passed]
        if new := [name for name in new if of_name(name) is not None]:
            self._tags = dict(sorted({**self._tags, **{name: _tag_texts(name) for name in new}}.items()))

    def _measured(self, batch: Batch) -> list[str]:
        if self._constant is not None:
            return [self._constant] * len(batch)
        assert self._template is not None
        names = self._template.names
        column = batch.columns.get(self._template.field or "")
        if column is not None and column.kind is Kind.TEXT:
            heads, changed = self._measurements.of_column(column)
            self._count(names[0], changed)
            return heads
        columns = [batch.columns.get(name) for name in names]
        parts = [_plain(column) if column is not None else [None] * len(batch) for column in columns]
        rows = zip(*parts, strict=True)
        texts = [None if None in row else self._template.join([text or "" for text in row]) for row in rows]
        heads, changed = self._measurements.of(texts)
        self._count(" ".join(names), changed)
        return heads

    # -- time ----------------------------------------------------------------------------------------

    def _stamps(self, batch: Batch) -> list[str]:
        if self._time is None and batch.time_ns is not None:
            ns = batch.time_ns
        else:
            column = batch.columns.get(self._time or TIME)
            if column is None:
                return [""] * len(batch)
            ns, bad = TimeReader().column(column)
            self._count(self._time or TIME, int((bad & ~column.missing_rows()).sum()))
        stamps = [f" {stamp}" for stamp in (ns // self._unit if self._unit > 1 else ns).tolist()]
        for row in np.flatnonzero(ns == NAT).tolist():
            stamps[row] = ""
        return stamps

    # -- fields --------------------------------------------------------------------------------------

    def _fields(self, batch: Batch) -> Iterator[_Field]:
        passed = {*self.needs, MEASUREMENT}
        for name, column in batch.columns.items():
            if name in passed:
                continue
            if name not in self._written:
                self._written[name] = None if name == TIME else of_name(name)
            before = self._written[name]
            missing = column.missing_rows()
            if before is None:
                self._count(name, len(column) - int(missing.sum()))
            elif missing.any():
                rows = np.flatnonzero(~missing)
                yield before, rows.tolist(), self._texts(name, column.take(rows))
            else:
                yield before, None, self._texts(name, column)

    def _texts(self, name: str, column: Column) -> list[str]:
        """The values of a field, none of which is missing, as a line has them; empty where it has no place for one."""
        match column.kind:
            case Kind.TEXT:
                texts, changed = self._quoted.of_column(column)
                self._count(name, changed)
            case Kind.TIME:
                texts = [f'"{text}"' if text is not None else "" for text in time_texts(column)]
            case Kind.OBJECT:
                texts = [self._item(name, item) for item in column.to_list()]
            case Kind.BOOL:
                texts = np.where(column.values, "true", "false").tolist()
            case Kind.INT:
                texts = _integers(column.values)
            case _ if self._integers and column.tags is not None:
                texts = self._numbers(name, column, column.tags == INTEGER_TAG)
            case _:
                texts = self._floats(name, column.values)
        for row, item in (column.exact or {}).items():
            exact = self._integers or column.kind is not Kind.FLOAT
            texts[row] = self._item(name, item if exact else float(column.values[row]))
        return texts

    def _numbers(self, name: str, column: Column, integers: NDArray[np.bool_]) -> list[str]:
        whole = np.where(np.abs(column.values) < 2.0**63, column.values, 0.0)  # those are in exact
        if integers.all():
            return _integers(whole.astype(np.int64))
        boxed = np.empty(len(column), object)
        boxed[integers] = _integers(whole[integers].astype(np.int64))
        boxed[~integers] = self._floats(name, column.values[~integers])
        texts: list[str] = boxed.tolist()
        return texts

    def _floats(self, name: str, values: NDArray[np.float64]) -> list[str]:
        texts = _json_of(values)
        if "null" in texts:
            self._count(name, int(np.isinf(values).sum()))
            texts = ["" if text == "null" else text for text in texts]
        return texts

    def _item(self, name: str, item: Any) -> str:
        """One value of any type."""
        if isinstance(item, np.generic):
            item = item.item()
        match item:
            case None:
                return ""
            case bool():
                return "true" if item else "false"
            case int() if item in _UINT64 or item in _INT64:
                return f"{item}{'i' if item in _INT64 else 'u'}" if self._integers else repr(float(item))
            case float() if math.isfinite(item):
                return repr(item)
            case float() if math.isnan(item):
                return ""
            case str():
                (text,), changed = self._quoted.of([item])
                self._count(name, changed)
                return text
            case int() | float():
                self._count(name, 1)
                return ""
            case _:
                return "" if item is ABSENT else self._quoted[_json(item)]


def _json_of(values: NDArray[Any]) -> list[str]:
    return _ENCODER.encode(values.tolist())[1:-1].decode().split(",") if len(values) else []


def _integers(values: NDArray[Any]) -> list[str]:
    return (_ENCODER.encode(values.tolist())[1:-1].decode().replace(",", "i,") + "i").split(",") if len(values) else []


def _measured(measurement: str | None) -> tuple[str | None, KeyTemplate | None]:
    """A name, ready to be written, or what makes it."""
    if measurement is None:
        return None, KeyTemplate(MEASUREMENT)
    if not isinstance(measurement, str):
        raise PlanError(f"measurement={measurement!r} of line protocol must be a text.")
    if "{" in measurement or "}" in measurement:
        try:
            return None, KeyTemplate(measurement)
        except PlanError as error:
            raise PlanError(str(error).replace("key=", "measurement=", 1)) from None
    made, exact = of_measurement(measurement)
    if not made or not exact:
        raise PlanError(
            f"measurement={measurement!r} cannot be one of line protocol: a name there is not empty, begins with no #, "
            "ends in no backslash, and has no line breaks or tabs."
        )
    return made, None


def _tag_texts(tag: str) -> Texts:
    return Texts(of_tag, f",{of_name(tag)}=")


def _checked_tags(tags: Sequence[str] | None, time: str | None) -> tuple[str, ...]:
    if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags or ()):
        raise PlanError(
            f'tags={tags!r} of line protocol must be a list of columns: tags=["site", "line"], or "text" for all of text.'
        )
    made = tuple(tags) if tags is not None else ("sensor",)
    if len(set(made)) < len(made):
        raise PlanError(f"tags={list(made)!r} of line protocol names a column twice.")
    for tag in made:
        if tag in (TIME, MEASUREMENT, time) or of_name(tag) is None:
            raise PlanError(f"tags= has {tag!r}, which cannot be a tag of line protocol.")
    return tuple(sorted(made))


def _plain(column: Column) -> list[str | None]:
    """Each value as the text that a name or a tag is; None where there is none."""
    if column.kind is Kind.TEXT:
        texts: list[str | None] = column.array.tolist()
        return texts
    if column.kind is Kind.TIME:
        return time_texts(column)
    return list(map(_plain_item, column.to_list()))


def _plain_item(item: Any) -> str | None:
    if item is None or item is ABSENT or (isinstance(item, float) and math.isnan(item)):
        return None
    if isinstance(item, bool):
        return "true" if item else "false"
    return _json(item) if is_nested(item) else str(item)


def _json(item: Any) -> str:
    line = encode_json_lines(Batch({"a": Column(Kind.OBJECT, object_array([item]))}))
    return line[len(b'{"a":') : -len(b"}\n")].decode()
