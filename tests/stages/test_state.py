"""State memory: what was sealed comes back, bit for bit, and only that."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.errors import EngineError
from tidemill.stages.state import StateField, StateLayout, StateMemory

LAYOUT = StateLayout(({"ring": StateField("float64", (4,), cellwise=True), "pair": StateField("int32", (2,))},), 8, 64)
WRITES = st.lists(
    st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=6)),
    max_size=5,
)


def fresh():
    return StateMemory(LAYOUT, bytearray(LAYOUT.total_bytes))


def write(memory, cellwise, places, value):
    """Save, seal and overwrite, as a stage does."""
    state = memory.stages[0]
    slots, cells = (np.array(part, np.int32) for part in zip(*places, strict=True))
    if cellwise:
        state.save("ring", slots, cells)
        state.seal()
        state["ring"][slots, cells] = value
    else:
        state.save("pair", slots)
        state.seal()
        state["pair"][slots] = value


def everything(memory):
    return [array.tobytes() for array in memory._arrays]


@settings(max_examples=80, deadline=None)
@given(WRITES, WRITES)
def test_roll_back_restores_what_was_committed(committed, opened):
    """However often a slab saved and overwrote the same cells, rolled back they are as the last commit left them."""
    memory = fresh()
    memory.begin(1)
    for number, (cellwise, places) in enumerate(committed):
        write(memory, cellwise, places, number + 1)
    memory.commit(1)
    before = everything(memory)
    memory.begin(2)
    for number, (cellwise, places) in enumerate(opened):
        write(memory, cellwise, places, -number - 1)
    assert memory.roll_back()
    assert memory.roll_back()
    assert everything(memory) == before


def test_nothing_to_roll_back():
    """A committed slab stays; a memory in which nothing was begun has nothing to undo."""
    memory = fresh()
    assert not memory.roll_back()
    memory.begin(1)
    write(memory, True, [(0, 0)], 5.0)
    memory.commit(1)
    assert not memory.roll_back()
    assert memory.stages[0]["ring"][0, 0] == 5.0


def test_what_was_not_sealed_is_not_undone():
    """Room reserved but not sealed does not count: nothing has been overwritten on its account."""
    memory = fresh()
    memory.begin(1)
    slots, cells, old = memory.stages[0].reserve("ring", 3)
    slots[:], cells[:], old[:] = 7, 3, 99.0
    assert memory.roll_back()
    assert memory.stages[0]["ring"][7, 3] == 0.0


def test_a_reservation_is_a_save_of_the_callers_own():
    """Filled in and sealed, reserved room restores like saved values."""
    memory = fresh()
    state = memory.stages[0]
    state["pair"][5] = (1, 2)
    memory.begin(1)
    slots, cells, old = state.reserve("pair", 1)
    assert cells is None
    slots[:], old[:] = 5, (1, 2)
    state.seal()
    state["pair"][5] = (9, 9)
    memory.roll_back()
    assert state["pair"][5].tolist() == [1, 2]


def test_a_full_log_is_our_own_fault():
    """A stage that saves more than its fields announce is stopped before it writes past the log."""
    memory = fresh()
    memory.begin(1)
    with pytest.raises(EngineError, match="undo log is full"):
        memory.stages[0].reserve("ring", 10_000)
