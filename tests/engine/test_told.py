"""What a run tells in its log, once: its columns, and why nothing comes through."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.engine.test_pages import reading, send
from tests.sinks.line_servers import Post, take, web_server

import tidemill as tm
from tidemill.core.rejections import Rejections
from tidemill.engine.reading import SourceReader
from tidemill.testing import ManualClock


def told(caplog, word):
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


def test_learned_columns_are_told_once(tmp_path, lanes, caplog):
    """Once a record has shown what the functions add; not when all was known before the run."""
    rows = [{"sensor": f"S{n % 3}", "time": n, "value": 1.0} for n in range(2_000)]
    with caplog.at_level(logging.INFO, "tidemill"):
        for plan in (
            tm.Map(lambda batch: {"x": batch["value"]}),
            tm.Map(lambda b: {"x": b["value"]}, adds={"x": float}),
        ):
            tm.run(tm.Pipeline(tm.sources.Records(rows), plan, tm.sinks.Latest()), lanes=lanes)
    assert told(caplog, "columns") == ["the columns are: sensor: text, time: float, value: float, x: float"]


def test_names_of_columns_are_whatever_somebody_sent(caplog: pytest.LogCaptureFixture) -> None:
    """Each can be told from what is said of it, and a line holds no more than one can read."""
    row = {"sensor": "S", "nan: float, x": 1.0, "a\x1b[2J" + "b" * 40_000: 2.0, "a": 3.0}
    many = row | {f"a column {number}": number for number in range(900)}
    with caplog.at_level(logging.INFO, "tidemill"):
        for one in (row, many):
            pipeline = tm.Pipeline(tm.sources.Records([one]), tm.Map(lambda b: {"x": b["a"]}), tm.sinks.Latest())
            tm.run(pipeline, lanes=0)
    few, cut = told(caplog, "columns")
    assert few == (
        r"the columns are: sensor: text, 'nan: float, x': float, 'a\x1b[2J" + "b" * 75 + "…': float, a: float, x: float"
    )
    assert len(cut) < 2_100
    assert cut.endswith("…")


async def test_what_a_run_begins_with_is_not_told_again_by_each_try_of_a_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither its columns nor where it goes on, which are what they were."""
    monkeypatch.setattr("tidemill.sinks.connecting.PATIENCE_S", 0.0)
    monkeypatch.setattr("tidemill.engine.setbacks._BACK_OFF_S", (0.001, 0.01))
    left = [0]

    def answer(post: Post) -> Any:
        left[0] -= 1
        return take(post) if left[0] < 0 else (503, {}, b"")

    caplog.set_level(logging.INFO, "tidemill")
    source, plan = tm.sources.TCP(), tm.Plan(tm.Map(lambda b: {"x": b["value"]}))
    with web_server(answer) as server:
        state = tm.State(tmp_path / "state", checkpoint_s=0.01)
        async with tm.serve(tm.Pipeline(source, plan, tm.sinks.HTTP(server.url)), lanes=0, state=state) as run:
            for tries in (0, 5):
                left[0] = tries
                checkpoint = run.statistics().state.checkpoint
                await send(source, reading(tries))
                while run.statistics().state.checkpoint == checkpoint:  # noqa: ASYNC110 - they come without a word
                    await asyncio.sleep(0.001)
    assert len([line for line in told(caplog, "Once more") if "503" in line]) >= 3
    assert len(told(caplog, "resumed behind")) == 1
    assert len(told(caplog, "the columns are")) == 1


@pytest.mark.parametrize(("bad", "first"), [(250, "the first 100 records were all"), (30, "all 30 records were")])
def test_a_run_that_rejects_everything_says_what_to_type(tmp_path, lanes, caplog, bad, first):
    """At the hundredth record, or at the end of fewer: the fields seen, and the key= and time= to try; once."""
    rows = ({"station": "S", "when": n, "value": 1.0} for n in range(bad))
    pipeline = tm.Pipeline(tm.sources.Records(rows), tm.Plan(), tm.sinks.Latest())
    with caplog.at_level(logging.WARNING, "tidemill"):
        report = tm.run(pipeline, lanes=lanes, dead_letters=tmp_path / "dead.ndjson")
    assert report.dead_letters == report.records_in == bad
    (message,) = told(caplog, "rejected")
    assert message.startswith(f"{first} rejected: source records: ")
    assert "The fields seen are: station, when, value." in message
    assert "key='station', time='when'" in message


