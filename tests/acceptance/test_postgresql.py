"""A run into PostgreSQL as people start it; the server is real, and its password is nowhere to be read."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

import tidemill as tm
from tidemill.errors import InputError

PLAN = """
import tidemill as tm

plan = tm.Plan(tm.Rolling("value", window=3, stats=["mean"]))
"""
READINGS = "sensor,time,value\n" + "".join(f"S{i % 2},2024-03-01T00:00:{i:02},{i}\n" for i in range(10))


@pytest.fixture
def database(postgres: Any, request: pytest.FixtureRequest) -> str:
    """One of the test's own."""
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name)[:63]
    postgres.query(f'CREATE DATABASE "{name}"')
    return postgres.url(name)


def password_of(url: str) -> str:
    return url.split(":")[2].partition("@")[0]


def read(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        cursor = connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


def test_the_address_is_an_output(tidemill: Any, write: Callable[..., Path], database: str, tmp_path: Path) -> None:
    """``--output postgresql://...`` fills the table; a second run says what to type, and a third adds."""
    words = ("run", write("plant.py", PLAN), "--input", write("march.csv", READINGS), "--output", database)
    told = [
        tidemill(*words, "--report", "report.json"),
        tidemill(*words),
        tidemill(*words, "--if-exists", "append"),
    ]
    assert [done.returncode for done in told[::2]] == [0, 0], told
    assert told[1].returncode != 0
    assert "--if-exists append" in told[1].stderr
    assert json.loads((tmp_path / "report.json").read_text())["rows_out"] == 10
    assert read(database, "SELECT count(*), max(value_mean_3) FROM features") == [(20, 7.0)]
    written = [done.stdout + done.stderr for done in told] + [(tmp_path / "report.json").read_text()]
    assert password_of(database) not in "".join(written)


def test_a_server_that_refuses_ends_the_run_with_one_sentence(
    tidemill: Any, write: Callable[..., Path], database: str
) -> None:
    """Which says what, and not the password; nor does a URL that no sink knows."""
    plan, readings = write("plant.py", PLAN), write("march.csv", READINGS)
    for address, said in (
        (re.sub(r":\d+/", ":1/", database), "could not be reached"),
        (database.replace("canary", "canary-wrong"), "password authentication failed"),
        (database.replace("postgresql", "mysql"), "postgresql://"),
    ):
        done = tidemill("run", plan, "--input", readings, "--output", address)
        assert done.returncode != 0
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert password_of(database) not in done.stdout + done.stderr


def test_a_pipeline_writes_from_where_its_sinks_run(database: str, lanes: int) -> None:
    """Inline and from a process of its own; and a refusal there comes back as it was said."""
    rows = [{"sensor": "S1", "time": 1_709_251_200 + i, "value": float(i)} for i in range(1000)]

    def run(**options: Any) -> tm.Report:
        sink = tm.sinks.PostgreSQL(database, **options)
        plan = tm.Plan(tm.Rolling("value", window=3, stats=["mean"]))
        return tm.run(tm.Pipeline(tm.sources.Records(rows), plan, sink), lanes=lanes)

    report = run(where="value >= 10")
    assert report.rows_out == 1000
    assert password_of(database) not in repr(report)
    stored = read(database, "SELECT value, value_mean_3 FROM features ORDER BY ctid")
    assert stored == [(float(i), float(i - 1)) for i in range(10, 1000)]
    read(database, "ALTER TABLE features ADD CONSTRAINT small CHECK (value < 500) NOT VALID")
    with pytest.raises(InputError, match='"small"') as caught:
        run(if_exists="append")
    assert password_of(database) not in "".join(traceback.format_exception(caught.value))
    assert read(database, "SELECT count(*) FROM features") == [(990,)]
