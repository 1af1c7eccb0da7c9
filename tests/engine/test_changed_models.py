"""A model that is replaced, while a live run goes on, by one that its library cannot run."""

import asyncio
import errno
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from onnx import TensorProto, helper
from tests.engine.test_changed_tables import Plant, told

import tidemill as tm
from tidemill.engine.inflow import Logged
from tidemill.engine.ingest_log import IngestLog
from tidemill.formats.entries import ControlEntry, decode_entry

CANNOT_SERVE = "the file has changed and cannot serve, so the old one stays in use"


def put(path, operator, *, opset=17):
    """A model of one operator, beside and then in place."""
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("n", 1)) for name in "xy"]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    beside = path.with_suffix(".new")
    beside.write_bytes(model.SerializeToString())
    beside.replace(path)


def plant_of(path, lanes):
    return Plant(path, lanes, tm.Plan(tm.Model(str(path), ["value"], ["y"])))


async def unopened(*_):
    """As versions before did: what cannot be opened is found by the lanes."""


@pytest.mark.parametrize("lanes", [0, 2])
@pytest.mark.parametrize(("operator", "opset"), [("Neg", 99), ("Idontity", 17)])
async def test_a_model_that_the_library_cannot_run_is_told_of_and_the_old_one_stays(
    tmp_path, lanes, operator, opset, caplog
):
    """Its inputs and outputs are right, and what is in it is of a newer library; the next file that can serve is taken."""
    caplog.set_level("INFO", "tidemill")
    path = tmp_path / "m.onnx"
    put(path, "Identity")
    plant = plant_of(path, lanes)
    async with plant.serve(tm.State(tmp_path / "state", checkpoint_s=1)):
        first = await plant.record()
        put(path, operator, opset=opset)
        await plant.looked(caplog, CANNOT_SERVE)
        second = await plant.record()
        put(path, "Neg")
        await plant.looked(caplog, f"the new {path} counts from record 3 on")
        third = await plant.record()
        plant.source.feed.put_nowait(None)
    assert [row["y"] for row in (first, second, third)] == [10, 10, -10]
    assert f"{CANNOT_SERVE}: ONNX Runtime" in caplog.text
    assert changes_in(tmp_path / "state") == 1


def changes_in(state):
    log = IngestLog(state / "log")
    log.close()
    entries = [decode_entry(data) for _, data in log.read(log.first)]
    return sum(isinstance(entry, ControlEntry) and entry.what != "tick" for entry in entries)


class Deadly(tm.Model):
    """A model whose library ends the process that opens what negates."""

    def opened(self):
        if b"Neg" in self._model:
            os.abort()
        return super().opened()


def forked(run):
    """The run's processes."""
    return {child.pid for child in psutil.Process(run._server._process.pid).children()}


async def test_a_model_that_ends_the_process_that_opens_it_costs_no_lane(tmp_path, caplog):
    """It is opened by a process that is for nothing else, and which is gone afterwards."""
    path = tmp_path / "m.onnx"
    put(path, "Identity")
    plant = Plant(path, 1, tm.Plan(Deadly(str(path), ["value"], ["y"])))
    async with plant.serve() as run:
        await plant.record()
        before = forked(run)
        put(path, "Neg")
        await plant.looked(caplog, f"{CANNOT_SERVE}: the process that opened it ended (killed by SIGABRT)")
        assert (await plant.record())["y"] == 10
        assert forked(run) <= before
        plant.source.feed.put_nowait(None)
    assert [lane.restarts for lane in run.report.lanes] == [0]


class Endless(tm.Model):
    """A model that is never through with opening what negates."""

    def opened(self):
        if b"Neg" in self._model:
            threading.Event().wait()
        return super().opened()


async def test_a_model_that_is_never_opened_does_not_stop_the_watch(tmp_path, caplog, monkeypatch):
    """After two minutes it is one that cannot serve; here they are shorter."""
    monkeypatch.setattr("tidemill.engine.rehearsal.LONGEST_S", 0.3)
    path = tmp_path / "m.onnx"
    put(path, "Identity")
    plant = Plant(path, 1, tm.Plan(Endless(str(path), ["value"], ["y"])))
    async with plant.serve():
        await plant.record()
        put(path, "Neg")
        await plant.looked(caplog, f"{CANNOT_SERVE}: opening it took more than 0.3 s")
        monkeypatch.undo()
        put(path, "Abs")
        while (await plant.record(value=-1.0))["y"] != 1:
            await plant.look()
        plant.source.feed.put_nowait(None)


