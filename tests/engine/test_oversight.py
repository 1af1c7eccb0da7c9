"""A run that is overseen: what it bears, what it does about it, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.sinks.line_servers import Post, take, web_server
from tests.sources.test_mqtt import Publisher
from tests.web import asked

import tidemill as tm
from tidemill.engine import oversight
from tidemill.testing import ManualClock


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks that need not be waited for."""
    monkeypatch.setattr(oversight, "LOOK_S", 0.005)


def reading(number: int) -> bytes:
    return json.dumps({"sensor": f"s{number % 3}", "time": 1_700_000_000 + number, "value": float(number)}).encode()


async def send(source: tm.sources.TCP, *lines: bytes) -> None:
    await source.wait_listening()
    _, writer = await asyncio.open_connection(*source.address)
    writer.write(b"".join(line + b"\n" for line in lines))
    writer.close()
    await writer.wait_closed()


def live(source: Any, sink: Any = None) -> tm.Pipeline:
    return tm.Pipeline(source, tm.Plan(), sink or tm.sinks.Latest(), name="plant")


async def ended(pipeline: tm.Pipeline, act: Callable[[Any], Awaitable[None]], **options: Any) -> tm.TidemillError:
    """Why a run ended itself, in which ``act`` happens, and then nothing more."""

    async def whole() -> None:
        async with tm.serve(pipeline, **{"lanes": 0, **options}) as run:
            await act(run)
            await asyncio.Event().wait()

    with pytest.raises(tm.TidemillError) as caught:
        await whole()
    return caught.value


# -- stalls ------------------------------------------------------------------------------------------------------


async def test_a_sink_that_takes_nothing_ends_the_run_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Though it never comes back from the call, and the way out meets with it again. What is given up are rows: no record is in
    flight any more."""
    clock, source = ManualClock(), tm.sources.TCP()

    async def take(_: tm.Batch) -> None:
        await asyncio.Event().wait()

    async def act(run: Any) -> None:
        await send(source, reading(1))
        while not run.statistics().sink_flows[0].waiting:  # noqa: ASYNC110 - records come without a word
            await asyncio.sleep(0)
        clock.advance(61.0)

    pipeline = live(source, tm.sinks.Callback(take, name="screen"))
    error = await ended(pipeline, act, state=False, clock=clock, stall_after=60, grace=0.0)
    assert isinstance(error, tm.Stalled)
    assert str(error) == (
        "the run does not progress, and ends itself: sink screen: 1 batch waits, the oldest for 61 s (limit 60)."
    )
    told = [record.getMessage() for record in caplog.records if "grace" in record.getMessage()]
    assert told == ["the grace of 0 s is over: gave up rows on their way to sinks"]


async def test_a_sink_that_is_away_ends_the_run_and_is_named_with_its_tries(
    tmp_path: Path, lanes: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also before it has given up trying by itself, and not the checkpoint that waits for it. The report says what is left."""
    for module in ("outlets", "process_outlet"):
        monkeypatch.setattr(f"tidemill.engine.{module}.CLOSE_S", 0.05)
    clock, source = ManualClock(), tm.sources.TCP()

    async def act(run: Any) -> None:
        await send(source, reading(1))
        while not run.statistics().sink_flows[0].waiting:  # noqa: ASYNC110 - records come without a word
            await asyncio.sleep(0.001)
        clock.advance(1.1)  # rows are committed by it
        while (trouble := run.statistics().sink_flows[0].trouble) is None or trouble.tries < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        clock.advance(5.1)

    options: Any = {"clock": clock, "state": tmp_path / "state", "grace": 0.0, "lanes": lanes}
    options["report"] = tmp_path / "report.json"
    pipeline = live(source, tm.sinks.HTTP("http://127.0.0.1:1/rows", name="hub"))
    error = await ended(pipeline, act, stall_after=5, **options)
    assert isinstance(error, tm.Stalled)
    assert re.fullmatch(
        r"the run does not progress, and ends itself: sink hub: \d+ tries, "
        r"http://127\.0\.0\.1:1/rows cannot be reached: Connection refused\.",
        str(error),
    )
    report = json.loads((tmp_path / "report.json").read_text())
    told = ("records_in", "rows_out", "sinks", "position", "behind", "log_waiting")
    assert [report[name] for name in told] == [1, 1, {"hub": 0}, 0, 1, 0]
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_silence_is_a_stall_only_when_it_is_asked_for() -> None:
    """A plant may have its quiet hours."""
    clock = ManualClock()
    async with tm.serve(live(tm.sources.TCP()), lanes=0, state=False, clock=clock, stall_after=60) as run:
        clock.advance(1_000.0)
        for _ in range(3):
            run._oversight.look()
        assert not run.statistics().stopping

    source = tm.sources.TCP()

    async def act(_: Any) -> None:
        await source.wait_listening()
        clock.advance(61.0)

    error = await ended(live(source), act, state=False, clock=clock, silent_after=60)
    assert str(error).endswith(" source tcp: connected, silent 61 s (limit 60).")


