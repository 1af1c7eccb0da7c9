"""A schema of one's own on the tests' PostgreSQL server."""

from __future__ import annotations

import itertools
from typing import Any

import psycopg
import pytest

from tidemill import sinks

_NUMBERS = itertools.count(1)


class Place:
    """Where one test writes: a table ``features`` in a schema that no other test knows."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.schema = f"test_{next(_NUMBERS)}"
        server.query(f"CREATE SCHEMA {self.schema}")

    def sink(self, **options: Any) -> sinks.PostgreSQL:
        options = {"schema": self.schema, "name": "rows", **options}
        return sinks.PostgreSQL(options.pop("database", self.server.url()), **options)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """``sql`` names the tables of the schema alone."""
        with self.server.connect() as connection:
            connection.execute(f"SET search_path = {self.schema}".encode())
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def rows(self) -> list[dict[str, Any]]:
        """In the order in which they were copied; none when there is no table."""
        with self.server.connect(row_factory=psycopg.rows.dict_row) as connection:
            connection.execute(f"SET search_path = {self.schema}".encode())
            if connection.execute("SELECT to_regclass('features') AS it").fetchone() == {"it": None}:
                return []
            return connection.execute("SELECT * FROM features ORDER BY ctid").fetchall()

    def sessions(self) -> list[int]:
        """The server processes that work for a sink which keeps its position."""
        found = self.query("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'tidemill %'")
        return [pid for (pid,) in found]

    def end_sessions(self) -> None:
        """Return when they are gone, with all that they held."""
        for pid in self.sessions():
            assert self.query(f"SELECT pg_terminate_backend({pid}, 60000)") == [(True,)]


@pytest.fixture
def place(postgres: Any) -> Place:
    return Place(postgres)


@pytest.fixture
def new_place(postgres: Any) -> Any:
    """For properties, whose every example wants one: ``new_place()``."""
    return lambda: Place(postgres)
