"""The undo log of a plan whose stages make rows: any number of saves, and what stood first comes back."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.stages.state import StateField, StateLayout, StateMemory

FIELDS = {"ring": StateField("float64", (4,), cellwise=True), "pair": StateField("int32", (2,))}
LAYOUT = StateLayout((FIELDS,), max_keys=8, max_records=6, makes_rows=True)
WRITES = st.lists(
    st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=6)),
    min_size=1,
    max_size=200,
)


def memory_of(layout):
    return StateMemory(layout, bytearray(layout.total_bytes))


def write(memory, cellwise, places, value):
    """One step of a stage."""
    memory.make_room()
    state = memory.stages[0]
    slots, cells = (np.array(part, np.int32) for part in zip(*places, strict=True))
    name = "ring" if cellwise else "pair"
    state.save(name, slots, cells if cellwise else None)
    state.seal()
    state[name][(slots, cells) if cellwise else slots] = value


def everything(memory):
    return [memory.stages[0][name].tobytes() for name in FIELDS]


@settings(max_examples=40, deadline=None)
@given(WRITES, WRITES)
def test_what_stood_first_comes_back_after_any_number_of_steps(committed, opened):
    """Of far more saves than the log has room for, rolled back, the state is as the last commit left it."""
    memory = memory_of(LAYOUT)
    for slab, writes in ((1, committed), (2, opened)):
        before = everything(memory)
        memory.begin(slab)
        for number, (cellwise, places) in enumerate(writes * 5, 1):
            write(memory, cellwise, places, slab * 1000 + number)
        if slab == 1:
            memory.commit(1)
    assert memory.roll_back()
    assert memory.roll_back()
    assert everything(memory) == before


def test_a_process_that_is_killed_while_it_makes_room_leaves_a_whole_log():
    """At whatever byte the work in the other place ended, the first one counts until the word that says so is set."""
    memory = memory_of(LAYOUT)
    memory.begin(1)
    before, number = everything(memory), 0
    while True:
        number += 1
        was = bytes(memory.buffer)
        write(memory, number % 2 == 0, [(number * 3 % 8, number % 4)], number)
        if int(memory._header[2]) >= LAYOUT.undo_bytes:
            break  # it went to the other place
    now = bytes(memory.buffer)
    start, end = 4096 + LAYOUT.undo_bytes, 4096 + 2 * LAYOUT.undo_bytes
    for place in range(start, end, 997):
        left = bytearray(was)
        left[start:place] = now[start:place]
        successor = StateMemory(LAYOUT, left)
        assert successor.roll_back()
        assert everything(successor) == before


def test_where_nothing_is_undone_the_log_has_one_place():
    """A plan that is applied in memory has any number of steps too, without memory for a way back."""
    layout = StateLayout((FIELDS,), max_keys=8, max_records=6, makes_rows=True, undone=False)
    assert layout.total_bytes < LAYOUT.total_bytes
    memory = memory_of(layout)
    memory.begin(1)
    for number in range(2000):
        write(memory, True, [(number % 8, number % 4)] * 6, number)
    assert memory.stages[0]["ring"].max() == 1999.0


def test_a_plan_whose_stages_make_no_rows_has_one_place_too():
    """Its slabs have no more rows than records."""
    plain = StateLayout((FIELDS,), max_keys=8, max_records=6)
    assert plain.total_bytes < LAYOUT.total_bytes
    assert not plain.compacted
