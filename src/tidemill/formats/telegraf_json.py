"""Telegraf's JSON: one metric, or a batch of them, as one object on each line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from tidemill.formats.decoded import BadLine, Decoded
from tidemill.formats.influx_lines import MEASUREMENT, MOST_FIELDS, SERIES, TIME
from tidemill.formats.json_lines import decode_json_lines
from tidemill.letters import BAD_TIME, MALFORMED, OVERSIZE

__all__ = ["TelegrafJson", "metrics_of"]

_BATCH: Final = "metrics"
_PART: Final = 200
"""Metrics that are decoded and made a batch in one turn of the loop."""
_ESCAPES_IN_MEASUREMENT: Final = str.maketrans({" ": r"\ ", ",": r"\,"})
_ESCAPES: Final = _ESCAPES_IN_MEASUREMENT | str.maketrans({"=": r"\="})


class _Bad(Exception):
    """A metric that is no record."""

    def __init__(self, reason: str, reason_code: str = MALFORMED, *, sound: bool = False) -> None:
        super().__init__(reason)
        self.reason_code = reason_code
        self.sound = sound


@dataclass(frozen=True)
class _Part:
    """What is decoded so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    bad: list[BadLine] = field(default_factory=list)
    known: list[Mapping[str, str]] = field(default_factory=list)

    def decoded(self) -> Decoded:
        return Decoded(self.rows, self.bad, self.known)


class TelegrafJson:
    """Metrics as records like those of `InfluxLines`: ``measurement``, then one field for each tag, ``time``, and one for
    each field.

    ``precision``  nanoseconds of one unit of ``timestamp``

    A line holds ``{"name": ..., "tags": {...}, "fields": {...}, "timestamp": ...}`` or ``{"metrics": [...]}``. Each
    metric of a batch is a record or a reject for itself; an empty batch is nothing.

    >>> line = b'{"fields":{"n":30},"name":"docker","tags":{"host":"raynor"},"timestamp":1458229140}'
    >>> TelegrafJson(10**9).decode(line).rows
    [{'measurement': 'docker', 'host': 'raynor', 'time': 1458229140000000000, 'n': 30}]
    """

    name = "telegraf-json"
    fallback: str | None = SERIES
    uses_kernels = False

    def __init__(self, precision: int = 10**9) -> None:
        self.precision = precision

    def decode(self, block: bytes) -> Decoded:
        """The records of a block of whole lines, in order, and what is none; never raises."""
        whole = _Part()
        for part in self.parts(block):
            whole.rows.extend(part.rows)
            whole.bad.extend(part.bad)
            whole.known.extend(part.known or ())
        return whole.decoded()

    def parts(self, block: bytes) -> Iterator[Decoded]:
        """The same, two hundred metrics at a time: a batch of Telegraf's has a thousand by default."""
        lines, bad = decode_json_lines(block)
        if any(each.sound for each in bad):  # a metric may be beyond a limit in a batch whose others are not
            return self._apart(block)
        return self._parts(lines, _Part(bad=bad))

    def _apart(self, block: bytes) -> Iterator[Decoded]:
        """The same, each metric of a batch decoded for itself."""
        for line in block.split(b"\n"):
            metrics = metrics_of(line)
            for start in range(0, len(metrics), _PART):
                made, bad = decode_json_lines(b"\n".join(metrics[start : start + _PART]))
                yield from self._parts(made, _Part(bad=bad))

    def items(self, items: list[Any]) -> Iterator[Decoded]:
        """The records of what was read of JSON, each item like a line of `parts`."""
        return self._parts(items, _Part())

    def _parts(self, items: list[Any], made: _Part) -> Iterator[Decoded]:
        for item in items:
            metrics = item[_BATCH] if type(item) is dict and _BATCH in item and "fields" not in item else [item]
            if type(metrics) is not list:
                made.bad.append(BadLine(MALFORMED, f"{_BATCH!r} is a {type(metrics).__name__}, not an array", item))
                continue
            for metric in metrics:
                self._take(metric, made)
                if len(made.rows) + len(made.bad) >= _PART:
                    yield made.decoded()
                    made = _Part()
        yield made.decoded()

    def by_field(self, block: bytes) -> None:
        """Nothing: metrics are nested."""

    def _take(self, metric: Any, made: _Part) -> None:
        try:
            row, series = self._record(metric)
        except _Bad as error:
            made.bad.append(BadLine(error.reason_code, str(error), metric, error.sound))
        else:
            made.rows.append(row)
            made.known.append(series)

    def _record(self, metric: Any) -> tuple[dict[str, Any], Mapping[str, str]]:
        if type(metric) is not dict:
            raise _Bad(f"the metric is a {type(metric).__name__}, not an object")
        name, fields, tags = metric.get("name"), metric.get("fields"), metric.get("tags") or {}
        if type(name) is not str or not name:
            raise _Bad("the metric has no text 'name'")
        if type(fields) is not dict or not fields:
            raise _Bad("the metric has no object 'fields' with something in it")
        if type(tags) is not dict:
            raise _Bad(f"'tags' is a {type(tags).__name__}, not an object")
        if max(len(fields), len(tags)) > MOST_FIELDS:
            raise _Bad(f"the metric has more than {MOST_FIELDS} fields or tags", OVERSIZE, sound=True)
        wrong = next((tag for tag, text in tags.items() if type(text) is not str), None)
        if wrong is not None:
            raise _Bad(f"tag {wrong!r} is a {type(tags[wrong]).__name__}, not text")
        time = self._time(metric.get("timestamp"))
        row = {MEASUREMENT: name, **tags, **time, **fields}
        if len(row) != 1 + len(tags) + len(time) + len(fields) or TIME in tags or TIME in fields:
            raise _Bad(_twice(tags, fields), sound=True)
        return row, {SERIES: _series_of(name, tags)}

    def _time(self, stamp: Any) -> dict[str, Any]:
        if stamp is None:
            return {}
        if type(stamp) is not int:
            raise _Bad(f"the timestamp is a {type(stamp).__name__}, not a whole number", BAD_TIME)
        time_ns = stamp * self.precision
        if not -(2**63) < time_ns < 2**63:
            raise _Bad("the timestamp is beyond the years 1677 to 2262 that nanoseconds reach", BAD_TIME, sound=True)
        return {TIME: time_ns}


