"""What is known of a pipeline before it runs."""

import msgspec
import pytest

import tidemill as tm
from tidemill.batch import Batch
from tidemill.errors import InputError, PlanError
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


@pytest.mark.parametrize("name", ["rows.ndjson", "other.ndjson", "linked.ndjson"])
@pytest.mark.parametrize("if_exists", ["replace", "append"])
def test_a_source_and_a_sink_of_one_file_are_refused(tmp_path, name, if_exists):
    """Before the file is touched, by the names of both, also where it has another name."""
    rows = tmp_path / "rows.ndjson"
    rows.write_text('{"sensor": "a", "time": 1, "value": 1}\n')
    (tmp_path / "other.ndjson").symlink_to(rows)
    (tmp_path / "linked.ndjson").hardlink_to(rows)
    before = rows.read_bytes()
    sink = tm.sinks.Lines(tmp_path / name, if_exists=if_exists)
    with pytest.raises(InputError, match=r"the sink lines and the source replay are one file, .*rows.ndjson"):
        tm.run(tm.Pipeline(tm.sources.Replay(rows), tm.Plan(), sink), lanes=0)
    assert rows.read_bytes() == before


def test_what_a_run_writes_beside_its_rows_has_files_of_its_own(tmp_path, monkeypatch):
    """Report, dead letters and rows; also those that no option named, and a history that is worked on first."""
    monkeypatch.chdir(tmp_path)
    history = tmp_path / "history.ndjson"
    history.write_text('{"sensor": "a", "time": 1, "value": 1}\n')

    def refused(out, **options):
        pipeline = tm.Pipeline(source("a", 1), tm.Plan(), tm.sinks.for_path(out, if_exists="replace"))
        with pytest.raises(InputError, match=r"(.*) are one file") as told:
            tm.run(pipeline, lanes=0, **options)
        return str(told.value).partition(" are one file")[0]

    assert refused("a.db", dead_letters="a.db") == "the sink sqlite and the dead letters"
    assert refused("dead_letters.ndjson") == "the sink lines and the dead letters"
    assert refused("a.ndjson", report=tmp_path / "a.ndjson") == "the sink lines and the report"
    assert refused("a.ndjson", report="r", dead_letters="r") == "the dead letters and the report"
    state = tm.State(tmp_path / "state", warm=tm.sources.Replay(history))
    assert refused("history.ndjson", state=state) == "the sink lines and the source replay"
    assert [path.name for path in tmp_path.iterdir()] == ["history.ndjson"]


def test_a_folder_of_parquet_files_is_not_read_and_written(tmp_path):
    """Its files are the sink's; others may lie in it."""
    tm.run(tm.Pipeline(source("a", 1), tm.Plan(), tm.sinks.Parquet(tmp_path)), lanes=0)
    sink = tm.sinks.Parquet(tmp_path, if_exists="replace")
    with pytest.raises(InputError, match=r"the sink parquet and the source replay are one file, .*part-0"):
        tm.run(tm.Pipeline(tm.sources.Replay(tmp_path), tm.Plan(), sink), lanes=0)
    (tmp_path / "in.ndjson").write_text('{"sensor": "a", "time": 1, "value": 1}\n')
    tm.run(tm.Pipeline(tm.sources.Replay(tmp_path / "*.ndjson"), tm.Plan(), sink), lanes=0, report=tmp_path / "r.json")


def test_letters_are_replayed_into_their_own_file(tmp_path):
    """A replay reads those that were there; new ones are for the next."""
    letters = tmp_path / "dead.ndjson"
    letters.write_text('{"raw": {"n": 1}}\n')
    pipeline = tm.Pipeline(tm.sources.DeadLetters(letters, time="at"), tm.Plan(), tm.sinks.Latest())
    assert tm.run(pipeline, lanes=0, dead_letters=letters).dead_letters == 1
    assert len(letters.read_text().splitlines()) == 2


def test_a_device_is_read_and_written(tmp_path):
    """Nothing is lost of what several may write."""
    pipeline = tm.Pipeline(tm.sources.Lines("/dev/null"), tm.Plan(), tm.sinks.Lines("/dev/null", format="ndjson"))
    assert tm.run(pipeline, lanes=0, dead_letters="/dev/null").rows_out == 0
