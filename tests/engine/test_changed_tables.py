"""A calibration that is replaced while a live run goes on: at one place in input order, whole or not at all."""

import asyncio
import contextlib
import os
import sqlite3

import numpy as np
import pytest

import tidemill as tm
from tidemill.engine.checkpoint_store import CheckpointStore, newest
from tidemill.sources.base import Source
from tidemill.testing import ListSink, ManualClock


class Fed(tm.sources.Records):
    """A live source that the test feeds."""

    finite = False

    def __init__(self):
        self.feed = asyncio.Queue()
        super().__init__(self.records())

    async def records(self):
        while (record := await self.feed.get()) is not None:
            yield record


def table(path, baseline, *, scale=1):
    """As a careful writer does it: beside, then in place."""
    beside = path.with_suffix(".new")
    beside.write_text(f"sensor,baseline,scale\n*,{baseline},{scale}\n")
    beside.replace(path)


class Watched(ListSink):
    """A sink that can be waited for."""

    def __init__(self):
        super().__init__()
        self._written = asyncio.Event()

    async def write(self, batch):
        await super().write(batch)
        self._written.set()

    async def at_least(self, rows):
        while len(self.rows) < rows:
            self._written.clear()
            await self._written.wait()
        return self.rows


class Plant:
    """A live run over one calibration file, by a clock that the test moves."""

    def __init__(self, path, lanes, plan=None):
        self.clock, self.source, self.sink = ManualClock(), Fed(), Watched()
        plan = plan or tm.Plan(tm.Calibrate(str(path), version_into="version"))
        self.pipeline = tm.Pipeline(self.source, plan, self.sink)
        self.lanes = lanes

    def serve(self, state=False):
        return tm.serve(self.pipeline, lanes=self.lanes, clock=self.clock, state=state)

    async def record(self, **fields):
        """Send one, and wait for its row."""
        count = len(self.sink.rows)
        self.source.feed.put_nowait({"sensor": "S1", "time": 0, "value": 10.0, **fields})
        return (await self.sink.at_least(count + 1))[-1]

    async def look(self):
        """Let a second pass, and the watch look; whether it is through with that before this returns depends on the machine."""
        sleeping = self.clock.sleeping
        self.clock.advance(1.0)
        for turn in range(5_000):
            await asyncio.to_thread(int)
            if turn >= 50 and self.clock.sleeping >= sleeping:
                break

    async def looked(self, caplog, text):
        """Look until the log says it."""
        while text not in caplog.text:
            await self.look()


@pytest.mark.parametrize("lanes", [0, 2])
async def test_a_new_table_counts_from_one_record_on(tmp_path, lanes, caplog):
    caplog.set_level("INFO", "tidemill")
    path = tmp_path / "calibration.csv"
    table(path, 1)
    plant = Plant(path, lanes)
    async with plant.serve():
        first = await plant.record()
        table(path, 4)
        await plant.looked(caplog, f"the new {path} counts from record 2 on")
        second = await plant.record()
        plant.source.feed.put_nowait(None)
    assert (first["normalized"], second["normalized"]) == (9, 6)
    assert first["version"] != second["version"]


@pytest.mark.parametrize("lanes", [0, 2])
async def test_a_table_that_cannot_serve_is_told_of_and_the_old_one_stays(tmp_path, lanes, caplog):
    caplog.set_level("INFO", "tidemill")
    path = tmp_path / "calibration.csv"
    table(path, 1)
    plant = Plant(path, lanes)
    async with plant.serve():
        table(path, 2, scale=0)
        await plant.looked(caplog, "the old one stays in use")
        assert "scale is 0" in caplog.text
        second = await plant.record()
        table(path, 3)
        await plant.looked(caplog, f"the new {path} counts from record 2 on")
        third = await plant.record()
        caplog.clear()
        path.unlink()
        await plant.looked(caplog, "the old one stays in use")
        fourth = await plant.record()
        plant.source.feed.put_nowait(None)
    assert [row["normalized"] for row in (second, third, fourth)] == [9, 7, 7]


