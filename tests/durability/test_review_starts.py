"""Starts that end early, and what the next one makes of them."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.durability.endless import Endless

import tidemill as tm
from tidemill.core.controls import Tick
from tidemill.engine.checkpoint_store import CheckpointStore
from tidemill.engine.dead_letters import DeadLetterFile
from tidemill.engine.inflow import Logged
from tidemill.engine.ingest_log import IngestLog
from tidemill.engine.journal import Journal
from tidemill.engine.mill import Mill
from tidemill.engine.outflow import Outflow
from tidemill.engine.run import Run
from tidemill.engine.state_folder import StateFolder
from tidemill.formats.edge import Edge
from tidemill.formats.entries import RecordsEntry, decode_entry
from tidemill.letters import AT_A_TIME, DeadLetter
from tidemill.sources.base import Source, SourceContext
from tidemill.testing import CRASH, ListSink, ManualClock, ScriptedSource


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
    """Those that can be seen at one moment: an attempt may make a table anew that one before it had made."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("BEGIN")
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'features'").fetchone():
            return []
        return connection.execute("SELECT * FROM features ORDER BY rowid").fetchall()
    finally:
        connection.close()


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


def test_a_history_that_is_not_there_leaves_the_state_where_it_is(tmp_path: Path) -> None:
    """With fresh=True: what is refused is no start, and the next goes on with the state."""
    own = tmp_path / "own.csv"
    own.write_text("sensor,time,value\nS,1,2.5\n")
    pipeline = tm.Pipeline(
        tm.sources.Replay(own), tm.Lag("value"), tm.sinks.Lines(tmp_path / "out.ndjson", if_exists="append")
    )
    tm.run(pipeline, lanes=0, state=tm.State(tmp_path / "state"))
    nowhere = tm.sources.Replay(tmp_path / "nowhere.csv")
    with pytest.raises(tm.InputError, match=r"nowhere\.csv"):
        tm.run(pipeline, lanes=0, state=tm.State(tmp_path / "state", warm=nowhere, fresh=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ndjson", "own.csv", "state"]


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


# -- folders ---------------------------------------------------------------------------------------------------


def test_fresh_moves_nothing_aside_that_is_no_state(tmp_path: Path) -> None:
    """A slip such as ``--state . --fresh`` must not take somebody's work away."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years")
    with pytest.raises(tm.InputError, match="holds other things than a state"):
        StateFolder(tmp_path / "work", "plant", fresh=True)
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years"


def test_sinks_whose_names_are_alike_have_folders_of_their_own(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state", "plant")
    try:
        places = [folder.of_sink(name) for name in ("a b", "a_b", "a/b", "..", ".", "é")]
    finally:
        folder.close()
    assert len(set(places)) == len(places)
    assert {place.parent for place in places} == {tmp_path / "state" / "sinks"}


# -- dead letters ----------------------------------------------------------------------------------------------


def test_letters_in_a_file_of_others_come_once_though_there_is_no_checkpoint_yet(tmp_path: Path) -> None:
    own = recording(tmp_path / "own.ndjson", range(50), bad_every=5)
    (tmp_path / "letters").write_text("of another\n")

    def start() -> None:
        pipeline = tm.Pipeline(tm.sources.Replay(own), plan(), Away(tmp_path / "out.db"), name="plant")
        tm.run(pipeline, lanes=0, state=tmp_path / "state", dead_letters=tmp_path / "letters")

    (tmp_path / "away").touch()
    for _ in range(2):
        with pytest.raises(tm.OutsideError, match="away"):
            start()
    (tmp_path / "away").unlink()
    start()
    told = (tmp_path / "letters").read_text().splitlines()
    assert (told[0], len(told)) == ("of another", 11)


async def test_letters_that_go_to_another_file_leave_what_is_in_it(tmp_path: Path, lanes: int) -> None:
    """How long the file before it was says nothing of this one."""
    await live(tmp_path, range(5), lanes)
    (tmp_path / "letters").write_text("of another\n")
    source = Endless([[{"sensor": "S1", "time": "never", "value": 1}]], name="scripted")
    pipeline = tm.Pipeline(
        source, tm.Plan(tm.Lag("value")), [tm.sinks.SQLite(tmp_path / "out.db"), ListSink()], name="plant"
    )
    async with tm.serve(pipeline, lanes=lanes, state=tmp_path / "state", dead_letters=tmp_path / "letters") as run:
        while run.statistics().dead_letters < 1:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
    told = (tmp_path / "letters").read_text().splitlines()
    assert (told[0], len(told)) == ("of another", 2)


class Held(ListSink):
    """It takes its time, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def write(self, batch: tm.Batch) -> None:
        await self.go.wait()
        await super().write(batch)


async def test_letters_that_wait_for_a_sink_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand behind a record that is not through; all else that comes is in the log."""
    monkeypatch.setattr("tidemill.engine.outflow._MOST_LETTERS", 10)
    sink, bad = Held(), {"sensor": "S1", "time": "never", "value": 1}
    source = Endless([[record(1)], *[[bad, bad]] * 50, [record(2)]], name="scripted")
    pipeline = tm.Pipeline(source, tm.Plan(tm.Lag("value")), sink, name="plant")
    async with tm.serve(pipeline, lanes=0, state=tmp_path / "state") as run:
        while source.pulled < 52 or run.statistics().dead_letters <= 10:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert 10 < run.statistics().dead_letters <= 12
        sink.go.set()
        while len(sink.rows) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert run.report is not None
    assert run.report.dead_letters == 100


async def test_a_restart_between_two_letters_of_an_entry_loses_none_and_tells_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letters of one entry are told in several turns of the loop, and a checkpoint may stand between them."""
    monkeypatch.setattr("tidemill.engine.inflow.AT_A_TIME", 10)
    wait_for_room, calls = Outflow.room, 0

    async def room(outflow: Outflow) -> None:
        nonlocal calls
        await wait_for_room(outflow)
        calls += 1
        if calls == 6:  # two records and fifty letters have entered
            store = CheckpointStore(tmp_path / "state" / "checkpoints")
            while (found := store.newest()) is None or found.facts["position"] != 52:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            raise tm.OutsideError("the power is away")

    monkeypatch.setattr(Outflow, "room", room)
    bad: dict[str, object] = {"sensor": "S1", "time": "never"}
    source = Endless([[record(0), record(1)], [{**bad, "value": n} for n in range(100)], [record(2)]], name="scripted")
    pipeline = tm.Pipeline(source, plan(), tm.sinks.SQLite(tmp_path / "out.db"), name="plant")
    state = tm.State(tmp_path / "state", checkpoint_s=0.01)
    async with tm.serve(pipeline, lanes=0, state=state, dead_letters=tmp_path / "dead.ndjson"):
        while len(rows(tmp_path / "out.db")) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    letters = [json.loads(line) for line in (tmp_path / "dead.ndjson").read_text().splitlines()]
    assert calls > 6
    assert [letter["raw"]["value"] for letter in letters] == list(range(100))
    assert [letter["position"] for letter in letters] == list(range(2, 102))


class Standing(ScriptedSource):
    """It says where it stands: behind so many letters."""

    stands = 0
    seekable = True  # type: ignore[assignment]

    def offset(self) -> int:
        return self.stands


@pytest.mark.parametrize("kind", [ScriptedSource, Standing])
async def test_letters_of_one_turn_are_several_entries(tmp_path: Path, kind: type[ScriptedSource]) -> None:
    """None holds the loop for long, and each knows where its source stood behind it."""
    log = IngestLog(tmp_path / "log")
    source = kind([], name="scripted")
    journal = Journal(log, ManualClock(), [source])
    for n in range(300):
        if isinstance(source, Standing):
            source.stands = n + 1
        journal.refuse(DeadLetter("malformed", "no", n), source.name)
    await journal.put(tm.Batch.from_rows([record(1)]), source.name)
    log.sync()
    entries = [decode_entry(data) for _, data in log.read(0)]
    log.close()
    told = [[letter.raw for letter in entry.letters] for entry in entries if isinstance(entry, RecordsEntry)]
    assert [n for some in told for n in some] == list(range(300))
    assert max(map(len, told)) <= AT_A_TIME
    assert [len(entry.batch) for entry in entries if isinstance(entry, RecordsEntry)] == [0] * (len(told) - 1) + [1]
    if isinstance(source, Standing):
        assert [entry.offset for entry in entries if isinstance(entry, RecordsEntry)] == [
            *range(AT_A_TIME, 300, AT_A_TIME),
            300,
        ]


@pytest.mark.parametrize("kind", [ScriptedSource, Standing])
async def test_records_that_no_file_can_keep_are_several_entries(tmp_path: Path, kind: type[ScriptedSource]) -> None:
    """But for a source that goes on behind the whole batch: it would give the others again."""
    log = IngestLog(tmp_path / "log")
    source = kind([], name="scripted")
    journal = Journal(log, ManualClock(), [source])
    more = [{**record(n), "more": object() if n % 2 else [n]} for n in range(400)]
    batch, _ = Edge().rows(more, parsed=False)
    await journal.put(batch, source.name)
    log.sync()
    entries = [entry for _, data in log.read(0) if isinstance(entry := decode_entry(data), RecordsEntry)]
    log.close()
    assert sum(len(entry.letters) for entry in entries) == 200
    assert [row["value"] for entry in entries for row in entry.batch.to_rows()] == list(range(0, 400, 2))
    assert len(entries) == (1 if kind is Standing else -(-400 // AT_A_TIME))


# -- attempts --------------------------------------------------------------------------------------------------


async def test_a_disk_that_fails_between_two_attempts_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk makes an attempt fail, and then the next one cannot even begin."""
    begun = StateFolder.begin_epoch
    refused = 0

    def begin_epoch(folder: StateFolder) -> None:
        nonlocal refused
        if begins := folder.epoch:
            refused += 1
            (tmp_path / "away").unlink(missing_ok=True)
        if begins and refused < 3:
            raise tm.OutsideError("the disk is full")
        begun(folder)

    monkeypatch.setattr(StateFolder, "begin_epoch", begin_epoch)
    (tmp_path / "away").touch()
    source = Endless([[record(n)] for n in range(20)], name="scripted")
    pipeline = tm.Pipeline(source, plan(), Away(tmp_path / "out.db"), name="plant")
    async with tm.serve(pipeline, lanes=lanes, state=tm.State(tmp_path / "state", checkpoint_s=0.01)):
        while len(rows(tmp_path / "out.db")) < 20:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert refused == 3
    assert "the database is away. Once more from the last checkpoint" in caplog.text
    assert "the disk is full. Once more from the last checkpoint" in caplog.text


async def test_sensors_that_were_too_many_are_too_many_after_a_restart(tmp_path: Path, lanes: int) -> None:
    """Also where no stage keeps state of them: what becomes of a record must not depend on when a run was stopped."""

    def pipeline(records: range) -> tm.Pipeline:
        source = Endless([[record(n)] for n in records], name="scripted")
        plan = tm.Plan(tm.Filter("value >= 0"))
        return tm.Pipeline(source, plan, tm.sinks.SQLite(tmp_path / "out.db"), name="plant", max_keys=2)

    for records, whole in ((range(2), 2), (range(2, 9), 6)):
        async with tm.serve(pipeline(records), lanes=lanes, state=tm.State(tmp_path / "state", checkpoint_s=0.01)):
            while len(rows(tmp_path / "out.db")) < whole:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert {row[0] for row in rows(tmp_path / "out.db")} == {"S0", "S1"}


async def test_a_tick_that_comes_after_the_end_of_input_holds_nobody_up(tmp_path: Path) -> None:
    """It would be an entry that nobody brings to the disk, and the run would wait for it as long as the grace lasts."""
    log = IngestLog(tmp_path / "log")
    journal = Journal(log, ManualClock(), [])
    inflow = Logged(journal, None)  # type: ignore[arg-type]
    journal.close()
    inflow.tick(None, Tick(1))  # type: ignore[arg-type]
    assert (log.end, journal.closed) == (0, True)
    await journal.sync()
    log.close()


class Mute(ListSink):
    """It never opens."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def open(self, schema: tm.Schema) -> None:
        self.asked.set()
        await asyncio.Event().wait()


async def test_a_run_whose_sink_never_opens_can_be_stopped(tmp_path: Path, lanes: int) -> None:
    """Also in the attempt after an error: the database is there again, and says nothing."""
    sink = Mute()
    pipeline = tm.Pipeline(Endless([[record(1)]], name="scripted"), tm.Plan(tm.Lag("value")), sink, name="plant")
    run = Run(pipeline, lanes=lanes, state=tmp_path / "state", grace=0.0)
    running = asyncio.ensure_future(run.execute())
    await sink.asked.wait()
    run.stop_soon()
    with pytest.raises(tm.OutsideError, match="not ready within the grace"):
        await running


class Absent(ListSink):
    """It is away from the start."""

    async def open(self, schema: tm.Schema) -> None:
        raise tm.OutsideError("the database is away.")


async def test_a_run_whose_sink_is_away_from_the_start_ends_after_its_seconds(tmp_path: Path, lanes: int) -> None:
    """Though lanes and sinks have never been ready; it says who kept them from that."""
    pipeline = tm.Pipeline(Endless([[record(1)]], name="scripted"), tm.Plan(tm.Lag("value")), Absent(), name="plant")
    run = Run(pipeline, lanes=lanes, state=tmp_path / "state", seconds=0.01)
    with pytest.raises(tm.OutsideError, match="the database is away"):
        await run.execute()


async def test_no_checkpoint_is_written_from_memory_that_was_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the disk that the dead letters are on has failed."""
    begun, may_end, events = threading.Event(), threading.Event(), []
    write, close = CheckpointStore.write, Mill.close

    def slow(*arguments: Any) -> int:
        begun.set()
        may_end.wait()
        size = write(*arguments)
        events.append("written")
        return size

    async def failing(_: DeadLetterFile) -> None:
        asyncio.get_running_loop().call_soon(may_end.set)
        raise tm.OutsideError("the disk of the letters has failed.")

    def let_go(mill: Mill) -> None:
        events.append("let go")
        close(mill)

    monkeypatch.setattr(CheckpointStore, "write", slow)
    monkeypatch.setattr(DeadLetterFile, "aclose", failing)
    monkeypatch.setattr(Mill, "close", let_go)
    pipeline = tm.Pipeline(Endless([[record(1)]], name="scripted"), tm.Plan(tm.Lag("value")), ListSink(), name="plant")
    running = asyncio.ensure_future(
        tm.run_async(pipeline, lanes=0, state=tm.State(tmp_path / "state", checkpoint_s=0.01))
    )
    while not begun.is_set():  # noqa: ASYNC110 - set in a thread
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(tm.OutsideError):
        await running
    may_end.set()
    assert events[:2] == ["written", "let go"]
