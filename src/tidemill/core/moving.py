"""State out of lanes into the arrays of a checkpoint, and into lanes again: as many as before or another number (decision 43).

What is kept of a sensor is a row of each of its stage's fields, and goes with the sensor to its new lane and slot. What a
stage keeps for a whole lane is moved by the stage (`Stage.moved`). Arrays have names that say where they were:
``lane/0/stage/2/ring``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tidemill.core.keys import Entries, KeyTable, lanes_by_bytes, lanes_of
from tidemill.errors import InputError, PlanError
from tidemill.stages.base import Stage
from tidemill.stages.object_states import ObjectStates
from tidemill.stages.places import Places
from tidemill.stages.state import StateField, StateMemory
from tidemill.stages.state_copy import used_rows

__all__ = ["Saved", "moved_objects", "placed", "restore", "saved_arrays"]

_AT_ONCE: Final = 1 << 20
"""Bytes of rows that are gathered before they are scattered."""

Arrays = Mapping[str, NDArray[Any]]


def saved_arrays(lane: int, memory: StateMemory, slots: int) -> Iterator[tuple[str, NDArray[Any]]]:
    """What a checkpoint holds of one lane's state, by name: views of ``memory``, nothing is copied.

    ``memory`` is the lane's, or has been filled by `copy_used`; ``slots`` is how many key slots the lane has.
    """
    for stage, (fields, state) in enumerate(zip(memory.layout.stages, memory.stages, strict=True)):
        for name, rows in used_rows(fields, state, slots):
            yield _name(lane, stage, name), state[name][:rows]


@dataclass(frozen=True)
class Saved:
    """The state of a run, as a checkpoint has it."""

    lanes: int
    stages: Sequence[Mapping[str, StateField]]
    """Per stage of the plan that it is of, the fields."""
    keys: Entries
    """`KeyTable.entries`."""
    arrays: Arrays
    """What `saved_arrays` gave, of all lanes."""


def placed(lanes: int, entries: Entries, table: KeyTable, now: int, *, by_bytes: bool = False) -> Places:
    """Where the slots of ``lanes`` lanes with these keys are among the ``now`` lanes of ``table``, which takes the keys.

    ``by_bytes`` is whether an older tidemill had placed them. Raises what `KeyTable.enter` raises.
    """
    table.enter(entries)
    codes = np.arange(len(entries), dtype=np.int32)
    was = new_lane = table.lanes(codes)
    same = lanes == now and not by_bytes
    if not same:
        was = lanes_by_bytes(entries, lanes) if by_bytes else lanes_of(entries, lanes)
    new_slot = table.slots(codes)
    own = [was == lane for lane in range(lanes)]  # codes of one lane ascend with its slots
    return Places(now, [new_lane[mine] for mine in own], [new_slot[mine] for mine in own], same=same)


def restore(
    saved: Saved,
    places: Places,
    stages: Sequence[Stage],
    memories: Sequence[StateMemory],
    sources: Sequence[int | None],
) -> None:
    """Fill the state of new lanes, which have not begun, with what was saved.

    ``places``    from `placed`, of ``saved.lanes`` and ``saved.keys``
    ``stages``    of the plan now, and ``memories`` over its layout, one of each lane, all zeros
    ``sources``   per stage, the place of the one in the saved plan whose state it goes on with; None to start empty

    Beside the arrays themselves it takes 1 MiB, and as much as the stages keep for whole lanes. Raises `InputError` for
    arrays that do not fit what the state is said to be, and `PlanError` where a stage has too little room now, or cannot
    move into another number of lanes.
    """
    for number, (stage, source) in enumerate(zip(stages, sources, strict=True)):
        if source is None:
            continue
        old, new = saved.stages[source], memories[0].layout.stages[number]
        before = [_arrays(saved, lane, source, old, len(places.slot_of[lane])) for lane in range(saved.lanes)]
        for name, field in new.items():
            if not field.per_lane:
                _move_rows(
                    [arrays[name] for arrays in before], [memory.stages[number][name] for memory in memories], places
                )
        shared = [{name: arrays[name] for name, field in old.items() if field.per_lane} for arrays in before]
        if not any(field.per_lane for field in old.values()):
            continue
        moved: Sequence[Arrays] = shared if places.same else stage.moved(shared, places)
        for memory, arrays in zip(memories, moved, strict=True):
            for name, array in arrays.items():
                room = memory.stages[number][name]
                if len(array) > len(room):
                    raise PlanError(
                        f"{stage.name} has {len(array):,} entries in the state that this run goes on with that wait in one "
                        f"lane, and room for {len(room):,}: give it a larger max_waiting, or the run more lanes."
                    )
                room[: len(array)] = array


def moved_objects(states: Sequence[ObjectStates], places: Places) -> list[ObjectStates]:
    """The objects of one stage in the lanes of now; ``states`` are those of each saved lane, later ones in place of earlier.

    >>> places = Places(1, [np.array([0], np.int16)] * 2, [np.array([1], np.int32), np.array([0], np.int32)], same=False)
    >>> [dict(lane) for lane in moved_objects([ObjectStates.of({0: b"a"}), ObjectStates.of({0: b"b"})], places)]
    [{1: b'a', 0: b'b'}]
    """
    parts: list[list[ObjectStates]] = [[] for _ in range(places.lanes)]
    for lane, own in enumerate(states):
        newest = own.newest()
        lanes, slots = places.of(lane, newest.slots)
        there = ObjectStates(slots, newest.sizes, newest.data)
        for new in np.unique(lanes).tolist():
            parts[new].append(there.take(lanes == new))
    return [ObjectStates.joined(own_parts) for own_parts in parts]


def _name(lane: int, stage: int, field: str) -> str:
    return f"lane/{lane}/stage/{stage}/{field}"


def _arrays(
    saved: Saved, lane: int, stage: int, fields: Mapping[str, StateField], slots: int
) -> dict[str, NDArray[Any]]:
    """One lane's arrays of one stage, found to be what the fields say."""
    arrays = {}
    for name, field in fields.items():
        array = saved.arrays.get(_name(lane, stage, name))
        shape = field.shape[1:] if field.per_lane else field.shape
        if array is None or array.dtype != field.dtype or array.shape[1:] != shape:
            raise InputError(f"the saved state has no array {_name(lane, stage, name)} of {field.dtype} {shape}.")
        arrays[name] = array
    for head, most in {
        field.region[0]: field.shape[0] for field in fields.values() if field.region is not None
    }.items():
        region, count = arrays[head].ravel()[:2].tolist()
        if region not in (0, 1) or not 0 <= count <= most:
            raise InputError(f"the saved array {_name(lane, stage, head)} says what cannot be.")
    for name, rows in used_rows(fields, arrays, slots):
        if len(arrays[name]) != rows:
            raise InputError(
                f"the saved array {_name(lane, stage, name)} has {len(arrays[name]):,} rows, not {rows:,}."
            )
    return arrays


def _move_rows(old: Sequence[NDArray[Any]], new: Sequence[NDArray[Any]], places: Places) -> None:
    """Every sensor's row from its old lane and slot to its new ones."""
    if places.same:
        for source, target in zip(old, new, strict=True):
            target[: len(source)] = source
        return
    for source, lanes, slots in zip(old, places.lane_of, places.slot_of, strict=True):
        each = max(source[:1].nbytes, 1)
        step = max(_AT_ONCE // each, 1)
        for lane, target in enumerate(new):
            mine = np.flatnonzero(lanes == lane)
            for start in range(0, len(mine), step):
                some = mine[start : start + step]
                target[slots[some]] = source[some]
