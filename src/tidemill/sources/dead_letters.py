"""`DeadLetters`: what was rejected, once more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from tidemill import files
from tidemill.batch import Batch
from tidemill.formats.json_lines import decode_json_lines
from tidemill.formats.lines import LineSplitter
from tidemill.letters import MALFORMED
from tidemill.schema import Schema
from tidemill.sources.base import SourceContext
from tidemill.sources.edged import EdgedSource, pieces
from tidemill.sources.readers import BLOCK, Delivery

__all__ = ["DeadLetters"]


class DeadLetters(EdgedSource):
    """The raw records of a dead-letters file (NDJSON), replayed after a fix.

    Each line of the file is one letter; its ``raw`` is the record, or the text of a line that was not JSON. What is
    still bad is rejected again. Records without the default time field get the time of this replay. Delivery: every
    letter once, in the file's order. Raises `InputError` with the absolute path tried.
    """

    arrival = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        time_format: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, time_format=time_format, name=name)
        self.path = path

    @property
    def name(self) -> str:
        return self._name or "dead_letters"

    def check(self) -> None:
        files.open_read(self.path).close()

    def peek(self) -> Schema:
        return self.declared(more=True)

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        self._connected = True
        deliveries = self._deliveries(context)
        try:
            while (delivery := await asyncio.to_thread(next, deliveries, None)) is not None:
                for piece in pieces(self.accept(context, *delivery)):
                    yield piece
                if context.stopping.is_set():
                    return
        finally:
            self._connected = False

    def _deliveries(self, context: SourceContext) -> Iterator[Delivery]:
        with files.open_read(self.path) as handle:
            splitter = LineSplitter(limit=1 << 24)
            for data in files.read_blocks(self.path, handle, BLOCK):
                yield self._decode(splitter.feed(data), context)
            yield self._decode(splitter.finish(), context)

    def _decode(self, block: bytes, context: SourceContext) -> Delivery:
        arrived_ns = context.clock.monotonic_ns()
        letters, bad = decode_json_lines(block) if block else ([], [])
        found = [self.edge.refuse(line.reason_code, line.reason, line.raw) for line in bad]
        rows: list[Any] = []
        for letter in letters:
            raw = letter.get("raw")
            if isinstance(raw, str):
                parsed, still_bad = decode_json_lines(raw.encode("utf-8", "replace"))
                found += [self.edge.refuse(line.reason_code, line.reason, raw) for line in still_bad]
                rows += parsed
            elif "raw" in letter:
                rows.append(raw)
            else:
                found.append(self.edge.refuse(MALFORMED, "the line is no dead letter: it has no field 'raw'", letter))
        batch, more = self.edge.rows(rows, arrived_ns=arrived_ns, wall_ns=context.clock.wall_ns(), parsed=True)
        return batch, found + more
