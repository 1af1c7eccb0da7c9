"""The formats of lines whose every record stands for itself, by name."""

from __future__ import annotations

from typing import Final, Protocol

from tidemill.errors import PlanError
from tidemill.formats.decoded import Decoded
from tidemill.formats.edge import Edge
from tidemill.formats.influx_lines import TIME, InfluxLines
from tidemill.formats.json_lines import decode_json_lines
from tidemill.formats.telegraf_json import TelegrafJson
from tidemill.schema import Kind

__all__ = ["LINE_FORMATS", "PRECISIONS", "LineFormat", "line_format", "set_up"]

LINE_FORMATS: Final = ("ndjson", "influx", "telegraf-json")
PRECISIONS: Final = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
"""Nanoseconds in one unit of a timestamp."""


class LineFormat(Protocol):
    """Blocks of whole lines in, records out."""

    fallback: str | None
    """What it knows that names the sensor of a record without the default key field; None when it knows nothing."""

    def decode(self, block: bytes) -> Decoded: ...


class _JsonLines:
    fallback: str | None = None

    def decode(self, block: bytes) -> Decoded:
        return Decoded(*decode_json_lines(block))


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
    """Let ``edge`` know, before its first record, what is known of all records of the format."""
    if form.fallback is None:
        return
    edge.kinds.learn(TIME, Kind.TIME)  # whole nanoseconds, which a float could not hold
    edge.named_by(form.fallback)
