"""When an attempt's sinks commit, and the checkpoints it writes: what `core/epochs.py` decides, performed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from tidemill.clock import Clock
from tidemill.core.epochs import Epochs
from tidemill.core.keys import Entries
from tidemill.core.resume import identify
from tidemill.engine.keeper import Keeper
from tidemill.engine.saved_state import arrays_of
from tidemill.engine.tally import Tally

if TYPE_CHECKING:
    from tidemill.engine.attempt import Attempt

__all__ = ["Saving"]


@dataclass
class _Facts:
    """What was known at the barrier, and nowhere else later."""

    facts: dict[str, Any]
    keys: Entries
    slots: list[int]
    letters: asyncio.Future[int] | None = None
    tally: Tally = field(default_factory=Tally)


class Saving:
    """The commits and checkpoints of one attempt; `turn` is called many times a second."""

    def __init__(self, keeper: Keeper, attempt: Attempt, clock: Clock) -> None:
        self._keeper, self._attempt, self._clock = keeper, attempt, clock
        self.epochs = epochs = Epochs(
            lanes=len(attempt.mill.lanes),
            sinks=len(attempt.outflow.outlets),
            interval_ns=round(keeper.state.checkpoint_s * 1e9),
            number=keeper.number,
            position=keeper.position,
            now_ns=clock.monotonic_ns(),
            records=keeper.state.checkpoint_records,
        )
        self._at_barrier: _Facts | None = None
        self._writing: asyncio.Task[None] | None = None
        self.waiting_since_ns: int | None = None
        """Since when inputs that were worked on have waited for a checkpoint."""
        self._written: int | None = None
        """Of the letters that the checkpoint under way covers, the bytes on the disk; None until they are there."""
        self._unchanging = {
            "epoch": keeper.folder.epoch,
            "lanes": len(attempt.mill.lanes),
            "by_turns": True,
            "sinks": [outlet.name for outlet in attempt.outflow.outlets if outlet.sink.keeps_position],
            "stages": msgspec.to_builtins(identify(attempt.checked.plan, attempt.checked.place_by)),
        }
        """Facts that are the same in every checkpoint of the attempt."""
        for number, outlet in enumerate(attempt.outflow.outlets):
            outlet.kept = self._kept_by(number)
            attempt.outflow.resumed(outlet)
            epochs.committed(number, outlet.resumed_at)

    def _kept_by(self, sink: int) -> Callable[[int], None]:
        def kept(position: int) -> None:
            outflow = self._attempt.outflow
            outflow.kept(outflow.outlets[sink], position)
            self.epochs.committed(sink, position)

        return kept

    @property
    def reached(self) -> int:
        """Up to where in the input all has left the lanes."""
        return self._attempt.mill.reached

    def turn(self) -> None:
        """Do what is due; raises what went wrong with the checkpoint that was being written."""
        if self._writing is not None and self._writing.done():
            writing, self._writing = self._writing, None
            writing.result()
        now, mill = self._clock.monotonic_ns(), self._attempt.mill
        self._keeper.reached = max(self._keeper.reached, mill.reached)
        if mill.handed_up_to <= self.epochs.position:
            self.waiting_since_ns = None
        elif self.waiting_since_ns is None:
            self.waiting_since_ns = now
        if self._keeper.warming:
            pass
        elif self.epochs.due(now, mill.handed_up_to, pressed=self._keeper.pressed):
            self._raise_barrier(now)
        elif not mill.is_half_out and self.epochs.commit_due(now, mill.reached):
            self._commit(mill.reached)
        if self.epochs.writable and self._at_barrier is not None:
            self._write()

    async def last(self) -> None:
        """A checkpoint of all there is: the run ends."""
        await self._none_under_way()
        if self._attempt.mill.handed_up_to > self.epochs.statistics().position:
            self._raise_barrier(self._clock.monotonic_ns())
            await self._none_under_way()

    async def _none_under_way(self) -> None:
        while self.epochs.statistics().under_way:
            self.turn()
            await asyncio.sleep(0.001)

    async def aclose(self) -> None:
        """Return when no thread writes any more; raises nothing."""
        if self._writing is not None:
            if self._written is None:  # it waits for letters that will never be on the disk
                self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    def copied(self, lane: int) -> None:
        """A lane has copied its state at the barrier."""
        self.epochs.copied(lane)

    def passed(self) -> None:
        """All up to the barrier has left the lanes, and nothing behind it: rows and letters are with the sinks."""
        waits_at = self.epochs.waits_at
        if waits_at is None or self._at_barrier is None:
            return
        self._at_barrier.letters = self._attempt.outflow.letters.bookmark()
        self._at_barrier.facts["rows"] = self._attempt.outflow.rows
        if not self._keeper.warming:
            self._at_barrier.tally = self._attempt.tally()
        self.epochs.pass_barrier()
        self._commit(waits_at)
        self.epochs.told(self._clock.monotonic_ns(), waits_at)

    def _commit(self, position: int) -> None:
        self._attempt.outflow.commit(position)

    def _raise_barrier(self, now: int) -> None:
        attempt, mill = self._attempt, self._attempt.mill
        position = mill.handed_up_to
        place_position, place = self._keeper.places.before(position)
        self._at_barrier = _Facts(
            {
                **self._unchanging,
                "position": position,
                "place_position": place_position,
                "place": place,
                "watermark": attempt.watermark.snapshot(),
                "kinds": {} if self._keeper.warming else attempt.intake.kinds_at(position),
                "empty": {} if self._keeper.warming else attempt.intake.empty_at(position),
                "ended": attempt.has_ended and position >= attempt.intake.entered,
                "files": self._keeper.effective(attempt.pipeline.plan.stages, mill.files),
            },
            attempt.keys.entries(),
            [attempt.keys.count(lane.number) for lane in mill.lanes],
        )
        mill.raise_barrier(self.epochs.begin(position, now))

    def _write(self) -> None:
        at_barrier, self._at_barrier = self._at_barrier, None
        assert at_barrier is not None
        self._written = None
        self._writing = asyncio.ensure_future(
            self._published(self.epochs.write(self._clock.monotonic_ns()), at_barrier)
        )

    async def _published(self, number: int, at_barrier: _Facts) -> None:
        mill = self._attempt.mill
        assert at_barrier.letters is not None
        length = self._written = await at_barrier.letters
        facts = {
            **at_barrier.facts,
            **mill.learned(),
            "letters": None if self._keeper.warming else str(self._attempt.outflow.letters.path),
            "letters_bytes": length,
            "written_ns": self._clock.wall_ns(),
        }
        arrays = arrays_of(mill.lanes, at_barrier.keys, at_barrier.slots, dict(mill.barriers.objects))
        self._keeper.tallied(number, at_barrier.tally)
        await asyncio.to_thread(self._keeper.store.write, number, facts, arrays)
        await asyncio.to_thread(self._keeper.published, facts)
        self.epochs.published(self._clock.monotonic_ns())
        self.waiting_since_ns = None
