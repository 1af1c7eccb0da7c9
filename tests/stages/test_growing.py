"""Memory that grows keeps what is in it."""

import numpy as np
import pytest

from tidemill.stages.statistics.growing import Growing


@pytest.mark.parametrize("watched", [False, True])
def test_numbers_stay_and_those_behind_them_are_zeros(watched):
    """Also where somebody, such as the traceback of an error, still has a view of what was there before."""
    memory = Growing("float64")
    views = [memory.of(1)]
    for power in range(10, 24, 3):
        have = len(views[-1])
        views[-1][-1] = power
        if not watched:
            views.clear()
        views.append(memory.of(max(1 << power, have + 1)))
        assert views[-1][have - 1] == power
        assert not views[-1][have:].any()
    if watched:
        views[0][0] = 7.0
        assert not memory.of(1)[0]


def test_what_there_is_room_for_stays_where_it_is():
    """It moves a few times in all, not with each key."""
    memory, places = Growing("int64"), set()
    for numbers in range(1, 1_000_000, 1_000):
        places.add(len(memory.of(numbers)))
    assert places == {len(memory.of(1))}
    assert memory.of(1).dtype == np.int64