async def test_a_lane_that_dies_behind_the_change_works_on_with_the_new_table(tmp_path, caplog):
    caplog.set_level("INFO", "tidemill")
    path = tmp_path / "calibration.csv"
    table(path, 1)
    plant = Plant(path, 2)
    async with plant.serve() as run:
        await plant.record()
        table(path, 4)
        await plant.looked(caplog, f"the new {path} counts from record 2 on")
        await plant.record()
        pids = [lane.pid for lane in run.statistics().lanes]
        for pid in pids:
            os.kill(pid, 9)
        third = await plant.record()
        plant.source.feed.put_nowait(None)
    assert third["normalized"] == 6
    assert sum(lane.restarts for lane in run.report.lanes) >= 1  # that of S1


async def test_a_table_whose_columns_would_be_others_is_refused(tmp_path, caplog):
    path = tmp_path / "sites.csv"
    path.write_text("sensor,site\n*,north\n")
    plant = Plant(path, 0, tm.Plan(tm.Lookup(str(path))))
    async with plant.serve():
        first = await plant.record()
        path.write_text("sensor,site,floor\n*,north,3\n")
        await plant.looked(caplog, "its columns would be")
        second = await plant.record()
        plant.source.feed.put_nowait(None)
    assert "floor" not in second
    assert first.keys() == second.keys()


@pytest.mark.parametrize("lanes", [0, 2])
async def test_who_asks_for_a_look_need_not_wait(tmp_path, lanes, caplog):
    """No second look is needed to see that the file stands still: the clock does not move. What has not changed is said so."""
    caplog.set_level("INFO", "tidemill")
    path = tmp_path / "calibration.csv"
    table(path, 1)
    plant = Plant(path, lanes)
    async with plant.serve() as run:
        first = await plant.record()
        table(path, 4)
        run.look_at_files()
        await told(caplog, f"the new {path} counts from record 2 on")
        second = await plant.record()
        run.look_at_files()
        await told(caplog, f"{path} is as it was")
        assert (await plant.record())["version"] == second["version"] != first["version"]
        plant.source.feed.put_nowait(None)
    assert (first["normalized"], second["normalized"]) == (9, 6)


async def test_what_could_not_serve_is_tried_again_when_somebody_asks(tmp_path, caplog):
    """It may be something else than the file that was mended, such as another file that it names."""
    path = tmp_path / "calibration.csv"
    table(path, 1)
    plant = Plant(path, 0)
    async with plant.serve() as run:
        await plant.record()
        table(path, 2, scale=0)
        for _ in range(2):
            run.look_at_files()
            await told(caplog, "the old one stays in use")
            caplog.clear()
        assert (await plant.record())["normalized"] == 9
        plant.source.feed.put_nowait(None)


async def test_without_a_file_there_is_nothing_to_look_at(caplog):
    """A plan without tables says so, and so does a recording."""
    caplog.set_level("INFO", "tidemill")
    plant = Plant(None, 0, tm.Plan(tm.Filter("value > 0")))
    async with plant.serve() as run:
        await plant.record()
        run.look_at_files()
        await told(caplog, "no stage has a file that could be read again")
        plant.source.feed.put_nowait(None)
    async with tm.serve(tm.Pipeline(tm.sources.Records([]), tm.Plan(), ListSink()), lanes=0) as run:
        run.look_at_files()
    assert "a recording is worked through with tables and models as they were" in caplog.text


async def told(caplog, text):
    """Return when the log says it; its looks are threads'."""
    while text not in caplog.text:
        await asyncio.to_thread(int)


def test_a_recording_is_worked_with_one_table(tmp_path):
    """A finite run does not look: the same input gives the same output."""
    path = tmp_path / "calibration.csv"
    table(path, 1)
    sink = ListSink()
    tm.run(
        tm.Pipeline(
            tm.sources.Records([{"sensor": "a", "time": 0, "value": 3}]), tm.Plan(tm.Calibrate(str(path))), sink
        ),
        lanes=0,
    )
    assert np.isclose(sink.rows[0]["normalized"], 2)
    assert Source.finite


