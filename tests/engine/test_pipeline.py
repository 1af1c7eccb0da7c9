"""What is known of a pipeline before it runs."""

import pytest

import tidemill as tm
from tidemill.batch import Batch
from tidemill.errors import PlanError
from tidemill.schema import Kind


def source(name, value, **options):
    return tm.sources.Records([{"sensor": name, "time": 0, "n": value}], name=name, **options)


def schema_of(*sources):
    return tm.Pipeline(list(sources), tm.Plan(), tm.sinks.Latest()).check().schemas[0]


@pytest.mark.parametrize(
    ("value", "options", "kind"), [("x", {}, "text"), (1, {"columns": {"n": int}}, "int"), ([1], {}, "object")]
)
def test_sources_that_disagree_are_refused(value, options, kind):
    """A column of two kinds is refused before anything runs, with the column, both sources and both kinds."""
    with pytest.raises(PlanError, match=f"column 'n' is float in source a and {kind} in source b"):
        schema_of(source("a", 1.5), source("b", value, **options))


def test_only_known_kinds_disagree():
    """Nulls, an undeclared stream and a column that one source lacks fit everything; the known kind is kept."""
    stream = tm.sources.Records(iter([]), name="c")
    batch = Batch.from_rows([{"sensor": "S", "time": 0, "n": None}])
    schema = schema_of(source("a", None), tm.sources.Records([batch], name="d"), source("b", "x"), stream)
    assert schema["n"].kind is Kind.TEXT
    assert schema.open
