"""Depth: calls worth a few milliseconds, whatever they cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.depth import Depth


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 10**8)), max_size=300))
def test_it_grows_by_doubling_within_its_bounds(calls: list[tuple[int, int]]) -> None:
    """Never below two nor above the most, never more than twice what it was."""
    depth = Depth(lanes=3)
    before = depth.calls
    for lane, busy_ns in calls:
        now = depth.measured(lane, busy_ns)
        assert 2 <= now <= min(Depth.MOST, 2 * before)
        before = now


def test_short_calls_make_lanes_deep_and_long_ones_shallow() -> None:
    """Some five milliseconds of work; a single long call is enough to shrink."""
    depth = Depth(lanes=1)
    for _ in range(1000):
        depth.measured(0, 100_000)
    assert 40 <= depth.calls <= 50
    assert depth.measured(0, 50_000_000) == 2
    for _ in range(2000):
        depth.measured(0, 1_000)
    assert depth.calls == Depth.MOST
