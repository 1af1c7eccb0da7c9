"""Where an attempt's input comes from: sources as they give it, one source that seeks, or the journal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tidemill.batch import Batch
from tidemill.core.controls import CatchUp, End, NewStages, Tick
from tidemill.core.watermark import BEGIN
from tidemill.engine.journal import Journal
from tidemill.engine.keeper import Keeper
from tidemill.engine.reading import SourceReader
from tidemill.errors import EngineError, PlanError
from tidemill.formats.entries import ControlEntry, RecordsEntry
from tidemill.letters import AT_A_TIME, DeadLetter
from tidemill.sources.base import Source

if TYPE_CHECKING:
    from tidemill.engine.attempt import Attempt

__all__ = ["Direct", "Inflow", "Logged", "Nothing", "Seeking", "Warming"]

_log = logging.getLogger("tidemill")


class Inflow(Protocol):
    """Where an attempt's input comes from."""

    waits: bool
    """Whether it must not begin before the lanes are ready."""

    def tasks(self, attempt: Attempt) -> list[Coroutine[Any, Any, None]]:
        """What brings the input to the attempt's intake, from its beginning on; they end with the input."""
        ...

    def tick(self, attempt: Attempt, tick: Tick) -> None:
        """Give it a place behind what came so far."""
        ...

    async def change(self, attempt: Attempt, made: NewStages) -> int:
        """Give new stages their place, which is one, behind what came so far; its position, once they have it."""
        ...


class _Decided:
    """Of an inflow that is all there is: what is decided goes to the intake at once."""

    def tick(self, attempt: Attempt, tick: Tick) -> None:
        attempt.intake.decide(tick)

    async def change(self, attempt: Attempt, made: NewStages) -> int:
        return attempt.intake.decide(made)


class _Undecided:
    """Of an inflow that ends by itself, and is the same each time: nothing is decided outside."""

    def tick(self, attempt: Attempt, tick: Tick) -> None:
        raise EngineError(f"{tick} was decided for an input that is the same each time")

    async def change(self, attempt: Attempt, made: NewStages) -> int:
        numbers = ", ".join(str(one.stage) for one in made.stages)
        raise EngineError(f"stage {numbers} was made anew for an input that is the same each time")


class Direct(_Decided):
    """Without state: the sources, each in a task of its own."""

    waits = False

    def __init__(self, sources: Sequence[Source], reader: SourceReader) -> None:
        self._sources, self._reader = sources, reader

    def tasks(self, attempt: Attempt) -> list[Coroutine[Any, Any, None]]:
        return [self._read(attempt, source) for source in self._sources]

    async def _read(self, attempt: Attempt, source: Source) -> None:
        if source.makes:
            await attempt.started.wait()

        async def give(batch: Batch) -> None:
            attempt.came(len(batch), source.name)
            await attempt.intake.put(batch, source.name)

        await self._reader.read(source, give=give, refuse=attempt.refuse)


class Nothing(_Undecided):
    """With state, of an input that has come to its end before."""

    waits = True

    def tasks(self, attempt: Attempt) -> list[Coroutine[Any, Any, None]]:
        attempt.has_ended = True
        return []


class Seeking(_Undecided):
    """With state, and one source that gives the same again from wherever it is told to: no log is needed."""

    waits = True

    def __init__(self, source: Source, reader: SourceReader, keeper: Keeper) -> None:
        self._source, self._reader, self._keeper = source, reader, keeper

    def tasks(self, attempt: Attempt) -> list[Coroutine[Any, Any, None]]:
        return [self._read(attempt)]

    async def _read(self, attempt: Attempt) -> None:
        source, keeper = self._source, self._keeper
        wall_ns = await asyncio.to_thread(self._begin)

        async def give(batch: Batch) -> None:
            await attempt.enter(batch, source.name, wall_ns)
            keeper.places.add(attempt.intake.entered, {"offset": source.offset(), "wall_ns": wall_ns})

        await self._reader.read(source, give=give, refuse=attempt.refuse)
        if not self._reader.stopping.is_set():
            attempt.end_input()

    def _begin(self) -> int:
        """Have the source go on where the checkpoint stands, or begin where the first start began; when that was."""
        keeper = self._keeper
        if "wall_ns" in (place := keeper.place):
            keeper.begin()
        else:
            place = keeper.begin_at(self._beginning)
        if place["offset"] is not None:
            self._source.seek(place["offset"])
        return int(place["wall_ns"])

    def _beginning(self) -> dict[str, Any]:
        wall_ns = self._reader.clock.wall_ns()
        return {"offset": self._source.beginning(wall_ns), "wall_ns": wall_ns}


