"""Laws that every sink of blocking calls keeps; each class found in the package is put through all of them."""

from __future__ import annotations

import csv
import gzip
import importlib
import inspect
import io
import json
import math
import pkgutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import cloudpickle
import numpy as np
import psycopg.rows
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill import sinks
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import InputError, PlanError, TidemillError
from tidemill.schema import Field, Kind, Schema

OPEN = Schema(open=True)
HOSTILE = 'rate "raw"; DROP TABLE features; --'


@dataclass(frozen=True)
class Kit:
    """One way to use a sink: where it writes, and how what it wrote is read back."""

    name: str
    cls: type[sinks.ProcessSink]
    file: str
    read: Callable[[Path], list[dict[str, Any]]]
    shows: Callable[[Any], Any]
    """What a value of a record reads as."""
    sparse: bool = False
    """Absent fields are left out; elsewhere they read as null."""
    appends: bool = True
    grows: bool = True
    """A column that comes later is taken."""
    unnamed: str = ""
    """What a column without a name is called."""

    def make(self, folder: Path, **options: Any) -> sinks.ProcessSink:
        return self.cls(folder / self.file, **options)

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        return self.read(folder / self.file)

    def expected(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        names = dict.fromkeys(name for row in rows for name in row)
        return [{name: self.shows(row.get(name)) for name in names if name in row or not self.sparse} for row in rows]


def read_sqlite(path: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as connection:
        cursor = connection.execute("SELECT * FROM features ORDER BY rowid")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]


def read_parquet(path: Path) -> list[dict[str, Any]]:
    paths = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    rows = [row for part in paths for row in pyarrow.parquet.read_table(part).to_pylist()]
    names = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def read_text(path: Path) -> str:
    return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()


def read_ndjson(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_text(path).splitlines()]


def read_csv(path: Path) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(read_text(path), newline="")))


def is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def shown_by_sqlite(value: Any) -> Any:
    if is_nan(value):
        return None
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list | dict) else value


def shown_by_parquet(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list | dict) else value


def shown_by_ndjson(value: Any) -> Any:
    return None if is_nan(value) else value


def shown_by_csv(value: Any) -> Any:
    if value is None or is_nan(value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list | dict) else str(value)


@dataclass(frozen=True)
class ServerKit(Kit):
    """A table of a server: each folder of a test stands for a schema of its own."""

    server: Any = None

    def make(self, folder: Path, **options: Any) -> sinks.ProcessSink:
        self.server.query(f'CREATE SCHEMA IF NOT EXISTS "{folder.name[-63:]}"')
        return self.cls(self.server.url(), schema=folder.name[-63:], **options)

    def rows(self, folder: Path) -> list[dict[str, Any]]:
        with self.server.connect(row_factory=psycopg.rows.dict_row) as connection:
            rows = connection.execute(f'SELECT * FROM "{folder.name[-63:]}".features ORDER BY ctid').fetchall()
            return [{name: json_of(value) for name, value in row.items()} for row in rows]


def json_of(value: Any) -> Any:
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list | dict) else value


def shown_by_postgres(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value.replace("\0", "\u2400") if isinstance(value, str) else shown_by_sqlite(value)


KITS = [
    Kit("sqlite", sinks.SQLite, "features.db", read_sqlite, shown_by_sqlite),
    Kit("parquet-folder", sinks.Parquet, "features", read_parquet, shown_by_parquet),
    Kit("parquet-file", sinks.Parquet, "features.parquet", read_parquet, shown_by_parquet, appends=False),
    Kit("ndjson", sinks.Lines, "features.ndjson", read_ndjson, shown_by_ndjson, sparse=True),
    Kit("ndjson-gz", sinks.Lines, "features.jsonl.gz", read_ndjson, shown_by_ndjson, sparse=True),
    Kit("csv", sinks.Lines, "features.csv", read_csv, shown_by_csv, grows=False),
    Kit("csv-gz", sinks.Lines, "features.csv.gz", read_csv, shown_by_csv, grows=False),
]
POSTGRES = ServerKit("postgres", sinks.PostgreSQL, "", read_sqlite, shown_by_postgres, unnamed="_")


@pytest.fixture(params=[*KITS, POSTGRES], ids=lambda kit: kit.name)
def kit(request: pytest.FixtureRequest) -> Kit:
    if request.param is POSTGRES:
        return replace(POSTGRES, server=request.getfixturevalue("postgres"))
    return request.param


of_files = pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)


