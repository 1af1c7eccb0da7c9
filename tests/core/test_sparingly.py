"""Ten lines a minute, by a clock that is moved by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.sparingly import Sparingly


@given(st.lists(st.integers(0, 20), max_size=80))
def test_no_minute_has_more_than_ten_and_every_line_is_counted(pauses: list[int]) -> None:
    """Those that were passed over are told with the next."""
    lines, now, written, counted = Sparingly(), 0, [], 0
    for pause in pauses:
        now += pause
        behind = lines.behind(now * 10**9)
        if behind is not None:
            written.append(now)
            counted += 1 + (int(behind[2:].split()[0]) if "since" in behind else 0)
        assert sum(now - then < 60 for then in written) <= 10
    rest = lines.behind((now + 60) * 10**9)
    assert rest is not None
    counted += int(rest[2:].split()[0]) if "since" in rest else 0
    assert counted == len(pauses)
