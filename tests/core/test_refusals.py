"""Wrong tokens are counted by host, for a minute, and no host can make the books grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.refusals import Refusals

S = 1_000_000_000


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=200))
def test_each_host_has_ten_a_minute(guesses: list[tuple[str, int]]) -> None:
    """From its first on; against a list of all of them."""
    refusals, now, windows = Refusals(), 0, {}
    for host, passed in guesses:
        now += passed * S
        window = windows.get(host, [])
        if not window or now - window[0] >= 60 * S:
            window = windows[host] = []
        window.append(now)
        assert refusals.wrong_token(host, now) == (len(window) <= 10)


def test_hosts_without_number_are_forgotten_in_their_order() -> None:
    """What is remembered is bounded."""
    refusals = Refusals()
    for number in range(30_000):
        assert refusals.wrong_token(str(number), now_ns=0)
    assert len(refusals._wrong) == 10_000
    assert refusals.tell(0) == "30,000 requests showed a wrong token, the last from 29999"


def test_it_is_told_once_a_minute() -> None:
    """However many come meanwhile."""
    refusals = Refusals()
    assert refusals.tell(0) is None
    told = []
    for second in range(120):
        refusals.wrong_token("a", second * S)
        told.append(refusals.tell(second * S))
    assert [(second, text) for second, text in enumerate(told) if text] == [
        (0, "1 request showed a wrong token, the last from a"),
        (60, "60 requests showed a wrong token, the last from a"),
    ]
