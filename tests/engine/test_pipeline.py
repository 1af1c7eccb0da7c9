"""What is known of a pipeline before it runs."""

import msgspec
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


def test_edges_of_one_kind_have_names_of_their_own(tmp_path, lanes):
    """The later ones are numbered, in the report, in live statistics and in dead letters; given names stay."""
    bad = {"sensor": "S", "n": 1}
    sources = [source("S", 1), *(tm.sources.Records([bad], time="at") for _ in range(2))]
    sinks = [tm.sinks.Lines(tmp_path / f"{n}.ndjson", where=lambda batch, n=n: batch["n"] < n) for n in range(3)]
    sinks += [tm.sinks.Latest(name="lines_2"), tm.sinks.Latest()]
    read = []
    report = tm.run(
        tm.Pipeline(sources, tm.Plan(), sinks),
        lanes=lanes,
        dead_letters=tmp_path / "dead.ndjson",
        on_statistics=read.append,
    )
    assert report.sinks == {"lines": 0, "lines_3": 0, "lines_4": 1, "lines_2": 1, "latest": 1}
    assert set(report.delivery) == set(report.sinks)
    letters = (tmp_path / "dead.ndjson").read_text().splitlines()
    assert sorted(msgspec.json.decode(line)["source"] for line in letters) == ["records", "records_2"]
    assert all(set(statistics.sinks) == set(report.sinks) for statistics in read)


def test_numbers_are_of_the_pipeline_and_not_of_the_edge():
    """Edges that were second in their own pipelines are first and second in a third."""
    second = [tm.Pipeline(source("a", 1), tm.Plan(), [tm.sinks.Latest(), tm.sinks.Latest()]).sinks[1] for _ in range(2)]
    assert [sink.name for sink in second] == ["latest_2", "latest_2"]
    assert [sink.name for sink in tm.Pipeline(source("a", 1), tm.Plan(), second).sinks] == ["latest", "latest_2"]


def test_a_name_is_given_once(tmp_path):
    """Two edges with one name could not be told apart; one edge cannot stand twice."""
    with pytest.raises(PlanError, match="two sinks are called 'newest'"):
        tm.Pipeline(
            source("a", 1), tm.Plan(), [tm.sinks.Latest(name="newest"), tm.sinks.Callback(print, name="newest")]
        )
    twice = tm.sinks.Latest()
    with pytest.raises(PlanError, match="the sink latest stands twice"):
        tm.Pipeline(source("a", 1), tm.Plan(), [twice, twice])


@pytest.mark.parametrize("make", [tm.sinks.Lines, tm.sinks.SQLite, tm.sinks.Parquet])
def test_two_sinks_on_one_path_are_refused(tmp_path, make):
    """At construction, by their names and the path, also where one of them goes by a link; nothing is made."""
    (tmp_path / "link").symlink_to(tmp_path)
    first, second = tmp_path / "rows.ndjson", tmp_path / "link" / "rows.ndjson"
    with pytest.raises(PlanError, match=f"sinks first and {make.__name__.lower()} .*{first}"):
        tm.Pipeline(source("a", 1), tm.Plan(), [make(first, name="first"), make(second, if_exists="append")])
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_places_that_two_sinks_may_share(tmp_path):
    """Two tables of a database, and a device."""
    tables = [tm.sinks.SQLite(tmp_path / "a.db", table=table) for table in ("a", "b")]
    devices = [tm.sinks.Lines("/dev/null", format="ndjson") for _ in range(2)]
    pipeline = tm.Pipeline(source("a", 1), tm.Plan(), [*tables, *devices])
    assert [sink.name for sink in pipeline.sinks] == ["sqlite", "sqlite_2", "lines", "lines_2"]
