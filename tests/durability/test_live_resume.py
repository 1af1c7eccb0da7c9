"""A live run: what came is in the log before it is anywhere else, and is worked on once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.small_plants import count_in, patient

import tidemill as tm
from tidemill.engine.ingest_log import IngestLog
from tidemill.formats.entries import decode_entry

LIVE = """
import asyncio, pathlib, sys
import tidemill as tm

source = tm.sources.TCP()
plan = tm.Plan(tm.Rolling("value", window=50, stats=["mean"]), tm.Lag("value"))
pipeline = tm.Pipeline(source, plan, tm.sinks.SQLite("out.db"), name="plant")


async def main():
    async with tm.serve(pipeline, lanes={lanes}, state=tm.State("state", checkpoint_s=0.05), handle_signals=True) as run:
        await source.wait_listening()
        pathlib.Path("port.new").write_text(str(source.port))
        pathlib.Path("port.new").rename("port")
        await run.wait()


asyncio.run(main())
"""


class Plant:
    def __init__(self, folder: Path, lanes: int) -> None:
        self.folder = folder
        (folder / "port").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", LIVE.format(lanes=lanes)], cwd=folder, start_new_session=True
        )
        for _ in patient():
            if (folder / "port").exists():
                break
            assert self.process.poll() is None, "it did not start"
        self.sender = socket.create_connection(("127.0.0.1", int((folder / "port").read_text())))

    def send(self, start: int, count: int) -> None:
        lines = [
            json.dumps({"sensor": f"S{n * n % 7}", "time": n, "value": n % 13}) for n in range(start, start + count)
        ]
        self.sender.sendall(b"".join(line.encode() + b"\n" for line in lines))

    def rows(self) -> list[tuple[object, ...]]:
        try:
            connection = sqlite3.connect(self.folder / "out.db")
            try:
                return connection.execute("SELECT * FROM features ORDER BY rowid").fetchall()
            finally:
                connection.close()
        except sqlite3.OperationalError:
            return []

    def wait_for(self, count: int) -> None:
        for _ in patient():
            if count_in(self.folder / "out.db") >= count:
                return
            assert self.process.poll() is None, "it ended"

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.sender.close()


def wanted(count: int) -> list[tuple[object, ...]]:
    rows = [{"sensor": f"S{n * n % 7}", "time": n, "value": n % 13} for n in range(count)]
    plan = tm.Plan(tm.Rolling("value", window=50, stats=["mean"]), tm.Lag("value"))
    return [tuple(None if value != value else value for value in row.values()) for row in plan.apply(rows)]


def test_what_a_live_run_has_shown_comes_once_through_kills(tmp_path, lanes):
    """Each time some rows are seen, more is sent and the family killed; the sender sends on from what the log has kept."""
    sent = 0
    for _ in range(4):
        plant = Plant(tmp_path, lanes)
        plant.send(sent, 500)
        sent += 500
        plant.wait_for(sent)
        plant.kill()
    plant = Plant(tmp_path, lanes)
    plant.send(sent, 500)
    plant.wait_for(sent + 500)
    os.kill(plant.process.pid, signal.SIGTERM)
    assert plant.process.wait() == 0
    plant.sender.close()
    assert plant.rows() == wanted(2_500)


def counted_once(report):
    """What came, though several attempts have worked on some of it."""
    assert (report.records_in, report.rows_out, report.in_flight) == (2_003, 2_000, 0)
    assert report.dead_letters_by_reason == {"malformed": 3}
    assert report.dead_letters == 3
    assert list(report.sinks.values()) == [2_000]


@contextlib.asynccontextmanager
async def live_plant(
    folder: Path, sink: tm.sinks.SQLite, lanes: int
) -> AsyncIterator[tuple[Plant, tm.sources.TCP, Any]]:
    """A live run, and a plant that sends to it. It is stopped at the end: what came is there once, and counted once."""
    source = tm.sources.TCP()
    plan = tm.Plan(tm.Rolling("value", window=50, stats=["mean"]), tm.Lag("value"))
    pipeline = tm.Pipeline(source, plan, sink, name="plant")
    plant = Plant.__new__(Plant)
    plant.folder = folder
    async with tm.serve(pipeline, lanes=lanes, state=tm.State(folder / "state", checkpoint_s=0.05)) as run:
        plant.sender = socket.create_connection(await source.wait_listening())
        yield plant, source, run
        run.stop_soon()
        plant.sender.close()
    assert plant.rows() == wanted(2_000)
    counted_once(run.report)


class Away(tm.sinks.SQLite):
    """A database that is away while a file says so."""

    def write(self, batch: tm.Batch) -> None:
        if self.path.with_name("away").exists():
            raise tm.OutsideError("the database is away.")
        super().write(batch)


class Lost(tm.sinks.SQLite):
    """A database that commits, and is lost before it can tell: twice."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.application = os.getpid()

    def commit(self, position: int) -> None:
        super().commit(position)
        lost = [self.path.with_name(f"lost{number}") for number in range(2)]
        if self.statistics().rows and (first := [path for path in lost if not path.exists()]):
            first[0].touch()
            if os.getpid() != self.application:
                os.kill(os.getpid(), signal.SIGKILL)
            raise tm.OutsideError("the connection is lost.")


