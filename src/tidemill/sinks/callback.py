"""`Callback`: rows into the user's own function, in the application."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tidemill.batch import Batch
from tidemill.errors import PlanError, StageError, TidemillError
from tidemill.held import is_cancelled
from tidemill.sinks.base import IfExists, LoopSink, SinkStatistics, Where

__all__ = ["Callback"]


class Callback(LoopSink):
    """Call ``fn(batch)`` for each batch, on the event loop; ``fn`` may be async, and is awaited before the next call.

    With ``rows=True`` it gets a list of dicts instead of a `Batch`. The batch's arrays are valid until ``fn`` returns:
    copy what you keep. While ``fn`` runs without awaiting, the loop stands still; the report shows that time
    apart, as ``user_code``.

    ``if_exists`` is taken as by every sink; nothing is there before a run that it could decide about.

    Delivery: each row once in a run, in input order; a run that starts again gives them again, with state those since the
    last checkpoint. Then ``batch.sequence`` numbers the rows since the pipeline's first start, and ``batch.epoch`` the starts:
    one that keeps the last number it has worked on leaves out rows up to it, and has each once. What ``fn`` raises, `sys.exit` too, stops
    the run with a `StageError` that names the sink.

    >>> import asyncio
    >>> seen = []
    >>> sink = Callback(seen.extend, rows=True)
    >>> asyncio.run(sink.write(Batch.from_rows([{"sensor": "S1", "value": 20}])))
    >>> seen
    [{'sensor': 'S1', 'value': 20}]
    """

    delivery = "at-least-once; in order, awaited"

    def __init__(
        self,
        fn: Callable[[Any], Awaitable[object] | object],
        *,
        rows: bool = False,
        where: Where | str | None = None,
        columns: Sequence[str] | None = None,
        if_exists: IfExists = "fail",
        name: str | None = None,
    ) -> None:
        super().__init__(where=where, columns=columns, if_exists=if_exists, name=name)
        if not callable(fn):
            raise PlanError(f"Callback needs a function, not {type(fn).__name__}.")
        self.fn = fn
        self.rows = rows
        self._taken = 0

    async def write(self, batch: Batch) -> None:
        try:
            result = self.fn(batch.to_rows() if self.rows else batch)
            if inspect.isawaitable(result):
                await result
        except (TidemillError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            called = getattr(self.fn, "__qualname__", None) or repr(self.fn)
            raise StageError(f"sink {self.name}: {called} raised {type(error).__name__}: {error}") from error
        self._taken += len(batch)

    def statistics(self) -> SinkStatistics:
        return SinkStatistics(self.name, self._taken)
