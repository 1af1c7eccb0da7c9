"""What an expression may hold, and what it is told when it holds something else."""

import re

import pytest

from tidemill.batch import Batch
from tidemill.errors import InputError, PlanError
from tidemill.schema import Field, Kind, Schema
from tidemill.stages.expressions import Expression
from tidemill.stages.filter import Filter
from tidemill.stages.lookup import Lookup


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("value is None", "`is`"),
        ("value is not None", "`is not`"),
        ("value ** 2 > 9", "`**`"),
        ("(a > 1) & (b > 1)", "`&` (write `and`)"),
        ("~a", "`~` (write `not`)"),
        ("abs(value) > 1", "abs(value)"),
    ],
)
def test_what_is_not_allowed_is_shown_as_it_is_written(text, held):
    """Operators too, which Python's own tree has no text for."""
    with pytest.raises(PlanError, match=re.escape(f"holds {held}, which is not one of")):
        Expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "temp is not None",
        "unit == 'C' and temp is None",
        "None != temp",
        "not isnan(temp)",
        "np.isnan(temp)",
        "unit == 'C' and temp.notna()",
    ],
)
def test_who_asks_for_what_is_missing_is_told_the_expression_that_says_it(text):
    """However it was asked; and both do."""
    with pytest.raises(
        PlanError, match='"temp == temp" is True where temp is there, "not temp == temp" where it is missing'
    ):
        Expression(text)
    rows = [{"temp": 1.0}, {"temp": None}, {}, {"temp": float("nan")}, {"temp": 0}]
    batch = Batch.from_rows(rows)
    assert Expression("temp == temp")(batch).tolist() == [True, False, False, False, True]
    assert Expression("not temp == temp")(batch).tolist() == [False, True, True, True, False]
    texts = Batch.from_rows([{"temp": "a"}, {"temp": None}, {}])
    assert Expression("temp == temp")(texts).tolist() == [True, False, False]


def test_no_column_is_named_where_none_is_asked_for():
    """A call may be anything."""
    for text in ("isnan(1)", "isnan(a + b)", "notna()", "2 ** a", "1 is None", "a is b"):
        with pytest.raises(PlanError, match=r"Give a function for more\.$"):
            Expression(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("value > 'a'", "compares 'value', a column of numbers, with the text 'a'"),
        ("'a' <= value", "compares 'value', a column of numbers, with the text 'a'"),
        ("value > 1 and 1 < unit < 'x'", "compares 'unit', a column of texts, with the number 1"),
    ],
)
def test_numbers_and_texts_are_not_put_in_order(text, why):
    """Where a column's kind is known that is said at the start, and not of each record."""
    with pytest.raises(PlanError, match=re.escape(why)):
        Filter(text).bind(Schema([Field("value", Kind.FLOAT), Field("unit", Kind.TEXT)]))


@pytest.mark.parametrize("text", ["value > 1", "unit > 'C'", "value == 'a'", "other > 'a'", "unit in ('C', 1)"])
def test_what_can_be_compared_is_not_refused(text):
    """Also where the kind is not known yet, and where a comparison is only False."""
    fields = [Field("value", Kind.FLOAT), Field("unit", Kind.TEXT), Field("other", None)]
    Filter(text).bind(Schema(fields))


def test_a_table_of_single_values_needs_the_name_of_their_column():
    """`Lookup` says so, and does not ask for no values."""
    with pytest.raises(InputError, match="the row of 'S0' names no columns; say which they are with columns="):
        Lookup({"S0": 5}).tables()
