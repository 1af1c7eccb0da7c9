"""Merging: one stable order, a block of each input in memory."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind
from tidemill.sources.merge import Merge


@given(st.lists(st.lists(st.integers(0, 20), max_size=15), min_size=1, max_size=4), st.integers(1, 5))
def test_any_inputs_merge_as_a_stable_sort_by_running_maximum(inputs: list[list[int]], block: int) -> None:
    """Every record once; each input in its own order, also where its clock steps back; ties by input."""
    merge = Merge(len(inputs))
    places = [0] * len(inputs)
    got: list[tuple[int, int]] = []
    while True:
        for place in merge.wanting():
            times = inputs[place][places[place] : places[place] + block]
            if times:
                merge.add(place, _batch(place, places[place], times))
                places[place] += len(times)
            else:
                merge.finish(place)
        if merge.wanting():
            continue
        taken = merge.take()
        if taken is None:
            break
        batch, merged = taken
        assert len(batch) == len(merged)
        assert (np.diff(merged) >= 0).all()
        got += list(zip(batch["place"].astype(int).tolist(), batch["row"].astype(int).tolist(), strict=True))
    expected = sorted(
        (int(due), place, row)
        for place, times in enumerate(inputs)
        for row, due in enumerate(np.maximum.accumulate(times).tolist() if times else [])
    )
    assert got == [(place, row) for _, place, row in expected]


def _batch(place: int, start: int, times: list[int]) -> Batch:
    rows = np.arange(start, start + len(times), dtype=np.float64)
    return Batch(
        {"place": Column(Kind.FLOAT, np.full(len(times), float(place))), "row": Column(Kind.FLOAT, rows)},
        key=Column.of_texts([str(place)] * len(times)),
        time=np.array(times, np.int64),
    )
