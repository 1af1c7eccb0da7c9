"""All sources of a run into its journal, and the end behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tidemill.batch import Batch
from tidemill.engine.first_error import one_error
from tidemill.engine.journal import Journal
from tidemill.engine.reading import SourceReader
from tidemill.engine.stopping import Stopping
from tidemill.formats.entries import ControlEntry
from tidemill.letters import DeadLetter
from tidemill.sources.base import Source

__all__ = ["LoggedSources"]


class LoggedSources:
    """Sources that go into the log, whatever becomes of the attempts; one that fails ends them all."""

    def __init__(
        self,
        sources: Sequence[Source],
        journal: Journal,
        reader: SourceReader,
        stopping: Stopping,
        started: asyncio.Event,
    ) -> None:
        self._sources, self._journal, self._reader = sources, journal, reader
        self._stopping, self._started = stopping, started

    async def log_all(self) -> None:
        """Until all have ended, or the grace after a stop is over; then the journal is closed."""
        logging_all = asyncio.ensure_future(self._log_each())
        try:
            if not await self._stopping.until({logging_all}):
                logging_all.result()
        finally:
            logging_all.cancel()
            await asyncio.gather(logging_all, return_exceptions=True)
        if any(source.goes_on for source in self._sources):
            self._stopping.ask()
        if not self._stopping.asked.is_set():
            self._journal.decide(ControlEntry("catch_up", None))
            self._journal.decide(ControlEntry("end", None))
        self._journal.close()

    async def _log_each(self) -> None:
        async with one_error(), asyncio.TaskGroup() as group:
            for source in self._sources:
                group.create_task(self._log(source))

    async def _log(self, source: Source) -> None:
        if source.makes:
            await self._started.wait()

        async def give(batch: Batch) -> None:
            await self._journal.put(batch, source.name)

        def refuse(letter: DeadLetter) -> None:
            self._journal.refuse(letter, source.name)

        def begins() -> None:
            self._journal.begins(source.name)

        await self._reader.read(source, give=give, refuse=refuse, gather=self._journal.synced, begins=begins)
        self._journal.ends(source.name)