async def test_a_table_that_was_replaced_stays_with_its_stage_in_another_plan(tmp_path, monkeypatch, caplog):
    """The log tells of it by its path: the plan that reads it has another stage in front, or none of that path."""
    caplog.set_level("INFO", "tidemill")
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    table(one, 1)
    table(two, 0, scale=2)
    calibrate = {path: tm.Calibrate(str(path), into=f"by_{path.stem}") for path in (one, two)}
    state = tm.State(tmp_path / "state", checkpoint_s=1)
    plant = Plant(one, 0, tm.Plan(calibrate[one]))
    async with plant.serve(state):
        await plant.record()
        while newest(tmp_path / "state" / "checkpoints") is None:
            await plant.look()
        monkeypatch.setattr(CheckpointStore, "write", lambda *_: 0)  # as if the run died before each other
        await plant.record()
        table(one, 0, scale=1_000)
        while f"the new {one} counts from" not in caplog.text:
            await plant.look()
        await plant.record()
        plant.source.feed.put_nowait(None)
    assert [row["by_one"] for row in plant.sink.rows] == [9, 9, 0.01]
    for stages in ([two, one], [two]):
        again = Plant(one, 0, tm.Plan(*(calibrate[path] for path in stages)))
        again.source.feed.put_nowait(None)
        async with again.serve(state):
            pass
        assert [row["by_two"] for row in again.sink.rows] == [5, 5]
        assert [row.get("by_one") for row in again.sink.rows] == ([9, 0.01] if one in stages else [None, None])
    assert f"no stage of this plan reads {one}, whose change the log holds" in caplog.text


class Away(Watched):
    """A server that takes its time, and then is away once."""

    def __init__(self):
        super().__init__()
        self.away = asyncio.Event()
        self.back = False

    async def write(self, batch):
        if not self.back:
            await self.away.wait()
            self.back = True
            raise tm.OutsideError("the server is away.")
        await super().write(batch)


def committed(path, columns="rowid"):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")  # an attempt may make a table anew that one before it had made
        there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'features'").fetchall()
        return connection.execute(f"SELECT {columns} FROM features ORDER BY rowid").fetchall() if there else []


async def test_what_a_run_began_with_counts_though_another_sink_was_away_at_every_checkpoint(tmp_path, caplog):
    """One sink has committed rows of the old table, and what they came from is worked on once more."""
    caplog.set_level("INFO", "tidemill")
    path, output = tmp_path / "calibration.csv", tmp_path / "rows.db"
    table(path, 1)
    plant, away = Plant(path, 0), Away()
    plan = tm.Plan(tm.Calibrate(str(path)), tm.Rolling("normalized", 9, stats=["mean"]))
    plant.pipeline = tm.Pipeline(plant.source, plan, [tm.sinks.SQLite(output), away])
    async with plant.serve(tm.State(tmp_path / "state", checkpoint_s=1)):

        async def one_more(rows):
            plant.source.feed.put_nowait({"sensor": "S1", "time": 0, "value": 10.0})
            while len(committed(output)) < rows:
                await plant.look()

        await one_more(1)
        table(path, 4)
        while f"the new {path} counts from record 2 on" not in caplog.text:
            await plant.look()
        await one_more(2)
        assert newest(tmp_path / "state" / "checkpoints") is None
        away.away.set()
        await away.at_least(2)
        await one_more(3)
        plant.source.feed.put_nowait(None)
    assert committed(output, "normalized, normalized_mean_9") == [(9, 9), (6, 7.5), (6, 7)]
    assert [row["normalized"] for row in away.rows] == [9, 6, 6]


async def test_a_stage_that_was_added_keeps_its_table_before_the_next_checkpoint(tmp_path, monkeypatch):
    """The checkpoint before it knows nothing of the file."""
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    table(one, 1)
    table(two, 2)
    stages = [tm.Calibrate(str(path), into=f"by_{path.stem}") for path in (one, two)]
    state = tm.State(tmp_path / "state", checkpoint_s=1)
    first = Plant(one, 0, tm.Plan(stages[0]))
    async with first.serve(state):
        await first.record()
        first.source.feed.put_nowait(None)
    assert newest(tmp_path / "state" / "checkpoints") is not None
    monkeypatch.setattr(CheckpointStore, "write", lambda *_: 0)  # as if each run died before it
    for baseline in (2, 5):
        table(two, baseline)
        plant = Plant(one, 0, tm.Plan(*stages))
        async with plant.serve(state):
            if baseline == 2:
                await plant.record()
            plant.source.feed.put_nowait(None)
        assert [(row["by_one"], row["by_two"]) for row in plant.sink.rows] == [(9, 8)]


