"""Very many rows of one watermark step: they leave in pieces of bounded size, in the order that they have as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tidemill.app.exit_codes import ExitCode
from tidemill.app.running import ended
from tidemill.app.status import summary
from tidemill.batch import Batch
from tidemill.column import Column, object_array
from tidemill.core.order import input_order
from tidemill.core.outcome import Outcome
from tidemill.core.watermark import BEGIN
from tidemill.engine import assembly, finishing
from tidemill.engine.assembly import Share, assemble_made
from tidemill.engine.finishing import Finished, Finishing
from tidemill.engine.outflow import Outflow
from tidemill.engine.saving import Saving
from tidemill.formats.packed import Unpacker
from tidemill.lanes import worker
from tidemill.lanes.wire import Output, Result
from tidemill.lanes.worker import pack_made
from tidemill.testing import ListSink

SENSORS, WINDOWS, AT_ONCE = 30, 6, 7


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few rows; lanes that are processes of their own pack more at a time."""
    monkeypatch.setattr(worker, "MADE_AT_ONCE", AT_ONCE)
    monkeypatch.setattr(assembly, "MADE_AT_ONCE", AT_ONCE)


# -- putting them together ---------------------------------------------------------------------------------

NAMES = [["S1", "é", "S10"], ["S2", "Z"], ["\U0001f600", "￿"]]
"""Of each lane; of the last ones UTF-16 would turn the order."""


@st.composite
def lanes_rows(draw: st.DrawFn) -> list[list[tuple[int, int, int]] | int]:
    """Of each lane its rows as (place, end, slot), or how many of its records came out where its stages made none."""
    lanes: list[list[tuple[int, int, int]] | int] = []
    for names in NAMES:
        row = st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, len(names) - 1))
        lanes.append(draw(st.one_of(st.lists(row, max_size=12), st.integers(0, 3))))
    return lanes


def made_share(lane: int, rows: list[tuple[int, int, int]], first: int) -> Share:
    """A lane's result, of rows that are numbered from ``first``."""
    places, ends, slots = np.array(rows, np.int64).reshape(-1, 3).T
    names = object_array(NAMES[lane])
    batch = Batch(
        {
            "row": Column.of_array(np.arange(first, first + len(rows)) * 1.0),
            "sensor": Column.of_texts([NAMES[lane][slot] for slot in slots]),
        },
        time=ends,
    )
    batch.key_column = batch.columns["sensor"]
    outcome = Outcome(batch, None, {}, slots=slots.astype(np.int32), places=places.astype(np.int32), ends=ends)
    payload, made = pack_made(outcome, names)
    result = Result(1, 0, [], None, -1, len(rows), [], {}, None, {}, made)
    return Share(np.empty(0, np.int32), result, payload, names)


def record_share(places: range) -> Share:
    """The result of a lane whose stages made no rows: its records came out as they were."""
    carried = [Output(name, "carried", name) for name in ("row", "sensor")]
    result = Result(1, 0, carried, None, -1, len(places), [], {}, None)
    return Share(np.array(places, np.int32), result, b"")  # type: ignore[arg-type]


@given(lanes=lanes_rows())
@settings(deadline=None, max_examples=80)
def test_pieces_are_the_whole_in_its_order(lanes: list[list[tuple[int, int, int]] | int]) -> None:
    """By place, what ended, and the sensor's name, then by lane; no piece is larger than it may be."""
    slab = Batch({"row": Column.of_array(np.arange(9) - 9.0), "sensor": Column.of_texts([f"R{n}" for n in range(9)])})
    slab.key_column, slab.time_ns = slab.columns["sensor"], np.zeros(9, np.int64)
    shares: list[Share] = []
    expected: list[tuple[int, int, bytes, int, float]] = []
    for lane, rows in enumerate(lanes):
        if isinstance(rows, int):
            places = range(3 * lane, 3 * lane + rows)
            shares.append(record_share(places))
            expected += [(place, BEGIN, b"", lane, place - 9.0) for place in places]
        else:
            first = 100 * lane
            shares.append(made_share(lane, rows, first))
            expected += [
                (place, end, NAMES[lane][slot].encode(), lane, float(first + row))
                for row, (place, end, slot) in enumerate(rows)
            ]
    expected.sort()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(worker, "MADE_AT_ONCE", 4)
        patched.setattr(assembly, "MADE_AT_ONCE", 4)
        shares = [
            made_share(lane, rows, 100 * lane) if isinstance(rows, list) else share
            for lane, (rows, share) in enumerate(zip(lanes, shares, strict=True))
        ]
        pieces = [piece for piece in assemble_made(slab, shares, [], b"", Unpacker()) if piece is not None]
    assert [value for batch, _ in pieces for value in batch["row"].tolist()] == [row for *_, row in expected]
    assert [str(batch.keys[code]) for batch, _ in pieces for code in batch.key] == [
        sensor for batch, _ in pieces for sensor in batch["sensor"]
    ]
    assert sum(made for _, made in pieces) == sum(end != BEGIN for _, end, *_ in expected)
    assert max(len(batch) for batch, _ in pieces) <= 4
    assert len({batch.names for batch, _ in pieces}) == 1


