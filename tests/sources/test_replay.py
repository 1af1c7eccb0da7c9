"""Replay: recordings in order, whole, typed once, and refused by name."""

from __future__ import annotations

import gzip
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tidemill import files
from tidemill.errors import InputError, PlanError
from tidemill.letters import MALFORMED, NO_KEY, OVERSIZE, WRONG_TYPE
from tidemill.schema import Kind
from tidemill.sources import Frame, Lines, Replay


def write_csv(path: Path, rows: list[tuple[Any, ...]], header: str = "sensor,time,value") -> Path:
    text = header + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


async def test_all_nab_recordings_merge_by_time(drain: Any, nab: Path) -> None:
    """31 recordings, six of which look like integers: every row once, each file in its own order, one kind."""
    source = Replay(nab / "*" / "*.csv", key="{stem}", time="timestamp")
    schema = source.peek()
    assert (schema["value"].kind, schema["timestamp"].kind) == (Kind.FLOAT, Kind.TEXT)
    drained = await drain(source)
    assert (drained.count, drained.letters) == (152_965, [])
    assert max(map(len, drained.batches)) <= 8_192
    assert {batch.schema["value"].kind for batch in drained.batches} == {Kind.FLOAT}
    keys = np.array(drained.keys)
    values = np.concatenate([batch["value"] for batch in drained.batches])
    times = np.array(drained.times)
    paths = sorted(nab.glob("*/*.csv"))  # noqa: ASYNC240 - a test waits for nobody
    assert len(paths) == 31
    due = np.empty(len(times), np.int64)
    for path in paths:
        frame = pd.read_csv(path)
        mine = keys == path.stem
        np.testing.assert_array_equal(values[mine], frame["value"].to_numpy(np.float64))
        expected = pd.to_datetime(frame["timestamp"]).to_numpy("datetime64[ns]").view(np.int64)
        np.testing.assert_array_equal(times[mine], expected)
        due[mine] = np.maximum.accumulate(expected)
    assert (np.diff(due) >= 0).all()
    ties = np.flatnonzero(np.diff(due) == 0)
    place = {path.stem: number for number, path in enumerate(paths)}
    assert all(place[keys[row]] <= place[keys[row + 1]] for row in ties.tolist())


async def test_a_clock_that_steps_back_changes_no_order(drain: Any, nab: Path) -> None:
    """machine_temperature_system_failure.csv steps back; its rows come as the file has them."""
    path = nab / "realKnownCause" / "machine_temperature_system_failure.csv"
    drained = await drain(Replay(path, key="{stem}", time="timestamp"))
    expected = pd.read_csv(path)["timestamp"].tolist()
    assert [row["timestamp"] for row in drained.rows] == expected
    assert (np.diff(drained.times) < 0).any()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.ndjson", "a.jsonl.gz", "a.parquet", "a.parquet.gz"])
async def test_every_format_gives_the_same_records(drain: Any, tmp_path: Path, name: str) -> None:
    """CSV, NDJSON and Parquet, packed or not, are the same records."""
    rows = [{"sensor": f"S{n % 3}", "time": n, "value": n / 4 if n % 2 else n} for n in range(20_000)]
    path = tmp_path / name
    if ".csv" in name:
        write_csv(path, [tuple(row.values()) for row in rows])
    elif "json" in name:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    else:
        plain = tmp_path / "plain"
        pq.write_table(pa.Table.from_pandas(pd.DataFrame(rows)), plain)
        path.write_bytes(gzip.compress(plain.read_bytes()) if name.endswith(".gz") else plain.read_bytes())
        plain.unlink()
    source = Replay(path)
    assert source.peek().names == ("sensor", "time", "value")
    drained = await drain(source)
    assert [row["value"] for row in drained.rows] == [row["value"] for row in rows]
    assert drained.keys == [row["sensor"] for row in rows]
    assert drained.times == [row["time"] * 10**9 for row in rows]


async def test_files_in_sequence_follow_each_other(drain: Any, tmp_path: Path) -> None:
    """With order="sequence" the files come by path, whatever their times."""
    write_csv(tmp_path / "b.csv", [("b", 1, 1), ("b", 2, 2)])
    write_csv(tmp_path / "a.csv", [("a", 5, 1), ("a", 6, 2)])
    assert (await drain(Replay(tmp_path, order="sequence"))).keys == ["a", "a", "b", "b"]
    assert (await drain(Replay(tmp_path))).keys == ["b", "b", "a", "a"]


