"""Answers that are finished and not sent are known after a death, exactly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.lanes.finished import FINISHED_BYTES, Finished


def told(finished: Finished, turn: int) -> tuple[int, list[tuple[bool, bytes]]]:
    found = finished.of(turn)
    assert found is not None
    return found[0], [(answer.raised, bytes(answer.data)) for answer in found[1]]


ANSWERS = st.lists(st.tuples(st.booleans(), st.binary(max_size=40_000)), max_size=12)


@given(ANSWERS, st.integers(1, 1 << 40), st.integers(0, 63))
def test_what_is_there_is_whole_and_in_order(answers: list[tuple[bool, bytes]], turn: int, first: int) -> None:
    """All that fits, from a buffer that another has mapped; none of another bundle."""
    buffer = bytearray(FINISHED_BYTES)
    lane, parent = Finished(buffer), Finished(buffer)
    lane.begin(turn, first)
    kept = [answer for answer in answers if lane.add(*answer)]
    assert told(parent, turn) == (first, kept)
    assert parent.of(turn + 1) is None
    lane.begin(turn + 1)
    assert parent.of(turn) is None
    assert told(parent, turn + 1) == (0, [])


@given(ANSWERS, st.binary(min_size=50, max_size=50), st.integers(0, 200))
def test_a_half_written_answer_does_not_count(answers: list[tuple[bool, bytes]], torn: bytes, length: int) -> None:
    """A death comes between any two bytes; what is counted was there before it was counted."""
    buffer = bytearray(FINISHED_BYTES)
    lane = Finished(buffer)
    lane.begin(3)
    kept = [answer for answer in answers if lane.add(*answer)]
    used = 24 + lane._used
    buffer[used : used + length] = (torn * 4)[: len(buffer[used : used + length])]
    assert told(Finished(buffer), 3) == (0, kept)


@given(st.binary(min_size=24, max_size=400), st.integers(-(2**63), 2**63 - 1))
def test_memory_that_somebody_has_written_over_is_no_answer_and_no_error(garbage: bytes, turn: int) -> None:
    """A process may die of having written where it should not."""
    buffer = bytearray(FINISHED_BYTES)
    buffer[: len(garbage)] = garbage
    buffer[:8] = turn.to_bytes(8, "little", signed=True)
    found = Finished(buffer).of(turn)
    assert found is None or sum(len(answer.data) + 8 for answer in found[1]) <= FINISHED_BYTES


def test_what_has_no_room_is_refused_and_the_rest_stays() -> None:
    """It is sent instead."""
    finished = Finished(bytearray(FINISHED_BYTES))
    finished.begin(1)
    most = FINISHED_BYTES - 5_000
    assert finished.add(False, bytes(most))
    assert not finished.add(False, bytes(6_000))
    assert finished.add(True, bytes(1_000))
    assert told(finished, 1) == (0, [(False, bytes(most)), (True, bytes(1_000))])