def written(kit: Kit, folder: Path, *batches: Batch, schema: Schema = OPEN, **options: Any) -> sinks.ProcessSink:
    sink = kit.make(folder, **options)
    sink.check()
    sink.open(schema)
    try:
        for batch in batches:
            sink.write(sink.chosen(batch))
            sink.flush()
    finally:
        sink.close()
    return sink


def sinks_in_the_package() -> Iterator[type[sinks.ProcessSink]]:
    package = importlib.import_module("tidemill.sinks")
    for module in pkgutil.iter_modules(package.__path__, "tidemill.sinks."):
        for _, found in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(found, sinks.ProcessSink) and not inspect.isabstract(found):
                yield found


def test_every_sink_of_the_package_is_under_the_laws() -> None:
    """A new sink has a kit here from the day it is written; what is sent to a broker or a server cannot be read back or be there
    already, so that it has tests of its own."""
    sent = {sinks.MQTT, sinks.HTTP, sinks.TCP, sinks.UDP}
    assert set(sinks_in_the_package()) == {kit.cls for kit in [*KITS, POSTGRES]} | sent


def test_records_come_back_in_order_with_their_values(kit: Kit, tmp_path: Path) -> None:
    """Text, floats, ints, bools, nested values and nulls, over several batches and flushes."""
    rows = [
        {"sensor": f"S{i}", "value": i / 7, "n": i, "ok": i % 2 == 0, "note": None if i % 3 else "é \t", "at": [i, {}]}
        for i in range(10)
    ]
    sink = written(kit, tmp_path, Batch.from_rows(rows[:4]), Batch.from_rows(rows[4:5]), Batch.from_rows(rows[5:]))
    assert kit.rows(tmp_path) == kit.expected(rows)
    assert sink.statistics().rows == 10
    assert sink.statistics().bytes > 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00Z"),
        (date(2026, 1, 1), "2026-01-01"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Decimal("1.10"), "1.10"),
        (b"ab\xff", "YWL/"),
        ('"', '"'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_json_has_as_a_text_is_that_text(kit: Kit, tmp_path: Path, value: object, text: str) -> None:
    """Without quotes around it, beside nested values, as whoever reads the file or table expects it."""
    written(kit, tmp_path, Batch.from_rows([{"any": [1]}, {"any": value}]))
    assert kit.rows(tmp_path) == kit.expected([{"any": [1]}, {"any": text}])


def test_one_record(kit: Kit, tmp_path: Path) -> None:
    """A lone record is a batch like any other."""
    written(kit, tmp_path, Batch.from_rows([{"sensor": "S1", "value": 1.5}]))
    assert kit.rows(tmp_path) == kit.expected([{"sensor": "S1", "value": 1.5}])


def test_a_batch_without_records_changes_nothing(kit: Kit, tmp_path: Path) -> None:
    """Before, between and after others."""
    empty = Batch({"value": Column.of_array(np.empty(0))})
    full = Batch.from_rows([{"value": 1.5}])
    sink = written(kit, tmp_path, empty, full, empty, Batch({}, rows=0))
    assert kit.rows(tmp_path) == kit.expected([{"value": 1.5}])
    assert sink.statistics().rows == 1


def test_a_run_without_records_leaves_something_to_read(kit: Kit, tmp_path: Path) -> None:
    """When the columns are known, a query on the output of an empty run finds no rows instead of no table."""
    written(kit, tmp_path, schema=Schema([Field("sensor", Kind.TEXT), Field("value", Kind.FLOAT)]))
    assert kit.rows(tmp_path) == []


def test_missing_values(kit: Kit, tmp_path: Path) -> None:
    """Null, absent and NaN, in numbers and in text, at any place; a column that starts with nulls only."""
    rows: list[dict[str, Any]] = [
        {"sensor": "S1", "value": math.nan, "late": None},
        {"sensor": None, "value": 2.5, "late": None},
        {"value": None, "late": None},
        {"sensor": "S4", "late": 4.5},
        {"sensor": "S5", "value": 5.5, "late": 5.5},
    ]
    written(kit, tmp_path, *(Batch.from_rows(rows[at : at + 3]) for at in (0, 3)))
    got, expected = kit.rows(tmp_path), kit.expected(rows)
    assert repr(got) == repr(expected)


def test_ints_stay_ints_and_floats_stay_floats(kit: Kit, tmp_path: Path) -> None:
    """``5`` and ``5.0`` are different to the user who gets them back (Parquet has one type for a column)."""
    rows = [{"a": 5, "b": 5.0, "c": 5}, {"a": -7, "b": 0.5, "c": 0.5}]
    written(kit, tmp_path, Batch.from_rows(rows))
    assert repr(kit.rows(tmp_path)) == repr(kit.expected(rows))


def test_hostile_names_and_texts_are_only_data(kit: Kit, tmp_path: Path) -> None:
    """Quotes, SQL, separators, NUL, emoji and half surrogate pairs in column names and values break nothing."""
    rows = [
        {HOSTILE: 1.5, "näme\n,": 'a,"b"\r\n\'c', "🌊": "\0x", "": "empty", "half": f"S{i}-\ud800"} for i in range(3)
    ]
    written(kit, tmp_path, Batch.from_rows(rows))
    got = kit.rows(tmp_path)
    assert [row[HOSTILE] for row in got] == [kit.shows(1.5)] * 3
    assert [row["näme\n,"] for row in got] == ['a,"b"\r\n\'c'] * 3
    assert [row["🌊"] for row in got] == [kit.shows("\0x")] * 3
    assert [row[kit.unnamed] for row in got] == ["empty"] * 3
    assert [row["half"][:3] for row in got] == ["S0-", "S1-", "S2-"]


def test_a_column_that_comes_later(kit: Kit, tmp_path: Path) -> None:
    """Older rows read null there; CSV, whose header is written, goes on without it and counts it."""
    rows: list[dict[str, Any]] = [{"a": 1.5}, {"a": 2.5, "b": "x"}, {"b": "y"}]
    batches = [Batch.from_rows([row]) for row in rows]
    if kit.grows:
        written(kit, tmp_path, *batches)
        assert kit.rows(tmp_path) == kit.expected(rows)
        return
    sink = written(kit, tmp_path, *batches)
    assert kit.rows(tmp_path) == kit.expected([{"a": row.get("a")} for row in rows])
    assert sink.statistics().left_out == {"b": 2}
    written(kit, tmp_path, *batches, columns=["a", "b"], if_exists="replace")
    assert kit.rows(tmp_path) == kit.expected(rows)


@pytest.mark.parametrize("where", [lambda batch: batch["value"] > 1, "value > 1"], ids=["function", "expression"])
def test_where_and_columns_choose(kit: Kit, tmp_path: Path, where: object) -> None:
    """Rows by a mask or an expression, columns in the order given; all cross to the sink's process."""
    sink = kit.make(tmp_path, where=where, columns=["value", "sensor"])
    sink = cloudpickle.loads(cloudpickle.dumps(sink))
    sink.check()
    sink.open(OPEN)
    sink.write(sink.chosen(Batch.from_rows([{"sensor": f"S{i}", "value": i * 1.0, "x": 0} for i in range(4)])))
    sink.close()
    assert kit.rows(tmp_path) == kit.expected([{"value": 2.0, "sensor": "S2"}, {"value": 3.0, "sensor": "S3"}])
    assert list(kit.rows(tmp_path)[0]) == ["value", "sensor"]


@pytest.mark.parametrize("where", [5, "value >", "__import__('os')"])
def test_a_where_that_makes_no_sense_is_refused(kit: Kit, tmp_path: Path, where: object) -> None:
    """When the sink is made, not when the first row comes."""
    with pytest.raises(PlanError):
        kit.make(tmp_path, where=where)


def test_a_column_unknown_to_the_plan_is_refused_at_start(kit: Kit, tmp_path: Path) -> None:
    """The message names the column and those there are."""
    sink = kit.make(tmp_path, columns=["vlaue"])
    with pytest.raises(PlanError, match=r"'vlaue'.*value"):
        sink.bind(Schema([Field("value", Kind.FLOAT)]))


def test_what_is_there_already(kit: Kit, tmp_path: Path) -> None:
    """``fail`` says what to type and touches nothing, ``append`` adds, ``replace`` starts anew."""
    first, second = [{"a": 1.5, "b": "x"}], [{"a": 2.5, "b": "y"}]
    written(kit, tmp_path, Batch.from_rows(first))
    with pytest.raises(InputError, match='if_exists="replace"'):
        kit.make(tmp_path).check()
    with pytest.raises(InputError, match='if_exists="replace"'):
        kit.make(tmp_path).open(OPEN)
    assert kit.rows(tmp_path) == kit.expected(first)
    if kit.appends:
        written(kit, tmp_path, Batch.from_rows(second), if_exists="append")
        assert kit.rows(tmp_path) == kit.expected(first + second)
    else:
        with pytest.raises(PlanError, match='if_exists="replace"'):
            kit.make(tmp_path, if_exists="append")
    written(kit, tmp_path, Batch.from_rows(second), if_exists="replace")
    assert kit.rows(tmp_path) == kit.expected(second)


@pytest.mark.parametrize("if_exists", ["append", "replace"])
def test_nothing_there_yet(kit: Kit, tmp_path: Path, if_exists: str) -> None:
    """``append`` and ``replace`` begin like ``fail`` where there is nothing."""
    if if_exists == "append" and not kit.appends:
        return  # refused, as the law before this one says
    written(kit, tmp_path, Batch.from_rows([{"a": 1.5}]), if_exists=if_exists)
    assert kit.rows(tmp_path) == kit.expected([{"a": 1.5}])


def test_close_twice_and_without_open(kit: Kit, tmp_path: Path) -> None:
    """Close lets go of what there is, also of nothing."""
    kit.make(tmp_path).close()
    sink = written(kit, tmp_path, Batch.from_rows([{"a": 1.5}]))
    sink.close()
    assert kit.rows(tmp_path) == kit.expected([{"a": 1.5}])
    with pytest.raises(PlanError, match="not open"):
        sink.write(Batch.from_rows([{"a": 1.5}]))


@of_files
def test_a_missing_folder_is_refused_with_the_path_tried(kit: Kit, tmp_path: Path) -> None:
    """At start; opening fails too, and closing after that is quiet."""
    sink = kit.cls(tmp_path / "nowhere" / kit.file)
    with pytest.raises(InputError, match=str(tmp_path / "nowhere")):
        sink.check()
    with pytest.raises(TidemillError):
        sink.open(OPEN)
    sink.close()


@of_files
def test_the_wrong_kind_of_place_is_refused(kit: Kit, tmp_path: Path) -> None:
    """A folder where a file is meant, a file where a folder is."""
    place = tmp_path / kit.file
    if kit.name == "parquet-folder":
        place.write_text("a file")
    else:
        place.mkdir()
    if kit.name == "parquet-file":
        assert not kit.cls(place).single  # a folder may end in .parquet
        return
    with pytest.raises(InputError, match=str(place)):
        kit.cls(place).check()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.fixed_dictionaries(
            {"sensor": st.sampled_from(["S1", "S2", "Sß"]), "value": st.floats(allow_infinity=False) | st.none()},
            optional={"n": st.integers(-(2**53), 2**53), "text": st.text("ab,\"\n'é", max_size=3) | st.none()},
        ),
        min_size=1,
        max_size=30,
    ),
    cuts=st.lists(st.integers(1, 10), max_size=30),
)
def test_rows_do_not_depend_on_the_batches_they_came_in(
    kit: Kit, tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, Any]], cuts: list[int]
) -> None:
    """The same rows cut into other batches read back as the same values."""
    whole, folder = Batch.from_rows(values), tmp_path_factory.mktemp("cut")
    start, parts = 0, []
    for cut in [*cuts, len(values)]:
        parts.append(whole.slice(start, start + cut))
        start = min(start + cut, len(values))
    written(kit, folder, *parts)
    got = [{name: row.get(name) for name in whole.names} for row in kit.rows(folder)]
    expected = [{name: row.get(name) for name in whole.names} for row in kit.expected(values)]
    assert repr_of_numbers(got) == repr_of_numbers(expected)


