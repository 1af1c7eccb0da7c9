"""How often something happened lately, by a clock that is moved by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.lately import Lately


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), max_size=60))
def test_it_is_what_a_history_of_the_last_minute_says(looks: list[tuple[int, int]]) -> None:
    """Kept as a list."""
    lately, count, now = Lately(), 0, 0
    happened: list[int] = []
    for passed, more in looks:
        now += passed
        count += more
        happened += [now] * more
        lately.look(count, now * 10**9)
        assert lately.read(now * 10**9) == sum(now - then < 60 for then in happened)


def test_a_storm_takes_no_memory_without_end() -> None:
    """A thousand a minute are as bad as more."""
    lately = Lately()
    lately.look(10_000_000, 0)
    assert lately.read(0) == 1_000
