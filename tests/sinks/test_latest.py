"""The newest row of each sensor."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidemill import sinks
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind


def keyed(rows: list[dict[str, Any]]) -> Batch:
    batch = Batch.from_rows(rows)
    batch.key_column = batch.columns.get("sensor")
    return batch


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abcde"), st.integers() | st.none()), min_size=1, max_size=12), max_size=8
    )
)
def test_it_is_the_last_row_in_input_order(batches: list[list[tuple[str, int | None]]]) -> None:
    """Against a dict that every row was put into."""
    latest, oracle = sinks.Latest(), {}
    for pairs in batches:
        rows = [{"sensor": sensor, "value": value} for sensor, value in pairs]
        drive(latest.write(keyed(rows)))
        oracle.update({row["sensor"]: row for row in rows})
    assert latest.snapshot() == oracle
    assert set(latest) == set(oracle)
    assert len(latest) == len(oracle)
    assert latest.get("nobody") is None
    assert "nobody" not in latest
    assert latest.statistics().rows == sum(map(len, batches))


def drive(waiting: Any) -> None:
    """Run a coroutine that never waits."""
    try:
        waiting.send(None)
    except StopIteration:
        return
    raise AssertionError("it waited")


def test_rows_do_not_change_under_the_reader() -> None:
    """The batch's arrays are lent for one call, and a dict given out is the reader's own."""
    values = np.array([1.0, 2.0])
    sensors = Column(Kind.TEXT, np.array([0, 1], np.int32), texts=np.array(["S1", "S2"], object))
    latest = sinks.Latest()
    drive(latest.write(Batch({"value": Column(Kind.FLOAT, values)}, key=sensors)))
    values[:] = -1
    latest["S1"]["value"] = 5
    assert latest.snapshot() == {"S1": {"value": 1.0}, "S2": {"value": 2.0}}


def test_many_sensors_of_which_few_report() -> None:
    """A key table far larger than the batch costs nothing; old batches are let go of."""
    texts = np.array([f"S{n}" for n in range(50_000)], object)
    latest = sinks.Latest()
    everybody = np.arange(len(texts), dtype=np.int32)
    for _ in range(6):
        drive(
            latest.write(Batch({"n": Column.of_array(everybody * 1.0)}, key=Column(Kind.TEXT, everybody, texts=texts)))
        )
    few = np.array([7, 49_999, 7], np.int32)
    drive(
        latest.write(
            Batch({"n": Column.of_array(np.array([-1.0, -2.0, -3.0]))}, key=Column(Kind.TEXT, few, texts=texts))
        )
    )
    assert len(latest) == 50_000
    assert [latest[f"S{n}"]["n"] for n in (6, 7, 49_999)] == [6, -3, -2]
    assert latest._held <= 4 * 50_000 + 10_003


def test_a_batch_without_rows_and_a_sink_without_any() -> None:
    """An empty Latest is still a sink, and is only equal to itself."""
    latest = sinks.Latest()
    drive(latest.write(keyed([])))
    assert latest
    assert latest != sinks.Latest()
    assert {latest: 1}[latest] == 1
