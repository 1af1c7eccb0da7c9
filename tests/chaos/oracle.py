"""The oracle: an uninterrupted run's rows, which pandas has worked out too; and how another run's differ from them."""

from __future__ import annotations

import contextlib
import csv
import gzip
import heapq
import json
import marshal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tests.chaos.plant import POISON, Plant

Row = tuple[Any, ...]
SILENCE_S = 30.0
LAG_NS = 5_000_000_000
"""How far the watermark is behind the newest time, by default."""


# -- what is in a sink -------------------------------------------------------------------------------------


def _of_sqlite(plant: Plant) -> list[Row]:
    connection = sqlite3.connect(plant.folder / "rows.db")
    try:
        return connection.execute("SELECT * FROM features ORDER BY rowid").fetchall()
    finally:
        connection.close()


def _of_ndjson(lines: Iterator[str]) -> list[Row]:
    return [tuple(json.loads(line).items()) for line in lines]


def _of_parquet(plant: Plant) -> list[Row]:
    rows: list[Row] = []
    for path in sorted((plant.folder / "rows").rglob("*.parquet")):
        rows += [tuple(row.items()) for row in pq.read_table(path, partitioning=None).to_pylist()]
    return rows


def _of_postgres(plant: Plant) -> list[Row]:
    """In the order of the column ``place``, which is the test's own, and in SQLite's forms."""
    import psycopg

    with psycopg.connect(plant.more["PLANT_POSTGRES"]) as connection:
        cursor = connection.execute("SELECT to_regclass(%s)", (plant.more["PLANT_TABLE"],))
        if cursor.fetchone() == (None,):
            return []
        cursor = connection.execute(f"SELECT * FROM {plant.more['PLANT_TABLE']} ORDER BY place".encode())
        assert cursor.description is not None
        place = [column.name for column in cursor.description].index("place")
        return [tuple(map(_as_in_sqlite, (*row[:place], *row[place + 1 :]))) for row in cursor]


def _as_in_sqlite(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1) * 1000
    return int(value) if isinstance(value, bool) else value


def _text(plant: Plant, name: str) -> Iterator[str]:
    path = plant.folder / f"rows.{name}"
    with gzip.open(path, "rt") if name.endswith(".gz") else path.open() as file:
        yield from file


_READERS: dict[str, Callable[[Plant], list[Row]]] = {
    "sqlite": _of_sqlite,
    "ndjson": lambda plant: _of_ndjson(_text(plant, "ndjson")),
    "ndjson.gz": lambda plant: _of_ndjson(_text(plant, "ndjson.gz")),
    "csv": lambda plant: [tuple(row) for row in csv.reader(_text(plant, "csv"))],
    "csv.gz": lambda plant: [tuple(row) for row in csv.reader(_text(plant, "csv.gz"))],
    "parquet": _of_parquet,
    "postgres": _of_postgres,
}


def rows_of(plant: Plant, sink: str) -> list[Row]:
    """All rows that a reader of the sink finds, in their order; of CSV the header too."""
    return _READERS[sink](plant)


def contents_of(plant: Plant, sink: str) -> bytes:
    """Equal only where the rows are the same to the bit and in order, and far quicker to have than these."""
    match sink:
        case "sqlite":
            return marshal.dumps(_of_sqlite(plant), 2)
        case "parquet":
            return _table_of(plant)
    return "".join(_text(plant, sink)).encode()


def _table_of(plant: Plant) -> bytes:
    """All files of a folder as one table, in Arrow's own form."""
    tables = [pq.read_table(path, partitioning=None) for path in sorted((plant.folder / "rows").rglob("*.parquet"))]
    whole = pa.concat_tables(tables).replace_schema_metadata(None).combine_chunks()
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, whole.schema) as writer:
        writer.write_table(whole)
    return stream.getvalue().to_pybytes()


def letters_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# -- how two differ ----------------------------------------------------------------------------------------


