"""What PostgreSQL alone promises: its types, its names, its refusals. The server is real."""

from __future__ import annotations

import datetime
import math
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill import sinks
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import InputError, MissingExtra, OutputExists, OutsideError, PlanError, TidemillError
from tidemill.schema import Field, Kind, Schema
from tidemill.sinks import postgres as module
from tidemill.sinks import postgres_rows
from tidemill.sinks.postgres_values import ColumnNames

OPEN = Schema(open=True)
ONE = Batch.from_rows([{"value": 1.5}])


def written(sink: sinks.PostgreSQL, *batches: Batch, schema: Schema = OPEN) -> sinks.PostgreSQL:
    sink.check()
    sink.open(schema)
    for batch in batches:
        sink.write(sink.chosen(batch))
        sink.flush()
    sink.close()
    return sink


def write_and_flush(sink: sinks.PostgreSQL, batch: Batch) -> None:
    """A refusal may be told by either."""
    sink.write(batch)
    sink.flush()


def refused(kind: type[TidemillError], password: str, act: Callable[[], object]) -> str:
    """The message of exactly this error; the password is nowhere in it, nor in what is printed of it."""
    with pytest.raises(kind) as caught:
        act()
    assert type(caught.value) is kind
    assert password not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


# -- values ------------------------------------------------------------------------------------------


def test_types_of_the_table(place: Any) -> None:
    """Each kind has its type, and what psycopg reads back is what went in, to the microsecond."""
    rows = Batch.from_rows([{"value": 1.5, "ok": True, "unit": "°C", "at": {"x": [1, None]}}, {}])
    time = Column(Kind.TIME, np.array([1_704_067_200_123_456_789, np.iinfo(np.int64).min]))
    n = Column(Kind.INT, np.array([-(2**63), 2**63 - 1]))
    written(place.sink(), rows.with_columns({"n": n, "time": time}))
    declared = place.query("SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
                           "WHERE attrelid = 'features'::regclass AND attnum > 0 ORDER BY attnum")  # fmt: skip
    assert declared == [
        ("value", "double precision"), ("ok", "boolean"), ("unit", "text"), ("at", "jsonb"), ("n", "bigint"),
        ("time", "timestamp with time zone"),
    ]  # fmt: skip
    told = datetime.datetime(2024, 1, 1, 0, 0, 0, 123456, datetime.UTC)
    assert place.rows() == [
        {"value": 1.5, "ok": True, "unit": "°C", "at": {"x": [1, None]}, "n": -(2**63), "time": told},
        {"value": None, "ok": None, "unit": None, "at": None, "n": 2**63 - 1, "time": None},
    ]


def test_nan_is_null_and_infinity_stays(place: Any) -> None:
    """PostgreSQL's NaN is greater than every number: one would be the maximum, and pass every ``>``."""
    written(place.sink(), Batch({"value": Column.of_array(np.array([1.5, np.nan, np.inf, -np.inf, -0.0, 5e-324]))}))
    assert place.query("SELECT max(value), min(value), count(*) FILTER (WHERE value > 1) FROM features "
                       "WHERE value IS DISTINCT FROM 'Infinity'") == [(1.5, -math.inf, 1)]  # fmt: skip
    assert [row["value"] for row in place.rows()] == [1.5, None, math.inf, -math.inf, 0.0, 5e-324]


