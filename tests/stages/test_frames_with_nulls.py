"""`MapFrame` over integers and bools among which one is missing: what comes out does not depend on the batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

import tidemill as tm
from tidemill.column import ABSENT, ABSENT_TAG, NULL_TAG, Column
from tidemill.schema import Kind
from tidemill.testing import ListSink

VALUES = [1, 2, None, 4, 5, 6, None, None, 0, 10, 2**60 + 1, 12]
ROWS = [{"sensor": "S", "time": n, "k": k, "on": None if k is None else k > 4} for n, k in enumerate(VALUES)]
DECLARED = {"k": int, "on": bool}
CUTS = (1, 3, 4, 100)


CHANGES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], Kind]] = {
    "left alone": (lambda k: k, lambda k: k, Kind.INT),
    "half": (lambda k: k / 2, lambda k: k if k is None else k / 2, Kind.FLOAT),
    "another": (lambda k: k.mask(k > 1000, 5) + 1, lambda k: k if k is None else 6 if k > 1000 else k + 1, Kind.INT),
    "some": (lambda k: k.where(k > 4), lambda k: None if k is None or k <= 4 else k, Kind.INT),
    "some halves": (lambda k: k.where(k > 4) / 2, lambda k: None if k is None or k <= 4 else k / 2, Kind.FLOAT),
    "filled": (lambda k: k.fillna(0), lambda k: 0 if k is None else k, Kind.INT),
    "filled ints": (lambda k: k.fillna(0).where(k < 1000, 0).astype(int), lambda k: 0 if k is None or k > 1000 else k, Kind.INT),
    "floats": (lambda k: k.astype(float), lambda k: k if k is None else float(k), Kind.FLOAT),
    "narrow": (lambda k: k.clip(upper=9).fillna(-1).astype("int32"), lambda k: -1 if k is None else min(k, 9), Kind.INT),
    "ints": (lambda k: k.fillna(0).astype(int), lambda k: 0 if k is None else k, Kind.INT),
    "nullable": (lambda k: k.mask(k > 1000, 0).astype("Int64"), lambda k: 0 if k and k > 1000 else k, Kind.INT),
}  # fmt: skip


def made_by(stage: tm.MapFrame, most: int, rows: list[dict[str, Any]] = ROWS) -> ListSink:
    sink = ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(rows, columns=DECLARED), stage, sink)
    report = tm.run(pipeline, lanes=0, limits=tm.Limits(max_records=most))
    assert not report.dead_letters
    return sink


@pytest.mark.parametrize("most", CUTS)
@pytest.mark.parametrize(("change", "expected", "kind"), CHANGES.values(), ids=CHANGES)
def test_integers_keep_one_kind_with_nulls_and_without(change: Any, expected: Any, kind: Kind, most: int) -> None:
    """Each record's own, to the last digit; a whole number is an integer where the column is one, and what is missing is null."""
    sink = made_by(tm.MapFrame(lambda frame: frame.assign(k=change(frame["k"]))), most)
    assert [repr(row["k"]) for row in sink.rows] == [repr(expected(row["k"])) for row in ROWS]
    kinds = {batch.columns["k"].kind for batch in sink.batches if batch.columns["k"].has_values}
    assert kinds == {kind}


@pytest.mark.parametrize(("change", "expected", "kind"), CHANGES.values(), ids=CHANGES)
def test_each_batch_that_there_can_be_makes_the_same_of_a_record(change: Any, expected: Any, kind: Kind) -> None:
    """Also the first one of a run, when nothing is known of its columns: with a null among its integers, and without."""
    tags = np.array([NULL_TAG if value is None else 0 for value in VALUES], np.uint8)
    whole = tm.Batch({"k": Column(Kind.INT, np.array([value or 0 for value in VALUES]), tags=tags)})
    stage = tm.MapFrame(lambda frame: frame.assign(k=change(frame["k"]))).opened()
    for start, stop in combinations(range(len(whole) + 1), 2):
        column = stage.step(whole.slice(start, stop), None).columns["k"]  # type: ignore[arg-type]
        assert [repr(item) for item in column.to_list()] == [repr(expected(row["k"])) for row in ROWS[start:stop]]
        assert column.kind is kind or not column.has_values or not whole.slice(start, stop).columns["k"].has_values


@pytest.mark.parametrize("most", CUTS)
def test_bools_and_their_nulls_stay(most: int) -> None:
    """Also in a batch that has none of them."""
    sink = made_by(tm.MapFrame(lambda frame: frame), most)
    assert [row["on"] for row in sink.rows] == [row["on"] for row in ROWS]
    assert {batch.columns["on"].kind for batch in sink.batches} == {Kind.BOOL}
    filled = made_by(tm.MapFrame(lambda frame: frame.assign(on=frame["on"].fillna(False).astype(bool))), most)
    assert [row["on"] for row in filled.rows] == [bool(row["on"]) for row in ROWS]


@pytest.mark.parametrize("most", CUTS)
def test_in_polars_too(most: int) -> None:
    """Where integers are shown as floats too, with NaN."""

    def same(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(half=pl.col("k") / 2, on=pl.col("on"))

    def more(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(
            k=pl.when((pl.col("k") > 1000) & (pl.col("k") < 1e300)).then(5).otherwise(pl.col("k")) + 1
        )

    assert [(repr(row["k"]), row["on"]) for row in made_by(tm.MapFrame(same), most).rows] == [
        (repr(row["k"]), row["on"]) for row in ROWS
    ]
    expected = CHANGES["another"][1]
    assert [repr(row["k"]) for row in made_by(tm.MapFrame(more), most).rows] == [
        repr(expected(row["k"])) for row in ROWS
    ]


@pytest.mark.parametrize("first", [1, 3], ids=["a value first", "a null first"])
def test_a_parquet_file_takes_every_batch(first: int, tmp_path: Path) -> None:
    """Its columns keep their types: a null among integers ended the run."""
    rows, path = ROWS[first - 1 :], tmp_path / "out.parquet"
    pipeline = tm.Pipeline(
        tm.sources.Records(rows, columns=DECLARED), tm.MapFrame(lambda frame: frame), tm.sinks.Parquet(str(path))
    )
    tm.run(pipeline, lanes=0, limits=tm.Limits(max_records=3))
    assert pq.read_table(path)["k"].to_pylist() == [row["k"] for row in rows]


def test_an_absent_field_stays_absent() -> None:
    """What the record does not have is no null, also where other records' values are changed."""
    tags = np.array([0, ABSENT_TAG, NULL_TAG], np.uint8)
    batch = tm.Batch({"k": Column(Kind.INT, np.array([4, 0, 0]), tags=tags)})
    for change, first in ((lambda frame: frame, 4), (lambda frame: frame + 1, 5)):
        made = tm.MapFrame(change).opened().step(batch, None)  # type: ignore[arg-type]
        assert made.columns["k"].to_list() == [first, ABSENT, None]
