"""The newest readings of devices, in memory that a slab may leave half written."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidemill.stages.newest import NEVER_READ, Newest
from tidemill.stages.state import StateLayout, StateMemory

newest = Newest(2)
slabs = st.lists(
    st.tuples(st.lists(st.integers(0, 4), unique=True, min_size=1), st.booleans(), st.integers(0, 3)), max_size=20
)


def state(devices=5):
    layout = StateLayout((newest.fields(),), devices, 10)
    made = StateMemory(layout, np.zeros(layout.total_bytes, np.uint8)).stages[0]
    made.keys = np.full(devices, "device", object)
    return made


@given(slabs)
def test_what_holds_is_what_the_last_finished_slab_wrote(slabs):
    """However many slabs were given up before, at whichever store."""
    own, every = state(), np.arange(5, dtype=np.int32)
    times, values = np.full((5, 2), NEVER_READ), np.zeros((5, 2))
    before = NEVER_READ
    for number, (devices, finished, stores) in enumerate(slabs):
        slots = np.array(devices, np.int32)
        made = np.full((len(slots), 2), number * 10), np.full((len(slots), 2), float(number))
        torn = {name: own[name].copy() for name in newest.fields()}
        newest.write(own, slots, *made, before=before, after=number * 10 + 5)
        if finished:
            before, times[slots], values[slots] = number * 10 + 5, *made
        else:  # it was killed after this many of the three stores
            for name in ("newest_mark", "newest_time", "newest_value")[: 3 - stores]:
                own[name][...] = torn[name]
            newest.forget(own, before)
        read = newest.read(own, every, before)
        np.testing.assert_array_equal(read[0], times)
        np.testing.assert_array_equal(read[1][times != NEVER_READ], values[times != NEVER_READ])


def test_memory_that_was_never_written_says_so():
    """A reading at the time 0 is another thing."""
    own, slots = state(), np.array([3], np.int32)
    assert newest.read(own, slots, NEVER_READ)[0].tolist() == [[NEVER_READ, NEVER_READ]]
    newest.write(own, slots, np.array([[0, NEVER_READ]]), np.array([[7.0, 0.0]]), before=NEVER_READ, after=10)
    assert newest.read(own, slots, 10)[0].tolist() == [[0, NEVER_READ]]
