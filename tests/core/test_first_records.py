"""When the log says that nothing comes through, by a clock that is moved by hand."""

from __future__ import annotations

from tidemill.core.first_records import FirstRecords, Nothing

S = 1_000_000_000


def test_the_hundredth_rejected_record_is_told_of_at_once() -> None:
    """And none after it."""
    first = FirstRecords()
    said = [first.rejected(now_ns=0) for _ in range(300)]
    assert [number for number, one in enumerate(said, start=1) if one] == [100]
    assert first.look(now_ns=60 * S) is None
    assert first.end() is None


def test_a_few_rejected_records_are_told_of_ten_seconds_after_the_first() -> None:
    """Once; and at the end of a source that ends before."""
    first = FirstRecords()
    first.rejected(now_ns=7 * S)
    assert [second for second in range(60) if first.look(second * S, waits=True)] == [17]
    ended = FirstRecords()
    ended.rejected(now_ns=0)
    assert (ended.look(9 * S), ended.end()) == (None, Nothing.REJECTED)


def test_half_a_minute_of_waiting_is_told_of_and_rejects_after_it_too() -> None:
    """The half minute begins when something could come."""
    first = FirstRecords()
    said = [second for second in range(100) if first.look(second * S, waits=second >= 20)]
    assert said == [50]
    first.rejected(now_ns=100 * S)
    assert first.look(110 * S, waits=True) is Nothing.REJECTED


def test_a_good_record_ends_it() -> None:
    """Whatever comes, or does not."""
    first = FirstRecords()
    first.is_over = True
    assert {first.rejected(now_ns=0) for _ in range(200)} == {None}
    assert (first.look(99 * S, waits=True), first.end()) == (None, None)
