"""What the sources have in common: an edge that gives roles, counts, and rejects on their way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from tidemill.batch import Batch
from tidemill.errors import InputError, PlanError
from tidemill.first_of import first_of
from tidemill.formats.edge import Edge
from tidemill.letters import AT_A_TIME, DeadLetter
from tidemill.schema import Asked, Field, Schema
from tidemill.sources.base import Source, SourceContext, SourceStatistics

__all__ = ["MOST_RECORDS", "EdgedSource", "checked_limit", "in_turns", "pause", "pieces", "until_told"]

MOST_RECORDS: Final = 8_192
"""Records of one batch; a batch that the user made may have four times as many."""
_LAST_S: Final = 2.0
"""How long the end of a run waits for the last acknowledgements, which a log of batches gives in milliseconds."""


class EdgedSource(Source):
    """A source whose records get their roles from an `Edge`.

    ``time_format``  a ``strptime`` format for every time of this source
    """

    arrival: ClassVar[bool] = False
    """Records without the default time field get the time of their arrival."""
    formats: ClassVar[Sequence[str]] = ()
    """What its ``format=`` may be."""
    fallback: ClassVar[str | None] = None
    """What the source knows that names the sensor of a record without the default key field."""

    def __init__(
        self,
        *,
        key: str | None = None,
        time: str | None = None,
        columns: Mapping[str, object] | None = None,
        tz: str = "UTC",
        time_format: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(key=key, time=time, columns=columns, tz=tz, name=name)
        self.time_format = time_format
        self.edge = Edge(
            key=key,
            time=time,
            columns=self.columns,
            tz=tz,
            time_format=time_format,
            arrival=self.arrival,
            fallback=self.fallback,
            source=self.name,
        )
        self._records = 0
        self._rejected = 0
        self._connected = False
        self._accepted_before = 0

    def number(self, number: int) -> None:
        super().number(number)
        self.edge.source = self.name

    async def accept(self, context: SourceContext, batch: Batch, letters: Iterable[DeadLetter]) -> Batch:
        """``batch``, counted; its rejects are handed over first, a few in each turn of the loop."""
        async for _, letter in in_turns(letters):
            self._rejected += 1
            context.reject(letter)
        self._records += len(batch)
        return batch

    def declared(self, *, more: bool) -> Schema:
        """The declared columns, ``more`` of which may come."""
        return Schema((Field(name, kind) for name, kind in self.columns.items()), open=more)

    def ask(self, asked: Mapping[str, Asked], needed: Collection[str]) -> None:
        self.edge.kinds.ask(asked, needed)

    @property
    def otherwise(self) -> str | None:
        return self.edge.roles.fallback

    @property
    def accepted(self) -> int:
        return self._accepted_before + self.edge.accepted

    def _go_on_counting(self, accepted: int) -> None:
        """So many records have been made by now, whoever made them."""
        self._accepted_before += accepted - self.accepted

    def check_offset(self, offset: Any) -> None:
        """Refuse an offset that another kind of source gave."""
        of = offset.get("of") if isinstance(offset, dict) else None
        if of != self.kind:
            raise InputError(
                f"the state was made by the source {of or 'of another version'}, and this is {self.kind}; "
                f"give the source that it was, or start over with --fresh."
            )

    def explain(self) -> str:
        return self.edge.explain(formats=self.formats)

    def doubt(self, batch: Batch) -> str:
        return self.edge.doubt(batch)

    def statistics(self) -> SourceStatistics:
        return SourceStatistics(self.name, self._connected, self._records, self._rejected)


def checked_limit(limit: int, source: str) -> int:
    """The longest line, in bytes; raises `PlanError` for what is none."""
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise PlanError(f"limit={limit!r} of {source} must be a number of bytes of 1 or more.")
    return limit


async def in_turns(letters: Iterable[DeadLetter]) -> AsyncIterator[tuple[int, DeadLetter]]:
    """Letters on their way out, numbered from 1; the loop has its turn after each `AT_A_TIME`."""
    for number, letter in enumerate(letters, 1):
        yield number, letter
        if not number % AT_A_TIME:
            await asyncio.sleep(0)


def pieces(batch: Batch, most: int = MOST_RECORDS) -> Iterator[Batch]:
    """``batch`` in slices of at most ``most`` records; nothing when it is empty."""
    for start in range(0, len(batch), most):
        yield batch.slice(start, start + most)


async def pause(context: SourceContext, seconds: float) -> None:
    """Wait, but no longer than until the run wants to end."""
    sleeping = asyncio.ensure_future(context.clock.sleep(seconds))
    stopping = asyncio.ensure_future(context.stopping.wait())
    try:  # sources that keep a pace are here a thousand times a second, and `first_of` takes half as long again
        await asyncio.wait({sleeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        sleeping.cancel()
        stopping.cancel()


async def until_told(context: SourceContext, waiting: Callable[[], bool], told: asyncio.Event) -> None:
    """Wait until all that was read is safe, so that senders hear of it, but not for ever. ``told`` is set each time more is."""

    async def all_told() -> None:
        while waiting():
            told.clear()
            await told.wait()

    await first_of(all_told(), context.clock.sleep(_LAST_S))
