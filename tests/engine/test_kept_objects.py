"""The newest states of objects, as the parent keeps them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.engine import kept_objects
from tidemill.engine.kept_objects import KeptObjects
from tidemill.lanes.object_states import received_states, sent_states
from tidemill.stages.object_states import ObjectStates

SLABS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.dictionaries(st.integers(0, 3_000), st.none() | st.binary(max_size=300), min_size=1, max_size=8),
    ),
    max_size=60,
)


def held(kept: KeptObjects) -> dict[tuple[int, int], bytes]:
    """What a replacement has once it was sent everything."""
    objects: dict[tuple[int, int], bytes] = {}
    for message in kept.messages():
        for slot, state in received_states(message.objects):
            if state is None:
                objects.pop((message.objects.stage, slot), None)
            else:
                objects[message.objects.stage, slot] = state
    return objects


@given(SLABS, st.sampled_from([1, 1_000]))
def test_a_replacement_has_the_newest_state_of_every_object(slabs, always) -> None:
    """Whatever was moved in between; and no more than about twice as much as it needs is held."""
    kept, expected, least = KeptObjects(), {}, kept_objects._ALWAYS_HELD
    kept_objects._ALWAYS_HELD = always
    try:
        for stage, states in slabs:
            kept.committed([sent_states(stage, ObjectStates.of(states))])
            for slot, state in states.items():
                expected[stage, slot] = state
            expected = {place: state for place, state in expected.items() if state is not None}
            assert held(kept) == expected
            statistics = kept.statistics()
            assert statistics.objects == len(expected)
            assert statistics.live_bytes == sum(len(state) + 8 for state in expected.values())
            assert statistics.held_bytes >= statistics.live_bytes
    finally:
        kept_objects._ALWAYS_HELD = least


def test_what_is_out_of_date_is_let_go() -> None:
    """A million slabs' worth of states of one object, beside a thousand that never change, stay a few of them."""
    kept = KeptObjects()
    kept.committed([sent_states(0, ObjectStates.of({slot: bytes(1_000) for slot in range(1_000)}))])
    most = 0
    for number in range(20_000):
        kept.committed([sent_states(0, ObjectStates.of({number % 10: bytes(1_000)}))])
        most = max(most, kept.statistics().held_bytes)
    assert most < 3.1 * kept.statistics().live_bytes
    assert kept.statistics().objects == 1_000
