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
from tidemill.sources.edged import checked_limit, pause, pieces
from tidemill.sources.heads import fields_at_head
from tidemill.sources.readers import FORMATS, Reader, format_of
from tidemill.sources.recorded import RecordedSource

__all__ = ["Replay"]

_LOOKED_AT: Final = 64
"""Files whose heads are read before the run; columns that only later files have are learned where they first come."""


class Replay(RecordedSource):
    """Recordings: CSV, NDJSON (``.ndjson``, ``.jsonl``) and Parquet files, each also with ``.gz``.

    ``path``         a file, a glob pattern, or a folder of recordings, of which those are left out whose names begin with a dot
    ``pace``         ``"max"``, or a multiple of the recorded speed (1.0 is as it was)
    ``order``        of several files: ``"merge"`` by time, or in ``"sequence"`` by path
    ``format``       ``"csv"``, ``"ndjson"`` or ``"parquet"`` for files whose suffix does not say it
    ``limit``        bytes of one line; a longer one is rejected and read over
    ``time_format``  a ``strptime`` format, when times are neither ISO 8601 nor epochs
    ``key``          the field that names the sensor (``"sensor"``), or a template over fields: ``"{line}/{machine}"``
    ``time``         the field of the event time (``"time"``)
    ``columns``      kinds of fields that are not to be learned: ``{"status": object}``; this, and ``tz``, the zone of times without
                     one (UTC), as `Source` has them

    A column of CSV holds numbers if most of its first cells are numbers, but for digits padded with zeros to one width, such as
    ``007``: those are text. A number is carried as a number, so that ``+5`` becomes 5, and so does a ``005`` that comes
    later; ``columns={"code": str}`` keeps a column as it is written, and ``float`` reads padded digits as numbers.

    ``key`` may be a template over fields and the file's ``{stem}``, ``{name}`` and ``{folder}``. Merging keeps each
    file's own order, also where its clock steps back, and holds one block of each file. Delivery: every record once
    and in the same order each time, and with state from where the run stood; a file is read to where it ended when the
    run began, and what was added is read when a run goes on from there. Raises `InputError` with the absolute path tried, or with the fields seen.

    >>> Replay("data/*.csv", key="{stem}", time="timestamp", pace=60.0).name
    'replay'
    """

    formats = tuple(dict.fromkeys(FORMATS.values()))
    looked_up_options = frozenset({"path"})

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
        if format is not None and format not in self.formats:
            raise PlanError(f'format={format!r} must be "csv", "ndjson" or "parquet".')
        self.path = path
        self.pace = pace
        self.order = order
        self.format = format
        self.limit = checked_limit(limit, "Replay")
        self._files: list[tuple[Path, str]] = []
        self._schema: Schema | None = None

    # -- before the run ----------------------------------------------------------------------------

    @property
    def uses_kernels(self) -> bool:
        return any(kind == "ndjson" for _, kind in self._files)

    def check(self) -> None:
        self.peek()

    def peek(self) -> Schema:
        if self._schema is None:
            self._files = self._recordings()
            fields: dict[str, None] = {}
            for path, kind in self._files[:_LOOKED_AT]:
                fields.update(dict.fromkeys(fields_at_head(path, kind, self.edge, limit=self.limit)))
            more = len(self._files) > _LOOKED_AT or not fields  # of files without a record nobody knows
            fields.update(dict.fromkeys(self.columns))
            self._schema = Schema((Field(name, self.edge.kinds.get(name)) for name in fields), open=more)
        return self._schema

    # -- the run -----------------------------------------------------------------------------------

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        await asyncio.to_thread(self.peek)
        self._connected = True
        try:
            async for batch, times, restart in self.flow(context, sequence=self.order == "sequence"):
                if self.pace == "max":
                    for piece in pieces(batch):
                        if context.stopping.is_set():
                            return
                        yield self.given(piece)
                else:
                    async for piece in self._paced(context, batch, times, restart):
                        yield self.given(piece)
        finally:
            self._connected = False
            self.close()

    def _recordings(self) -> list[tuple[Path, str]]:
        return [(path, format_of(path, self.format)) for path in files.expand(self.path)]

    def _reader(self, path: Path, kind: str, size: int | None) -> Reader:
        return Reader(path, kind, self.edge, limit=self.limit, size=size)

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