async def test_a_run_that_ends_itself_writes_what_it_has_and_its_report(tmp_path: Path) -> None:
    """It is a stop like any other: what was taken in is finished."""
    clock, source = ManualClock(), tm.sources.TCP()

    async def act(run: Any) -> None:
        await send(source, *map(reading, range(100)))
        while run.statistics().records_in < 100:  # noqa: ASYNC110 - records come without a word
            await asyncio.sleep(0)
        clock.advance(61.0)

    options: Any = {"clock": clock, "state": tmp_path / "state", "report": tmp_path / "report.json"}
    assert isinstance(await ended(live(source), act, silent_after=60, **options), tm.Stalled)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rows_out"] == 100
    assert report["position"] == 100


async def test_a_broker_that_has_gone_quiet_is_connected_to_anew_and_then_given_up(
    mosquitto: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the sentence of the source; what comes over a new connection counts as progress."""
    clock = ManualClock()
    source = tm.sources.MQTT(mosquitto.url, topics=["quiet/{sensor}"], client_id="quiet", name="mqtt")
    publisher = Publisher(mosquitto.port)

    async def connected_anew() -> None:
        source._subscribed.clear()
        clock.advance(312.0)
        await source.wait_subscribed()

    async def act(run: Any) -> None:
        await source.wait_subscribed()
        for number in range(2):
            await connected_anew()
            publisher.publish("quiet/a", number)
            await publisher.published()
            while run.statistics().records_in <= number:  # noqa: ASYNC110 - records come without a word
                await asyncio.sleep(0)
            run._oversight.look()  # as it does each second, of which our clock leaves out three hundred
        await connected_anew()
        clock.advance(301.0)

    error = await ended(live(source), act, clock=clock, state=tmp_path / "state", silent_after=300)
    publisher.close()
    assert str(error).endswith(" source mqtt: connected, silent 613 s (limit 300), and connecting anew has not helped.")
    assert caplog.text.count("source mqtt: connected, silent 312 s (limit 300): connecting anew") == 3


# -- the log -----------------------------------------------------------------------------------------------------


async def test_a_run_that_is_not_well_says_so_once_a_minute_and_once_when_it_is_over(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of its health."""
    monkeypatch.setattr(oversight, "LOOK_S", 1_000.0)  # it is looked at by hand
    caplog.set_level("INFO", "tidemill")
    clock, source = ManualClock(), tm.sources.TCP()
    async with tm.serve(live(source), lanes=0, state=False, clock=clock) as run:
        for _ in range(302 + 150):
            clock.advance(1.0)
            run._oversight.look()
        await send(source, reading(1))
        while run.statistics().records_in < 1:  # noqa: ASYNC110 - records come without a word
            await asyncio.sleep(0)
        run._oversight.look()
    told = [record.getMessage() for record in caplog.records if "well" in record.getMessage()]
    assert told == [
        "not well: source tcp: connected, silent 301 s (limit 300)",
        "not well for 60 s: source tcp: connected, silent 361 s (limit 300)",
        "not well for 120 s: source tcp: connected, silent 421 s (limit 300)",
        "well again after 151 s",
    ]


# -- dead letters ------------------------------------------------------------------------------------------------


def untyped(number: int) -> bytes:
    """As a device writes whose firmware was changed."""
    return json.dumps({"sensor": "pump\n7", "time": 1_700_000_000 + number, "value": {"v": number}}).encode()


async def test_too_many_dead_letters_turn_the_run_unready_and_end_it(tmp_path: Path, lanes: int) -> None:
    """It says why and of which sensor; the page, which anybody may read, names no sensor. What was good is written."""
    clock, source = ManualClock(), tm.sources.TCP(columns={"value": float})
    held, said_by = asyncio.Event(), dict[str, str]()

    async def take(_: tm.Batch) -> None:
        await held.wait()

    async def whole() -> None:
        sink = tm.sinks.Callback(take)
        options: Any = {"state": tmp_path / "state", "max_dead": "50%/60s", "metrics": "127.0.0.1:0"}
        async with tm.serve(live(source, sink), lanes=lanes, clock=clock, **options) as run:
            await send(source, *map(reading, range(20)))
            await dead(run, 0)
            clock.advance(60.0)
            run._oversight.look()
            await send(source, *map(untyped, range(31)))
            await dead(run, 31)
            run._oversight.look()
            for path in ("readyz", "healthz", "metrics"):
                said_by[path] = await asyncio.to_thread(page, f"{run.metrics_url}/{path}")
            held.set()
            await asyncio.Event().wait()

    async def dead(run: Any, count: int) -> None:
        while run.statistics().dead_letters < count or run.statistics().records_in < 20:  # noqa: ASYNC110
            await asyncio.sleep(0)
        run._oversight.look()

    with pytest.raises(tm.TooManyDead) as caught:
        await whole()
    said = "31 of 51 records of the last 60 s are dead letters (limit 50 %), 31 of them wrong_type"
    assert str(caught.value) == f"{said}, and the run ends itself; at least 31 of these are of sensor 'pump\\n7'."
    assert said_by["readyz"] == said_by["healthz"] == f"503 {said}\n"
    assert "\ntidemill_progressing 0.0\n" in said_by["metrics"]


async def test_a_dead_letter_counts_once_however_often_a_sink_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt comes to it again, since the last checkpoint is before it."""
    monkeypatch.setattr("tidemill.sinks.connecting.PATIENCE_S", 0.0)
    tries = [4]

    def answer(post: Post) -> Any:
        tries[0] -= 1
        return take(post) if tries[0] < 0 else (503, {}, b"")

    source = tm.sources.TCP()
    with web_server(answer) as server:
        pipeline = live(source, tm.sinks.HTTP(server.url))
        state = tm.State(tmp_path / "state", checkpoint_s=0.05)
        async with tm.serve(pipeline, lanes=0, state=state, max_dead="100/60s") as run:
            await send(source, *[b"no json"] * 60, reading(1))
            async with asyncio.timeout(120):
                while not server.taken:  # noqa: ASYNC110 - it is another thread's
                    await asyncio.sleep(0)
            assert run.statistics().dead_letters == 60
    assert len(server.posts) == 5


async def test_a_run_that_ends_itself_acknowledges_what_is_on_the_disk_and_nothing_else(tmp_path: Path) -> None:
    """The next run works on what was not acknowledged; here, all that was is in the dead letters or the sink."""
    source = tm.sources.TCP(columns={"value": float}, ack=True)
    said = b""

    async def act(_: Any) -> None:
        nonlocal said
        reader, writer = await asyncio.open_connection(*await source.wait_listening())
        for number in range(200):
            writer.write((untyped(number) if number % 2 else reading(number)) + b"\n")
        said = await reader.read()
        writer.close()

    options: Any = {"state": tmp_path / "state", "report": tmp_path / "report.json", "max_dead": "50/60s"}
    assert isinstance(await ended(live(source), act, **options), tm.TooManyDead)
    report = json.loads((tmp_path / "report.json").read_text())
    acknowledged = int(said.split()[-1])
    assert 100 < acknowledged <= report["records_in"] == report["position"]
    assert report["rows_out"] + report["dead_letters"] == report["records_in"]
    assert report["in_flight"] == 0


def page(url: str) -> str:
    return "{} {}".format(*asked(url))


def test_what_is_no_bound_of_dead_letters_is_refused() -> None:
    """Before anything runs."""
    with pytest.raises(tm.PlanError, match="max_dead='half' must be a share below 100 % or a number"):
        tm.run(live(tm.sources.TCP()), max_dead="half")


# -- terms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["stall_after", "silent_after"])
def test_no_time_at_all_is_refused(option: str) -> None:
    """Before anything runs."""
    with pytest.raises(tm.PlanError, match=f"{option}=0 must be more than 0 seconds"):
        tm.run(live(tm.sources.TCP()), **{option: 0})
