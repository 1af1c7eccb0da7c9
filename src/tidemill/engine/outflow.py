"""What leaves an attempt's lanes, in input order: rows to every sink, dead letters to their file.

With state, letters wait for the records ahead of them (`tidemill.engine.letter_order`), rows are numbered for those who
de-duplicate, and a sink is not given what it had committed before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np

from tidemill.engine.dead_letters import DeadLetterFile
from tidemill.engine.finishing import Finished
from tidemill.engine.letter_order import LetterOrder
from tidemill.engine.outlets import Outlet
from tidemill.engine.pipeline import Checked
from tidemill.engine.readings import Readings
from tidemill.letters import DeadLetter
from tidemill.printable import NAME, printable, quoted
from tidemill.sinks.base import LoopSink

__all__ = ["Outflow"]

_MOST_LETTERS: Final = 20_000
"""Dead letters that may wait for records ahead of them: then the inflow waits too."""
_LONGEST: Final = 2_000
"""Characters of a line that lists columns."""
_log = logging.getLogger("tidemill")


class Outflow:
    """Of one attempt. ``epoch`` is None without state; ``taken`` is called when every sink has taken a slab's rows."""

    def __init__(
        self,
        checked: Checked,
        outlets: Sequence[Outlet],
        letters: DeadLetterFile,
        readings: Readings,
        *,
        epoch: int | None,
        taken: Callable[[], None],
    ) -> None:
        self.outlets, self.letters = outlets, letters
        self._checked, self._readings, self._taken = checked, readings, taken
        self._epoch = epoch
        self._order = LetterOrder(letters.add_all)
        self._released = asyncio.Event()
        self._learning = checked.schemas[-1].open
        self._numbered = epoch is not None and any(
            isinstance(outlet.sink, LoopSink) or outlet.sink.numbered for outlet in outlets
        )
        self.rows = 0
        """Rows that have left the lanes, with state since the pipeline's first start."""

    # -- letters ---------------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Letters that wait for records ahead of them."""
        return len(self._order)

    def bury(self, letters: Sequence[DeadLetter]) -> None:
        """Dead letters, each in its turn."""
        for letter in letters:
            self._order.add(letter)
        if self._epoch is None:
            self._order.release(None)

    def release(self, position: int) -> None:
        """All inputs up to there are done."""
        self._order.release(position)
        self._released.set()

    async def room(self) -> None:
        """Wait while too many letters are held."""
        while len(self._order) > _MOST_LETTERS:
            self._released.clear()
            await self._released.wait()

    # -- rows ------------------------------------------------------------------------------------------------

    def emit(self, finished: Finished, *, learned: bool) -> None:
        """A slab's rows, to every sink that has not committed them; its memory is free when the last has taken them.

        ``learned``: it is known what the functions add.
        """
        self.release(finished.position)
        batch = finished.batch
        if self._numbered:
            assert self._epoch is not None
            batch.sequence = np.arange(self.rows, self.rows + len(batch))
            batch.epoch = self._epoch
        self.rows += len(batch)
        outlets = [outlet for outlet in self.outlets if outlet.resumed_at < finished.position]
        left = len(outlets)

        def taken() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                finished.freed()
                self._taken()

        if not len(batch) or not outlets:
            left = 1
            taken()
            return
        if self._learning and learned:
            self._learning = False
            self._tell_learned(finished)
        for outlet in outlets:
            outlet.put(self._readings.delivery(outlet, batch, finished.arrivals, taken))

    def _tell_learned(self, finished: Finished) -> None:
        """The columns, once a record has shown what the functions add."""
        batch = finished.batch
        names = [name if name.isidentifier() and len(name) <= NAME else quoted(name) for name in batch.names]
        kinds = [field.kind.value if field.kind else "unknown" for field in batch.schema]
        columns = _shown(f"{name}: {kind}" for name, kind in zip(names, kinds, strict=True))
        if columns == self._readings.columns:
            return  # an attempt before this one has said so
        self._readings.columns = columns
        _log.info("the columns are: %s", columns)
        there = _shown(names)
        for stage, name in self._checked.plan.awaited(self._checked.schemas, batch.names):
            told = "%s reads column %r, which the first records do not have, and makes nothing of them; their columns are: %s"
            _log.warning(told, stage, name, there, extra={"stage": stage})
        for outlet in self.outlets:
            for name in [name for name in outlet.sink.asks_for if name not in batch.columns]:
                told = "sink %s: there is no column %r so far; the columns are: %s"
                _log.warning(told, outlet.name, name, there, extra={"sink": outlet.name})

    def resumed(self, outlet: Outlet) -> None:
        """This sink was opened, and goes on where its output ends."""
        self._readings.resumed(outlet)

    def kept(self, outlet: Outlet, position: int) -> None:
        """What this sink has written so far will not be put again: its rows are of the inputs up to there."""
        self._readings.kept(outlet, position)

    def commit(self, position: int) -> None:
        """Every sink that has not yet shall commit what it was put, which reaches up to there."""
        for outlet in self.outlets:
            if outlet.resumed_at < position:
                self._readings.commits(outlet)
                outlet.commit(position)


def _shown(columns: Iterable[str]) -> str:
    return printable(", ".join(columns), longest=_LONGEST)
