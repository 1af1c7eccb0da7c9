"""The newest row of each sensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
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


def turns(waiting: Any) -> int:
    """Run a coroutine that waits for nothing but its next turn; how many it took."""
    taken = 1
    while True:
        try:
            assert waiting.send(None) is None
        except StopIteration:
            return taken
        taken += 1


def reported(value: float, sensors: range) -> Batch:
    """A row of each of these sensors, with a table of texts of its own."""
    names = [f"S{n}" for n in sensors]
    batch = Batch({"value": Column.of_array(np.full(len(names), value)), "sensor": Column.of_texts(names)})
    batch.key_column = batch.columns["sensor"]
    return batch


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
    """A key table far larger than the batch costs nothing; old rows are let go of."""
    texts = np.array([f"S{n}" for n in range(50_000)], object)
    latest = sinks.Latest()
    everybody = np.arange(len(texts), dtype=np.int32)
    for _ in range(6):
        turns(
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


def test_many_rows_are_taken_up_and_let_go_of_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn of the loop has few rows, and none of them becomes a dict before somebody looks."""
    seen: list[int] = []
    take = Batch.take

    def counted(batch: Batch, rows: Any) -> Batch:
        seen.append(len(batch))
        return take(batch, rows)

    def refused(_: Batch) -> Any:
        raise AssertionError("a row became a dict")

    latest = sinks.Latest()
    with monkeypatch.context() as patched:
        patched.setattr(Batch, "take", counted)
        patched.setattr(Batch, "to_rows", refused)
        taken = [turns(latest.write(reported(value, range(20_000)))) for value in range(8)]
    assert taken[0] == 3
    assert max(seen) <= 8_192
    assert max(taken) <= 3 + 3 + 12, "few of the rows that are held are gone through with each write"
    assert latest._held <= 4 * 20_000 + 10_000
    assert latest["S19999"] == {"value": 7.0, "sensor": "S19999"}
    assert latest.snapshot() == {f"S{n}": {"value": 7.0, "sensor": f"S{n}"} for n in range(20_000)}


def test_rows_of_sensors_that_report_seldom_stay_with_few_texts() -> None:
    """What is kept of a batch of which few rows are newest is those rows, and the texts that they use."""
    latest = sinks.Latest()
    turns(latest.write(reported(-1, range(3_000))))
    for value in range(40):
        turns(latest.write(reported(value, range(10, 3_000))))
    kept = [block.batch for block in latest._blocks.values() if len(block.batch) < 100]
    assert {key: latest[key]["value"] for key in ("S9", "S10")} == {"S9": -1, "S10": 39}
    assert sum(len(batch.texts("sensor")) for batch in kept) == sum(map(len, kept)) >= 10


def test_sensors_that_report_one_by_one() -> None:
    """Of many small batches no more rows are held than of few large ones."""
    latest = sinks.Latest()
    for n in range(12_000):
        turns(latest.write(reported(n, range(n % 100, n % 100 + 1))))
    first = [latest[f"S{n}"]["value"] for n in range(100)]
    assert first == [11_900.0 + n for n in range(100)]
    assert latest._held <= 10_400


def test_rows_of_an_earlier_run_may_have_columns_of_other_kinds() -> None:
    """They stay as they were, among those that are newer."""
    latest = sinks.Latest()
    turns(latest.write(keyed([{"sensor": "old", "value": "text", "unit": None}])))
    for value in range(40):
        turns(latest.write(reported(value, range(600))))
    assert latest["old"] == {"sensor": "old", "value": "text", "unit": None}
    assert latest["S599"] == {"value": 39.0, "sensor": "S599"}
