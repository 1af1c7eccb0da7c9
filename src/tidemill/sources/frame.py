"""`Frame`: a table in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from tidemill.batch import Batch
from tidemill.errors import InputError, PlanError
from tidemill.formats.rejects import suggestion
from tidemill.interchange import from_table, kind_of_table, naive_times
from tidemill.schema import Field, Schema
from tidemill.sources.base import SourceContext
from tidemill.sources.edged import EdgedSource, in_turns, pieces
from tidemill.sources.standing import OR_FRESH

__all__ = ["Frame"]


class Frame(EdgedSource):
    """A pandas or polars DataFrame, or an Arrow table, in the order of its rows.

    ``key``      the field that names the sensor (``"sensor"``), or a template over fields: ``"{line}/{machine}"``
    ``time``     the field of the event time (``"time"``)
    ``time_format``  the ``strptime`` format of times that are neither ISO 8601 nor epochs
    ``columns``  kinds of fields that are not to be learned: ``{"status": object}``; this, and ``tz``, the zone of times without
                 one (UTC), as `Source` has them

    Raises `PlanError` for anything else, `InputError` when the key or time column is not there, naming those that are.
    Rows that are rejected come before those that are not. Delivery: every row once, in order, and with state from
    where the run stood.
    """

    def __init__(
        self,
        table: Any,
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        time_format: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, time_format=time_format, name=name)
        if kind_of_table(table) not in ("pandas", "polars", "arrow"):
            raise PlanError(
                f"Frame takes a DataFrame (pandas or polars) or an Arrow table, not a {type(table).__name__}; "
                f"for dicts or batches write sources.Records(rows)."
            )
        self.table = table
        self._sought: tuple[int, int] = (0, 0)
        self._stands = (0, 0)
        """Rows that are rejected, and of the others those given."""

    def check(self) -> None:
        self.peek()

    def peek(self) -> Schema:
        head = self.table[:100] if kind_of_table(self.table) != "arrow" else self.table.slice(0, 100)
        batch = from_table(head)
        hint = f"its columns are: {', '.join(batch.names)}; try {suggestion(batch.names)}"
        if self.edge.roles.time not in batch:
            raise InputError(f"the table has no column {self.edge.roles.time!r} to read the time from; {hint}.")
        for name in self.edge.roles.key_fields:
            if name not in batch:
                raise InputError(f"the table has no column {name!r} to read the sensor from; {hint}.")
        schema = Schema(
            Field(name, None if column.is_missing else column.kind) for name, column in batch.columns.items()
        )
        return schema.adding(Field(name, kind) for name, kind in self.columns.items())

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        self._connected = True
        try:
            batch, letters = await asyncio.to_thread(self._decode)
            rejected, given = self._stands = self._sought
            self._sought = (0, 0)
            async for number, letter in in_turns(letters[rejected:]):
                self._stands = (rejected + number, given)
                self._rejected += 1
                context.reject(letter)
            batch = batch.slice(given, len(batch))
            batch.arrived_ns = context.clock.monotonic_ns()
            for piece in pieces(batch):
                if context.stopping.is_set():
                    return
                self._records += len(piece)
                self._stands = (self._stands[0], self._stands[1] + len(piece))
                yield piece
                await asyncio.sleep(0)
        finally:
            self._connected = False

    @property
    def seekable(self) -> bool:
        return True

    def offset(self) -> Any:
        rejected, given = self._stands
        return {"of": self.kind, "rows": len(self.table), "rejects": rejected, "records": given}

    def beginning(self, wall_ns: int) -> Any:
        return {"of": self.kind, "rows": len(self.table), "rejects": 0, "records": 0}

    def seek(self, offset: Any) -> None:
        self.check_offset(offset)
        if offset["rows"] != len(self.table):
            raise InputError(
                f"the table has {len(self.table):,} rows, and had {offset['rows']:,} when the state was made; "
                f"{OR_FRESH}."
            )
        self._sought = self._stands = (offset["rejects"], offset["records"])

    def _decode(self) -> Any:
        batch = from_table(self.table)
        made, letters = self.edge.columns(batch.columns, rows=len(batch), naive=naive_times(self.table), parsed=False)
        return made, list(letters)
