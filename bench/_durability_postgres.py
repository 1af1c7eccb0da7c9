"""PostgreSQL: rows with their position against a bare binary COPY of ready tuples by psycopg, in turns on one server."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

import tidemill as tm
from bench import _common
from bench._common import Table
from bench._servers import server_module
from tidemill.batch import Batch
from tidemill.column import Column
from tidemill.schema import Kind, Schema
from tidemill.sinks.base import Keeping

ROWS = 5_000
"""In a batch."""
BATCHES = 40
EVERY = 20
"""Batches between two commits: at these rates less than a second."""
TYPES = {
    Kind.FLOAT: "float8",
    Kind.TEXT: "text",
    Kind.TIME: "timestamptz",
}
HOLES = {"no NULL": 0.0, "a tenth of the features NULL": 0.1}


def measure(options: argparse.Namespace, table: Table) -> None:
    server = _server()
    try:
        for what, holes in HOLES.items():
            batch = features(holes)
            ours, bare, busy = [], [], {"ours": [], "bare": []}
            for run in range(max(5, options.runs)):
                for kind in ("ours", "bare") if run % 2 else ("bare", "ours"):
                    seconds, worked = _ours(server, batch, run) if kind == "ours" else _bare(server, batch)
                    busy[kind].append(worked / (ROWS * BATCHES) * 1e9)
                    (ours if kind == "ours" else bare).append(ROWS * BATCHES / seconds)
                    _require_rows(server)
            _told(table, what, ours, bare)
            shown = ", ".join(f"{kind} {statistics.median(times):.0f}" for kind, times in busy.items())
            table.note(f"PostgreSQL, processor time of the client, {what}", f"{shown} ns/row")
    finally:
        server.remove()


def _told(table: Table, what: str, ours: list[float], bare: list[float]) -> None:
    ratio = statistics.median(ours) / statistics.median(bare)
    note = f" ({_millions(ours)} against {_millions(bare)} M rows/s, medians of {len(ours)})"
    table.at_least(f"PostgreSQL, of a bare binary COPY, {what}", ratio, 0.7, note=note)
    print(table.rows[-1].what, table.rows[-1].measured, sep=": ", flush=True)


def _millions(rates: list[float]) -> str:
    return f"{statistics.median(rates) / 1e6:.3f} [{min(rates) / 1e6:.3f}-{max(rates) / 1e6:.3f}]"


def features(holes: float) -> Batch:
    """As a pipeline's rows are: a sensor, a time, a value, a unit and six numbers of it."""
    random = np.random.default_rng(0)
    columns = {
        "sensor": Column.of_texts([f"pump-{number}" for number in random.integers(0, 1000, ROWS)]),
        "time": Column(Kind.TIME, 1_700_000_000_000_000_000 + np.arange(ROWS) * 1_000_000),
        "value": Column.of_array(random.normal(50, 15, ROWS)),
        "unit": Column.of_texts(["C"] * ROWS),
    }
    for number in range(6):
        values = random.normal(size=ROWS)
        values[random.random(ROWS) < holes] = np.nan
        columns[f"feature_{number}"] = Column.of_array(values)
    return Batch(columns)


def _ours(server: Any, batch: Batch, run: int) -> tuple[float, float]:
    server.query("DROP TABLE IF EXISTS features")
    sink = tm.sinks.PostgreSQL(server.url())
    with tempfile.TemporaryDirectory() as folder:
        sink.resume(Schema(open=True), Keeping(Path(folder), f"bench-{id(batch)}-{run}", 1))
        begun, worked = time.perf_counter(), time.process_time()
        for number in range(BATCHES):
            sink.write(batch)
            if number % EVERY == EVERY - 1:
                sink.commit((number + 1) * ROWS)
        taken = time.perf_counter() - begun, time.process_time() - worked
        sink.close()
    return taken


def _bare(server: Any, batch: Batch) -> tuple[float, float]:
    """What one would write by hand: tuples of Python values, made before the clock runs, and `set_types`."""
    server.query("DROP TABLE IF EXISTS features")
    kinds = {name: TYPES[column.kind] for name, column in batch.columns.items()}
    server.query(f"CREATE TABLE features ({', '.join(f'{name} {kind}' for name, kind in kinds.items())})")
    rows = _tuples(batch)
    with psycopg.connect(server.url()) as connection, connection.cursor() as cursor:
        begun, worked = time.perf_counter(), time.process_time()
        for _ in range(BATCHES // EVERY):
            with cursor.copy("COPY features FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(list(kinds.values()))
                for _ in range(EVERY):
                    for row in rows:
                        copy.write_row(row)
            connection.commit()
        return time.perf_counter() - begun, time.process_time() - worked


def _tuples(batch: Batch) -> list[tuple[Any, ...]]:
    frame = batch.to_pandas()
    columns = [
        list(frame[name].dt.to_pydatetime())
        if batch.columns[name].kind is Kind.TIME
        else [None if value != value else value for value in frame[name].tolist()]
        for name in batch.columns
    ]
    return list(zip(*columns, strict=True))


def _require_rows(server: Any) -> None:
    if server.query("SELECT count(*) FROM features") != [(ROWS * BATCHES,)]:
        raise _common.Wrong("the table does not have the rows that were written")


def _server() -> Any:
    """The tests' own, with fsync."""
    server = server_module("postgres_server").PostgresServer(durable=True)
    server.start()
    return server


def main() -> None:
    """The ratios, on their own."""
    table = Table()
    measure(argparse.Namespace(runs=7), table)
    print(_common.table_text(table.rows))


if __name__ == "__main__":
    main()