class Warming(_Decided):
    """Before the first input of a run that keeps state: a history, whose rows no sink gets."""

    waits = True

    def __init__(self, source: Source, reader: SourceReader, keeper: Keeper) -> None:
        self._source, self._reader, self._keeper = source, reader, keeper

    def tasks(self, attempt: Attempt) -> list[Coroutine[Any, Any, None]]:
        return [self._read(attempt)]

    async def _read(self, attempt: Attempt) -> None:
        wall_ns = self._reader.clock.wall_ns()

        async def give(batch: Batch) -> None:
            await attempt.enter(batch, self._source.name, wall_ns)

        await self._reader.read(self._source, give=give, refuse=attempt.refuse)
        self._keeper.places.add(attempt.intake.entered, {})  # the run's own input begins behind it


class Logged:
    """With state: what the journal has on the disk, from the checkpoint's entry on."""

    waits = True

    def __init__(self, journal: Journal, keeper: Keeper) -> None:
        self._journal, self._keeper = journal, keeper
        self._decided: dict[int, asyncio.Future[int]] = {}

    def tasks(self, attempt: Attempt) -> list[Coroutine[Any, Any, None]]:
        return [self._feed(attempt)]

    async def _feed(self, attempt: Attempt) -> None:
        keeper = self._keeper
        place = keeper.place
        offsets = dict(place.get("offsets", {}))
        start, end = place.get("entry", 0), self._journal.log.durable
        if start < end:
            await asyncio.to_thread(keeper.begin)
        else:
            keeper.refuse_newer_outputs(attempt)

        async def give(number: int, entry: RecordsEntry | ControlEntry) -> None:
            if isinstance(entry, RecordsEntry):
                await self._refuse(attempt, entry.letters)
                await attempt.enter(entry.batch, entry.source, entry.wall_ns)
                if entry.offset is not None:
                    offsets[entry.source] = entry.offset
            else:
                position = await self._perform(attempt, number, entry)
                if (decided := self._decided.pop(number, None)) is not None and not decided.done():
                    decided.set_result(position)
            keeper.places.add(attempt.intake.entered, {"entry": number + 1, "offsets": dict(offsets)})
            if number + 1 == end:
                keeper.refuse_newer_outputs(attempt)

        await self._journal.feed(start, give)

    async def _refuse(self, attempt: Attempt, letters: Sequence[DeadLetter]) -> None:
        for start in range(0, len(letters), AT_A_TIME):
            if start:  # whatever has its turn here finds the inputs so far, and the place before the entry
                await asyncio.sleep(0)
                await attempt.outflow.room()
            attempt.refuse(*letters[start : start + AT_A_TIME])

    async def _perform(self, attempt: Attempt, number: int, entry: ControlEntry) -> int:
        match entry.what:
            case "tick":
                return attempt.intake.decide(Tick(entry.value["mark"]))
            case "stages":
                made = await self._changed(attempt, entry.value, opened=True, new=number in self._decided)
                return attempt.intake.decide(made or Tick(BEGIN))  # its place in the input stays; nothing moves
            case "stage":  # one of them, from a version that did not open it first
                made = await self._changed(attempt, [entry.value], opened=False)
                return attempt.intake.decide(made or Tick(BEGIN))  # its place in the input stays; nothing moves
            case "catch_up":
                return attempt.intake.decide(CatchUp())
            case "end":
                attempt.has_ended = True
                return attempt.intake.decide(End())
            case _:
                raise EngineError(f"the ingest log has a control record {entry.what!r}, which nobody knows")

    async def _changed(
        self, attempt: Attempt, told: Sequence[Mapping[str, Any]], *, opened: bool, new: bool = False
    ) -> NewStages | None:
        """The stages that the log tells of, which were ``opened`` before it was told, and ``new`` if that was just now; None to
        pass them over."""
        keeper, path = self._keeper, told[0].get("path", "a file")
        made = await asyncio.to_thread(keeper.stages_of, attempt.checked, attempt.pipeline.plan, told)
        if not made:
            _log.warning("no stage of this plan reads %s, whose change the log holds; it is passed over", path)
            return None
        for one in () if new else made:
            try:
                await attempt.opens(one)
            except PlanError as error:
                keeper.require_unused(attempt, one.file, path, error, opened=opened)
                return None
        return NewStages(tuple(made))

    def tick(self, attempt: Attempt, tick: Tick) -> None:
        if not self._journal.closed:
            self._journal.decide(ControlEntry("tick", {"mark": tick.mark_ns}))

    async def change(self, attempt: Attempt, made: NewStages) -> int:
        decided: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self._journal.closed:
            return await decided  # the run ends before; the next start finds that the file has changed
        told = self._keeper.told_of(made, attempt.pipeline.plan.stages)
        number = self._journal.decide(ControlEntry("stages", told))
        self._decided[number] = decided
        return await decided
