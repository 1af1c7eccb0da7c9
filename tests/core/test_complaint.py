"""When the log says that a run is not well, by a clock that is moved by hand."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.complaint import Complaint

SECOND = 1_000_000_000


def told(wrong: list[bool]) -> list[tuple[int, str]]:
    """The lines of a run that is looked at each second."""
    complaint = Complaint()
    lines = [
        (second, complaint.look(["lane 1: stuck"] if bad else [], second * SECOND)) for second, bad in enumerate(wrong)
    ]
    return [(second, line) for second, line in lines if line]


def test_a_bad_quarter_of_an_hour_is_fifteen_lines_and_one_when_it_is_over() -> None:
    """The first at once."""
    lines = told([False] * 5 + [True] * 900 + [False] * 100)
    assert [second for second, _ in lines] == [*range(5, 900, 60), 905]
    assert lines[0][1] == "not well: lane 1: stuck"
    assert lines[3][1] == "not well for 180 s: lane 1: stuck"
    assert lines[-1][1] == "well again after 900 s"


def test_an_outage_that_comes_soon_after_another_is_told_at_once() -> None:
    """Its beginning and its end."""
    lines = told([True] * 5 + [False] * 10 + [True] * 20 + [False])
    assert lines == [
        (0, "not well: lane 1: stuck"),
        (5, "well again after 5 s"),
        (15, "not well: lane 1: stuck"),
        (35, "well again after 20 s"),
    ]


def test_what_comes_and_goes_for_long_is_told_once_a_minute_with_how_often() -> None:
    """Until it has been well for a minute."""
    lines = told([True, False] * 100 + [False] * 60 + [True, False])
    assert lines == [
        (0, "not well: lane 1: stuck"),
        (1, "well again after 1 s"),
        (2, "not well: lane 1: stuck"),
        (3, "well again after 1 s"),
        (4, "not well: lane 1: stuck"),
        (5, "well again after 1 s"),
        (64, "not well, 30 times since this was told last: lane 1: stuck"),
        (65, "well again after 1 s"),
        (124, "not well, 30 times since this was told last: lane 1: stuck"),
        (125, "well again after 1 s"),
        (184, "not well, 30 times since this was told last: lane 1: stuck"),
        (185, "well again after 1 s"),
        (260, "not well, 8 times since this was told last: lane 1: stuck"),
        (261, "well again after 1 s"),
    ]


@given(st.lists(st.booleans(), max_size=400))
def test_what_comes_and_goes_fills_no_log(wrong: list[bool]) -> None:
    """Beyond the first three a line a minute at most, each with at most one that says it is over."""
    lines = told(wrong)
    bad = [second for second, line in lines if line.startswith("not well")]
    assert all(later - second >= 60 for second, later in zip(bad, bad[3:], strict=False))
    assert all(before.startswith("not") for (_, before), (_, line) in pairwise(lines) if line.startswith("well"))
    assert sum(line.startswith("well") for _, line in lines) <= len(bad)
    if True in wrong:
        assert lines[0] == (wrong.index(True), "not well: lane 1: stuck")
