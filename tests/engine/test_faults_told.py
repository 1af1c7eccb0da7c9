"""Faults of a real run: what its pages say meanwhile names the cause.

Databases that are away, sources that are silent and loops that are held are in ``test_pages.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.small_plants import small_disk
from tests.engine.test_pages import ANYWHERE, ask_until, live, reading, send, told

import tidemill as tm
from tidemill.engine import oversight
from tidemill.engine.dead_letters import DeadLetterFile
from tidemill.testing import ManualClock


async def test_sensors_that_fall_silent_are_counted_beside_those_that_go_on() -> None:
    """A gateway that has lost half of its devices is connected, and gives records."""
    clock, source = ManualClock(), tm.sources.TCP()
    async with tm.serve(live(source), lanes=0, state=False, clock=clock, metrics=ANYWHERE) as run:
        await send(source, *map(reading, range(3)))
        for number in range(30):
            while run.statistics().records_in < 3 + number:  # noqa: ASYNC110 - records come without a word
                await asyncio.sleep(0)
            clock.advance(20.0)
            run._watched()
            await send(source, reading(3 * number))
        await ask_until(run, "/healthz?verbose", lambda _, text: "33 records in" in text)
        counts = await told(run)
        assert counts["tidemill_sensors", ""] == 3
        assert counts["tidemill_sensors_live", ""] == 1
        assert counts["tidemill_sensors_silent", ""] == 2


async def test_a_source_that_gives_nothing_but_dead_letters_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After records that were good, so that the columns are known: the run progresses, but nobody shall find out in the
    morning. The page shows no word that came from outside."""
    monkeypatch.setattr(oversight, "LOOK_S", 3_600)  # the one look is that of the test, when all have come
    source, letters = tm.sources.TCP(), tmp_path / "dead.ndjson"
    async with tm.serve(live(source), lanes=0, state=False, dead_letters=letters, metrics=ANYWHERE) as run:
        await send(source, *map(reading, range(50)))
        while run.statistics().records_in < 50:  # noqa: ASYNC110 - records come without a word
            await asyncio.sleep(0)
        await send(source, *[b'{"sensor": "s1", "time": 1700000100, "value": "c4nary"}'] * 300)
        text = await ask_until(run, "/healthz?verbose", lambda _, text: "350 records in" in text)
        run._oversight.look()
        text = await ask_until(run, "/healthz?verbose", lambda status, _: status == 200)
    verdict, strained, *_, of_source, _ = text.splitlines()
    assert verdict == "the run progresses"
    assert strained == "source tcp: 300 of the last 350 records are dead letters, 300 of them wrong_type"
    assert of_source.startswith("source tcp: connected, 50 records, 300 rejected, the last ")
    assert "c4nary" not in text
    (line,) = [record for record in caplog.records if record.getMessage() == f"not well: {strained}"]
    assert line.newest_dead_letter.startswith("field 'value' is float and this record has str; columns=")


