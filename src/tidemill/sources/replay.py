"""`Replay`: recordings as if they happened now."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tidemill import files
from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.formats.lines import LINE_LIMIT
from tidemill.schema import Field, Schema
from tidemill.sources.base import SourceContext
from tidemill.sources.edged import EdgedSource, checked_limit, pause, pieces
from tidemill.sources.heads import fields_at_head
from tidemill.sources.merge import Merge
from tidemill.sources.readers import FORMATS, Reader, format_of

__all__ = ["Replay"]

_LOOKED_AT: Final = 64
"""Files whose heads are read before the run; columns that only later files have are learned where they first come."""


class Replay(EdgedSource):
    """Recordings: CSV, NDJSON (``.ndjson``, ``.jsonl``) and Parquet files, each also with ``.gz``.

    ``path``         a file, a glob pattern, or a folder of recordings
    ``pace``         ``"max"``, or a multiple of the recorded speed (1.0 is as it was)
    ``order``        of several files: ``"merge"`` by time, or in ``"sequence"`` by path
    ``format``       ``"csv"``, ``"ndjson"`` or ``"parquet"`` for files whose suffix does not say it
    ``limit``        bytes of one line; a longer one is rejected and read over
    ``time_format``  a ``strptime`` format, when times are neither ISO 8601 nor epochs

    ``key`` may be a template over fields and the file's ``{stem}``, ``{name}`` and ``{folder}``. Merging keeps each
    file's own order, also where its clock steps back, and holds one block of each file. Delivery: every record once
    and in the same order each time. Raises `InputError` with the absolute path tried, or with the fields seen.

    >>> Replay("data/*.csv", key="{stem}", time="timestamp", pace=60.0).name
    'replay'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        pace: float | Literal["max"] = "max",
        order: Literal["merge", "sequence"] = "merge",
        time_format: str | None = None,
        format: str | None = None,  # noqa: A002 - the user's word
        limit: int = LINE_LIMIT,
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, time_format=time_format, name=name)
        if pace != "max" and (not isinstance(pace, (int, float)) or isinstance(pace, bool) or not 0 < pace < 1e12):
            raise PlanError(f'pace={pace!r} must be "max" or a number above 0: a multiple of the recorded speed.')
        if order not in ("merge", "sequence"):
            raise PlanError(f'order={order!r} must be "merge" (by time) or "sequence" (by path).')
        if format is not None and format not in FORMATS.values():
            raise PlanError(f'format={format!r} must be "csv", "ndjson" or "parquet".')
        self.path = path
        self.pace = pace
        self.order = order
        self.format = format
        self.limit = checked_limit(limit, "Replay")
        self._files: list[tuple[Path, str]] | None = None
        self._schema: Schema | None = None

    # -- before the run ----------------------------------------------------------------------------

    def check(self) -> None:
        self.peek()

    def peek(self) -> Schema:
        if self._schema is None:
            self._files = [(path, format_of(path, self.format)) for path in files.expand(self.path)]
            fields: dict[str, None] = {}
            for path, kind in self._files[:_LOOKED_AT]:
                fields.update(dict.fromkeys(fields_at_head(path, kind, self.edge, limit=self.limit)))
            fields.update(dict.fromkeys(self.columns))
            self._schema = Schema(
                (Field(name, self.edge.kinds.get(name)) for name in fields), open=len(self._files) > _LOOKED_AT
            )
        return self._schema

    # -- the run -----------------------------------------------------------------------------------

    @property
    def seekable(self) -> bool:
        return True

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        await asyncio.to_thread(self.peek)
        self._connected = True
        readers = [Reader(path, kind, self.edge, limit=self.limit) for path, kind in self._files or ()]
        blocks = self._merged(context, readers) if self.order == "merge" else self._in_sequence(context, readers)
        try:
            async for batch, times, restart in blocks:
                if self.pace == "max":
                    for piece in pieces(batch):
                        if context.stopping.is_set():
                            return
                        yield self._counted(piece)
                else:
                    async for piece in self._paced(context, batch, times, restart):
                        yield self._counted(piece)
                if context.stopping.is_set():
                    return
        finally:
            self._connected = False
            for reader in readers:
                reader.close()

    def _counted(self, batch: Batch) -> Batch:
        self._records += len(batch)
        return batch

    async def _read(self, context: SourceContext, reader: Reader) -> Batch | None:
        delivery = await asyncio.to_thread(reader.read, context.clock)
        if delivery is None:
            reader.close()
            return None
        batch, letters = delivery
        for letter in letters:
            context.reject(letter)
        self._rejected += len(letters)
        return batch

    async def _merged(
        self, context: SourceContext, readers: list[Reader]
    ) -> AsyncIterator[tuple[Batch, NDArray[np.int64], bool]]:
        merge = Merge(len(readers))
        first = True
        arrived_ns = 0
        while True:
            for place in merge.wanting():
                batch = await self._read(context, readers[place])
                if context.stopping.is_set():
                    return
                if batch is None:
                    merge.finish(place)
                else:
                    merge.add(place, batch)
                    arrived_ns = max(arrived_ns, batch.arrived_ns)
            if merge.wanting():
                continue
            taken = merge.take()
            if taken is None:
                return
            taken[0].arrived_ns = arrived_ns  # a record goes when the read that releases it returns
            yield *taken, first
            first = False

    async def _in_sequence(
        self, context: SourceContext, readers: list[Reader]
    ) -> AsyncIterator[tuple[Batch, NDArray[np.int64], bool]]:
        for reader in readers:
            first = True
            last = np.iinfo(np.int64).min
            while (batch := await self._read(context, reader)) is not None:
                if context.stopping.is_set():
                    return
                if len(batch):
                    times = np.maximum(np.maximum.accumulate(batch.time), last)
                    last = int(times[-1])
                    yield batch, times, first
                    first = False

    async def _paced(
        self, context: SourceContext, batch: Batch, times: NDArray[np.int64], restart: bool
    ) -> AsyncIterator[Batch]:
        """Each record when it is due; one whose clock steps back follows the one before it at once."""
        assert not isinstance(self.pace, str)
        if restart:
            self._began = (context.clock.monotonic_ns(), int(times[0]))
        began_ns, from_ns = self._began
        due = began_ns + (times - from_ns) / self.pace
        start = 0
        while start < len(batch) and not context.stopping.is_set():
            now = context.clock.monotonic_ns()
            end = int(np.searchsorted(due, now, "right"))
            if end <= start:
                await pause(context, (float(due[start]) - now) / 1e9)
                continue
            for piece in pieces(batch.slice(start, end)):
                piece.arrived_ns = now
                yield piece
            start = end