async def test_a_table_with_which_nothing_was_worked_on_is_not_kept(tmp_path):
    """A first start that was stopped before any record came has begun nothing: other columns are welcome."""
    path = tmp_path / "sites.csv"
    for text in ("sensor,site\n*,north\n", "sensor,site,floor\n*,north,3\n"):
        path.write_text(text)
        plant = Plant(path, 0, tm.Plan(tm.Lookup(str(path))))
        async with plant.serve(tmp_path / "state"):
            if "floor" in text:
                assert (await plant.record())["floor"] == 3
            plant.source.feed.put_nowait(None)


async def test_copies_of_tables_that_nothing_needs_go_after_a_day(tmp_path):
    """Those of the checkpoints that are kept stay however old they are, and so do those that were wanted lately."""
    path, kept = tmp_path / "calibration.csv", tmp_path / "state" / "files"
    kept.mkdir(parents=True, mode=0o700)
    kept.parent.chmod(0o700)
    (kept.parent / "pipeline.json").write_text('{"version": 1, "pipeline": "plant", "id": "x"}')
    old, new, other = (kept / f"{letter * 64}.csv" for letter in "abc")
    for place in (old, new):
        place.write_text("")
    other.with_name("notes.txt").write_text("not ours")
    for place in kept.iterdir():
        os.utime(place, (0, 0) if place != new else None)
    table(path, 1)
    plant = Plant(path, 0)
    plant.pipeline = tm.Pipeline(plant.source, plant.pipeline.plan, plant.sink, name="plant")
    async with plant.serve(tm.State(tmp_path / "state", checkpoint_s=1)):
        (copy,) = {place.name for place in kept.iterdir()} - {old.name, new.name, "notes.txt"}
        os.utime(kept / copy, (0, 0))
        for number in range(1, 5):
            await plant.record()
            while (found := newest(tmp_path / "state" / "checkpoints")) is None or found.number < number:
                await plant.look()
        plant.source.feed.put_nowait(None)
    assert {place.name for place in kept.iterdir()} == {copy, new.name, "notes.txt"}


def shared(path, t, p):
    """One file for the two stages of `two`: baseline and scale of each."""
    beside = path.with_suffix(".new")
    beside.write_text(f"sensor,column,baseline,scale\n*,t,{t[0]},{t[1]}\n*,p,{p[0]},{p[1]}\n")
    beside.replace(path)


def two(path, lanes):
    """Two calibrations by one file, which they name in two ways."""
    other = path.parent / "." / ".." / path.parent.name / path.name
    return Plant(
        path, lanes, tm.Plan(tm.Calibrate(str(path), "t", "by_t"), tm.Calibrate(os.fspath(other), "p", "by_p"))
    )


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("lanes", [0, 2])
async def test_all_stages_of_one_file_change_at_one_record(tmp_path, lanes, state, caplog):
    """However many records are on their way: none has the new values of one stage and the old ones of the other."""
    caplog.set_level("INFO", "tidemill")
    path = tmp_path / "calibration.csv"
    shared(path, (1, 1), (1, 1))
    plant = two(path, lanes)
    async with plant.serve(tm.State(tmp_path / "state", checkpoint_s=1) if state else False):
        await plant.record(t=10.0, p=10.0)
        shared(path, (3, 1), (3, 1))
        while f"the new {path} counts from record" not in caplog.text:
            looking = asyncio.create_task(plant.look())
            while not looking.done():
                plant.source.feed.put_nowait({"sensor": "S1", "time": 0, "t": 10.0, "p": 10.0})
                await asyncio.sleep(0)
        plant.source.feed.put_nowait({"sensor": "S1", "time": 0, "t": 10.0, "p": 10.0})
        plant.source.feed.put_nowait(None)
    assert {(row["by_t"], row["by_p"]) for row in plant.sink.rows} == {(9, 9), (7, 7)}
    assert plant.sink.rows[-1]["by_t"] == 7
    assert f"Calibrate('t'), Calibrate('p'): the new {path} counts from" in caplog.text