def difference(got: Sequence[Any], wanted: Sequence[Any]) -> str:
    """Empty when they are the same to the bit and in order; else what is lost, doubled, changed or out of order."""
    mine, theirs = [repr(row) for row in got], [repr(row) for row in wanted]
    if mine == theirs:
        return ""
    lost = Counter(theirs) - Counter(mine)
    extra = Counter(mine) - Counter(theirs)
    known = Counter(theirs)
    doubled = sum(count for row, count in extra.items() if row in known)
    at = next((n for n, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    told = (
        f"{len(mine)} instead of {len(theirs)} rows: {lost.total()} lost, {doubled} doubled, "
        f"{extra.total() - doubled} that nobody knows; the first difference is in row {at}"
    )
    for name, rows in (("got", mine), ("wanted", theirs)):
        told += f"\n    {name}: {rows[at] if at < len(rows) else 'nothing'}"
    return told


@dataclass(frozen=True)
class Golden:
    """What an uninterrupted run wrote."""

    rows: Mapping[str, list[Row]]
    letters: list[str]
    contents: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, plant: Plant, name: str = "golden") -> Golden:
        """Run it inline, without state, in a folder beside the plant's. What it writes is checked with `by_pandas`."""
        whole = plant.beside(name, lanes=0, work=0.0, options=("--dead-letters", "dead.ndjson"))
        command, environment = whole.command(keep=False), {**whole.environment(), "TIDEMILL_PLANTED_IN_RUNS": ""}
        ran = subprocess.run(
            command, cwd=whole.folder, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert ran.returncode == 0, ran.stderr
        letters = letters_of(whole.folder / "dead.ndjson")
        letters.sort(key=lambda letter: json.loads(letter)["position"])  # without state they come as they are found
        rows = {sink: rows_of(whole, sink) for sink in plant.sinks}
        return cls(rows, letters, {sink: contents_of(whole, sink) for sink in plant.sinks})

    def difference(self, plant: Plant) -> str:
        """Of what a plant has written, sink by sink, and of its dead letters."""
        told = {
            sink: difference(rows_of(plant, sink), rows)
            for sink, rows in self.rows.items()
            if not self._has_all(plant, sink)
        }
        told["dead letters"] = difference(letters_of(plant.state / "dead_letters.ndjson"), self.letters)
        return "\n".join(f"{sink}: {text}" for sink, text in told.items() if text)

    def _has_all(self, plant: Plant, sink: str) -> bool:
        """Whether that can be seen without a look at each row."""
        with contextlib.suppress(Exception):  # what cannot even be read is told of by who reads it row by row
            return sink in self.contents and contents_of(plant, sink) == self.contents[sink]
        return False


# -- the same without tidemill -----------------------------------------------------------------------------


def records_of(lines: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """The records among the lines of a recording, and how many lines are none."""
    rows: list[dict[str, Any]] = []
    rejected = 0
    for line in lines:
        try:
            row = json.loads(line)
            good = isinstance(row, dict) and isinstance(row["sensor"], str) and isinstance(row["value"], float)
        except (ValueError, KeyError):
            good = False
        if good:
            rows.append(row)
        elif line.strip():
            rejected += 1
    return pd.DataFrame(rows), rejected


def by_pandas(frame: pd.DataFrame, calibration: Path) -> pd.DataFrame:
    """The rows of the plan "rows", one for each record that is no poison."""
    table = pd.read_csv(calibration).set_index("sensor")
    made = frame.copy()
    own = table.loc[made["sensor"]]
    made["normalized"] = (made["value"] - own["baseline"].to_numpy()) / own["scale"].to_numpy()
    windows = made.groupby("sensor")["normalized"].rolling(50, min_periods=1)
    for statistic in ("mean", "std", "min", "max"):
        made[f"normalized_{statistic}_50"] = getattr(windows, statistic)().droplevel(0).sort_index()
    made["value_lag_1"] = made.groupby("sensor")["value"].shift(1)
    made = made[made["value"] != POISON].copy()
    by_sensor = made.groupby("sensor")["value"]
    made["above"] = made["value"] - by_sensor.expanding().mean().droplevel(0).sort_index()
    made["nth"] = made.groupby("sensor").cumcount() + 1.0
    made["feature"] = np.sqrt(made["normalized"].abs()) * np.log1p(made["value"].abs())
    return made


def silences(frame: pd.DataFrame) -> Counter[tuple[str, int]]:
    """By sensor, the times (ns) after which it said nothing for `SILENCE_S`, when the watermark has passed that."""
    found: Counter[tuple[str, int]] = Counter()
    after = round(SILENCE_S * 1e9)
    last: dict[str, int] = {}
    due: list[tuple[int, str]] = []
    newest = 0

    def tell(mark: int) -> None:
        while due and due[0][0] < mark:
            deadline, sensor = heapq.heappop(due)
            if deadline == last[sensor] + after:
                found[sensor, last[sensor]] += 1

    for sensor, time, value in zip(frame["sensor"], frame["time"], frame["value"], strict=True):
        ns = round(time * 1000) * 1_000_000
        newest = max(newest, ns)
        tell(newest - LAG_NS)
        if value != POISON and ns > last.get(sensor, 0):
            last[sensor] = ns
            heapq.heappush(due, (ns + after, sensor))
    tell(newest)
    return found


def check_against_pandas(golden: Golden, plant: Plant) -> None:
    """The golden rows of SQLite are what pandas says, true duplicates as often as they came."""
    lines = plant.input.read_text().split("\n")
    frame, rejected = records_of(lines)
    wanted = by_pandas(frame, plant.folder / "calibration.csv")
    names = [*wanted.columns, "silent", "last_seen"]
    got = pd.DataFrame(golden.rows["sqlite"], columns=names)
    events = got[got["silent"] == 1]
    got = got[got["silent"] == 0]
    assert len(got) == len(wanted), f"{len(got)} rows, and pandas has {len(wanted)}"
    for name in wanted.columns:
        mine, theirs = got[name].to_numpy(), wanted[name].to_numpy()
        if name in ("sensor", "time", "value", "n"):
            assert (mine == theirs).all(), name
        else:
            np.testing.assert_allclose(mine.astype(float), theirs.astype(float), rtol=1e-9, atol=1e-9, err_msg=name)
    twice = Counter(wanted["n"].tolist())
    assert Counter(int(n) for n in got["n"]) == twice
    assert sum(count > 1 for count in twice.values()) > len(wanted) // 100, "there are no true duplicates"
    assert len(golden.letters) == rejected + int((frame["value"] == POISON).sum())
    told = Counter(
        (sensor, int(pd.Timestamp(at).value)) for sensor, at in zip(events["sensor"], events["last_seen"], strict=True)
    )
    known = silences(frame)
    assert told == known, f"silences: {list((told - known).items())[:3]} and not {list((known - told).items())[:3]}"
    assert told, "nobody was ever silent"
