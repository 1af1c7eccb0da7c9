"""What each edge waits for, against lists that remember everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.flows import SinkCounts, SinkProgress, SourceProgress, Trouble, TroubleBook

SECOND = 1_000_000_000
steps = st.lists(st.tuples(st.sampled_from(["given", "shown", "again"]), st.integers(0, 5 * SECOND)), max_size=40)


@given(steps)
def test_a_sink_waits_since_the_oldest_batch_that_nobody_sees(steps: list[tuple[str, int]]) -> None:
    """Batches are shown in the order in which they were given; another attempt is given them anew."""
    progress, now = SinkProgress(0), 0
    waiting: list[int] = []
    shown = 0
    committed = 0
    for what, passed in steps:
        now += passed
        match what:
            case "given":
                progress.given(now)
                waiting.append(now)
            case "shown" if waiting:
                progress.shown(now)
                waiting.pop(0)
                shown, committed = shown + 1, now
            case "again":
                progress = progress.again(SinkCounts())
                waiting.clear()
        assert progress.waiting == len(waiting)
        assert progress.waiting_s(now) == (now - waiting[0]) / 1e9 if waiting else progress.waiting_s(now) == 0
        assert (progress.commits, progress.commit_age_s(now)) == (shown, (now - committed) / 1e9)


def test_a_sink_that_has_not_come_back_is_known_from_one_whose_rows_wait_for_a_commit() -> None:
    """Each call that comes back counts, also one with a part of what there is to do; what waits unasked does not."""
    progress = SinkProgress(0)
    for second in (1, 2):
        progress.given(second * SECOND)
        progress.asked(second * SECOND)
    assert progress.call_s(40 * SECOND) == 39.0
    progress.came_back(40 * SECOND, done=True)
    assert progress.call_s(45 * SECOND) == 5.0
    progress.came_back(50 * SECOND, done=True)
    assert progress.call_s(900 * SECOND) == 0.0
    assert progress.waiting == 2
    progress.asked(1_000 * SECOND)
    progress.came_back(1_010 * SECOND, done=False)
    assert progress.call_s(1_031 * SECOND) == 21.0


def test_what_an_attempt_that_is_over_still_shows_is_not_the_next_ones() -> None:
    """Its word comes late, and the batch it is about comes once more."""
    old = SinkProgress(0)
    old.given(1)
    new = old.again(SinkCounts())
    new.given(2)
    old.shown(3)
    assert new.waiting == 1


def test_rows_of_a_commit_that_nobody_was_told_of_stay_counted_while_the_sink_cannot_be_opened() -> None:
    """An attempt that fails before its sink is open has nothing to tell, and takes nothing back."""
    progress = SinkProgress(0)
    progress.kept(SinkCounts(3), 10)
    for told in (SinkCounts(5), SinkCounts(), SinkCounts()):
        progress = progress.again(told)
    assert progress.total(SinkCounts()).rows == 3  # as far as anybody knows
    progress.resumed(20)
    assert progress.total(SinkCounts(1)).rows == 6
    same = progress.again(SinkCounts(1))
    same.resumed(20)
    assert same.total(SinkCounts(1)).rows == 6, "what was not committed is put again"


@given(
    st.lists(st.tuples(st.sampled_from(["gave", "empty", "rejected", "taken"]), st.integers(0, SECOND)), max_size=40)
)
def test_a_source_is_silent_since_its_last_record_and_held_while_a_batch_waits(steps: list[tuple[str, int]]) -> None:
    """An empty batch is no record; one that is rejected is. Who had to wait was not silent meanwhile."""
    progress, now, last, held = SourceProgress(0), 0, 0, None
    for what, passed in steps:
        now += passed
        match what:
            case "gave":
                progress.gave(3, now)
                last = held = now
            case "empty":
                progress.gave(0, now)
                held = now
            case "rejected":
                progress.rejected(now)
                last = now
            case "taken":
                progress.taken(now)
                last = last if held is None else min(last + now - held, now)
                held = None
        assert progress.last_record_age_s(now) == (now - last) / 1e9
        assert progress.held_s(now) == (0 if held is None else (now - held) / 1e9)


@given(st.lists(st.sampled_from(["fail", "over"]), max_size=30))
def test_tries_are_those_since_something_was_done(steps: list[str]) -> None:
    """Whoever fails after that has failed once."""
    book, tries, began = TroubleBook(), 0, 0
    for now, step in enumerate(steps):
        if step == "fail":
            book.failed("sink rows", "no", now)
            began = began if tries else now
            tries += 1
        else:
            book.over()
            tries = 0
        trouble = book.read(len(steps))
        assert (0 if trouble is None else trouble.tries) == tries
        assert trouble is None or trouble.lasts_s == (len(steps) - began) / 1e9
        assert book.open == bool(tries)
        assert book.failures == tries


def test_a_failure_counts_what_it_had_tried_and_for_how_long() -> None:
    """Each is one failure all the same."""
    book = TroubleBook()
    book.failed("sink hub", "refused", 10_000_000_000, Trouble("sink hub", 6, "refused", 9.5))
    book.failed("sink hub", "refused", 20_000_000_000, Trouble("sink hub", 5, "refused", 9.5))
    assert book.read(21_000_000_000) == Trouble("sink hub", 11, "refused", 20.5)
    assert book.failures == 2
