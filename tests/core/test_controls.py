"""Controls against a run that never loses a process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.controls import Controls
from tidemill.errors import EngineError


@given(
    steps=st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=30),
    done=st.integers(0, 30),
    owed=st.sets(st.integers(1, 30)),
)
def test_a_new_process_works_each_slab_with_what_the_old_one_had(steps, done, owed):
    controls, slab, known, at = Controls(), 0, {}, {}
    for number, step in enumerate(steps):
        if step is None:
            slab += 1
            at[slab] = dict(known)
        else:
            known[step] = number
            controls.add(slab, step, bytes([number]))
    owed = [number for number in sorted(owed) if done < number <= slab]
    controls.forget(done + 1)
    told = {}
    worked = []
    for step in controls.among(owed):
        if isinstance(step, int):
            worked.append(step)
            assert told == at[step]
        else:
            told[step.stage] = step.pickled[0]
    assert worked == owed
    assert told == known


def test_only_the_last_of_each_stage_is_kept_once_all_have_worked_with_it():
    controls = Controls()
    for after in range(100):
        controls.add(after, after % 2, b"")
    controls.forget(90)
    assert len(controls) == 2 + 10


def test_controls_come_in_order():
    controls = Controls()
    controls.add(4, 0, b"")
    with pytest.raises(EngineError, match="behind slab 3"):
        controls.add(3, 0, b"")
