"""What to declare where a field holds values of several kinds: said, and true."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.small_plants import Live, patient
from tests.durability.endless import Endless

import tidemill as tm
from tidemill.testing import ListSink

MIXED = [
    {"sensor": "S1", "time": 0, "value": 1.0, "status": 0},
    {"sensor": "S1", "time": 1, "value": 2.0, "status": "FAULT"},
    {"sensor": 7, "time": 2, "value": 3.0, "status": None},
    {"sensor": "S1", "time": 3, "value": "n/a", "status": 1},
]
SAID = {
    "status": "field 'status' is float and this record has str; columns={'status': object} of the source takes both",
    "sensor": "field 'sensor' is text and this record has int; columns={'sensor': object} of the source takes both",
    "value": "field 'value' is float and this record has str",
}


def ran(path: Path, lanes: int = 0, **declared: object) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows, and the reasons of dead letters."""
    sink, dead = ListSink(), path.with_name("dead.ndjson")
    dead.unlink(missing_ok=True)
    source = tm.sources.Replay(path, columns=declared)
    tm.run(tm.Pipeline(source, tm.Rolling("value", 2, ["mean"]), sink), lanes=lanes, dead_letters=dead)
    told = [json.loads(line)["reason"] for line in dead.read_text().splitlines()] if dead.exists() else []
    return sink.rows, told


def recorded(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_reason_says_what_takes_all_of_them(tmp_path, lanes):
    """Not of a column that a stage computes with: there its record is at fault."""
    path = recorded(tmp_path / "in.ndjson", MIXED)
    assert ran(path, lanes)[1] == [SAID["status"], SAID["sensor"], SAID["value"]]
    assert ran(path, lanes, status=str)[1][0] == (
        "field 'status' is text and this record has int; columns={'status': object} of the source takes both"
    )
    rows, told = ran(path, lanes, status=object, sensor=object)
    assert [(row["sensor"], row["status"]) for row in rows] == [("S1", 0), ("S1", "FAULT"), (7, None)]
    assert told == [SAID["value"]]


def test_that_of_a_table_says_it_too(tmp_path):
    """Cells of CSV are read by another road."""
    path = tmp_path / "in.csv"
    lines = [f"S1,{n},{n},{'FAULT' if n == 7 else n % 2}" for n in range(50)]
    path.write_text("\n".join(["sensor,time,value,status", *lines]))
    (said,) = ran(path)[1]
    assert said == (
        "field 'status' is float and this record has the text 'FAULT'; columns={'status': object} of the source takes both"
    )
    rows, told = ran(path, status=object)
    assert len(rows) == 50
    assert told == []


def test_a_recording_of_mostly_texts_is_refused_with_what_to_declare(tmp_path):
    """Most of its records say what the column is; declared, those that have no number are dead letters."""
    rows = [{"sensor": "S1", "time": n, "value": n if n % 3 == 0 else "n/a"} for n in range(9)]
    path = recorded(tmp_path / "in.ndjson", rows)
    with pytest.raises(
        tm.PlanError,
        match=r"it is text\. With columns={'value': float} of the source, a record that has no number there is a dead letter; "
        r"tm\.MapRows\(function, adds={'value': float}\) before it makes numbers of texts\.",
    ):
        ran(path)
    rows, told = ran(path, value=float)
    assert [row["value"] for row in rows] == [0, 3, 6]
    assert told == [SAID["value"]] * 6


def test_a_column_that_a_stage_made_is_declared_nowhere():
    """So nobody is told to."""
    made = tm.Map(lambda batch: {"level": ["high"] * len(batch)}, adds={"level": str})
    source = tm.sources.Records([{"sensor": "S1", "time": 0, "value": 1.0}])
    pipeline = tm.Pipeline(source, [made, tm.Rolling("level", 2, ["mean"])], ListSink())
    with pytest.raises(tm.PlanError, match=r"it is text\.$"):
        tm.run(pipeline, lanes=0)


async def test_a_run_with_state_takes_the_kind_that_is_declared_since(tmp_path, lanes):
    """What it had learned of the column before is no reason to reject its records."""
    rows: list[dict[str, Any]] = []

    async def live(records: list[dict[str, Any]], wanted: int, **declared: object) -> None:
        there = asyncio.Event()

        def take(some: list[dict[str, Any]]) -> None:
            rows.extend(some)
            if len(rows) >= wanted:
                there.set()

        sink = tm.sinks.Callback(take, rows=True)
        source = Endless([records], columns=declared)
        pipeline = tm.Pipeline(source, tm.Rolling("value", 2, ["mean"]), sink, name="plant")
        async with tm.serve(pipeline, lanes=lanes, state=tmp_path / "state"):
            await there.wait()

    await live(MIXED[:1], 1)
    await live(MIXED[1:2], 2, status=object)
    await live([MIXED[0] | {"time": 4}], 3, status=object)
    assert [(row["status"], row["value_mean_2"]) for row in rows] == [(0, 1.0), ("FAULT", 1.5), (0, 1.5)]


DECLARED = "Source = lambda: tm.sources.TCP(ack=True, columns={columns})"


@pytest.mark.parametrize(
    "declared",
    [("None", "{'n': int}"), ("{'n': int}", "None"), ("None", "{'n': object}")],
    ids=["since", "no more", "any"],
)
def test_what_was_acknowledged_before_a_column_was_declared_is_a_row_all_the_same(tmp_path: Path, declared):
    """The log holds it, no checkpoint knows of it, and its field was read otherwise then."""
    for start, columns in enumerate(declared):
        slow = {"checkpoint_s": 1000.0 if not start else 0.05}
        with (
            Live(tmp_path, changes=DECLARED.format(columns=columns), options=slow) as plant,
            plant.connected() as sender,
        ):
            line = json.dumps({"sensor": "S1", "time": start, "value": 1.5, "n": start})
            sender.sendall(line.encode() + b"\n")
            assert sender.recv(10) == b"1\n"
            if not start:
                plant.kill()
            else:
                for _ in patient():
                    if len(plant.rows()) + len(dead(tmp_path)) >= 2:
                        break
                plant.stop()
    assert dead(tmp_path) == []
    assert [(*row[:3], int(row[3])) for row in plant.rows()] == [("S1", 0, 1.5, 0), ("S1", 1, 1.5, 1)]


def dead(folder: Path) -> list[str]:
    """The reasons of dead letters."""
    path = folder / "state" / "dead_letters.ndjson"
    return [json.loads(line)["reason"] for line in path.read_text().splitlines()] if path.exists() else []
