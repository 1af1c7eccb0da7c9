"""Letters that are made late are those that would have been made at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.letters import AT_A_TIME, DeadLetter, Letters


def letters(count: int, asked: list[tuple[int, int]] | None = None, first: int = 0) -> Letters:
    def make(start: int, end: int) -> list[DeadLetter]:
        if asked is not None:
            asked.append((start, end))
        return [DeadLetter("raised", "why", first + number) for number in range(start, end)]

    return Letters(count, make)


places = st.none() | st.integers(-12, 12)


@given(st.lists(st.integers(0, 5), max_size=4), places, places, st.sampled_from([None, 1, 2, -1, -3]))
def test_they_are_as_a_list_is(counts: list[int], start: int | None, stop: int | None, step: int | None) -> None:
    """By number, in slices, in loops, and joined."""
    parts = [letters(count, first=10 * place) for place, count in enumerate(counts)]
    expected = [10 * place + number for place, count in enumerate(counts) for number in range(count)]
    whole = Letters.joined(*parts)
    assert (len(whole), bool(whole)) == (len(expected), bool(expected))
    assert [letter.raw for letter in whole] == expected
    assert [letter.raw for letter in whole[start:stop:step]] == expected[start:stop:step]
    for number in range(-len(expected), len(expected)):
        assert whole[number].raw == expected[number]


def test_a_loop_makes_few_at_a_time() -> None:
    """And none before it comes to them."""
    asked: list[tuple[int, int]] = []
    made = letters(2 * AT_A_TIME + 1, asked)
    assert not asked
    for number, letter in enumerate(made):
        assert letter.raw == number
        assert len(asked) == number // AT_A_TIME + 1
    assert max(end - start for start, end in asked) == AT_A_TIME