def repr_of_numbers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """NaN equal to itself, 5 equal to 5.0, 1e16 equal to 1e+16."""
    return [{name: comparable(value) for name, value in row.items()} for row in rows]


def comparable(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return "nan" if is_nan(value) else value


@of_files
def test_a_full_disk_is_one_sentence(kit: Kit, tmp_path: Path) -> None:
    """The write that fails says which file; closing afterwards is quiet; whole rows remain or none."""
    script = f"""
import resource
import numpy as np
from tidemill import sinks
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.errors import OutsideError
from tidemill.schema import Schema
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
sink = sinks.{kit.cls.__name__}({str(tmp_path / kit.file)!r})
sink.open(Schema(open=True))
numbers = np.random.default_rng(0)
try:
    for _ in range(100):
        sink.write(Batch({{f"c{{i}}": Column.of_array(numbers.normal(size=20_000)) for i in range(4)}}))
        sink.flush()
    sink.close()
except OutsideError as error:
    print(error)
sink.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr == ""
    assert str(tmp_path / kit.file) in done.stdout
    assert done.stdout.count("\n") == 1
    if kit.name in ("csv", "ndjson"):
        assert (tmp_path / kit.file).read_bytes()[-1:] in (b"\n", b"")
    if kit.cls is sinks.Parquet:
        assert not any(path.is_file() for path in tmp_path.rglob("*"))
