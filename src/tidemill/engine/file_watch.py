"""The files that stages are made of, watched while a live run goes on: tables and models.

A file that has changed, and then stood still from one look to the next, is read and checked in a thread. Only a stage
that is whole takes the place of the old one, for all lanes behind one record; what cannot serve is told of, and the old
one stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import cloudpickle

from tidemill import files
from tidemill.clock import Clock
from tidemill.core.plan import Plan
from tidemill.engine.plan import FROM_DISK
from tidemill.errors import PlanError, TidemillError
from tidemill.schema import Schema
from tidemill.stages.base import Stage

__all__ = ["FileWatch"]

_EVERY_S: Final = 1.0
_log = logging.getLogger("tidemill")
_Stamp = tuple[int, int, int] | None


class FileWatch:
    """Watches the files of a plan's stages.

    ``plan`` is the plan before its tables were loaded, ``schemas`` what enters each stage and leaves the last.
    ``change`` is given a stage's number and the new stage, pickled, and returns how many inputs it comes behind.
    """

    def __init__(
        self, plan: Plan, schemas: Sequence[Schema], clock: Clock, change: Callable[[int, bytes], Awaitable[int]]
    ) -> None:
        self._schemas = schemas
        self._clock = clock
        self._change = change
        self._stages = {number: stage for number, stage in enumerate(plan.stages) if stage.path is not None}
        self._known = {number: _stamp(stage) for number, stage in self._stages.items()}
        self._seen = dict(self._known)
        self.changes = 0
        """New files that have taken effect."""

    async def run(self) -> None:
        """Watch until cancelled."""
        while self._stages:
            await self._clock.sleep(_EVERY_S)
            for number in self._stages:
                await self._look(number)

    async def _look(self, number: int) -> None:
        stage = self._stages[number]
        now = await asyncio.to_thread(_stamp, stage)
        before, self._seen[number] = self._seen[number], now
        if now == self._known[number] or now != before:
            return  # nothing new, or it is still being written
        self._known[number] = now
        try:
            pickled = await asyncio.to_thread(self._made, number)
        except TidemillError as error:
            told = "%s: the file has changed and cannot serve, so the old one stays in use: %s"
            _log.error(told, stage.name, error, extra={"stage": stage.name})
            return
        if await asyncio.to_thread(_stamp, stage) != now:
            self._known[number] = None  # written to while it was read: once more
            return
        first = await self._change(number, pickled)
        self.changes += 1
        fields = {"stage": stage.name, "record": first}
        _log.info("%s: the new %s counts from record %d on", stage.name, stage.path, first, extra=fields)

    def _made(self, number: int) -> bytes:
        """The stage made of the file as it is now, pickled; raises what cannot serve."""
        entering, leaving = self._schemas[number], self._schemas[number + 1]
        made = self._stages[number].prepared(FROM_DISK).settled(entering)
        bound = made.bind(entering)
        if bound != leaving:
            raise PlanError(f"its columns would be {bound}; in this run they are {leaving}.")
        return bytes(cloudpickle.dumps(made))


def _stamp(stage: Stage) -> _Stamp:
    assert stage.path is not None
    return files.stamp(stage.path)
