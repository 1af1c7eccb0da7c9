"""Tables in, tables out: the same kind, the same values."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.as_came import like
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import PlanError
from tidemill.interchange import from_table, kind_of_table, naive_times, to_arrow
from tidemill.schema import Kind


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sensor": ["a", "b", None, "a"],
            "n": [1, 2, 3, 2**60 + 1],
            "small": np.array([1, 2, 3, 4], np.int8),
            "x": [1.5, np.nan, 2, 0],
            "f": np.array([1, 2, 3, 4], np.float32),
            "b": [True, False, True, True],
            "when": pd.date_range("2024", periods=4),
            "zoned": pd.date_range("2024", periods=4, tz="Europe/Berlin"),
            "nullable": pd.array([1, None, 3, 4], dtype="Int64"),
            "kind": pd.Categorical(["x", "y", "x", "x"]),
        },
        index=[5, 6, 7, 8],
    )


def test_pandas_comes_back_as_it_was() -> None:
    """dtypes, index, order and values, nested objects included."""
    given_frame = frame().assign(nested=[[1], {"a": 2}, None, "x"])
    back = like(given_frame, from_table(given_frame))
    pd.testing.assert_frame_equal(back, given_frame)


def test_polars_and_arrow_come_back_as_they_were() -> None:
    """Schemas and values of polars frames and Arrow tables survive."""
    table = pl.from_pandas(frame())
    back = like(table, from_table(table))
    assert back.schema == table.schema
    assert back.equals(table)
    arrow = table.to_arrow()
    assert like(arrow, from_table(arrow)).equals(arrow)


@pytest.mark.parametrize("make", [frame, lambda: pl.from_pandas(frame()), lambda: pl.from_pandas(frame()).to_arrow()])
def test_fewer_rows_keep_their_types(make: Any) -> None:
    """After a filter the columns still have the types that they had."""
    table = make()
    back = like(table, from_table(table).slice(0, 1))
    own = table.dtypes.drop("nullable") if isinstance(table, pd.DataFrame) else table.schema
    made = back.dtypes.drop("nullable") if isinstance(table, pd.DataFrame) else back.schema
    assert list(own) == list(made)


def test_added_columns_come_last() -> None:
    """A computed column stands behind the user's own, text of it as text."""
    for table in (frame(), pl.from_pandas(frame()), pl.from_pandas(frame()).to_arrow()):
        batch = from_table(table).with_columns(
            {"feature": Column(Kind.FLOAT, np.arange(4.0)), "grade": Column.of_texts(list("abca"))}
        )
        back = like(table, batch)
        names = list(back.columns) if not isinstance(back, pa.Table) else back.schema.names
        assert names[-2:] == ["feature", "grade"]
        assert kind_of_table(back) == kind_of_table(table)
    assert back.schema.field("grade").type == pa.string()


cell = st.none() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=3) | st.booleans()


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "a": st.floats(allow_nan=False) | st.integers() | st.none(),
                "b": st.text(max_size=3),
                "c": st.lists(cell, max_size=2),
            },
        ),
        max_size=6,
    )
)
def test_rows_come_back_as_they_were(rows: list[dict[str, Any]]) -> None:
    """Lists of dicts survive with names, order, types, nulls and absent fields."""
    back = like(rows, from_table(rows))
    assert [repr(row) for row in back] == [repr(row) for row in rows]


@given(
    st.lists(st.none() | st.floats(allow_nan=False), max_size=20),
    st.lists(st.none() | st.text(max_size=2), max_size=20),
)
def test_arrow_round_trip(numbers: list[float | None], texts: list[str | None]) -> None:
    """Numbers and texts with nulls are the same after Arrow, plain or dictionary-encoded, whole or in chunks."""
    for name, items, kind in (("x", numbers, pa.float64()), ("s", texts, pa.string())):
        array = pa.array(items, kind)
        for column in (
            array,
            pa.chunked_array([array[:2], array[2:]]),
            *([array.dictionary_encode()] if name == "s" else []),
        ):
            batch = from_table(pa.table({name: column}))
            assert to_arrow(batch).column(name).to_pylist() == items


def test_to_arrow_has_one_type_per_kind() -> None:
    """The types do not depend on what a batch happens to hold; absent and null are null, NaN is NaN."""
    batch = Batch.from_rows([{"x": 1, "s": "a", "o": [1]}, {"x": None}])
    schema = to_arrow(batch).schema
    assert schema == to_arrow(batch.slice(1, 2)).schema
    assert schema.field("x").type == pa.float64()
    assert to_arrow(batch).to_pylist() == [{"x": 1.0, "s": "a", "o": "[1]"}, {"x": None, "s": None, "o": None}]
    assert np.isnan(to_arrow(Batch({"x": Column(Kind.FLOAT, np.array([np.nan]))})).column("x")[0].as_py())


def test_times_to_the_nanosecond() -> None:
    """A TIME column is timestamp[ns, UTC] in Arrow and datetime64[ns, UTC] in pandas, NaT null."""
    ns = np.array([1, np.iinfo(np.int64).min])
    batch = Batch({"t": Column(Kind.TIME, ns)})
    assert str(to_arrow(batch).schema.field("t").type) == "timestamp[ns, tz=UTC]"
    assert to_arrow(batch).column("t").null_count == 1
    assert batch.to_pandas()["t"].astype("int64").tolist() == ns.tolist()


def test_naive_times_are_told() -> None:
    """Which columns hold times without a zone is known for each kind of table."""
    for table in (frame(), pl.from_pandas(frame()), pl.from_pandas(frame()).to_arrow()):
        assert naive_times(table) == {"when"}
    assert naive_times([{"when": 1}]) == frozenset()


def test_times_of_every_dtype_are_times() -> None:
    """pandas' own, those that Arrow holds, categories and dictionaries, with a zone and without, missing ones among them."""
    plain = pd.Series([pd.Timestamp("2024-07-01 12:00"), pd.NaT])
    zoned = plain.dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin")
    made = {}
    for name, series in (("plain", plain), ("zoned", zoned)):
        arrow = series.convert_dtypes(dtype_backend="pyarrow")
        assert "pyarrow" in str(arrow.dtype)
        made |= {name: series, f"{name} arrow": arrow, f"{name} category": series.astype("category")}
    frame = pd.DataFrame(made)
    assert naive_times(frame) == {name for name in made if name.startswith("plain")}
    for column in from_table(frame).columns.values():
        assert (column.kind, column.to_list()) == (Kind.TIME, [1719835200 * 10**9, None])
    coded = pa.table({"when": pa.array(plain).dictionary_encode()})
    assert naive_times(coded) == {"when"}


def test_what_is_no_table_is_refused() -> None:
    """The error says what is taken."""
    with pytest.raises(PlanError, match="int is no table"):
        from_table(3)
    with pytest.raises(PlanError, match="'a' twice"):
        from_table(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    batch = Batch.from_rows([{"a": 1}])
    assert from_table(batch) is batch
    assert like(batch, batch) is batch


def test_values_of_any_type_are_texts_without_quotes() -> None:
    """Of a column of objects Arrow has texts: JSON where they are nested, and else the text itself."""
    batch = Batch.from_rows([{"any": [1]}, {"any": UUID(int=5)}, {"any": "a"}])
    assert to_arrow(batch)["any"].to_pylist() == ["[1]", "00000000-0000-0000-0000-000000000005", "a"]