async def test_a_source_that_rejects_a_few_says_it_while_it_goes_on(caplog):
    """Ten seconds after the first, by the clock that it is given; once."""
    clock, stopping, came = ManualClock(), asyncio.Event(), asyncio.Event()

    async def records():
        yield {"station": "S", "when": 1}
        await stopping.wait()

    async def give(batch):
        assert not batch

    source = tm.sources.Records(records())
    reader = SourceReader(clock, lambda _: None, stopping)
    reading = asyncio.ensure_future(reader.read(source, give=give, refuse=lambda _: came.set()))
    await came.wait()
    for _ in range(20):
        reader.look()
        clock.advance(1)
    (message,) = told(caplog, "rejected")
    assert message.startswith("the first record was rejected: source records: the record has no field 'sensor'")
    stopping.set()
    await reading
    assert len(told(caplog, "rejected")) == 1


def test_a_run_that_rejects_some_says_nothing(tmp_path, caplog):
    """Bad records among good ones are counted, and that is all."""
    rows = [{"sensor": "S", "time": 1}, *({"value": 1.0} for _ in range(250))]
    with caplog.at_level(logging.WARNING, "tidemill"):
        tm.run(
            tm.Pipeline(tm.sources.Records(rows), tm.Plan(), tm.sinks.Latest()),
            lanes=0,
            dead_letters=tmp_path / "dead.ndjson",
        )
    assert told(caplog, "rejected") == []


async def heard_by(source: tm.sources.TCP, *lines: bytes) -> None:
    """The source has read what one connection sent."""
    stopping, came = asyncio.Event(), 0

    async def give(batch):
        nonlocal came
        came += len(batch)
        if came == len(lines):
            stopping.set()

    reader = SourceReader(ManualClock(), lambda _: None, stopping)
    reading = asyncio.ensure_future(reader.read(source, give=give, refuse=lambda letter: pytest.fail(letter.reason)))
    async with asyncio.timeout(120):
        _, writer = await asyncio.open_connection(*await source.wait_listening())
        writer.write(b"".join(lines))
        await reading
    writer.close()


PUMPS = [b'{"pump":"P%d","time":%d,"value":1.5,"unit":"bar"}\n' % (n % 3, n) for n in range(90)]


async def test_sensors_that_are_taken_for_one_are_told_once(caplog):
    """A tidemill that sends its rows calls the sensor otherwise: the field that tells them apart, and what to type."""
    await heard_by(tm.sources.TCP(), *PUMPS)
    (message,) = told(caplog, "taken for one")
    assert message == (
        "source tcp: the records have no field 'sensor', so all of one connection are taken for one sensor's, though there are "
        "several in their field 'pump': 'P0', 'P1', 'P2'. If that is the sensor, say key='pump'; if not, say key='{peer}'. "
        "The fields seen are: pump, time, value, unit."
    )


@pytest.mark.parametrize("key", ["pump", "{peer}"])
async def test_whoever_says_whose_the_records_are_is_not_doubted(caplog, key):
    """Not even where all of a connection are to be one sensor's."""
    await heard_by(tm.sources.TCP(key=key), *PUMPS)
    assert told(caplog, "source") == []


async def test_what_comes_is_counted_whole_while_the_records_of_others_enter_in_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the letters of a sound source would seem to be most of its records."""
    came: Counter[str] = Counter()

    def count(self: Rejections, records: int, source: str) -> None:
        came[source] += records

    monkeypatch.setattr(Rejections, "came", count)
    strangers = [{"sensor": f"s{number}", "time": number, "value": 1.0} for number in range(3_000)]
    sound = [{"sensor": "a", "time": number, "value": 1.0} for number in range(3_000)]
    pipeline = tm.Pipeline(
        [tm.sources.Records(iter(strangers), name="strangers"), tm.sources.Records(iter(sound), name="sound")],
        tm.Plan(),
        tm.sinks.Callback(len),
        max_keys=1,
    )
    async with tm.serve(pipeline, lanes=0, state=False, dead_letters=tmp_path / "dead.ndjson") as run:
        report = await run.wait()
    assert came == {"strangers": 3_000, "sound": 3_000}
    assert report.records_in == 6_000