async def test_a_model_for_which_there_is_no_process_is_tried_again(tmp_path, caplog, monkeypatch):
    """That says nothing of its file."""
    caplog.set_level("INFO", "tidemill")
    monkeypatch.setattr("tidemill.engine.rehearsal._AGAIN_S", 1.0)
    path = tmp_path / "m.onnx"
    put(path, "Identity")
    plant = plant_of(path, 1)
    async with plant.serve():
        await plant.record()
        with monkeypatch.context() as patch:
            patch.setattr("tidemill.engine.rehearsal.Shared", _no_descriptor)
            put(path, "Neg")
            await plant.looked(caplog, "could not be tried, so the old one stays in use for now: ")
        assert "a process to open it in cannot be had: Too many open files" in caplog.text
        await plant.looked(caplog, f"the new {path} counts from record")
        assert (await plant.record())["y"] == -10
        plant.source.feed.put_nowait(None)
    assert CANNOT_SERVE not in caplog.text


def _no_descriptor(*_):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def stopped_by(path, plant, state, monkeypatch):
    """A run of a version before, which a model that cannot be opened ends."""
    with monkeypatch.context() as patch:
        patch.setattr("tidemill.engine.attempt.rehearsed", unopened)
        patch.setattr(Logged, "change", _changed_before)
        with pytest.raises(tm.PlanError, match="cannot run"):
            await _given_what_cannot_be_opened(path, plant, state)


async def _given_what_cannot_be_opened(path, plant, state):
    async with plant.serve(state):
        await plant.record()
        put(path, "Neg", opset=99)
        while True:
            await plant.look()


async def _changed_before(self, attempt, made):
    (told,) = self._keeper.told_of(made, attempt.pipeline.plan.stages)
    self._journal.decide(ControlEntry("stage", told))
    return await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("lanes", [0, 2])
async def test_a_log_that_tells_of_a_model_that_no_lane_could_open_is_worked_through(
    tmp_path, lanes, monkeypatch, caplog
):
    """The run of a version before ended there, and every start would: nothing was worked on with it."""
    path, output, state = tmp_path / "m.onnx", tmp_path / "rows.db", tm.State(tmp_path / "state", checkpoint_s=1)
    put(path, "Identity")

    def plant():
        made = plant_of(path, lanes)
        made.pipeline = tm.Pipeline(made.source, made.pipeline.plan, [made.sink, tm.sinks.SQLite(output)])
        return made

    await stopped_by(path, plant(), state, monkeypatch)
    again = plant()
    async with again.serve(state):
        await told(caplog, "nothing was worked on with it, so it is passed over and the one before stays in use")
        assert (await again.record())["y"] == 10
        await again.looked(caplog, CANNOT_SERVE)
        again.source.feed.put_nowait(None)
    put(path, "Neg")
    last = plant()
    async with last.serve(state):
        while (await last.record())["y"] != -10:
            await last.look()
        last.source.feed.put_nowait(None)
    with closing(sqlite3.connect(output)) as connection:
        values = [value for (value,) in connection.execute("SELECT y FROM features ORDER BY rowid")]
    assert values[:2] == [10, 10]
    assert values[-1] == -10


async def test_a_model_that_was_used_and_cannot_be_opened_any_more_is_not_passed_over(tmp_path, monkeypatch):
    """A library of an earlier version is there: which file it is is said, and what to do."""
    path, state = tmp_path / "m.onnx", tm.State(tmp_path / "state", checkpoint_s=1)
    put(path, "Identity")
    monkeypatch.setattr("tidemill.engine.checkpoint_store.CheckpointStore.write", lambda *_: 0)
    plant = plant_of(path, 0)
    async with plant.serve(state):
        await plant.record()
        put(path, "Neg")
        while (await plant.record())["y"] != -10:
            await plant.look()
        plant.source.feed.put_nowait(None)

    async def older(stage, *_):
        raise tm.PlanError(f"{stage.name}: the library cannot run it.")

    monkeypatch.setattr("tidemill.engine.attempt.rehearsed", older)
    with pytest.raises(tm.PlanError) as told_of:
        async with plant_of(path, 0).serve(state):
            await asyncio.Event().wait()
    said = str(told_of.value)
    assert f"the {path} that counts from input " in said
    assert f"kept as {tmp_path / 'state' / 'files'}" in said
    assert "start over with --fresh" in said


class Late(tm.Model):
    """A model that is opened once an input is in the log."""

    def opened(self):
        while not Path(self.path).with_name("state").joinpath("beginning.json").exists():
            os.sched_yield()
        return super().opened()


async def test_a_model_that_no_lane_of_the_first_start_could_open_is_not_kept_for_what_came_in(tmp_path):
    """An input was let in while the lanes were starting; the next start works on it with the model that is there then."""
    path, state = tmp_path / "m.onnx", tm.State(tmp_path / "state", checkpoint_s=1)
    put(path, "Neg", opset=99)
    plan = tm.Plan(Late(str(path), ["value"], ["y"]))
    plant = Plant(path, 1, plan)
    plant.source.feed.put_nowait({"sensor": "S1", "time": 0, "value": 10.0})
    with pytest.raises(tm.PlanError, match="cannot run"):
        async with plant.serve(state):
            await asyncio.Event().wait()
    put(path, "Neg")
    again = Plant(path, 1, plan)
    async with again.serve(state):
        again.source.feed.put_nowait(None)
    assert [row["y"] for row in again.sink.rows] == [-10]
