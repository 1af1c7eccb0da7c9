"""What a checkpoint has of an attempt that is large: keys, the lanes' arrays, their objects; and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill.core.keys import Entries, KeyTable
from tidemill.core.moving import Saved, moved_objects, placed, restore, saved_arrays
from tidemill.engine.checkpoint_store import Checkpoint
from tidemill.engine.kept_objects import ObjectsCopy
from tidemill.engine.lane import Lane
from tidemill.engine.saved_facts import SavedFacts, refused
from tidemill.stages.base import Stage
from tidemill.stages.object_states import ObjectStates
from tidemill.stages.state import StateField, StateMemory

__all__ = ["arrays_of", "fill", "keys_of"]


def arrays_of(
    lanes: Sequence[Lane], keys: Entries, slots: Sequence[int], objects: Mapping[int, ObjectsCopy]
) -> Iterator[tuple[str, NDArray[Any] | bytes]]:
    """By name, as they were at the barrier where the lanes copied: to be called in the thread that writes them.

    ``slots`` are each lane's numbers of sensors there, ``objects`` each one's objects.
    """
    yield from _key_arrays(keys)
    for lane, count in zip(lanes, slots, strict=True):
        yield from saved_arrays(lane.number, StateMemory(lane.memory.layout, lane.copy.buffer), count)
        for stage, states in objects.get(lane.number, {}).items():
            newest = ObjectStates.joined(states).newest()
            at = _objects(lane.number, stage)
            yield f"{at}/slots", newest.slots
            yield f"{at}/sizes", newest.sizes
            yield f"{at}/data", newest.data


def fill(
    found: Checkpoint,
    facts: SavedFacts,
    keys: KeyTable,
    lanes: Sequence[Lane],
    stages: Sequence[Stage],
    fields: Sequence[Mapping[str, StateField]],
    sources: Sequence[int | None],
) -> None:
    """Give what was saved to lanes that have not begun, and their key table.

    ``fields`` are those of the plan that was saved, ``sources`` say per stage of this one which of those it goes on with.
    """
    before = facts.lanes
    entries = keys_of(found)
    places = placed(before, entries, keys, len(lanes), by_bytes=not facts.by_turns)
    arrays = {name: found.array(name) for name in found.names if "/stage/" in name}
    saved = Saved(before, fields, entries, arrays)
    restore(saved, places, stages, [lane.memory for lane in lanes], sources)
    for stage, source in enumerate(sources):
        if source is None:
            continue
        states = [_states(found, lane, source) for lane in range(before)]
        if any(len(own.slots) for own in states):
            for lane, own in zip(lanes, moved_objects(states, places), strict=True):
                lane.objects.hold({stage: [own]})


def _key_arrays(keys: Entries) -> Iterator[tuple[str, NDArray[Any] | bytes]]:
    paired = bool(keys) and isinstance(keys[0], tuple)
    columns: list[Sequence[Any]] = list(zip(*keys, strict=True)) if paired else [keys]
    for name, texts in zip(("devices", "keys") if paired else ("keys",), columns, strict=True):
        data = [text.encode() for text in texts]
        yield f"{name}/bytes", b"".join(data)
        yield f"{name}/sizes", np.fromiter(map(len, data), np.int32, len(data))


def keys_of(found: Checkpoint) -> Entries:
    """The sensors that a checkpoint knows, as `KeyTable.enter` takes them."""
    columns = [_texts(found, name) for name in ("devices", "keys") if f"{name}/sizes" in found.names]
    return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def _texts(found: Checkpoint, name: str) -> list[str]:
    data, sizes = found.blob(f"{name}/bytes"), found.array(f"{name}/sizes")
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    if (sizes < 0).any() or [0, *ends][-1] != len(data):
        raise refused(found, f"the sizes of its {name} are not theirs")
    return [data[start:end].decode() for start, end in pairwise([0, *ends])]


def _states(found: Checkpoint, lane: int, stage: int) -> ObjectStates:
    at = _objects(lane, stage)
    if f"{at}/slots" not in found.names:
        return ObjectStates.of({})
    return ObjectStates(found.array(f"{at}/slots"), found.array(f"{at}/sizes"), found.blob(f"{at}/data"))


def _objects(lane: int, stage: int) -> str:
    return f"lane/{lane}/objects/{stage}"
