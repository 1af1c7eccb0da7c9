"""Starts that end early, and what the next one makes of them."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import tidemill as tm
from tidemill.engine.run import Run
from tidemill.sources.base import Source, SourceContext
from tidemill.testing import CRASH, ListSink, ScriptedSource


def record(n: int) -> dict[str, object]:
    return {"sensor": f"S{n % 3}", "time": n, "value": n}


def recording(path: Path, numbers: range, *, bad_every: int = 0) -> Path:
    lines = []
    for n in numbers:
        lines += ["no json\n"] if bad_every and n % bad_every == 0 else []
        lines.append(json.dumps(record(n)) + "\n")
    path.write_text("".join(lines))
    return path


def rows(path: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT * FROM features ORDER BY rowid").fetchall()
    finally:
        connection.close()


class Endless(ScriptedSource):
    """It waits for more behind its script, until the run is stopped."""

    finite = False

    async def stream(self, context: SourceContext) -> AsyncIterator[tm.Batch]:
        async for batch in super().stream(context):
            yield batch
        assert context.stopping is not None
        await context.stopping.wait()


async def test_a_source_that_fails_ends_a_run_whose_other_sources_go_on(tmp_path: Path, lanes: int) -> None:
    """Nobody would hear of it otherwise, as the others never end."""
    sources = [Endless([[record(1)]], name="one"), ScriptedSource([[record(2)], CRASH], name="two")]
    pipeline = tm.Pipeline(sources, tm.Plan(tm.Lag("value")), ListSink(), name="plant")
    with pytest.raises(tm.OutsideError, match="two"):
        await tm.run_async(pipeline, lanes=lanes, state=tmp_path / "state")


async def live(folder: Path, records: range, lanes: int, *, plan: tm.Plan | None = None) -> list[dict[str, object]]:
    """A live run that is given these records, and stopped when they are through; the rows it made."""
    seen = ListSink()
    source = Endless([[record(n)] for n in records], name="scripted")
    sinks = [tm.sinks.SQLite(folder / "out.db"), seen]
    pipeline = tm.Pipeline(source, plan or tm.Plan(tm.Lag("value")), sinks, name="plant")
    async with tm.serve(pipeline, lanes=lanes, state=folder / "state"):
        while len(seen.rows) < len(records):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
    return seen.rows


async def test_a_log_that_ends_before_the_checkpoint_is_refused(tmp_path: Path, lanes: int) -> None:
    """What came next would have the numbers of what is lost, and be taken for worked on."""
    await live(tmp_path, range(50), lanes)
    shutil.rmtree(tmp_path / "state" / "log")
    with pytest.raises(tm.OutsideError, match=r"state/log.*checkpoint.*--fresh"):
        await live(tmp_path, range(50, 60), lanes)


# -- warming -------------------------------------------------------------------------------------------------


def plan() -> tm.Plan:
    return tm.Plan(tm.Rolling("value", window=8, stats=["mean"]))


def warmed(folder: Path, history: Source, own: Path) -> Run:
    pipeline = tm.Pipeline(tm.sources.Replay(own), plan(), tm.sinks.SQLite(folder / "out.db"), name="plant")
    return Run(pipeline, lanes=0, state=tm.State(folder / "state", warm=history))


class Stopped(ScriptedSource):
    """It has the run stopped in its middle."""

    stop: Callable[[], None]

    async def stream(self, context: SourceContext) -> AsyncIterator[tm.Batch]:
        async for batch in super().stream(context):
            yield batch
            self.stop()


def test_a_history_that_was_not_worked_through_is_begun_again(tmp_path: Path) -> None:
    """Half of it would leave windows half full, and nobody would know."""
    own = recording(tmp_path / "own.ndjson", range(50, 100))
    history = Stopped([[record(n) for n in range(25)], [record(n) for n in range(25, 50)]])
    run = warmed(tmp_path, history, own)
    history.stop = run.stop_soon
    report = asyncio.run(run.execute())
    assert (report.rows_out, report.position) == (0, 0)
    again = ScriptedSource([[record(n) for n in range(50)]])
    asyncio.run(warmed(tmp_path, again, own).execute())
    wanted = plan().apply([record(n) for n in range(100)])[50:]
    assert [row[-1] for row in rows(tmp_path / "out.db")] == [row["value_mean_8"] for row in wanted]


class Away(tm.sinks.SQLite):
    """A database that is away while a file says so."""

    def write(self, batch: tm.Batch) -> None:
        if self.path.with_name("away").exists():
            raise tm.OutsideError("the database is away.")
        super().write(batch)


def test_the_letters_of_a_history_are_none_of_the_run_s_own(tmp_path: Path) -> None:
    """The length of their file is not that of the run's: its letters would come twice, or in part."""
    history = recording(tmp_path / "history.ndjson", range(50), bad_every=2)
    own = recording(tmp_path / "own.ndjson", range(50, 100), bad_every=5)
    state = tm.State(tmp_path / "state", warm=tm.sources.Replay(history))

    def start() -> None:
        pipeline = tm.Pipeline(tm.sources.Replay(own), plan(), Away(tmp_path / "out.db"), name="plant")
        tm.run(pipeline, lanes=0, state=state)

    (tmp_path / "away").touch()
    with pytest.raises(tm.OutsideError, match="away"):
        start()
    (tmp_path / "away").unlink()
    start()
    assert len((tmp_path / "state" / "dead_letters.ndjson").read_text().splitlines()) == 10