async def test_a_sink_that_is_away_is_waited_for_and_gets_every_row_once(tmp_path, lanes, caplog):
    """Meanwhile the source is read on: into the log."""
    async with live_plant(tmp_path, Away(tmp_path / "out.db"), lanes) as (plant, source, _):
        plant.send(0, 500)
        while len(plant.rows()) < 500:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        (tmp_path / "away").touch()
        for start in range(500, 2_000, 500):
            plant.send(start, 500)
            plant.sender.sendall(b"no json\n")
        while "Once more from the last checkpoint" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        while source.statistics().records < 2_000:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert len(plant.rows()) == 500
        (tmp_path / "away").unlink()
        while len(plant.rows()) < 2_000:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len((tmp_path / "state" / "dead_letters.ndjson").read_text().splitlines()) == 3


async def test_rows_of_a_sink_that_was_lost_as_it_committed_are_counted_once(tmp_path, lanes):
    """Nobody was told of the commit, and the rows are not put again: the sink's next opening shows that they are there."""
    async with live_plant(tmp_path, Lost(tmp_path / "out.db"), lanes) as (plant, source, _):
        for start in range(0, 2_000, 500):
            plant.send(start, 500)
            while len(plant.rows()) < start + 500:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        plant.sender.sendall(b"no json\n" * 3)
        while source.statistics().rejected < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (tmp_path / "lost1").exists()


def test_a_live_iterable_that_ends_goes_on_with_the_next_start(tmp_path):
    """A broker closes, and its iterator returns: that is no end of the input."""
    got = []

    def start(numbers):
        async def readings():
            for number in numbers:
                yield {"sensor": "S1", "time": number, "value": number}

        source = tm.sources.Records(readings(), live=True)
        sink = tm.sinks.Callback(lambda batch: got.extend(batch["value_lag_1"].tolist()))
        return tm.run(tm.Pipeline(source, tm.Lag("value"), sink, name="plant"), lanes=0, state=tmp_path / "state")

    assert start(range(3)).rows_out == 3
    assert start(range(3, 6)).rows_out == 3
    assert got[1:] == [0, 1, 2, 3, 4]


