"""One stage tried on its own: its state goes on, its records keep their numbers, and what changed is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidemill as tm
from tidemill.batch import Batch
from tidemill.core.apply import with_roles
from tidemill.core.trial import Made, Trial, change, cut_at, keys_of, marks_of
from tidemill.errors import PlanError


def batch_of(values, sensors="abab"):
    rows = [{"sensor": sensors[n % len(sensors)], "time": n, "value": value} for n, value in enumerate(values)]
    return with_roles(rows, "sensor", None, "UTC")


def trial(stage, batch, **options):
    return Trial(stage, keys_of(batch), records=max(len(batch), 1), marks=marks_of(batch), **options)


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=20), st.lists(st.integers(0, 20), max_size=4))
def test_pieces_come_out_as_the_whole_and_as_apply_says(values, places):
    """Numbered through, also where a filter drops some; the values are those of `Plan.apply`."""
    batch = batch_of(values)
    pieces = cut_at(batch, sorted(min(place, len(values)) for place in places))
    for stage in (tm.Rolling("value", window=3, stats=["sum"]), tm.Filter("value > 0")):
        whole = trial(stage, batch).feed(batch)
        assert change(trial(stage, batch).feed_all(pieces), whole) is None
        applied = tm.Plan(stage).apply(batch.to_rows())
        assert whole.batch.to_rows() == applied
        assert whole.rows.tolist() == [row["time"] for row in applied]


def test_a_trial_goes_on_with_the_state_of_another():
    """With its memory, numbers and learned kinds; a slab that was not committed has left nothing."""
    batch = batch_of([1.0, 2.0, 3.0, 4.0])
    stage = tm.Rolling("value", window=2, stats=["sum"])
    lane = trial(stage, batch)
    first = lane.feed(batch.slice(0, 2))
    left = lane.feed(batch.slice(2, 4), commit=False)
    assert left.batch["value_sum_2"].tolist() == [4.0, 6.0]
    other = trial(stage, batch, buffer=lane.buffer, kinds=lane.learned, fed=2)
    made = Made.joined([first, other.feed(batch.slice(2, 4))])
    assert made.batch["value_sum_2"].tolist() == [1.0, 2.0, 4.0, 6.0]
    assert made.rows.tolist() == [0, 1, 2, 3]


def failing(batch):
    if (batch["value"] == 3).any():
        raise ValueError("three")
    return {"half": batch["value"] / 2}


def test_rejects_keep_their_numbers():
    """Through pieces, choices and other orders."""
    batch = batch_of([1.0, 3.0, 2.0, 3.0, 4.0])
    made = trial(tm.Map(failing), batch).feed_all(cut_at(batch, [2]))
    assert made.rows.tolist() == [0, 2, 4]
    assert [letter.row for letter in made.dead] == [1, 3]
    some = made.of(np.array([3, 4]))
    assert (some.rows.tolist(), [letter.row for letter in some.dead]) == ([4], [3])
    order = np.array([4, 3, 2, 1, 0])
    turned = trial(tm.Map(failing), batch).feed(batch.take(order), records=order)
    assert turned.rows.tolist() == [4, 2, 0]
    assert change(turned.by_record(), made) is None
    assert change(made.of_sensor("a", np.array([0, 2, 4])), made.of(np.array([0, 2, 4]))) is None


def test_what_became_of_a_record_is_compared_first():
    """It came out, was dropped, or was rejected; then the order, then the cells."""
    batch = batch_of([1.0, 3.0, 2.0, 4.0])
    whole = trial(tm.Map(lambda b: {"half": b["value"] / 2}), batch).feed(batch)
    failed = trial(tm.Map(failing), batch).feed(batch)
    assert str(change(failed, whole)) == "record 1: it was rejected as raised, and came out otherwise"
    dropped = trial(tm.Filter("value != 2"), batch).feed(batch)
    assert str(change(dropped, whole)) == "record 2: it was dropped, and came out otherwise"
    turned = Made(whole.batch, whole.rows[::-1].copy(), ())
    assert str(change(turned, whole)) == "record 0: row 0 is that of record 3 instead"
    other = trial(tm.Map(lambda b: {"half": b["value"] / 2 + (b["value"] == 2)}), batch).feed(batch)
    assert str(change(other, whole)) == "record 2: column 'half' is 2.0 instead of 1.0"
    assert change(whole, whole) is None


def test_records_without_a_key_are_refused():
    """As by a run; nothing is guessed."""
    batch = batch_of([1.0])
    with pytest.raises(PlanError, match="no key"):
        trial(tm.Select("value"), batch).feed(Batch(batch.columns))