class _Metrics(msgspec.Struct):
    """A batch; a metric, where it has fields or no metrics."""

    metrics: list[msgspec.Raw] = []
    fields: msgspec.Raw | None = None


def metrics_of(item: bytes | msgspec.Raw) -> Sequence[bytes | msgspec.Raw]:
    """The metrics of a batch, not decoded; else what it is as a whole."""
    try:
        found = msgspec.json.decode(item, type=_Metrics)
    except (msgspec.MsgspecError, RecursionError):
        return [item]
    return found.metrics if found.metrics and found.fields is None else [item]


def _series_of(name: str, tags: Mapping[str, str]) -> str:
    """The series as `InfluxLines` has it, with its backslashes and its order, so that it is one sensor on every road."""
    series = ",".join([name, *sorted([f"{tag}={text}" for tag, text in tags.items()])])
    if " " not in series and series.count(",") == series.count("=") == len(tags):
        return series  # there is nothing to escape
    escaped = [f"{tag.translate(_ESCAPES)}={text.translate(_ESCAPES)}" for tag, text in tags.items()]
    return ",".join([name.translate(_ESCAPES_IN_MEASUREMENT), *sorted(escaped)])


def _twice(tags: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    for name in (MEASUREMENT, TIME):
        if name in tags or name in fields:
            return f"a tag or field is called {name!r}, which is taken; rename it where it is made"
    name = next(name for name in tags if name in fields)
    return f"{name!r} is a tag and a field; a record has each name once: rename one where it is made"