async def test_a_full_file_of_dead_letters_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as the run lasts, and not in a line of the log alone."""
    monkeypatch.setitem(DeadLetterFile.__init__.__kwdefaults__, "max_bytes", 2_000)
    source = tm.sources.TCP()
    async with tm.serve(
        live(source), lanes=0, state=False, dead_letters=tmp_path / "dead.ndjson", metrics=ANYWHERE
    ) as run:
        await send(source, b"no json")
        said = "dead letters: their file is full; further ones are counted, and the newest of them written at the end\n"
        assert said not in await ask_until(run, "/healthz?verbose", lambda _, text: "1 dead letter," in text)
        await send(source, *[b"no json"] * 100)
        await ask_until(run, "/healthz?verbose", lambda _, text: said in text)


def unsure(columns: dict[str, Any]) -> dict[str, Any]:
    if (columns["value"] >= 5).any():
        raise ValueError("no such pump")
    return {"rate": columns["value"]}


def unsure_of_some(columns: dict[str, Any]) -> dict[str, Any]:
    if (columns["value"] % 3 == 0).any():
        raise ValueError("no such pump c4nary")
    return {"rate": columns["value"]}


async def test_a_function_that_raises_on_one_record_in_three_is_told_of(
    tmp_path: Path, lanes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """By its name and a count, on a page and in a line of the log, where the newest reason is too."""
    source = tm.sources.TCP()
    plan = tm.Plan(tm.Map(unsure_of_some, adds={"rate": float}, name="rate"))
    pipeline = tm.Pipeline(source, plan, tm.sinks.Latest())
    letters = tmp_path / "dead.ndjson"
    async with tm.serve(pipeline, lanes=lanes, state=False, dead_letters=letters, metrics=ANYWHERE) as run:
        await send(source, *map(reading, range(30)))
        while run.statistics().rows_out < 20 or run.statistics().dead_letters < 10:  # noqa: ASYNC110
            await asyncio.sleep(0)
        run._oversight.look()
        text = await ask_until(run, "/healthz?verbose", lambda status, _: status == 200)
    assert text.startswith("the run progresses\n")
    assert "\nstage rate: 10 dead letters, raised\n" in text
    assert "c4nary" not in text
    lines = [record for record in caplog.records if record.getMessage().startswith("stage rate: ")]
    assert ["no such pump c4nary" in line.newest_dead_letter for line in lines] == [True] * max(len(lines), 1)


async def test_a_stage_that_refuses_the_rows_that_another_makes_is_named(tmp_path: Path, lanes: int) -> None:
    """Though they are no records: ten are made of each record, and all are good until something changes."""
    source = tm.sources.TCP()
    stages = [tm.Resample("value", "100ms", max_gap="200s"), tm.Map(unsure, adds={"rate": float}, name="rate")]
    pipeline = tm.Pipeline(source, stages, tm.sinks.Latest(), lag=0)
    async with tm.serve(pipeline, lanes=lanes, state=False, dead_letters=tmp_path / "dead.ndjson") as run:
        found: dict[bool, tuple[str, ...]] = {}
        for bad in (False, True):
            record = b'{"sensor": "s", "time": %d, "value": %d}'
            numbers = range(5 * bad, 5 + 10 * bad)
            await send(source, *[record % (1_700_000_000 + number, 5 * bad) for number in numbers])
            while run.statistics().counters.get("dead_rows", 0) < 81 * bad or run.statistics().rows_out < 30:  # noqa: ASYNC110 - rows come without a word
                await asyncio.sleep(0)
            run._oversight.look()
            found[bad] = tuple(one.said for one in run.statistics().mostly_dead)
    assert found[False] == ()
    (said,) = found[True]
    assert said.startswith("stage rate: ")
    assert "rows are dead letters, " in said
    assert said.endswith(" of them raised")


async def test_a_full_disk_below_a_sink_is_named(tmp_path: Path) -> None:
    """With the tries, as long as it lasts; then it is forgotten, and nothing is missing, nor was it said to be lost."""
    with small_disk(tmp_path / "disk") as disk:
        source, sink = tm.sources.TCP(), tm.sinks.SQLite(disk.place / "out.db", name="features")
        async with tm.serve(live(source, sink), lanes=0, state=tmp_path / "state", metrics=ANYWHERE) as run:
            await send(source, *map(reading, range(10)))
            while not (await told(run))["tidemill_sink_records_total", "features"]:
                pass
            await asyncio.to_thread(disk.fill)
            await send(source, *map(reading, range(10, 2_000)))
            text = await ask_until(run, "/healthz?verbose", lambda status, _: status == 503)
            assert text.startswith("sink features: ")
            assert re.fullmatch(
                r"sink features: .*, The disk is full: SQLite could not write to .*/out\.db", text.splitlines()[0]
            )
            assert "the sink features is the limit: nothing gets through" in text
            counts = await told(run)
            assert counts["tidemill_progressing", ""] == counts["tidemill_ready", ""] == 0
            assert counts["tidemill_tries", ""] >= 1
            await asyncio.to_thread(disk.empty)
            await ask_until(run, "/healthz", lambda status, _: status == 200)
        assert run.report is not None
        assert run.report.position == 2_000


WIDE = [b'{"sensor": "a", "value": 1, "more": "%d%s"}' % (number, b"x" * 2_000) for number in range(2_000)]
"""Of two kilobytes each, so that few fill a small log."""


@contextlib.asynccontextmanager
async def behind_a_standing_sink(state: Path) -> AsyncIterator[tuple[Any, tm.sources.TCP, asyncio.Event]]:
    """A run whose log takes 500 of the wide lines, and whose sink takes nothing until the event is set."""
    source, going = tm.sources.TCP(), asyncio.Event()

    async def take(_: tm.Batch) -> None:
        await going.wait()

    pipeline = live(source, tm.sinks.Callback(take, name="screen"))
    small = tm.State(state, log_max_bytes=1 << 20, log_min_free=0)
    async with tm.serve(pipeline, lanes=0, state=small, metrics=ANYWHERE) as run:
        try:
            for sent in range(0, 480, 10):
                await send(source, *WIDE[sent : sent + 10])
                while run.statistics().source_flows[0].records < sent + 10:  # noqa: ASYNC110 - they come without a word
                    await asyncio.sleep(0)
            yield run, source, going
        finally:
            going.set()


async def test_a_log_that_fills_up_is_told_before_it_is_full_and_when_it_is(tmp_path: Path) -> None:
    """While a sink takes nothing; how much is left, and then what would make room."""
    async with behind_a_standing_sink(tmp_path / "state") as (run, source, going):
        text = await ask_until(run, "/healthz", lambda _, text: "ingest log: 9" in text)
        assert text.startswith("the run progresses\n")
        assert "% full; what is left is 0." in text
        counts = await told(run)
        assert counts["tidemill_log_full", ""] == 0
        assert 0 < counts["tidemill_log_seconds_left", ""] < float("inf")
        _, writer = await asyncio.open_connection(*source.address)
        try:
            writer.write(b"\n".join(WIDE[1_000:1_100]) + b"\n")
            text = await ask_until(run, "/healthz", lambda _, text: "ingest log: full" in text)
            assert text.endswith(
                "ingest log: full, so sources wait: 1048576 bytes are in it (log_max_bytes), and the sinks are behind\n"
            )
            assert (await told(run))["tidemill_log_full", ""] == 1
            going.set()
            await ask_until(run, "/healthz", lambda _, text: "ingest log" not in text)
            assert (await told(run))["tidemill_log_full", ""] == 0
        finally:
            writer.close()


async def test_a_log_that_is_nearly_full_is_emptied_though_no_more_comes(tmp_path: Path) -> None:
    """It keeps what the third last checkpoint needs, and with no input none would come to take its place."""
    async with behind_a_standing_sink(tmp_path / "state") as (run, _, going):
        await ask_until(run, "/healthz", lambda _, text: "ingest log: 9" in text)
        going.set()
        await ask_until(run, "/healthz", lambda _, text: "ingest log" not in text)
        assert run.statistics().records_in == 480


def strikes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Poison: the process ends."""
    if any(row["value"] < 0 for row in rows):
        os._exit(3)
    return rows


async def test_a_lane_that_is_lost_over_and_over_is_named_and_so_is_what_became_of_its_records(tmp_path: Path) -> None:
    """All others go through."""
    source = tm.sources.TCP()
    pipeline = tm.Pipeline(source, tm.Plan(tm.MapRows(strikes)), tm.sinks.Latest(), name="plant")
    options: Any = {"lanes": 1, "state": tmp_path / "state", "metrics": ANYWHERE}
    async with tm.serve(pipeline, dead_letters=tmp_path / "dead.ndjson", **options) as run:
        for number in range(2):
            await send(source, reading(number), b'{"sensor": "p", "time": 1, "value": -1}')
            while run.statistics().dead_letters <= number:  # noqa: ASYNC110 - letters come without a word
                await asyncio.sleep(0)
        text = await ask_until(run, "/healthz", lambda _, text: " 4 times " in text)
        assert text == (
            "the run progresses\nlane 0: its process was lost 4 times within 60 s; "
            "the dead letters say to which records, or the log to what else\n"
        )
        counts = await told(run)
        assert counts["tidemill_lane_restarts_total", "0"] == 4
        assert counts["tidemill_dead_total", "killed_lane"] == 2
