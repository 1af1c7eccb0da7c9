"""The options that belong to a family are taken by every member of it, with the same names."""

from __future__ import annotations

import inspect
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import tidemill as tm
from tidemill.engine.run import Run
from tidemill.errors import PlanError, StageError
from tidemill.sinks.base import LoopSink, ProcessSink, Sink
from tidemill.sources.base import Source


def members(module: Any, base: type) -> list[type]:
    return [
        one
        for one in (getattr(module, name) for name in module.__all__)
        if inspect.isclass(one) and issubclass(one, base)
    ]


SOURCES = [one for one in members(tm.sources, Source) if one is not Source] + members(tm.testing, Source)
SINKS = [one for one in members(tm.sinks, Sink) if one not in (Sink, LoopSink, ProcessSink)] + members(tm.testing, Sink)


def options_of(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_takes_its_roles(source: type) -> None:
    """Which field is the sensor, which the time, of what kinds the others are, and in which zone times are read."""
    assert {"key", "time", "columns", "tz", "name"} <= options_of(source)


@pytest.mark.parametrize("sink", SINKS)
def test_every_sink_takes_a_choice(sink: type) -> None:
    """Of rows, of columns, and of what to do with what is there."""
    assert {"where", "columns", "if_exists", "name"} <= options_of(sink)


@pytest.mark.parametrize("stage", [tm.Map, tm.MapRows, tm.MapFrame, tm.MapWindows, tm.Filter, tm.Keyed, tm.scan])
def test_every_stage_with_a_function_says_what_its_failures_cost(stage: type) -> None:
    """And how long a call may take."""
    assert {"on_error", "deadline_s", "name"} <= options_of(stage)


@pytest.mark.parametrize("source", [tm.sources.Replay, tm.sources.Lines, tm.sources.TCP, tm.sources.DeadLetters])
def test_every_source_of_lines_has_a_limit(source: type) -> None:
    """In bytes of one line."""
    assert "limit" in options_of(source)
    with pytest.raises(PlanError, match="limit=0 of"):
        source("x.csv" if source is not tm.sources.TCP else "127.0.0.1", limit=0)


@pytest.mark.parametrize("source", [tm.sources.Replay, tm.sources.Lines])
@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_a_line_beyond_the_limit(tmp_path: Path, source: type, suffix: str) -> None:
    """Is rejected alone."""
    path = tmp_path / f"a.{suffix}"
    head, line = ("sensor,time,x\n", "S,{},{}\n") if suffix == "csv" else ("", '{{"sensor":"S","time":{},"x":"{}"}}\n')
    path.write_text(head + line.format(1, "a") + line.format(2, "b" * 100) + line.format(3, "c"))
    sink = tm.testing.ListSink()
    report = tm.run(
        tm.Pipeline(source(path, limit=90), tm.Plan(), sink), lanes=0, dead_letters=tmp_path / "dead.ndjson"
    )
    assert report.dead_letters_by_reason == {"oversize": 1}
    assert [row["x"] for row in sink.rows] == ["a", "c"]


def test_the_doors_take_the_same_options() -> None:
    """`run` writes them out; `run_async` and `serve` name them by a type, and all end in one run."""
    from tidemill.engine.entrance import Options

    everywhere = {"report", "handle_signals"}
    assert options_of(tm.run) - {"pipeline", "ends_process", "told"} == set(Options.__annotations__) | everywhere
    assert set(Options.__annotations__) == options_of(Run) - {"pipeline"}
    assert everywhere <= options_of(tm.serve) & options_of(tm.run_async)


async def test_serve_writes_its_report_and_takes_signals(tmp_path: Path) -> None:
    """When asked to."""

    async def readings() -> Any:
        yield {"sensor": "S", "time": 1, "value": 1.0}
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            yield {"sensor": "S", "time": 1, "value": 1.0}

    pipeline = tm.Pipeline(tm.sources.Records(readings()), tm.Plan(), tm.sinks.Latest())
    async with tm.serve(pipeline, lanes=0, report=tmp_path / "r.json", handle_signals=True) as run:
        await run.wait()
    assert json.loads((tmp_path / "r.json").read_text())["in_flight"] == 0


@pytest.mark.parametrize("stage", [tm.Calibrate, tm.Lookup])
def test_a_sensor_without_a_row_may_stop_the_run(tmp_path: Path, lanes: int, stage: type) -> None:
    """The error names the stage and the sensor."""
    table = {"sensor": ["S1"], "baseline": [0.0], "scale": [1.0]}
    rows = [{"sensor": name, "time": 1, "value": 1.0} for name in ("S1", "S2")]
    pipeline = tm.Pipeline(tm.sources.Records(rows), stage(table, on_error="stop"), tm.sinks.Latest())
    with pytest.raises(StageError, match="no row for the sensor 'S2'"):
        tm.run(pipeline, lanes=lanes, dead_letters=tmp_path / "dead.ndjson")


def test_made_records_have_the_roles_that_were_asked_for() -> None:
    """A key of several fields, a time of another, and kinds; what does not exist is refused by name."""
    sink = tm.testing.ListSink()
    source = tm.sources.Synthetic(3, None, count=50, key="{unit}/{sensor}", columns={"unit": object})
    assert source.peek()["unit"].kind is tm.Kind.OBJECT
    tm.run(tm.Pipeline(source, tm.Plan(), sink), lanes=0)
    keys = {str(key) for batch in sink.batches for key in batch.keys[batch.key]}
    assert len(sink.rows) == 50
    assert keys == {f"{row['unit']}/{row['sensor']}" for row in sink.rows}
    with pytest.raises(PlanError, match="sensor, time, value, unit; they have no field 'station'"):
        tm.sources.Host(key="station")


def test_a_start_without_a_zone_is_read_in_tz() -> None:
    """As every time is."""
    first = [
        next(tm.sources.Synthetic(1, None, count=1, start="2026-01-01T01:00:00", tz=tz).blocks()).time[0]
        for tz in ("Europe/Berlin", "UTC")
    ]
    assert first[1] - first[0] == 3_600 * 10**9


def test_the_newest_rows_of_an_earlier_run(tmp_path: Path) -> None:
    """`Latest` keeps them until newer ones come, or forgets them at the start."""

    def newest(sink: tm.sinks.Latest, sensor: str) -> list[str]:
        row = {"sensor": sensor, "time": 1, "value": 1.0}
        tm.run(tm.Pipeline(tm.sources.Records([row]), tm.Plan(), sink), lanes=0)
        return sorted(sink)

    kept, forgotten = tm.sinks.Latest(), tm.sinks.Latest(if_exists="replace")
    assert [newest(kept, "a"), newest(kept, "b")] == [["a"], ["a", "b"]]
    assert [newest(forgotten, "a"), newest(forgotten, "b")] == [["a"], ["b"]]
