"""The keeper: state on disk. What an attempt begins with, when its sinks commit, and the checkpoints it publishes."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.clock import Clock
from tidemill.core.epochs import Epochs
from tidemill.engine.checkpoint_store import Checkpoint, CheckpointStore
from tidemill.engine.intake import Beginning
from tidemill.engine.state_folder import StateFolder
from tidemill.sinks.base import Keeping
from tidemill.stages.object_states import ObjectStates
from tidemill.stages.state import StateMemory

if TYPE_CHECKING:
    from tidemill.engine.attempt import Attempt

__all__ = ["Keeper", "Places", "Saving"]

_log = logging.getLogger("tidemill")
Place = dict[str, Any]
"""Where an inflow can begin again: JSON-like, and the inflow's own."""


class Places:
    """Where the inflow stood at which positions, so that a checkpoint at any position knows where to begin again.

    >>> places = Places(0, {"entry": 0})
    >>> places.add(10, {"entry": 1}); places.add(20, {"entry": 2})
    >>> places.before(15)
    (10, {'entry': 1})
    """

    def __init__(self, position: int, place: Place) -> None:
        self._known: deque[tuple[int, Place]] = deque([(position, place)])

    def add(self, position: int, place: Place) -> None:
        """Everything up to ``position`` comes from before ``place``."""
        self._known.append((position, place))

    def before(self, position: int) -> tuple[int, Place]:
        """The last place at which no input beyond ``position`` had come, and its own position."""
        at = bisect_right([known for known, _ in self._known], position) - 1
        for _ in range(at):
            self._known.popleft()
        return self._known[0]


class Keeper:
    """One run's state on disk; each of its attempts has a `Saving`."""

    def __init__(self, folder: StateFolder, clock: Clock, *, interval_s: float, records: int | None = None) -> None:
        self.folder = folder
        self.store = CheckpointStore(folder.checkpoints)
        self._clock = clock
        self._interval_ns = round(interval_s * 1e9)
        self._records = records
        self.found: Checkpoint | None = self.store.newest()
        """The newest checkpoint that is whole."""
        self.places = Places(0, {})
        self.oldest: deque[Place] = deque(maxlen=3)
        """The places of the checkpoints that are kept, from the oldest."""

    @property
    def place(self) -> Place | None:
        """Where the inflow begins again; None at the very beginning."""
        return None if self.found is None else self.found.facts["place"]

    @property
    def letters_bytes(self) -> int:
        """How many bytes of the dead letters are those of the checkpoint."""
        return 0 if self.found is None else self.found.facts["letters_bytes"]

    @property
    def ended(self) -> bool:
        """Whether the whole input had been worked on, to its end."""
        return self.found is not None and self.found.facts["ended"]

    def of_sink(self, name: str) -> Keeping:
        """What a sink is told."""
        return Keeping(self.folder.of_sink(name), self.folder.pipeline, self.folder.epoch)

    async def restore(self, attempt: Attempt) -> Beginning:
        """Give the attempt the state of the newest checkpoint; where its input begins."""
        self.found = await asyncio.to_thread(self.store.newest)
        cuts = sorted({outlet.resumed_at for outlet in attempt.outlets if outlet.resumed_at})
        if self.found is None:
            self.places = Places(0, {})
            return Beginning(cuts=cuts)
        facts = self.found.facts
        await asyncio.to_thread(_restore_lanes, self.found, attempt)
        attempt.watermark.restore(facts["watermark"], self._clock.monotonic_ns())
        attempt.mill.learned_before(
            {int(stage): kinds for stage, kinds in facts["learned"].items()}, facts["results"], probing=facts["probing"]
        )
        self.places = Places(facts["place_position"], facts["place"])
        _log.info("resumed behind input %d, from checkpoint %d", facts["position"], self.found.number)
        return Beginning(facts["place_position"], facts["position"], facts["kinds"], cuts)

    def saving(self, attempt: Attempt) -> Saving:
        """The checkpoints of an attempt."""
        number = 0 if self.found is None else self.found.number
        position = 0 if self.found is None else self.found.facts["position"]
        epochs = Epochs(
            lanes=len(attempt.mill.lanes),
            sinks=len(attempt.outlets),
            interval_ns=self._interval_ns,
            number=number,
            position=position,
            now_ns=self._clock.monotonic_ns(),
            records=self._records,
        )
        return Saving(self, attempt, epochs, self._clock)

    def close(self) -> None:
        """Let go of the folder."""
        self.folder.close()


@dataclass
class _Facts:
    """What was known at the barrier, and nowhere else later."""

    facts: dict[str, Any]
    keys: list[Any]
    slots: list[int]
    letters: asyncio.Future[int] | None = None