def test_times_before_the_epoch_are_cut_downwards(place: Any) -> None:
    """A nanosecond before a microsecond belongs to the one before it, on both sides of 1970 and of 2000."""
    times = np.array([-1, 946_684_799_999_999_999, -(2**63) + 1, 2**63 - 1])
    written(place.sink(), Batch({"time": Column(Kind.TIME, times)}))
    counted = place.query("SELECT (extract(epoch FROM time) * 1000000)::bigint FROM features ORDER BY ctid")
    assert [us for (us,) in counted] == [int(time) // 1000 for time in times]


def test_pandas_reads_what_pandas_would_have_been_given(place: Any) -> None:
    """Through the server and directly: the same frame."""
    random = np.random.default_rng(5)
    batch = Batch({
        "sensor": Column.of_texts([f"S{number}" for number in random.integers(0, 9, 500)]),
        "time": Column(Kind.TIME, 1_700_000_000_000_000_000 + np.arange(500) * 1_000_000),
        "value": Column.of_array(np.where(random.random(500) < 0.2, np.nan, random.normal(size=500))),
        "ok": Column.of_array(random.random(500) < 0.5),
    })  # fmt: skip
    written(place.sink(), batch)
    read = pandas.DataFrame(place.rows()).astype({"value": float, "time": "datetime64[ns, UTC]"})
    given_ = batch.to_pandas().astype({"sensor": read["sensor"].dtype, "time": "datetime64[ns, UTC]"})
    pandas.testing.assert_frame_equal(read, given_)


def as_stored(value: Any) -> Any:
    """What PostgreSQL can hold of a record's value."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode().replace("\0", "\u2400")
        case float() if not math.isfinite(value):
            return None
        case int() if not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)  # jsonb keeps decimal digits: 2.251799759896167e+16 comes back as an int, one of many
        case list():
            return [as_stored(item) for item in value]
        case dict():
            return {as_stored(name): as_stored(item) for name, item in value.items()}
        case _:
            return value


def as_float(value: Any) -> Any:
    try:
        number = float(value)
    except (OverflowError, TypeError):
        return None
    return None if math.isnan(number) else number


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_records_of_every_shape_come_back(new_place: Any, records: Any, data: st.DataObject) -> None:
    """Whatever is null, absent, hostile or huge, in whatever order, cut into batches anywhere."""
    place = new_place()
    rows = data.draw(records())
    whole = Batch.from_rows(rows)
    cut = data.draw(st.integers(0, len(rows)))
    sink = written(place.sink(), whole.slice(0, cut), whole.slice(cut, len(rows)))
    got = place.rows()
    assert len(got) == len(rows) == sink.statistics().rows
    for row, stored in zip(rows, got, strict=True):
        assert stored.get("number") == as_float(row.get("number"))
        assert stored.get("flag") == row.get("flag")
        for name in ("text", "nested"):
            assert as_stored(stored.get(name)) == as_stored(row.get(name)), name


def test_what_cannot_be_stored_as_it_is_is_counted(place: Any) -> None:
    """NUL in text and in nested text is shown as its symbol, a number beyond its column is NULL; each is counted."""
    batch = Batch.from_rows([{"note": "a\0b", "at": ["\0", "\\u0000"], "x": 10**400}, {"note": "ab", "at": 1, "x": 2}])
    n = Column(Kind.INT, np.array([0, 7]), exact={0: 2**63})
    sink = written(place.sink(), batch.with_columns({"n": n}))
    assert place.rows() == [
        {"note": "a\u2400b", "at": ["\u2400", "\\u0000"], "x": None, "n": None},
        {"note": "ab", "at": 1, "x": 2.0, "n": 7},
    ]
    assert sink.statistics().left_out == {"note": 1, "at": 1, "x": 1, "n": 1}


def test_long_texts_among_short_ones(place: Any) -> None:
    """A megabyte in one row is that one row's matter."""
    texts = ["x" * 2**20, "", "y"]
    written(place.sink(), Batch({"note": Column.of_texts(texts)}))
    assert [row["note"] for row in place.rows()] == texts


def test_more_distinct_texts_than_are_kept(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of them is bounded; rows and counts do not show it."""
    monkeypatch.setattr(postgres_rows, "MOST_TEXTS", 3)
    texts = [f"{'long ' * 60 if number % 3 else ''}{number % 7}{chr(number % 2)}" for number in range(50)]
    whole = Batch({"note": Column.of_texts(texts)})
    sink = written(place.sink(), whole.slice(0, 20), whole.slice(20, 50))
    assert [row["note"] for row in place.rows()] == [text.replace("\0", "\u2400") for text in texts]
    assert sink.statistics().left_out == {"note": 25}


def test_a_field_of_nothing_but_null_has_no_column_until_it_has_a_value(place: Any) -> None:
    """Its type is not known before; rows without any value are rows all the same."""
    sink = place.sink()
    sink.open(OPEN)
    sink.write(Batch.from_rows([{"a": None}, {"a": None}]))
    sink.write(Batch.from_rows([{"a": None, "b": True}]))
    sink.write(Batch.from_rows([{"a": "late", "b": None}]))
    sink.close()
    assert place.rows() == [{"b": None, "a": None}] * 2 + [{"b": True, "a": None}, {"b": None, "a": "late"}]


def test_a_declared_field_of_nulls_has_its_column_at_once(place: Any) -> None:
    """Where the plan knows the kind."""
    written(place.sink(), Batch.from_rows([{"a": None}]), schema=Schema([Field("a", Kind.FLOAT)]))
    assert place.rows() == [{"a": None}]


# -- names -------------------------------------------------------------------------------------------


def test_a_run_without_rows_makes_columns_of_known_kinds_alone(place: Any) -> None:
    """A guess at another's kind would refuse the rows of every later run."""
    schema = Schema([Field("n", Kind.INT), Field("value", None)])
    written(place.sink(), schema=schema)
    assert place.rows() == []
    written(place.sink(if_exists="append"), Batch.from_rows([{"value": 20.5}]), schema=schema)
    assert place.rows() == [{"n": None, "value": 20.5}]


def test_column_names_stay_the_same() -> None:
    """A field's column is found again, no two fields share one, and none is longer than PostgreSQL takes."""
    names = ColumnNames()
    long = "ü" * 40
    got = [names.of(name) for name in (long + "1", long + "2", "xmin", "xmin_2", long + "1")]
    assert got == ["ü" * 31, "ü" * 30 + "_2", "xmin_2", "xmin_2_2", "ü" * 31]
    assert all(len(name.encode()) <= 63 for name in got)


def test_later_runs_find_the_columns_of_long_names(place: Any) -> None:
    """In whatever order their fields come then: a comment on the column keeps the field's name."""
    one, two = "f" * 70 + "1", "f" * 70 + "2"
    written(place.sink(), Batch.from_rows([{one: 1.0, two: 2.0}]))
    written(place.sink(if_exists="append"), Batch.from_rows([{two: 2.0}]), Batch.from_rows([{one: 1.0}]))
    first, second = place.rows()[0]
    assert [(row[first], row[second]) for row in place.rows()] == [(1.0, 2.0), (None, 2.0), (1.0, None)]


def test_a_table_name_is_only_a_name(place: Any) -> None:
    """Quotes and semicolons make a strange table and nothing else; what cannot be a name is refused at once."""
    strange = 'x"; DROP TABLE y; --%s'
    written(place.sink(table=strange), ONE)
    found = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
    assert place.query(found) == [(strange,)]
    for options in ({"table": ""}, {"table": "a\0b"}, {"table": "a" * 64}, {"schema": ""}):
        with pytest.raises(PlanError, match="cannot be a name"):
            place.sink(**options)
    with pytest.raises(PlanError, match="keeps positions"):
        place.sink(table="tidemill_positions")
    with pytest.raises(PlanError, match="must be a text"):
        place.sink(database=None)


# -- what is there already -----------------------------------------------------------------------------


def test_rows_are_added_to_a_table_of_ones_own(place: Any) -> None:
    """Its other columns get their defaults; text, json and times without a zone take what they can hold."""
    place.query("CREATE TABLE features (id bigserial, unit varchar(3), at json, more text, time timestamp, x int)")
    rows = Batch.from_rows([{"unit": "C", "at": [1], "more": {"a": 1}, "new": 1.5}])
    sink = place.sink(if_exists="append")
    written(sink, rows.with_columns({"time": Column(Kind.TIME, np.array([0]))}))
    time = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - the column has no zone
    assert place.rows() == [{"id": 1, "unit": "C", "at": [1], "more": '{"a":1}', "time": time, "x": None, "new": 1.5}]


def test_a_column_of_another_type_is_refused_by_name(place: Any) -> None:
    """And nothing of the batch, or of what was not flushed before it, is there."""
    place.query("CREATE TABLE features (value real, unit varchar(3), n int CHECK (n > 0))")
    for rows, said in (
        ([{"value": 1.5}], r"'value'.*real.*float.*double precision"),
        ([{"unit": "long one"}], "value too long"),
        ([{"unit": 5.0}], "'unit'.*character varying"),
    ):
        sink = place.sink(if_exists="append")
        sink.open(OPEN)
        sink.write(Batch.from_rows([{"other": True}]))
        with pytest.raises(InputError, match=said):
            write_and_flush(sink, Batch.from_rows(rows))
        with pytest.raises(PlanError, match="not open"):
            sink.write(ONE)
        sink.close()
    assert place.rows() == []


def test_two_runs_that_add_the_same_column(place: Any) -> None:
    """Both meet a field that the table lacks: the second takes the column of the first, when its values fit there."""
    one, other, third = (place.sink(if_exists="append") for _ in range(3))
    for sink in (one, other, third):
        sink.open(OPEN)
        write_and_flush(sink, ONE)
    for sink in (one, other):
        write_and_flush(sink, Batch.from_rows([{"value": 2.5, "unit": "C"}]))
        sink.close()
    with pytest.raises(InputError, match=r"Column 'unit' .* is text, and the rows have float there"):
        write_and_flush(third, Batch.from_rows([{"value": 3.5, "unit": 1.5}]))
    assert [(row["value"], row["unit"]) for row in place.rows()] == [(1.5, None)] * 3 + [(2.5, "C")] * 2


def test_fields_for_which_a_table_has_no_room(place: Any) -> None:
    """The rows are written without them, they are counted, and room is kept for what the plan makes; of a table that is there,
    dropped columns count."""
    place.query("CREATE TABLE features (gone text, c0 double precision)")
    place.query("ALTER TABLE features DROP COLUMN gone")
    rows = [Batch.from_rows([{"value": 1.5, **{f"{letter}{i}": 1.0 for i in range(900)}}]) for letter in "cd"]
    last = Batch.from_rows([{"value": 2.5, "d0": 3.0, "d99": 4.0, "mean": 0.5, "none": None}])
    schema = Schema([Field("mean", Kind.FLOAT)], open=True)
    sink = written(place.sink(if_exists="append"), *rows, last, schema=schema)
    assert place.query("SELECT count(*) FROM pg_attribute WHERE attrelid = 'features'::regclass AND attnum > 0") == [
        (1600,)
    ]
    assert place.query("SELECT value, c899, d0, mean FROM features ORDER BY ctid") == [
        (1.5, 1.0, None, None), (1.5, None, 1.0, None), (2.5, None, 3.0, 0.5),
    ]  # fmt: skip
    left_out = sink.statistics().left_out
    assert sum(left_out.values()) == 900 - (1600 - 1 - 900 - 2) + 1
    assert left_out["d99 (no room)"] == 2
    assert len(sink.whys_left_out(list(left_out))) == 1


def widened(number: int, value: Any) -> dict[str, Any]:
    return {"value": 1.5, **{f"a{i:04}": value for i in range(number)}}


@pytest.mark.parametrize(("value", "fit"), [(1.5, 974), ("é" * 10, 324), ({"x": [1, 2]}, 324)])
def test_values_for_which_a_row_has_no_room(place: Any, value: Any, fit: int) -> None:
    """The server takes the row without them; other rows of the table keep theirs."""
    schema = Schema([Field("value", Kind.FLOAT)], open=True)
    batch = Batch.from_rows([widened(3, value), widened(1015, value), {"a1014": value}])
    sink = written(place.sink(), batch, schema=schema)
    there = [[name for name, stored in row.items() if stored is not None] for row in place.rows()]
    assert [len(names) for names in there] == [4, 1 + fit, 1]
    assert there[1] == ["value", *(f"a{i:04}" for i in range(fit))]
    assert there[2] == ["a1014"]
    left_out = sink.statistics().left_out
    assert sum(left_out.values()) == 1015 - fit


def test_a_rule_of_the_table_is_refused_with_its_name(place: Any) -> None:
    """A CHECK, a NOT NULL, a unique index: the server's own words."""
    place.query("CREATE TABLE features (value double precision CONSTRAINT positive CHECK (value > 0))")
    sink = place.sink(if_exists="append")
    sink.open(OPEN)
    sink.write(Batch.from_rows([{"value": -1.5}]))
    with pytest.raises(InputError, match=r'"positive".*rule of its own'):
        sink.flush()


def test_replace_waits_for_the_first_row_and_leaves_what_depends(place: Any) -> None:
    """A run that never gets a row deletes nothing; a table with a view on it cannot be dropped, and that is said."""
    written(place.sink(), ONE)
    written(place.sink(if_exists="replace"))
    assert place.rows() == [{"value": 1.5}]
    written(place.sink(if_exists="replace"), Batch.from_rows([{"b": True}]))
    assert place.rows() == [{"b": True}]
    place.query("CREATE VIEW looked_at AS SELECT * FROM features")
    sink = place.sink(if_exists="replace")
    sink.open(OPEN)
    with pytest.raises(InputError, match="drop those first"):
        sink.write(ONE)
    assert place.rows() == [{"b": True}]
    with pytest.raises(InputError, match="is a view"):
        place.sink(table="looked_at", if_exists="replace").check()


# -- refusals ------------------------------------------------------------------------------------------


@pytest.fixture
def secret(postgres: Any) -> str:
    """The password in every address of these tests."""
    password = postgres.url().split(":")[2].partition("@")[0]
    assert len(password) > 8
    return password


def test_who_may_not_come_in(place: Any, secret: str) -> None:
    """A wrong password, a user and a database that are not there, no password: for the user to mend."""
    server = place.server
    addresses = {
        server.url(password=secret[::-1]): "password authentication failed",
        server.url(user="nobody"): "password authentication failed",
        server.url("nowhere"): '"nowhere" does not exist',
        f"host=127.0.0.1 port={server.port} user=tidemill dbname=postgres passfile=/nowhere": "password",
    }
    for address, said in addresses.items():
        sink = place.sink(database=address)
        for act in (sink.check, lambda sink=sink: sink.open(OPEN)):
            told = refused(InputError, secret, act)
            assert said in told
            assert secret[::-1] not in told


def test_an_address_that_makes_no_sense(secret: str) -> None:
    """It is not quoted: there may be a password in it."""
    for address in (f"postgresql//me:{secret}@host/db", f"host=x pasword={secret}", f"postgresql://h/d?x={secret}"):
        told = refused(PlanError, secret, sinks.PostgreSQL(address).check)
        assert "postgresql://user@host/database" in told


def test_where_it_writes_is_told_without_who(secret: str) -> None:
    """In the report, in errors, in a debugger."""
    for address, shown in {
        f"postgresql://me:{secret}@db:5433/history?sslpassword={secret}": "postgresql://db:5433/history",
        f"postgres://me:{secret}/@{secret}@db/history?port=1": "postgresql://db:1/history",
        f"postgresql://me:{secret}?2@db/history?port=1": "postgresql://db:1/history",
        f"postgresql://me:{secret}?@{secret}@db/history": "postgresql://db/history",
        f"postgresql://me:{secret}/a?{secret}@db/history": "postgresql:///",
        f"postgresql://db/history?user=me@plant&password={secret}@{secret}": "postgresql://db/history",
        f"postgresql:///history?host=/run&user=me&password={secret}": "postgresql:///run/history",
        f"hostaddr=10.0.0.1 dbname='history' password = '{secret} \\' x'": "postgresql://10.0.0.1/history",
        f"service=plant password={secret}": "postgresql:/// (service plant)",
    }.items():
        sink = sinks.PostgreSQL(address, "t")
        assert sink.place == f"{shown}, table 't'"
        assert repr(sink) == f"PostgreSQL({shown}, table 't')"


def test_a_server_that_is_not_there(place: Any, secret: str) -> None:
    """Nothing listens, or something that never answers: it may pass, and is told within the time that one gives."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        address = f"postgresql://tidemill:{secret}@127.0.0.1:{port}/postgres?connect_timeout=2"
        assert "could not be reached" in refused(OutsideError, secret, place.sink(database=address).check)
    said = refused(OutsideError, secret, place.sink(database=address).check)
    assert said.endswith(f'to server at "127.0.0.1", port {port} failed: Connection refused.'), "and no more is asked"


def test_rights_that_are_missing(place: Any, secret: str) -> None:
    """To create in the schema, to write to the table: found before the first row, and mended by a GRANT."""
    server, schema = place.server, place.schema
    server.query(f"CREATE ROLE {schema} LOGIN PASSWORD '{secret}'")
    sink = place.sink(database=server.url(user=schema), if_exists="append")
    assert "GRANT USAGE, CREATE" in refused(InputError, secret, sink.check)
    place.query("CREATE TABLE features (value double precision)")
    server.query(f"GRANT USAGE ON SCHEMA {schema} TO {schema}")
    assert "GRANT INSERT" in refused(InputError, secret, sink.check)
    server.query(f"GRANT INSERT ON ALL TABLES IN SCHEMA {schema} TO {schema}")
    written(sink, ONE)
    assert place.rows() == [{"value": 1.5}]
    sink.open(OPEN)
    assert "owner" in refused(InputError, secret, lambda: sink.write(Batch.from_rows([{"new": 1.5}])))
    assert "no schema 'nowhere'" in refused(InputError, secret, place.sink(schema="nowhere").check)


def test_what_may_pass_by_itself(place: Any, secret: str) -> None:
    """Read-only, no connection free, a full disk (told by a trigger as the server tells it): to be tried again."""
    server, schema = place.server, place.schema
    sink = place.sink(database=server.url(query="?options=-cdefault_transaction_read_only%3Don"))
    sink.open(OPEN)
    assert "takes no writes" in refused(OutsideError, secret, lambda: sink.write(ONE))
    server.query(f"CREATE ROLE {schema} LOGIN PASSWORD '{secret}' CONNECTION LIMIT 0")
    crowded = place.sink(database=server.url(user=schema))
    assert "too many connections" in refused(OutsideError, secret, crowded.check)
    place.query("CREATE TABLE features (value double precision)")
    place.query("""CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$""")
    place.query("CREATE TRIGGER full_disk BEFORE INSERT ON features EXECUTE FUNCTION full_disk()")
    sink = place.sink(if_exists="append")
    sink.open(OPEN)
    sink.write(ONE)
    assert "disk of the server is full" in refused(OutsideError, secret, sink.flush)


def test_a_table_that_others_hold(place: Any, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for ever."""
    monkeypatch.setattr(module, "BEGIN", module.BEGIN.replace("10s", "10ms"))
    place.query("CREATE TABLE features (value double precision)")
    sink = place.sink(if_exists="append")
    sink.open(OPEN)
    with place.server.connect() as other, other.transaction():
        other.execute(f"LOCK TABLE {place.schema}.features".encode())
        assert "holds a lock" in refused(OutsideError, secret, lambda: sink.write(ONE))
    written(sink, ONE)
    assert place.rows() == [{"value": 1.5}]


def test_without_psycopg_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """At start."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match=r"tidemill\[postgres\]"):
        sinks.PostgreSQL("postgresql://host/db").check()


def test_other_sessions_see_whole_flushes(place: Any) -> None:
    """While one writes, others read, without waiting for each other."""
    sink = place.sink()
    sink.open(OPEN)
    sink.write(ONE)
    assert place.rows() == []
    sink.flush()
    sink.write(ONE)
    sink.write(ONE)
    assert place.rows() == [{"value": 1.5}]
    sink.flush()
    assert len(place.rows()) == 3
    sink.close()
    with pytest.raises(OutputExists, match='if_exists="append"'), closing(place.sink()) as again:
        again.open(OPEN)