def test_names_are_put_in_order_as_bytes() -> None:
    """Code points and UTF-8 have one order, which UTF-16 has not."""
    names = object_array(["\U0001f600", "￿", "é", "z"])
    nothing = np.zeros(4, np.int32)
    assert input_order(nothing, nothing.astype(np.int64), np.arange(4, dtype=np.int32), names).tolist() == [3, 2, 1, 0]


# -- in a run ------------------------------------------------------------------------------------------------


def readings() -> list[dict[str, Any]]:
    """A reading of each sensor in each window."""
    return [
        {"sensor": f"S{sensor}", "time": 1_700_000_000 + 10 * window, "value": sensor * window}
        for window in range(WINDOWS)
        for sensor in range(SENSORS)
    ]


def plan() -> tm.Plan:
    return tm.Plan(tm.Aggregate(tm.tumbling("10s"), {"value": ["mean", "count"]}))


def pipeline(*sinks: ListSink) -> tm.Pipeline:
    return tm.Pipeline(tm.sources.Records(readings()), plan(), list(sinks), lag="0s")


@pytest.mark.usefixtures("small_pieces")
def test_a_run_gives_the_same_rows_in_pieces(lanes: int) -> None:
    """To each sink, and the books balance."""
    whole = plan().apply(readings(), key="sensor", time="time", lag="0s")
    first, second = ListSink(name="first"), ListSink(name="second")
    report = tm.run(pipeline(first, second), lanes=lanes)
    assert first.rows == second.rows == whole
    assert max(map(len, first.batches)) <= AT_ONCE
    assert (report.emitted, report.absorbed, report.in_flight) == (len(whole), len(readings()), 0)


@pytest.mark.usefixtures("small_pieces")
def test_no_more_pieces_are_made_than_sinks_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a sink holds the first, a few wait for it; the others are not there yet."""
    made = 0
    put_together = assembly._next_piece

    def counted(lanes: Any) -> Any:
        nonlocal made
        made += 1
        return put_together(lanes)

    class Slow(ListSink):
        async def write(self, batch: Batch) -> None:
            before = made - len(self.batches)
            for _ in range(50):
                await asyncio.sleep(0)
            ahead.append(max(before, made - len(self.batches)))
            await super().write(batch)

    ahead: list[int] = []
    monkeypatch.setattr(assembly, "_next_piece", counted)
    sink = Slow()
    tm.run(
        tm.Pipeline(
            tm.sources.Records(readings()),
            tm.Plan(tm.Aggregate(tm.tumbling("1h"), {"value": "mean"})),
            sink,
            lag="0s",
        ),
        lanes=0,
    )
    assert len(sink.rows) == SENSORS
    assert made == len(sink.batches) == -(-SENSORS // AT_ONCE)
    assert max(ahead) <= finishing._MOST_PIECES + 1


@pytest.mark.usefixtures("small_pieces")
def test_a_sink_that_is_lost_between_two_pieces_gets_every_row_with_its_number(tmp_path: Path, lanes: int) -> None:
    """No position is committed before the last piece of its slab: what comes again has the numbers that it had."""
    whole = plan().apply(readings(), key="sensor", time="time", lag="0s")
    recording = tmp_path / "readings.csv"
    recording.write_text(
        "sensor,time,value\n" + "".join("{sensor},{time},{value}\n".format(**row) for row in readings())
    )
    seen: dict[int, dict[str, Any]] = {}
    failures = 0

    class Lost(ListSink):
        async def write(self, batch: Batch) -> None:
            assert batch.sequence is not None
            for number, row in zip(batch.sequence.tolist(), batch.to_rows(), strict=True):
                assert seen.setdefault(number, row) == row
            await super().write(batch)
            if len(self.batches) == 2 + failures:
                raise tm.OutsideError("away")

    def run(sink: ListSink) -> tm.Report:
        source = tm.sources.Replay(recording)
        return tm.run(tm.Pipeline(source, plan(), sink, lag="0s"), lanes=lanes, state=tmp_path / "state")

    while failures < 4:
        with pytest.raises(tm.OutsideError, match="away"):
            run(Lost())
        failures += 1
    last = ListSink()
    assert run(last).in_flight == 0
    assert [seen.get(number) for number in range(2)] == whole[:2]
    assert last.rows == whole[-len(last.rows) :]
    assert max(seen) >= len(whole) - len(last.rows) - 1


@pytest.mark.usefixtures("small_pieces")
def test_no_commit_comes_between_the_pieces_of_a_slab(
    tmp_path: Path, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often one is due: a sink that commits some of a slab's rows with the position before it would get them twice."""
    rows_up_to: dict[int, int] = {}
    commits: list[tuple[int, int]] = []
    savings: list[Saving] = []
    emit, emit_piece, commit, begun = Outflow.emit, Finishing._emit_piece, Saving._commit, Saving.__init__

    def begins(self: Saving, *arguments: Any) -> None:
        begun(self, *arguments)
        savings.append(self)

    def emits(self: Outflow, finished: Finished, *, learned: bool) -> None:
        emit(self, finished, learned=learned)
        rows_up_to[finished.position] = self.rows

    def emits_piece(self: Finishing, number: int, slab: Any, batch: Batch, made: int, leaving: Any) -> None:
        emit_piece(self, number, slab, batch, made, leaving)
        if not leaving.is_whole:
            savings[-1].epochs._commits_ns = -(1 << 62)  # due again
            savings[-1].turn()

    def commits_up_to(self: Saving, position: int) -> None:
        commits.append((position, self._attempt.outflow.rows))
        commit(self, position)

    for kind, name, wrapped in (
        (Saving, "__init__", begins),
        (Outflow, "emit", emits),
        (Finishing, "_emit_piece", emits_piece),
        (Saving, "_commit", commits_up_to),
    ):
        monkeypatch.setattr(kind, name, wrapped)
    whole = plan().apply(readings(), key="sensor", time="time", lag="0s")
    recording = tmp_path / "readings.csv"
    recording.write_text(
        "sensor,time,value\n" + "".join("{sensor},{time},{value}\n".format(**row) for row in readings())
    )
    sink = tm.sinks.SQLite(tmp_path / "rows.db")
    source = tm.sources.Replay(recording)
    tm.run(tm.Pipeline(source, plan(), sink, lag="0s"), lanes=lanes, state=tmp_path / "state")
    assert commits
    for position, rows in commits:
        assert rows == max((put for up_to, put in rows_up_to.items() if up_to <= position), default=0)
    assert max(rows_up_to.values()) == len(whole)


