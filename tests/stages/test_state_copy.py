"""What a checkpoint takes of state memory: all that counts, and next to nothing else."""

from __future__ import annotations

import numpy as np

import tidemill as tm
from tidemill.core.plan import Plan
from tidemill.lanes.memory import Shared, write_at
from tidemill.stages.event_buffer import EventBuffer, Waiting
from tidemill.stages.state import StateLayout, StateMemory
from tidemill.stages.state_copy import copy_used, used_parts

MIB = 1 << 20


def filled(layout: StateLayout, buffer: object) -> StateMemory:
    """Three records wait, in the second region."""
    memory = StateMemory(layout, buffer)
    buffer_of_records = EventBuffer(["float64"], 4_000_000)
    records = Waiting(np.array([0, 1, 0], np.int32), np.arange(3), (np.arange(3.0),))
    buffer_of_records.replace(memory.stages[0], records, 7)
    memory.stages[1]["ring0"][:2] = 5.0
    return memory


def test_what_waits_is_copied_without_the_room_for_more() -> None:
    """Some pages of 320 MB, on both sides; and what is not used of the target is left as it was."""
    plan = Plan(tm.Aggregate(tm.tumbling("1h"), {"value": "max"}), tm.Rolling("value", 50))
    layout = plan.layout(100_000, 1000)
    ours, theirs = Shared("ours", layout.total_bytes), Shared("theirs", layout.total_bytes)
    try:
        memory = filled(layout, ours.buffer)
        copy_used(memory, theirs.buffer, 2)
        copy = StateMemory(layout, theirs.buffer)
        held, due = EventBuffer(["float64"], 4_000_000).held(copy.stages[0])
        assert (held.slots.tolist(), held.times.tolist(), due) == ([0, 1, 0], [0, 1, 2], 7)
        assert copy.stages[1]["ring0"][:3].max(axis=1).tolist() == [5.0, 5.0, 0.0]
        del held, copy
        assert max(ours.touched_bytes(), theirs.touched_bytes()) < MIB
    finally:
        ours.close()
        theirs.close()


def test_parts_are_written_through_a_descriptor_too() -> None:
    """To the same places; memory that is not mapped here needs no page to be mapped."""
    layout = Plan(tm.Aggregate(tm.tumbling("1h"), {"value": "max"}), tm.Rolling("value", 50)).layout(100, 1000)
    memory = filled(layout, np.zeros(layout.total_bytes, np.uint8))
    expected = np.zeros(layout.total_bytes, np.uint8)
    copy_used(memory, expected, 2)
    target = Shared("target", layout.total_bytes)
    try:
        for at, part in used_parts(memory, 2):
            write_at(target.fd, at, part)
        assert target.buffer[:] == expected.tobytes()
    finally:
        target.close()


def test_the_header_and_the_undo_log_are_not_copied() -> None:
    """A copy has no slab open and none committed, whatever the source has."""
    layout = Plan(tm.Rolling("value", 5)).layout(10, 100)
    memory = StateMemory(layout, np.zeros(layout.total_bytes, np.uint8))
    memory.begin(5)
    memory.commit(5)
    memory.begin(6)
    target = np.zeros(layout.total_bytes, np.uint8)
    copy_used(memory, target, 10)
    copy = StateMemory(layout, target)
    assert (copy.committed, copy.cursor[0]) == (0, 0)