async def test_a_killed_fork_server_costs_a_live_run_nothing_but_time(tmp_path):
    """Somebody, or a machine without memory, ends it, and all lanes and sinks with it: the run starts another, and goes on from
    the last checkpoint, while the source is read on."""
    killed = set()

    def server_of(run):
        process = run._server._process
        return None if process is None else process.pid

    async with live_plant(tmp_path, tm.sinks.SQLite(tmp_path / "out.db"), 2) as (plant, _, run):
        for start in range(0, 1_500, 500):
            plant.send(start, 500)
            while len(plant.rows()) < start + 500:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
            killed.add(server := server_of(run))
            os.kill(server, signal.SIGKILL)
            while server_of(run) == server:  # noqa: ASYNC110 - it and what it had started may go on for a moment
                await asyncio.sleep(0.01)
            plant.sender.sendall(b"no json\n")
        plant.send(1_500, 500)
        while len(plant.rows()) < 2_000:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert len(killed) == 3
    assert len((tmp_path / "state" / "dead_letters.ndjson").read_text().splitlines()) == 3


async def test_what_is_acknowledged_is_in_the_log_and_dead_letters_are_acknowledged_too(tmp_path, lanes):
    """A sender that was told of all its lines may go; bad ones are safe among the dead letters."""
    source = tm.sources.TCP(ack=True)
    pipeline = tm.Pipeline(source, tm.Plan(tm.Lag("value")), tm.sinks.SQLite(tmp_path / "out.db"), name="plant")
    async with tm.serve(pipeline, lanes=lanes, state=tmp_path / "state") as run:
        reader, writer = await asyncio.open_connection(*await source.wait_listening())
        writer.write(
            b'{"sensor": "S1", "time": 1, "value": 2}\nno json\n{"sensor": "S1", "time": 2, "value": 3}\nbad\n'
        )
        told = 0
        while told < 4:
            told = int(await reader.readline())
        run.stop_soon()
        writer.close()
    assert (told, run.report.rows_out, run.report.dead_letters) == (4, 2, 2)
    log = IngestLog(tmp_path / "state" / "log")
    entries = [decode_entry(data) for _, data in log.read(0)]
    log.close()
    assert sum(len(entry.batch) + len(entry.letters) for entry in entries) == 4


def test_acknowledging_needs_state(tmp_path):
    pipeline = tm.Pipeline(tm.sources.TCP(ack=True), tm.Plan(), tm.sinks.Latest())
    with pytest.raises(tm.PlanError, match="acknowledges"):
        tm.run(pipeline, state=False)


def test_what_is_added_to_a_file_beside_a_live_source_is_read_by_the_next_start(tmp_path):
    """Also the first addition, and the one after: each start begins where the file ended for the one before."""
    recording, got = tmp_path / "in.csv", []
    recording.write_text("sensor,time,value\nS,0,0\n")
    for start in range(3):
        live = tm.sources.Records(iter(()))
        live.goes_on = True  # so that the end of all input is a stop
        pipeline = tm.Pipeline(
            [tm.sources.Replay(recording), live],
            tm.Plan(),
            tm.sinks.Callback(lambda batch: got.extend(batch.to_rows())),
        )
        tm.run(pipeline, lanes=0, state=tmp_path / "state")
        assert [row["value"] for row in got] == list(range(start + 1))
        with recording.open("a") as file:
            file.write(f"S,{start + 1},{start + 1}\n")


async def test_after_a_start_nothing_waits_of_what_was_worked_on_before(tmp_path: Path) -> None:
    """Though nothing new has come: the run is idle, and its report says so."""
    for start in range(2):
        source = tm.sources.TCP(name="plant")
        pipeline = tm.Pipeline(source, tm.Plan(), tm.sinks.Lines(tmp_path / "out.ndjson"), name="plant")
        async with tm.serve(pipeline, lanes=0, state=tmp_path / "state") as run:
            _, port = await source.wait_listening()
            if not start:
                with socket.create_connection(("127.0.0.1", port)) as sender:
                    sender.sendall(b'{"sensor": "S", "time": 1, "value": 2.5}\n')
                while not run.statistics().rows_out:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            run.stop_soon()
            report = await run.wait()
        assert (report.log_waiting, report.behind) == (0, 0)
