"""Pauses between tries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.backoff import Backoff


@given(
    st.lists(st.tuples(st.sampled_from(["failed", "connected"]), st.integers(0, 20 * 10**9)), max_size=40),
    st.floats(0, 1),
)
def test_pauses_grow_until_a_connection_lasts(events: list[tuple[str, int]], chance: float) -> None:
    """Each is between half of its due and all of it, never above the longest; one that lasted 10 s starts anew."""
    backoff = Backoff(0.5, 8.0, chance=lambda: chance)
    now_ns, due, since = 0, 0.5, None
    for event, passed_ns in events:
        now_ns += passed_ns
        if event == "connected":
            backoff.connected(now_ns)
            since = now_ns
            continue
        if since is not None and now_ns - since >= 10 * 10**9:
            due = 0.5
        since = None
        assert backoff.failed(now_ns) == due * (0.5 + chance / 2)
        due = min(2 * due, 8.0)
