"""The files that stages are made of, watched while a live run goes on: tables and models.

A file that has changed, and then stood still from one look to the next, is read and checked in a thread, and what is made of it
opened as lanes will. Only stages that are whole take the place of the old ones, all that are made of the file behind one record, for
all lanes; where one of them cannot serve, that is told of, and the old ones stay. Who asks for a look, by SIGHUP, says that the
files are whole: they need not stand still, and one that could not serve is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from tidemill import files
from tidemill.clock import Clock
from tidemill.core.controls import NewStage, NewStages
from tidemill.core.plan import Plan
from tidemill.engine.kept_files import KeptLoad
from tidemill.engine.plan import FROM_DISK
from tidemill.engine.sendable import sent_stage
from tidemill.errors import OutsideError, PlanError, TidemillError
from tidemill.first_of import first_of
from tidemill.schema import Schema
from tidemill.stages.base import Load

__all__ = ["FileWatch"]

_EVERY_S: Final = 1.0
_log = logging.getLogger("tidemill")


class FileWatch:
    """Watches the files of a plan's stages.

    ``plan`` is the plan before its tables were loaded, ``schemas`` what enters each stage and leaves the last.
    ``load`` gives the stages what is in their files, and ``stale`` are the stages whose files have changed since they were
    made. ``opens`` raises what a lane would fail with; ``change`` is given all new stages of a file and returns how many inputs
    they come behind.
    """

    def __init__(
        self,
        plan: Plan,
        schemas: Sequence[Schema],
        clock: Clock,
        change: Callable[[NewStages], Awaitable[int]],
        *,
        opens: Callable[[NewStage], Awaitable[None]],
        load: Callable[[], Load] = lambda: FROM_DISK,
        stale: Collection[int] = (),
    ) -> None:
        self._plan, self._schemas = plan, schemas
        self._clock = clock
        self._change, self._opens = change, opens
        self._load = load
        self._files: dict[Path, list[int]] = {}  # the stages that are made of each
        for number, stage in enumerate(plan.stages):
            if stage.path is not None:
                self._files.setdefault(files.absolute(stage.path), []).append(number)
        self._seen = {file: files.stamp(file) for file in self._files}
        self._known = {
            file: None if set(stale) & set(numbers) else self._seen[file] for file, numbers in self._files.items()
        }
        self._asked = asyncio.Event()
        self._refused: set[Path] = set()
        self._not_before_ns: dict[Path, int] = {}
        """Of files that could not be tried: when they are looked at again."""
        self.changes = 0
        """New files that have taken effect."""

    async def run(self) -> None:
        """Watch until cancelled."""
        while self._files:
            asked = await self._asked_within(_EVERY_S)
            for file in self._files:
                await self._look(file, asked=asked)

    def look_now(self) -> None:
        """Somebody has put new files in place; the log says what comes of it."""
        if not self._files:
            _log.info("no stage has a file that could be read again; everything else needs a new start")
        self._asked.set()

    async def _asked_within(self, seconds: float) -> bool:
        await first_of(self._clock.sleep(seconds), self._asked.wait())
        asked = self._asked.is_set()
        self._asked.clear()
        return asked

    async def _look(self, file: Path, *, asked: bool) -> None:
        numbers = self._files[file]
        names = ", ".join(self._plan.stages[number].name for number in numbers)
        path = self._plan.stages[numbers[0]].path
        if not asked and self._clock.monotonic_ns() < self._not_before_ns.get(file, 0):
            return
        now = await asyncio.to_thread(files.stamp, file)
        before, self._seen[file] = self._seen[file], now
        if asked and now == self._known[file] and file not in self._refused:
            _log.info("%s: %s is as it was", names, path, extra={"stage": names})
            return
        if not asked and (now == self._known[file] or now != before):
            return  # nothing new, or it is still being written
        self._known[file] = now
        self._refused.discard(file)
        try:
            made = await self._all_made(file, names)
        except OutsideError as error:  # which says nothing of the file
            self._known[file] = None
            self._not_before_ns[file] = self._clock.monotonic_ns() + round(error.after_s * 1e9)
            told = "%s: the file has changed and could not be tried, so the old one stays in use for now: %s"
            _log.warning(told, names, error, extra={"stage": names})
            return
        if made is None:
            self._refused.add(file)
            return
        if await asyncio.to_thread(files.stamp, file) != now:
            self._known[file] = None  # written to while it was read: once more
            return
        first = await self._change(made)
        self.changes += 1
        fields = {"stage": names, "record": first}
        _log.info("%s: the new %s counts from record %d on", names, path, first, extra=fields)

    async def _all_made(self, file: Path, names: str) -> NewStages | None:
        """All stages of the file as it is now, each of which a lane could open; None, and told, where one cannot serve.
        Raises `OutsideError` where that could not be tried."""
        made, load = [], self._load()
        if what := await asyncio.to_thread(files.endless, file):
            told = (
                "%s: %s stands in the place of %s, which reading might never be through with; the old one stays in use"
            )
            _log.error(told, names, what, file, extra={"stage": names})
            return None
        for number in self._files[file]:
            name = self._plan.stages[number].name
            try:
                made.append(await asyncio.to_thread(self._made, number, load))
                await self._opens(made[-1])
            except TidemillError as error:
                if isinstance(error, OutsideError) and error.after_s:
                    raise
                why = str(error).removeprefix(f"{name}: ")
                told = "%s: the file has changed and cannot serve, so the old one stays in use: %s"
                _log.error(told, names, why if names == name else f"{name}: {why}", extra={"stage": names})
                return None
        return NewStages(tuple(made))

    def _made(self, number: int, load: Load) -> NewStage:
        """The stage made of the file as it is now; raises what cannot serve."""
        entering, leaving = self._schemas[number], self._schemas[number + 1]
        made = self._plan.stages[number].prepared(load).settled(entering)
        bound = made.bind(entering)
        if bound != leaving:
            raise PlanError(f"its columns would be {bound}; in this run they are {leaving}.")
        file = load.in_effect[str(made.path)][-1] if isinstance(load, KeptLoad) else ""
        return NewStage(number, sent_stage(made), file)
