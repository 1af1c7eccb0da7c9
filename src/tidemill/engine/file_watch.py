"""The files that stages are made of, watched while a live run goes on: tables and models.

A file that has changed, and then stood still from one look to the next, is read and checked in a thread. Only a stage
that is whole takes the place of the old one, for all lanes behind one record; what cannot serve is told of, and the old
one stays. Who asks for a look, by SIGHUP, says that the files are whole: they need not stand still, and one that could not
serve is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

import cloudpickle

from tidemill import files
from tidemill.clock import Clock
from tidemill.core.controls import NewStage
from tidemill.core.plan import Plan
from tidemill.engine.kept_files import KeptLoad
from tidemill.engine.plan import FROM_DISK
from tidemill.errors import PlanError, TidemillError
from tidemill.first_of import first_of
from tidemill.schema import Schema
from tidemill.stages.base import Load, Stage

__all__ = ["FileWatch"]

_EVERY_S: Final = 1.0
_log = logging.getLogger("tidemill")
_Stamp = tuple[int, int, int] | None


class FileWatch:
    """Watches the files of a plan's stages.

    ``plan`` is the plan before its tables were loaded, ``schemas`` what enters each stage and leaves the last.
    ``load`` gives the stages what is in their files, and ``stale`` are the stages whose files have changed since they were
    made. ``opens`` raises what a lane would fail with; ``change`` is given the new stage and returns how many inputs it comes
    behind.
    """

    def __init__(
        self,
        plan: Plan,
        schemas: Sequence[Schema],
        clock: Clock,
        change: Callable[[NewStage], Awaitable[int]],
        *,
        opens: Callable[[NewStage], Awaitable[None]],
        load: Callable[[], Load] = lambda: FROM_DISK,
        stale: Collection[int] = (),
    ) -> None:
        self._schemas = schemas
        self._clock = clock
        self._change, self._opens = change, opens
        self._stages = {number: stage for number, stage in enumerate(plan.stages) if stage.path is not None}
        self._load = load
        self._seen = {number: _stamp(stage) for number, stage in self._stages.items()}
        self._known = {number: None if number in stale else stamp for number, stamp in self._seen.items()}
        self._asked = asyncio.Event()
        self._refused: set[int] = set()
        self.changes = 0
        """New files that have taken effect."""

    async def run(self) -> None:
        """Watch until cancelled."""
        while self._stages:
            asked = await self._asked_within(_EVERY_S)
            for number in self._stages:
                await self._look(number, asked=asked)

    def look_now(self) -> None:
        """Somebody has put new files in place; the log says what comes of it."""
        if not self._stages:
            _log.info("no stage has a file that could be read again; everything else needs a new start")
        self._asked.set()

    async def _asked_within(self, seconds: float) -> bool:
        await first_of(self._clock.sleep(seconds), self._asked.wait())
        asked = self._asked.is_set()
        self._asked.clear()
        return asked

    async def _look(self, number: int, *, asked: bool) -> None:
        stage = self._stages[number]
        now = await asyncio.to_thread(_stamp, stage)
        before, self._seen[number] = self._seen[number], now
        if asked and now == self._known[number] and number not in self._refused:
            _log.info("%s: %s is as it was", stage.name, stage.path, extra={"stage": stage.name})
            return
        if not asked and (now == self._known[number] or now != before):
            return  # nothing new, or it is still being written
        self._known[number] = now
        self._refused.discard(number)
        try:
            made = await asyncio.to_thread(self._made, number)
            await self._opens(made)
        except TidemillError as error:
            told = "%s: the file has changed and cannot serve, so the old one stays in use: %s"
            _log.error(told, stage.name, str(error).removeprefix(f"{stage.name}: "), extra={"stage": stage.name})
            self._refused.add(number)
            return
        if await asyncio.to_thread(_stamp, stage) != now:
            self._known[number] = None  # written to while it was read: once more
            return
        first = await self._change(made)
        self.changes += 1
        fields = {"stage": stage.name, "record": first}
        _log.info("%s: the new %s counts from record %d on", stage.name, stage.path, first, extra=fields)

    def _made(self, number: int) -> NewStage:
        """The stage made of the file as it is now; raises what cannot serve."""
        entering, leaving = self._schemas[number], self._schemas[number + 1]
        load = self._load()
        made = self._stages[number].prepared(load).settled(entering)
        bound = made.bind(entering)
        if bound != leaving:
            raise PlanError(f"its columns would be {bound}; in this run they are {leaving}.")
        names = load.in_effect.get(made.path or "", []) if isinstance(load, KeptLoad) else []
        return NewStage(number, bytes(cloudpickle.dumps(made)), names[0] if names else "")


def _stamp(stage: Stage) -> _Stamp:
    assert stage.path is not None
    return files.stamp(stage.path)
