"""Reading a source: everything it gives and refuses, in its order, to whoever takes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from tidemill.batch import Batch
from tidemill.clock import Clock
from tidemill.letters import DeadLetter
from tidemill.sources.base import Source, SourceContext, at_once

__all__ = ["SourceReader"]

ALL_REJECTED: Final = 100
"""Records rejected before the first good one, at which the run says what it saw and what to type."""
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

    async def read(
        self,
        source: Source,
        *,
        give: Callable[[Batch], Awaitable[object]],
        refuse: Callable[[DeadLetter], object],
        gather: Callable[[], Awaitable[None]] = at_once,
    ) -> None:
        """Read until the source ends."""
        accepted = rejected = 0

        def reject(letter: DeadLetter) -> None:
            nonlocal rejected
            rejected += 1
            refuse(letter)
            if rejected == ALL_REJECTED and not accepted and not source.accepted:
                fields = {"source": source.name, "rejected": rejected}
                _log.warning("the first %d records were all rejected: %s", rejected, source.explain(), extra=fields)

        stream = source.stream(SourceContext(self.clock, reject, self.held, self.stopping, gather, self.tells_kept))
        try:
            async for batch in stream:
                accepted += len(batch)
                await give(batch)
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
        if 0 < rejected < ALL_REJECTED and not accepted:
            fields = {"source": source.name, "rejected": rejected}
            _log.warning("all %d records were rejected: %s", rejected, source.explain(), extra=fields)
