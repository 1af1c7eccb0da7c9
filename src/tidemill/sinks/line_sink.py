"""What sinks of lines have in common: rows as NDJSON or InfluxDB line protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.schema import Schema
from tidemill.sinks.base import IfExists, ProcessSink, Where
from tidemill.sinks.numbers import refuse_numbers, with_numbers

if TYPE_CHECKING:
    from tidemill.formats.influx_encode import InfluxEncoder

__all__ = ["LineSink"]


class LineSink(ProcessSink):
    """Makes lines of rows, as the options say that `tidemill.sinks.Lines` explains.

    Raises `PlanError` for options of line protocol where that is not the ``format``.
    """

    def __init__(
        self,
        format: str,  # noqa: A002 - the user's word
        *,
        measurement: str | None,
        tags: Sequence[str] | None,
        time: str | None,
        precision: str | None,
        integers: bool,
        numbered: bool,
        where: Where | str | None,
        columns: Sequence[str] | None,
        if_exists: IfExists,
        name: str | None,
    ) -> None:
        super().__init__(where=where, columns=columns, if_exists=if_exists, name=name)
        self.format = format
        self.numbered = numbered
        self._wanted = columns
        self._influx: InfluxEncoder | None = None
        if format == "influx":
            from tidemill.formats.influx_encode import InfluxEncoder

            self._influx = InfluxEncoder(
                measurement=measurement, tags=tags, time=time, precision=precision, integers=integers
            )
            if self.columns is not None:
                self.columns = tuple(dict.fromkeys((*self.columns, *self._influx.needs)))
        elif (measurement, tags, time, precision, integers) != (None, None, None, None, True):
            raise PlanError(
                f"measurement=, tags=, time=, precision= and integers= of {type(self).__name__} are for "
                'format="influx" alone.'
            )

    @property
    def asks_for(self) -> tuple[str, ...]:
        if self._influx is None:
            return super().asks_for
        return tuple(dict.fromkeys((*(self._wanted or ()), *self._influx.asks_for)))

    def bind(self, schema: Schema) -> None:
        if self.numbered:
            refuse_numbers(schema.names if self.columns is None else self.columns, self.name)
        if self._influx is None:
            super().bind(schema)
            return
        self._require(schema, self._wanted or ())
        known = (
            schema
            if self.columns is None
            else Schema((field for field in schema if field.name in self.columns), open=schema.open)
        )
        self._influx.check(known)

    def _encoded(self, batch: Batch) -> bytes:
        """The rows as whole lines, in order; of line protocol some may be left out."""
        if self.numbered:
            batch = with_numbers(batch, self.name)
        if self._influx is not None:
            return self._influx.encode(batch)
        from tidemill.formats.json_lines import encode_json_lines

        return encode_json_lines(batch)

    def _unfit(self) -> Mapping[str, int]:
        """What had no place in lines: values by their field, and rows."""
        return self._influx.left_out if self._influx is not None else {}

    def why_left_out(self, name: str) -> str:
        return super().why_left_out(name) if self._influx is None else self._influx.why_left_out(name)
