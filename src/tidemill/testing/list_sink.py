"""`ListSink`: a sink that keeps what it gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tidemill.batch import Batch
from tidemill.schema import Schema
from tidemill.sinks.base import IfExists, LoopSink, SinkStatistics, Where

__all__ = ["ListSink"]


class ListSink(LoopSink):
    """A sink that keeps copies of all it gets.

    >>> import asyncio
    >>> sink = ListSink()
    >>> asyncio.run(sink.write(Batch.from_rows([{"sensor": "S1", "value": 20}])))
    >>> sink.rows
    [{'sensor': 'S1', 'value': 20}]
    """

    delivery = "at-least-once; in memory"

    def __init__(
        self,
        *,
        where: Where | None = None,
        columns: Sequence[str] | None = None,
        if_exists: IfExists = "fail",
        name: str | None = None,
    ) -> None:
        super().__init__(where=where, columns=columns, if_exists=if_exists, name=name)
        self.batches: list[Batch] = []
        """Copies of the batches, in the order and with the boundaries they came in."""
        self.schema: Schema | None = None
        """What the run said when it opened the sink."""
        self.closed = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows so far, as dicts."""
        return [row for batch in self.batches for row in batch.to_rows()]

    async def open(self, schema: Schema) -> None:
        self.schema = schema
        self.closed = False

    async def write(self, batch: Batch) -> None:
        self.batches.append(batch.take(np.arange(len(batch))))

    async def close(self) -> None:
        self.closed = True

    def statistics(self) -> SinkStatistics:
        return SinkStatistics(self.name, sum(map(len, self.batches)))
