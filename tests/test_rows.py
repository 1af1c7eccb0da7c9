"""Dicts to columns and back: nothing about a value may change on the way, whatever came before it."""

from __future__ import annotations

import enum
import math
import struct
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill import rows as rows_module
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.kinds import Kinds
from tidemill.rows import batch_of_rows, rows_of_batch, runs_of_rows
from tidemill.schema import Kind


class Unit(enum.StrEnum):
    C = "C"


class Exact(float):
    pass


def _bits(item: Any) -> Any:
    return struct.pack("<d", item) if type(item) is float else item


_FLOATS = st.floats(allow_nan=True, allow_infinity=True) | st.integers(0, 2**52).map(
    lambda payload: struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_0000 | payload))[0]
)


@given(st.lists(_FLOATS, min_size=1, max_size=50))
def test_floats_keep_every_bit(items: list[float]) -> None:
    """Signed zeros, infinities and the payloads of NaN come back as they went in."""
    column, rejects = Kinds().column("x", items)
    assert not rejects
    assert column.kind is Kind.FLOAT
    assert column.tags is None
    assert list(map(_bits, column.to_list())) == list(map(_bits, items))


@given(st.lists(st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none() | st.text(), max_size=20))
def test_what_is_no_float_is_never_read_as_one(others: list[Any]) -> None:
    """A column of floats takes floats, ints and nothing; the rest is rejected, wherever in the column it stands."""
    kinds = Kinds({"x": Kind.FLOAT})
    column, rejects = kinds.column("x", [1.5, *others])
    wrong = [row for row, item in enumerate([1.5, *others]) if type(item) in (bool, str)]
    assert [reject.row for reject in rejects] == wrong
    for row, (item, given_item) in enumerate(zip(column.to_list(), [1.5, *others], strict=True)):
        if row not in wrong:
            assert (type(item), item) == (type(given_item), given_item)


def test_subclasses_of_float_and_text_are_not_read_as_what_they_equal() -> None:
    """An enumeration's member equals its text and is not it: a column of text rejects it, one of objects keeps it."""
    _, rejects = Kinds().column("x", ["C", Unit.C])
    assert [reject.row for reject in rejects] == [1]
    _, rejects = Kinds().column("x", [1.5, Exact(1.5)])
    assert [reject.row for reject in rejects] == [1]
    kept, rejects = Kinds().column("x", [Unit.C])
    assert not rejects
    assert kept.to_list()[0] is Unit.C


def test_numpy_floats_are_read_as_the_floats_they_equal() -> None:
    """A float64 among floats is a float."""
    column, rejects = Kinds().column("x", [0.5, np.float64(1.5)])
    assert not rejects
    assert list(map(type, column.to_list())) == [float, float]


@given(st.lists(st.lists(st.sampled_from("abcdefgh") | st.text(max_size=3), min_size=1, max_size=30), max_size=12))
def test_texts_are_the_same_whatever_batches_came_before(batches: list[list[str]]) -> None:
    """Each batch of a field gives back its own texts, though all share what is known of the field."""
    kinds = Kinds()
    columns = [kinds.column("x", items)[0] for items in batches]
    assert [column.to_list() for column in columns] == batches


def test_texts_that_repeat_share_one_table() -> None:
    """The same few texts, batch after batch, are one table, which whoever remembers it knows again."""
    kinds = Kinds()
    first, _ = kinds.column("unit", ["C", "F", "C", "C"])
    second, _ = kinds.column("unit", ["F", "F"])
    assert second.texts is first.texts


def test_texts_that_come_in_turn_are_in_one_table_after_a_round() -> None:
    """A thousand sensors that report one after another, in batches that hold half of them: the table of all is the same."""
    kinds = Kinds()
    names = [f"S{number % 1_000}" for number in range(10_000)]
    columns = [kinds.column("sensor", names[start : start + 495])[0] for start in range(0, len(names), 495)]
    assert len({id(column.texts) for column in columns[3:]}) == 1
    assert [name for column in columns for name in column.to_list()] == names


def test_texts_that_never_repeat_are_not_gathered() -> None:
    """A field of ever new texts is found out, and its batches have tables of their own; never is a table large."""
    kinds = Kinds()
    sizes = []
    for start in range(0, 250_000, 1_000):
        column, _ = kinds.column("id", [f"event {number}" for number in range(start, start + 1_000)])
        assert column.texts is not None
        sizes.append(len(column.texts))
    assert max(sizes) <= 16_384
    assert set(sizes[16:]) == {1_000}


def test_few_new_texts_in_each_batch_are_forgotten_in_time() -> None:
    """A table that grows slowly is begun anew before it is large, by its texts or by their length."""
    kinds = Kinds()
    for batch in range(3_000):
        column, _ = kinds.column("id", ["same"] * 9 + [f"long {batch} {'x' * 100}"])
        assert column.texts is not None
        assert sum(map(len, column.texts)) < 300_000


def test_rows_get_what_was_added_and_lose_what_was_replaced_by_nothing() -> None:
    """A row is its own dict, with the added values behind it, a replaced value in place, and no field that is absent."""
    rows = [{"a": 1, "b": 2.5}, {"a": 3, "b": 4.5}]
    batch, _ = batch_of_rows(rows, Kinds())
    gone = Column.missing(Kind.FLOAT, 2)
    made = batch.with_columns({"a": gone, "c": Column.of_array(np.array([0.5, math.pi]))})
    assert rows_of_batch(made) == [{"b": 2.5, "c": 0.5}, {"b": 4.5, "c": math.pi}]
    assert rows == [{"a": 1, "b": 2.5}, {"a": 3, "b": 4.5}]
    assert rows_of_batch(Batch.from_rows(rows).with_columns({"a": Column.of_texts(["x", "y"])})) == [
        {"a": "x", "b": 2.5},
        {"a": "y", "b": 4.5},
    ]


@given(st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers()), max_size=12), st.integers(1, 40))
def test_rows_with_little_in_common_are_parted(rows: list[dict[str, Any]], most: int) -> None:
    """In order, none left out; the columns of a part have no more cells than one turn may make, or are of one row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_MOST_CELLS", most)
        parts = [rows[run] for run in runs_of_rows(rows)]
    assert list(chain.from_iterable(parts)) == rows
    for part in parts:
        assert len(part) * len(set().union(*part)) <= most or len(part) == 1
