"""`ScriptedSource`: a source that does what its script says, with the words of the script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tidemill.batch import Batch
from tidemill.errors import OutsideError, PlanError
from tidemill.first_of import first_of
from tidemill.formats.edge import Edge
from tidemill.sources.base import Source, SourceContext, SourceStatistics

__all__ = ["CRASH", "EOF", "PAUSE", "ScriptedSource"]


@dataclass(frozen=True)
class PAUSE:
    """In a script: wait so many seconds of the run's clock."""

    seconds: float


class _Mark:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self) -> str:
        return self._name


CRASH: Final = _Mark("CRASH")
"""In a script: the source fails with an `OutsideError`; its next stream goes on behind it."""
EOF: Final = _Mark("EOF")
"""In a script: the source ends here; its next stream goes on behind it."""

Step = Batch | Sequence[Mapping[str, Any]] | PAUSE | _Mark


class ScriptedSource(Source):
    """A source that does what its script says: batches (or lists of dicts), ``PAUSE(2.0)``, ``CRASH``, ``EOF``.

    A record without a time gets its arrival's. A stream begins at the start of the script, or behind the ``CRASH`` or
    ``EOF`` that ended the stream before it. Delivery: each record once in a stream, in order.

    >>> import asyncio
    >>> from tidemill.testing import ManualClock
    >>> source = ScriptedSource([[{"sensor": "S1", "value": 20}], PAUSE(2.0), [{"sensor": "S1", "value": 21}], EOF])
    >>> async def read():
    ...     context = SourceContext(ManualClock(), reject=print)
    ...     stream = source.stream(context)
    ...     return (await anext(stream)).to_rows()
    >>> asyncio.run(read())
    [{'sensor': 'S1', 'value': 20}]
    """

    def __init__(
        self,
        script: Sequence[Step],
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, name=name)
        for step in script:
            if isinstance(step, str | bytes | Mapping) or not isinstance(step, Batch | Sequence | PAUSE | _Mark):
                raise PlanError(
                    f"a script holds batches, lists of dicts, PAUSE(seconds), CRASH and EOF; this is {step!r}."
                )
        self.script = tuple(script)
        self.pulled = 0
        """Steps taken so far, in all streams: how far the run has read."""
        self._next = 0
        self._edge = Edge(key=key, time=time, columns=self.columns, tz=tz, arrival=True, source=self.name)
        self._connected = False
        self._records = 0
        self._rejected = 0

    @property
    def accepted(self) -> int:
        return self._edge.accepted

    def number(self, number: int) -> None:
        super().number(number)
        self._edge.source = self.name

    async def stream(self, context: SourceContext) -> AsyncIterator[Batch]:
        place, self._next = self._next, 0
        self._connected = True
        try:
            for step in self.script[place:]:
                if context.stopping.is_set():
                    return
                place += 1
                self.pulled += 1
                match step:
                    case PAUSE(seconds):
                        await _pause(context, seconds)
                    case _Mark():
                        self._next = place
                        if step is EOF:
                            return
                        raise OutsideError(f"source {self.name} was told to crash")
                    case _:
                        yield self._batch(step, context)
        finally:
            self._connected = False

    def statistics(self) -> SourceStatistics:
        return SourceStatistics(self.name, self._connected, self._records, self._rejected)

    def _batch(self, step: Batch | Sequence[Mapping[str, Any]], context: SourceContext) -> Batch:
        arrived, wall = context.clock.monotonic_ns(), context.clock.wall_ns()
        if not isinstance(step, Batch):
            batch, letters = self._edge.rows(list(map(dict, step)), arrived_ns=arrived, wall_ns=wall)
        elif step.key_column is None or step.time_ns is None:
            batch, letters = self._edge.columns(step.columns, rows=len(step), arrived_ns=arrived, wall_ns=wall)
        else:
            batch, letters = step.with_columns({}), []
            batch.arrived_ns = arrived
        for letter in letters:
            context.reject(letter)
        self._records += len(batch)
        self._rejected += len(letters)
        return batch


async def _pause(context: SourceContext, seconds: float) -> None:
    """Sleep, or until the run wants to end."""
    await first_of(context.clock.sleep(seconds), context.stopping.wait())
