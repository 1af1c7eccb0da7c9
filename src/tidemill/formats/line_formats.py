"""The formats of lines whose every record stands for itself, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from tidemill.errors import PlanError
from tidemill.formats.decoded import BadLine, Decoded
from tidemill.formats.edge import Edge
from tidemill.formats.influx_lines import PRECISIONS, TIME, InfluxLines
from tidemill.formats.json_alike import JsonAlike
from tidemill.formats.json_lines import decode_json_lines, json_parts
from tidemill.formats.roles import Known
from tidemill.formats.telegraf_json import TelegrafJson
from tidemill.letters import MALFORMED
from tidemill.rows import RowsByField

__all__ = ["INFLUX_SUFFIXES", "LINE_FORMATS", "LineFormat", "known_of", "line_format", "set_up"]

LINE_FORMATS: Final = ("ndjson", "influx", "telegraf-json")
INFLUX_SUFFIXES: Final = (".influx", ".lp")
"""Of files of line protocol."""


class LineFormat(Protocol):
    """Blocks of whole lines in, records out."""

    name: str
    """What users call it."""
    fallback: str | None
    """What it knows that names the sensor of a record without the default key field; None when it knows nothing."""

    @property
    def precision(self) -> int | None:
        """Nanoseconds of one unit of its timestamps; None when it has none of its own."""

    uses_kernels: bool
    """Whether it reads quicker in a process that has loaded the compiled kernels."""

    def decode(self, block: bytes) -> Decoded: ...

    def by_field(self, block: bytes) -> RowsByField | None:
        """The records of a block, one for each line, if it can be told at little cost that they all have the same fields; what
        they are does not depend on it."""

    def parts(self, block: bytes) -> Iterator[Decoded]:
        """The same in parts, so that not even a long line holds whoever takes them for long."""

    def items(self, items: list[Any]) -> Iterator[Decoded] | None:
        """The records of what was read of JSON, in parts; None when the format is none of JSON."""


class _JsonLines:
    name = "ndjson"
    fallback: str | None = None
    precision = None
    uses_kernels = True

    def __init__(self) -> None:
        self._alike = JsonAlike()

    def decode(self, block: bytes) -> Decoded:
        rows = self.by_field(block)
        return Decoded(*decode_json_lines(block)) if rows is None else Decoded(rows)

    def by_field(self, block: bytes) -> RowsByField | None:
        return self._alike.rows(block.replace(b"\r\n", b"\n") if b"\r" in block else block)

    def parts(self, block: bytes) -> Iterator[Decoded]:
        rows = self.by_field(block)
        if rows is not None:
            yield Decoded(rows)
            return
        for some, bad in json_parts(block):
            yield Decoded(some, bad)

    def items(self, items: list[Any]) -> Iterator[Decoded]:
        bad = [BadLine(MALFORMED, "it is not a JSON object", item) for item in items if type(item) is not dict]
        yield Decoded([item for item in items if type(item) is dict] if bad else items, bad)


def line_format(name: str, precision: str | None = None, *, source: str = "") -> LineFormat:
    """A decoder. Raises `PlanError` that names ``source`` for a format or a precision that is none.

    >>> line_format("influx", "s").decode(b"mill speed=4 1700000000").rows
    [{'measurement': 'mill', 'time': 1700000000000000000, 'speed': 4.0}]
    """
    if name not in LINE_FORMATS:
        raise PlanError(f"format={name!r} of {source} is not one of {', '.join(map(repr, LINE_FORMATS))}.")
    if precision is not None and name == "ndjson":
        raise PlanError(f'precision={precision!r} of {source} is for format="influx" and "telegraf-json" alone.')
    if precision is not None and precision not in PRECISIONS:
        raise PlanError(f"precision={precision!r} of {source} is not one of {', '.join(map(repr, PRECISIONS))}.")
    match name:
        case "influx":
            return InfluxLines(PRECISIONS[precision or "ns"])
        case "telegraf-json":
            return TelegrafJson(PRECISIONS[precision or "s"])
        case _:
            return _JsonLines()


def set_up(edge: Edge, form: LineFormat) -> None:
    """Let ``edge`` know, before its first record, the format and what is known of all its records."""
    edge.format = form.name
    if form.fallback is not None:
        edge.named_by(form.fallback)
    if form.precision is not None:
        edge.kinds.learn_nanoseconds(TIME)  # which a float could not hold
        edge.stamped_in(form.precision)


def known_of(made: Decoded, common: Mapping[str, str]) -> Known:
    """What is known of the records: ``common`` to all of them, and what their lines tell."""
    if made.known is None or not common:
        return common if made.known is None else made.known
    return [{**common, **own} for own in made.known]