class Saving:
    """The commits and checkpoints of one attempt; `turn` is called many times a second."""

    def __init__(self, keeper: Keeper, attempt: Attempt, epochs: Epochs, clock: Clock) -> None:
        self._keeper, self._attempt, self.epochs, self._clock = keeper, attempt, epochs, clock
        self._at_barrier: _Facts | None = None
        self._writing: asyncio.Task[None] | None = None
        for number, outlet in enumerate(attempt.outlets):
            outlet.kept = self._kept_by(number)
            epochs.committed(number, outlet.resumed_at)

    def _kept_by(self, sink: int) -> Any:
        return lambda position: self.epochs.committed(sink, position)

    def turn(self) -> None:
        """Do what is due; raises what went wrong with the checkpoint that was being written."""
        if self._writing is not None and self._writing.done():
            writing, self._writing = self._writing, None
            writing.result()
        now, mill = self._clock.monotonic_ns(), self._attempt.mill
        if self.epochs.commit_due(now, mill.reached):
            self._commit(mill.reached)
        if self.epochs.due(now, mill.handed_up_to):
            self._raise_barrier(now)
        if self.epochs.writable and self._at_barrier is not None:
            self._write()

    async def last(self) -> None:
        """A checkpoint of all there is: the run ends."""
        while self.epochs.statistics().under_way:
            self.turn()
            await asyncio.sleep(0.001)
        if self._attempt.mill.handed_up_to > self.epochs.statistics().position:
            self._raise_barrier(self._clock.monotonic_ns())
            while self.epochs.statistics().under_way:
                self.turn()
                await asyncio.sleep(0.001)

    def copied(self, lane: int) -> None:
        """A lane has copied its state at the barrier."""
        self.epochs.copied(lane)

    def passed(self, position: int) -> None:
        """All up to there has left the lanes, its rows and its letters are with the sinks."""
        waits_at = self.epochs.waits_at
        if waits_at is None or position < waits_at or self._at_barrier is None:
            return
        self._at_barrier.letters = self._attempt.letters.bookmark()
        self.epochs.pass_barrier()
        self._commit(waits_at)
        self.epochs.told(self._clock.monotonic_ns(), waits_at)

    def _commit(self, position: int) -> None:
        for outlet in self._attempt.outlets:
            if outlet.resumed_at < position:
                outlet.commit(position)

    def _raise_barrier(self, now: int) -> None:
        attempt, mill = self._attempt, self._attempt.mill
        position = mill.handed_up_to
        place_position, place = self._keeper.places.before(position)
        self._at_barrier = _Facts(
            {
                "position": position,
                "place_position": place_position,
                "place": place,
                "epoch": self._keeper.folder.epoch,
                "lanes": len(mill.lanes),
                "watermark": attempt.watermark.snapshot(),
                "kinds": attempt.intake.kinds,
                "ended": attempt.has_ended,
            },
            attempt.keys.entries(),
            [attempt.keys.count(lane.number) for lane in mill.lanes],
        )
        mill.raise_barrier(self.epochs.begin(position, now))
        self.passed(mill.reached)

    def _write(self) -> None:
        at_barrier, self._at_barrier = self._at_barrier, None
        assert at_barrier is not None
        self._writing = asyncio.ensure_future(self._published(self.epochs.write(), at_barrier))

    async def _published(self, number: int, at_barrier: _Facts) -> None:
        mill = self._attempt.mill
        assert at_barrier.letters is not None
        facts = {
            **at_barrier.facts,
            **mill.learned(),
            "letters_bytes": await at_barrier.letters,
            "written_ns": self._clock.wall_ns(),
        }
        arrays = _arrays(self._attempt, at_barrier.keys, at_barrier.slots, dict(mill.objects))
        await asyncio.to_thread(self._keeper.store.write, number, facts, arrays)
        self._keeper.oldest.append(facts["place"])
        self.epochs.published(self._clock.monotonic_ns())


def _arrays(
    attempt: Attempt, keys: list[Any], slots: list[int], objects: Mapping[int, Mapping[int, list[ObjectStates]]]
) -> Iterator[tuple[str, NDArray[Any] | bytes]]:
    """Everything large; made in the thread that writes it."""
    yield from _key_arrays(keys)
    for lane, count in zip(attempt.mill.lanes, slots, strict=True):
        copy = StateMemory(lane.memory.layout, lane.copy.buffer)
        for number, (fields, state) in enumerate(zip(copy.layout.stages, copy.stages, strict=True)):
            for name, field in fields.items():
                yield f"lane/{lane.number}/stage/{number}/{name}", state[name][: None if field.per_lane else count]
        for stage, states in objects.get(lane.number, {}).items():
            newest = ObjectStates.joined(states).newest()
            at = f"lane/{lane.number}/objects/{stage}"
            yield f"{at}/slots", newest.slots
            yield f"{at}/sizes", newest.sizes
            yield f"{at}/data", newest.data


def _key_arrays(keys: list[Any]) -> Iterator[tuple[str, NDArray[Any] | bytes]]:
    pairs = bool(keys) and isinstance(keys[0], tuple)
    columns = list(zip(*keys, strict=True)) if pairs else [keys]
    for name, texts in zip(("devices", "keys") if pairs else ("keys",), columns, strict=True):
        data = [text.encode() for text in texts]
        yield f"{name}/bytes", b"".join(data)
        yield f"{name}/sizes", np.fromiter(map(len, data), np.int32, len(data))


def _keys_of(found: Checkpoint) -> list[Any]:
    columns = [_texts(found, name) for name in ("devices", "keys") if f"{name}/sizes" in found.names]
    return list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))


def _texts(found: Checkpoint, name: str) -> list[str]:
    data, ends = found.blob(f"{name}/bytes"), np.cumsum(found.array(f"{name}/sizes"), dtype=np.int64).tolist()
    return [data[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _restore_lanes(found: Checkpoint, attempt: Attempt) -> None:
    """Before the lanes have begun."""
    attempt.keys.enter(_keys_of(found))
    for lane in attempt.mill.lanes:
        for number, (fields, state) in enumerate(zip(lane.memory.layout.stages, lane.memory.stages, strict=True)):
            for name in fields:
                saved = found.array(f"lane/{lane.number}/stage/{number}/{name}")
                state[name][: len(saved)] = saved
        for name in found.names:
            if name.startswith(f"lane/{lane.number}/objects/") and name.endswith("/slots"):
                at = name.removesuffix("/slots")
                states = ObjectStates(
                    found.array(f"{at}/slots"), found.array(f"{at}/sizes"), found.blob(f"{at}/data")
                )
                lane.objects.hold({int(at.rsplit("/", 1)[1]): [states]})