# -- when a stop has no time for them ------------------------------------------------------------------------


class StopsAt(ListSink):
    """Asks to stop with a batch, and is through with it when the grace is over."""

    def __init__(self, batch: int, caplog: pytest.LogCaptureFixture) -> None:
        super().__init__()
        self.batch, self.caplog = batch, caplog
        self.run: Any = None

    async def write(self, batch: Batch) -> None:
        if len(self.batches) == self.batch:
            self.run.stop_soon()
            while "the grace of 0 s is over" not in self.caplog.text:  # noqa: ASYNC110 - the log has no event
                await asyncio.sleep(0)
        await super().write(batch)


async def stopped(source: Any, plan: tm.Plan, sink: StopsAt, *others: Any, **options: Any) -> tm.Report:
    async with tm.serve(tm.Pipeline(source, plan, [sink, *others], lag="0s"), grace=0, **options) as sink.run:
        return await sink.run.wait()


@pytest.mark.usefixtures("small_pieces")
def test_rows_that_a_stop_has_no_time_for_are_counted(
    tmp_path: Path, lanes: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All records are done, and most rows of the window that ends with the input are not: the run is unfinished, its sinks are whole."""
    monkeypatch.setattr(assembly, "MADE_AT_ONCE", 3)
    one_step = tm.Plan(tm.Aggregate(tm.tumbling("1h"), {"value": ["mean", "count"]}))
    whole = one_step.apply(readings(), key="sensor", time="time", lag="0s")
    sink, table = StopsAt(1, caplog), tm.sinks.SQLite(tmp_path / "rows.db", table="rows")
    report = asyncio.run(stopped(tm.sources.Records(readings()), one_step, sink, table, lanes=lanes))
    assert sink.rows == whole[: len(sink.rows)]
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as database:
        assert database.execute("SELECT count(*) FROM rows").fetchone() == (len(sink.rows),)
    assert (report.absorbed, report.in_flight, report.gave_up) == (len(readings()), 0, True)
    assert (report.rows_out, report.rows_given_up) == (len(sink.rows), len(whole) - len(sink.rows))
    assert f"gave up {report.rows_given_up} rows on their way to sinks" in caplog.text
    assert report.rows_given_up
    assert ended(report) == ExitCode.UNFINISHED
    assert f"given up on their way to sinks: {report.rows_given_up} rows\n" in summary(report)


@pytest.mark.usefixtures("small_pieces")
def test_a_step_that_a_stop_has_cut_in_two_comes_whole_from_the_next_start(
    tmp_path: Path, lanes: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it was committed: the table has each row once."""
    monkeypatch.setattr(assembly, "MADE_AT_ONCE", 3)
    whole = plan().apply(readings(), key="sensor", time="time", lag="0s")
    recording = tmp_path / "readings.csv"
    recording.write_text(
        "sensor,time,value\n" + "".join("{sensor},{time},{value}\n".format(**row) for row in readings())
    )
    options: dict[str, Any] = {"lanes": lanes, "state": tmp_path / "state"}
    table = tm.sinks.SQLite(tmp_path / "rows.db", table="rows")
    first = asyncio.run(stopped(tm.sources.Replay(recording), plan(), StopsAt(1, caplog), table, **options))
    assert first.gave_up
    assert "which the next start" in caplog.text
    last = tm.run(
        tm.Pipeline(tm.sources.Replay(recording), plan(), [ListSink(), table], lag="0s"),
        **options,
    )
    assert (last.in_flight, last.gave_up) == (0, False)
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as database:
        rows = database.execute("SELECT sensor, window_end, value_mean FROM rows").fetchall()
    assert rows == [(row["sensor"], row["window_end"], row["value_mean"]) for row in whole]