@pytest.mark.parametrize("lanes", [0, 2])
async def test_a_file_that_one_of_its_stages_refuses_changes_none(tmp_path, lanes, caplog):
    """Whichever it is, and it is said."""
    caplog.set_level("INFO", "tidemill")
    path = tmp_path / "calibration.csv"
    shared(path, (1, 1), (1, 1))
    plant = two(path, lanes)
    refused = "Calibrate('t'), Calibrate('p'): the file has changed and cannot serve, so the old one stays in use: "
    async with plant.serve():
        await plant.record(t=10.0, p=10.0)
        for stage, t, p in (("t", (2, 0), (2, 1)), ("p", (2, 1), (2, 0))):
            caplog.clear()
            shared(path, t, p)
            while f"{refused}Calibrate('{stage}'): " not in caplog.text:
                await plant.look()
            row = await plant.record(t=10.0, p=10.0)
            assert (row["by_t"], row["by_p"]) == (9, 9)
        shared(path, (3, 1), (4, 1))
        while f"the new {path} counts from" not in caplog.text:
            await plant.look()
        row = await plant.record(t=10.0, p=10.0)
        plant.source.feed.put_nowait(None)
    assert (row["by_t"], row["by_p"]) == (7, 6)


async def test_a_start_goes_on_with_what_all_stages_of_a_file_had_become(tmp_path, monkeypatch, caplog):
    """The log tells of both in one entry; also where the plan that reads it has one of them alone, or one more before them."""
    caplog.set_level("INFO", "tidemill")
    path = tmp_path / "calibration.csv"
    shared(path, (1, 1), (2, 1))
    state = tm.State(tmp_path / "state", checkpoint_s=1)
    plant = two(path, 0)
    async with plant.serve(state):
        await plant.record(t=10.0, p=10.0)
        while newest(tmp_path / "state" / "checkpoints") is None:
            await plant.look()
        monkeypatch.setattr(CheckpointStore, "write", lambda *_: 0)  # as if the run died before each other
        shared(path, (3, 1), (4, 1))
        while f"the new {path} counts from" not in caplog.text:
            await plant.look()
        await plant.record(t=10.0, p=10.0)
        plant.source.feed.put_nowait(None)
    shared(path, (5, 1), (6, 1))
    stages = plant.pipeline.plan.stages
    for plan in (tm.Plan(*stages), tm.Plan(stages[1]), tm.Plan(tm.Filter("t > 0"), *stages)):
        again = Plant(path, 0, plan)
        again.source.feed.put_nowait(None)
        async with again.serve(tm.State(tmp_path / "state", checkpoint_s=1, drop_state=True)):
            pass
        assert [row["by_p"] for row in again.sink.rows] == [6]
        assert [row.get("by_t") for row in again.sink.rows] == [7 if stages[0] in plan.stages else None]


@pytest.mark.parametrize("what", ["a FIFO", "a device"])
async def test_what_can_be_read_for_ever_in_the_place_of_a_table_does_not_stop_the_watch(tmp_path, what, caplog):
    """It is told of, while the run goes on and at its next start, and a table that takes its place counts."""
    caplog.set_level("INFO", "tidemill")
    path, state = tmp_path / "calibration.csv", tm.State(tmp_path / "state", checkpoint_s=1)
    table(path, 1)
    for start in (1, 2):
        plant = Plant(path, 0)
        async with plant.serve(state):
            assert (await plant.record())["normalized"] == 9
            if start == 1:
                path.unlink()
                if what == "a FIFO":
                    os.mkfifo(path)
                else:
                    path.symlink_to("/dev/zero")
                while f"{what} stands in the place of {path}" not in caplog.text:
                    await plant.look()
            else:
                path.unlink()
                table(path, 4)
                while f"the new {path} counts from" not in caplog.text:
                    await plant.look()
                assert (await plant.record())["normalized"] == 6
            plant.source.feed.put_nowait(None)