async def test_merging_is_stable_over_blocks(drain: Any, tmp_path: Path) -> None:
    """Files longer than a block, with ties between them, merge as one stable sort of all would."""
    generator = np.random.default_rng(1)
    tables = []
    for place in range(3):
        times = np.sort(generator.integers(0, 3_000, 9_000 * (place + 1)))
        tables.append(times)
        write_csv(tmp_path / f"{place}.csv", [(place, time, row) for row, time in enumerate(times.tolist())])
    expected = sorted(
        (time, place, row) for place, times in enumerate(tables) for row, time in enumerate(times.tolist())
    )
    drained = await drain(Replay(tmp_path))
    assert [(row["time"], int(row["sensor"]), row["value"]) for row in drained.rows] == expected


async def test_files_that_are_merged_need_not_be_open_all_at_once(
    drain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait for others are closed, and go on where they stood: packed ones and Parquet too."""
    for place in range(4):
        rows = [(place, time * 4 + place, time) for time in range(9_000)]
        write_csv(tmp_path / f"{place}.csv{'.gz' if place == 2 else ''}", rows)
    frame = pd.DataFrame(rows, columns=["sensor", "time", "value"]).astype({"sensor": str})
    frame.to_parquet(tmp_path / "3.parquet", row_group_size=3_000)
    wanted = await drain(Replay(tmp_path))
    monkeypatch.setattr("tidemill.sources.recorded._MOST_OPEN", 2)
    monkeypatch.setattr(files, "may_be_open", lambda: 4)
    opened = []

    def count(_: Any) -> bool:
        links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]  # noqa: PTH208
        opened.append(sum(link.startswith(str(tmp_path)) for link in links))
        return False

    drained = await drain(Replay(tmp_path), until=count)
    assert max(opened) == 2
    assert (drained.keys, drained.times) == (wanted.keys, wanted.times)
    assert len(drained.keys) == 5 * 9_000


async def test_pace_follows_the_recorded_clock(drain: Any, tmp_path: Path, script_clock: Any) -> None:
    """At pace 2, ten recorded seconds take five; a clock that steps back costs no time."""
    write_csv(tmp_path / "a.csv", [("a", 0, 1), ("a", 4, 2), ("a", 1, 3), ("a", 10, 4)])
    began = script_clock.now_ns
    drained = await drain(Replay(tmp_path / "a.csv", pace=2.0), clock=script_clock)
    assert [row["value"] for row in drained.rows] == [1, 2, 3, 4]
    assert [len(batch) for batch in drained.batches] == [1, 2, 1]
    assert [(batch.arrived_ns - began) / 1e9 for batch in drained.batches] == pytest.approx([0, 2, 5])


async def test_stopping_ends_a_wait(drain: Any, tmp_path: Path) -> None:
    """A paced replay whose next record is a year away ends at once when the run wants to end."""
    write_csv(tmp_path / "a.csv", [("a", 0, 1), ("a", 31_000_000, 2)])
    drained = await drain(Replay(tmp_path / "a.csv", pace=1.0), until=lambda _: True)
    assert drained.count == 1


async def test_bad_lines_go_alone(drain: Any, tmp_path: Path) -> None:
    """Malformed, oversize and misfitting lines are letters; all else flows."""
    path = tmp_path / "a.ndjson"
    good = b'{"sensor":"a","time":1,"value":2.5}\n'
    path.write_bytes(
        good * 3 + b'{"sensor":\n' + good + b'{"x":"' + b"y" * (1 << 20) + b'"}\n' + good
        + b'{"sensor":"a","time":1,"value":"hot"}\n' + good
    )  # fmt: skip
    drained = await drain(Replay(path))
    assert drained.count == 6
    assert sorted(letter.reason_code for letter in drained.letters) == sorted([MALFORMED, OVERSIZE, WRONG_TYPE])
    assert all(letter.source == "replay" for letter in drained.letters)


async def test_one_odd_first_record_does_not_decide_a_kind(drain: Any, tmp_path: Path) -> None:
    """The head of a file votes: a first value that is text does not reject all the numbers behind it."""
    path = tmp_path / "a.ndjson"
    path.write_text('{"sensor":"a","time":1,"value":"n/a"}\n' + '{"sensor":"a","time":1,"value":2.5}\n' * 5)
    source = Replay(path)
    assert source.peek()["value"].kind is Kind.FLOAT
    drained = await drain(source)
    assert (drained.count, len(drained.letters)) == (5, 1)


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson", "a.parquet"])
def test_a_missing_role_is_refused_at_start(tmp_path: Path, name: str) -> None:
    """The error names the file, the fields seen and what to try."""
    path = tmp_path / name
    frame = pd.DataFrame({"machine": ["a"], "timestamp": ["2024-01-01"], "value": [1.0]})
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".ndjson":
            frame.to_json(path, orient="records", lines=True)
        case _:
            frame.to_parquet(path)
    with pytest.raises(InputError) as caught:
        Replay(path).check()
    assert str(path) in str(caught.value)
    assert "machine, timestamp, value" in str(caught.value)
    assert "time='timestamp'" in str(caught.value)
    finds = f" This finds them and writes a plan: tidemill new plan.py --from {path}"
    assert str(caught.value).endswith(f".{finds}") == (path.suffix != ".parquet")  # which `new` does not read
    with pytest.raises(InputError, match="'sensor' to read the sensor from") as caught:
        Replay(path, time="timestamp").check()
    assert str(caught.value).endswith(f".{finds}") == (path.suffix != ".parquet")
    Replay(path, time="timestamp", key="machine").check()


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    """A missing file, an unknown suffix, a Parquet file that is none or has a name twice, a folder, an unknown zone."""
    with pytest.raises(InputError, match=str(tmp_path / "none.csv")):
        Replay(tmp_path / "none.csv").check()
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.xlsx.*format="):
        Replay(tmp_path / "a.xlsx").check()
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"a\.parquet is not a readable Parquet file"):
        Replay(tmp_path / "a.parquet").check()
    twice = pa.table([pa.array(["S1"]), pa.array([1]), pa.array([1.0]), pa.array([2.0])], ["sensor", "time", "v", "v"])
    pq.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet has the column 'v' twice"):
        Replay(tmp_path / "b.parquet").check()
    with pytest.raises(PlanError, match="the column 'v' twice"):
        Frame(twice).check()
    with pytest.raises(InputError, match=f"{tmp_path} is a folder"):
        Lines(tmp_path).check()
    with pytest.raises(InputError, match="Mars"):
        Replay("a.csv", tz="Mars")
    for options in ({"pace": 0}, {"pace": "fast"}, {"order": "random"}, {"format": "xlsx"}):
        with pytest.raises(PlanError, match=next(iter(options))):
            Replay("a.csv", **options)  # type: ignore[arg-type]


async def test_naive_times_of_every_format_are_local(drain: Any, tmp_path: Path) -> None:
    """tz= is the zone of times without one, in text and in Parquet."""
    frame = pd.DataFrame({"sensor": ["a"], "time": pd.to_datetime(["2024-07-01 12:00:00"]), "value": [1.0]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    expected = pd.Timestamp("2024-07-01 12:00:00", tz="Europe/Berlin").value
    for name in ("a.csv", "a.parquet"):
        assert (await drain(Replay(tmp_path / name, tz="Europe/Berlin"))).times == [expected]


async def test_naive_times_leave_as_the_moments_that_they_are(drain: Any, tmp_path: Path) -> None:
    """Every column of timestamps without a zone, not only the records' time: what goes out says that it is UTC."""
    local, utc = pd.to_datetime(["2024-07-01 12:00:00"]), pd.to_datetime(["2024-07-01 12:00:00+00:00"])
    frame = pd.DataFrame({"sensor": ["a"], "time": local, "seen": local, "sent": utc})
    frame.to_parquet(tmp_path / "a.parquet")
    (row,) = (await drain(Replay(tmp_path / "a.parquet", tz="Europe/Berlin"))).rows
    meant = pd.Timestamp("2024-07-01 10:00:00", tz="UTC").value
    assert (row["time"], row["seen"], row["sent"]) == (meant, meant, utc[0].value)


async def test_a_time_is_the_same_in_every_format(drain: Any, tmp_path: Path) -> None:
    """Beside a Parquet file of timestamps, epochs in Parquet, NDJSON and CSV are epochs, and text is read."""
    for name, times in (("a", pa.array([1700000000], pa.timestamp("s", "UTC"))), ("b", pa.array([1700000060]))):
        pq.write_table(pa.table({"sensor": ["S1"], "time": times}), tmp_path / f"{name}.parquet")
    (tmp_path / "c.ndjson").write_text(
        '{"sensor":"S1","time":1700000120}\n{"sensor":"S1","time":"2023-11-14T22:16:20Z"}\n'
    )
    write_csv(tmp_path / "d.csv", [("S1", 1700000240)], "sensor,time")
    drained = await drain(Replay(tmp_path, order="sequence"))
    assert drained.letters == []
    assert drained.times == [(1700000000 + 60 * place) * 10**9 for place in range(5)]
    assert [row["time"] for row in drained.rows] == drained.times


async def test_decimals_are_numbers_and_bytes_name_sensors(drain: Any, tmp_path: Path) -> None:
    """Whole decimals are integers, also those beyond int64; bytes that are no text name nobody."""
    table = {
        "sensor": pa.array([b"S1", "\u00e4".encode(), b"\xff"], pa.binary()),
        "time": [1, 2, 3],
        "value": pa.array([Decimal("1.50"), None, Decimal(2)], pa.decimal128(10, 2)),
        "n": pa.array([Decimal(7), None, Decimal(8)], pa.decimal128(38, 0)),
        "large": pa.array([Decimal(10**20), Decimal(1), None], pa.decimal128(38, 0)),
        "bytes": pa.array([b"\xff", b"a", None], pa.binary()),
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    for source in (Replay(tmp_path / "a.parquet"), Frame(pa.table(table)), Frame(pl.DataFrame(pa.table(table)))):
        assert source.peek()["value"].kind is Kind.FLOAT
        drained = await drain(source)
        assert [letter.reason_code for letter in drained.letters] == [NO_KEY]
        assert drained.keys == ["S1", "\u00e4"]
        assert [list(row.values()) for row in drained.rows] == [
            ["S1", 1, 1.5, 7, 10**20, b"\xff"],
            ["\u00e4", 2, None, None, 1, b"a"],
        ]
        assert {type(row["n"]) for row in drained.rows} == {int, type(None)}


async def test_an_empty_file_is_no_error(drain: Any, tmp_path: Path) -> None:
    """A recording without a record gives none."""
    for name in ("a.csv", "b.ndjson"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c.csv").write_text("sensor,time,value\n")
    assert (await drain(Replay(tmp_path))).count == 0


LONG = "x" * 70_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.ndjson", '{"sensor":"S1","time":1,"value":2}'),
        ("a.csv", "sensor,time,value\nS1,1,2"),
        ("a.ndjson", f'{{"sensor":"S1","time":1,"value":2,"note":"{LONG}"}}\n{{"sensor":"S1","time":2,"value":2}}\n'),
        ("a.csv", f"sensor,time,value,note\nS1,1,2,{LONG}\nS1,2,2,short\n"),
        ("a.csv", "sensor,time,value\n"),
        ("a.csv", "sensor,time,value"),
    ],
)
def test_the_head_ends_where_its_first_record_does(tmp_path: Path, name: str, text: str) -> None:
    """Also a record longer than a block, or one that is all of the file; without one, a header names the fields."""
    path = tmp_path / name
    path.write_text(text)
    for source in (Replay(path), Lines(path)):
        assert source.peek().names[:3] == ("sensor", "time", "value")
        assert not source.peek().open


def test_a_parquet_file_without_rows_has_its_columns(tmp_path: Path) -> None:
    """They are in its schema."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"sensor": pa.array([], pa.string()), "time": pa.array([], pa.int64())}), path)
    assert Replay(path).peek().names == ("sensor", "time")
    with pytest.raises(InputError, match="no field 'when'"):
        Replay(path, time="when").peek()


@pytest.mark.parametrize("name", ["a.csv", "a.ndjson"])
def test_of_a_file_without_records_nobody_knows_the_fields(tmp_path: Path, name: str) -> None:
    """So a plan that needs one may run, to its end at once."""
    (tmp_path / name).write_bytes(b"")
    assert Replay(tmp_path / name).peek().open
    assert Lines(tmp_path / name).peek().open


async def test_the_same_source_can_run_again(drain: Any, tmp_path: Path) -> None:
    """A second run of one source gives the same records."""
    source = Replay(write_csv(tmp_path / "a.csv", [("a", 0, 1), ("a", 1, 2)]))
    context_rows = [(await _rows(source)) for _ in range(2)]
    assert context_rows[0] == context_rows[1]


async def _rows(source: Replay) -> list[dict[str, Any]]:
    from tidemill.clock import SystemClock
    from tidemill.sources.base import SourceContext

    return [
        row async for batch in source.stream(SourceContext(SystemClock(), lambda _: None)) for row in batch.to_rows()
    ]


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_cells_that_are_apart_by_something_else_are_told(tmp_path: Path, mark: str) -> None:
    """With what to type instead."""
    path = tmp_path / "a.csv"
    path.write_text(mark.join(["sensor", "time", "value"]) + "\n" + mark.join(["S1", "1", "2"]) + "\n")
    with pytest.raises(InputError, match=r"only commas are read.*tidemill new plan.py --from .*a\.csv"):
        Replay(path).check()
