"""What a run counts when it goes on from its last checkpoint after a fault: each input once, and no counter goes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from tests.engine.test_pages import ANYWHERE, ask

import tidemill as tm

FAULTS, PART = 3, 200


class Sometimes(tm.sinks.SQLite):
    """A database that refuses rows while a file says so."""

    def write(self, batch: tm.Batch) -> None:
        if self.path.with_name("away").exists():
            raise tm.OutsideError("the database is away.")
        super().write(batch)


def inverse(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A function that fails for some."""
    return [{**row, "inverse": 1 / row["value"]} for row in rows]


def line(number: int) -> bytes:
    """Of ten: one that is no JSON, one that a filter leaves out, one that a function fails for."""
    match number % 10:
        case 3:
            return b"no json\n"
        case 5:
            value = -1.0
        case 7:
            value = 0.0
        case _:
            value = 1.0 + number
    return json.dumps({"sensor": f"s{number % 7}", "time": 1_700_000_000 + number, "value": value}).encode() + b"\n"


class Watched:
    """Counters of /metrics, each reading held against the one before."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    async def look(self) -> None:
        _, text = await ask(self._run, "/metrics")
        for family in text_string_to_metric_families(text):
            for sample in family.samples if family.type in ("counter", "histogram") else ():
                name = sample.name, tuple(sorted(sample.labels.items()))
                assert sample.value >= self.values.get(name, 0.0), name
                self.values[name] = sample.value

    def __getitem__(self, name: str) -> float:
        return sum(value for (own, _), value in self.values.items() if own == f"tidemill_{name}_total")


async def test_each_input_is_counted_once_however_many_attempts_have_worked_on_it(tmp_path: Path, lanes: int) -> None:
    """Records, rows, dead letters and what a filter left out, in the report, the statistics and the metrics."""
    source, away = tm.sources.TCP(), tmp_path / "away"
    plan = tm.Plan(tm.Filter("value >= 0"), tm.MapRows(inverse))
    pipeline = tm.Pipeline(source, plan, Sometimes(tmp_path / "out.db"), name="plant")
    lines = list(map(line, range(FAULTS * 2 * PART)))
    options: Any = {"lanes": lanes, "state": tm.State(tmp_path / "state", checkpoint_s=0.05), "metrics": ANYWHERE}
    async with tm.serve(pipeline, **options) as run:
        watched = Watched(run)
        _, writer = await asyncio.open_connection(*await source.wait_listening())

        async def give(part: int) -> None:
            writer.write(b"".join(lines[part * PART : (part + 1) * PART]))
            await writer.drain()

        for fault in range(FAULTS):
            await give(2 * fault)
            away.touch()
            await give(2 * fault + 1)
            while run.statistics().trouble is None:
                await watched.look()
            assert run.statistics().records_in >= 2 * fault * PART  # also while nothing can begin
            away.unlink()
            while run.statistics().sinks["sometimes"] < (2 * fault + 2) * PART * 7 // 10:
                await watched.look()
            while run.statistics().state.position < (2 * fault + 2) * PART:
                await watched.look()
        await watched.look()
        statistics = run.statistics()
        writer.close()
    report, inputs = run.report, len(lines)
    assert report is not None
    tenth = inputs // 10
    assert (report.records_in, report.rows_out, report.in_flight) == (inputs, 7 * tenth, 0)
    assert (report.filtered, report.dead_letters) == (tenth, 2 * tenth)
    assert report.dead_letters_by_reason == {"malformed": tenth, "raised": tenth}
    assert report.sinks == {"sometimes": 7 * tenth}
    with contextlib.closing(sqlite3.connect(tmp_path / "out.db")) as database:
        assert database.execute("SELECT count(*) FROM features").fetchone() == (7 * tenth,)
    assert len((tmp_path / "state" / "dead_letters.ndjson").read_text().splitlines()) == 2 * tenth
    assert (statistics.records_in, statistics.rows_out, statistics.filtered) == (inputs, 7 * tenth, tenth)
    assert (watched["records_in"], watched["records_out"], watched["dead"]) == (inputs, 7 * tenth, 2 * tenth)
    assert sum(lane.batches for lane in report.lanes) > FAULTS
    assert report.stages[1].seconds > 0
