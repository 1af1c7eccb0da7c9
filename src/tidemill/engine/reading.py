"""Reading a source: everything it gives and refuses, in its order, to whoever takes it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from tidemill.batch import Batch
from tidemill.clock import Clock
from tidemill.core.first_records import FirstRecords, Nothing
from tidemill.core.flows import SourceFlow, SourceProgress
from tidemill.core.lately import Lately
from tidemill.letters import DeadLetter
from tidemill.sources.base import Source, SourceContext, at_once

__all__ = ["SourceReader"]

_LOOK_S: Final = 1.0
_log = logging.getLogger("tidemill")


@dataclass(frozen=True)
class SourceReader:
    """What every source of a run is read with.

    ``held`` is told how long the application's own code held the loop; a source ends once ``stopping`` is set;
    ``tells_kept`` is whether the run keeps state.
    """

    clock: Clock
    held: Callable[[int], None]
    stopping: asyncio.Event
    tells_kept: bool = True
    _progress: dict[str, SourceProgress] = field(default_factory=dict)
    _first: dict[str, tuple[Source, FirstRecords]] = field(default_factory=dict)
    _ending: dict[str, asyncio.Event] = field(default_factory=dict)
    """Of each source that can be connected anew, what tells its stream to end."""
    _away: dict[str, Lately] = field(default_factory=lambda: defaultdict(Lately))
    """Of each source, how many connections it has turned away."""

    def flow(self, source: Source) -> SourceFlow:
        """How a source gives, now; one that was not begun yet has not fallen silent."""
        now = self.clock.monotonic_ns()
        progress = self._progress.get(source.name) or SourceProgress(now)
        told = source.statistics()
        self._away[source.name].look(told.turned_away, now)
        return SourceFlow(
            source.name,
            live=not source.finite,
            connected=told.connected,
            records=told.records,
            rejected=told.rejected,
            last_record_age_s=progress.last_record_age_s(now),
            held_s=progress.held_s(now),
            ended=progress.ended,
            tries=told.tries,
            trouble=told.trouble,
            lost=told.lost,
            turned_away=told.turned_away,
            last_away=told.last_away,
            away_lately=self._away[source.name].read(now),
            refused=told.refused,
            dials=told.dials,
        )

    def connect_anew(self, source: str) -> None:
        """Let a source that dials end its stream, in order, and begin another; nothing that it has read is lost."""
        if source in self._ending:
            self._ending[source].set()

    async def read(
        self,
        source: Source,
        *,
        give: Callable[[Batch], Awaitable[object]],
        refuse: Callable[[DeadLetter], object],
        gather: Callable[[], Awaitable[None]] = at_once,
        begins: Callable[[], None] = lambda: None,
    ) -> None:
        """Read until the source ends; ``begins`` is called before each of its streams."""
        progress = self._progress[source.name] = SourceProgress(self.clock.monotonic_ns())
        first = FirstRecords()
        self._first[source.name] = source, first

        def reject(letter: DeadLetter) -> None:
            now_ns = self.clock.monotonic_ns()
            progress.rejected(now_ns)
            refuse(letter)
            if not first.is_over:
                first.is_over = source.accepted > 0
                _say(source, first, first.rejected(now_ns), so_far=True)

        while True:
            begins()
            async with self._stopping(source) as stopping:
                context = SourceContext(self.clock, reject, self.held, stopping, gather, self.tells_kept)
                stream = source.stream(context)
                try:
                    async for batch in stream:
                        first.is_over = first.is_over or len(batch) > 0
                        if doubt := source.doubt(batch):
                            _log.warning("source %s: %s", source.name, doubt, extra={"source": source.name})
                        progress.gave(len(batch), self.clock.monotonic_ns())
                        await give(batch)
                        progress.taken(self.clock.monotonic_ns())
                finally:
                    close = getattr(stream, "aclose", None)
                    if close is not None:
                        await close()
                if self.stopping.is_set() or not stopping.is_set():
                    break
        progress.ended = True
        _say(source, first, first.end(), so_far=False)

    async def watch(self) -> None:
        """Say of which sources nothing comes through, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()

    def look(self) -> None:
        """One look at all sources."""
        now_ns = self.clock.monotonic_ns()
        for source, first in self._first.values():
            if not first.is_over and not self._progress[source.name].ended:
                first.is_over = source.accepted > 0
                waits = source.statistics().connected and bool(source.nothing_yet())
                _say(source, first, first.look(now_ns, waits=waits), so_far=True)

    @contextlib.asynccontextmanager
    async def _stopping(self, source: Source) -> AsyncIterator[asyncio.Event]:
        """What ends a stream of the source: the wish to stop the run, and `connect_anew`."""
        if not source.statistics().dials:
            yield self.stopping
            return
        ending = self._ending[source.name] = asyncio.Event()

        async def follow() -> None:
            await self.stopping.wait()
            ending.set()

        following = asyncio.ensure_future(follow())
        try:
            yield ending
        finally:
            following.cancel()


def _say(source: Source, first: FirstRecords, said: Nothing | None, *, so_far: bool) -> None:
    """In the log, with what a person can do about it; ``so_far`` when more may come."""
    if said is Nothing.REJECTED:
        many = f"{first.rejects:,} records were all" if first.rejects > 1 else "record was"
        one = "the only record was" if first.rejects == 1 else f"all {first.rejects:,} records were"
        fields = {"source": source.name, "rejected": first.rejects}
        _log.warning("%s rejected: %s", f"the first {many}" if so_far else one, source.explain(), extra=fields)
    elif said is Nothing.SILENT:
        _log.warning("source %s: %s", source.name, source.nothing_yet(), extra={"source": source.name})
