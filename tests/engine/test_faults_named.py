"""Every fault that the tests induce, looked at while it lasts: ``/healthz`` names who it is, and ``/metrics`` shows it.

Here are those that are looked at nowhere else. A database that is away, a sink that takes nothing, a source that is silent and
a loop that is held are in ``test_pages.py``; a full disk below a sink, a full log, a lane that is lost over and over and
sensors that fall silent in ``test_faults_told.py``; too many dead letters in ``test_oversight.py``; no process to be had in
``tests/chaos/test_faults_processes.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.small_plants import small_disk
from tests.engine.test_pages import ANYWHERE, ask, ask_until, live, reading, send, told
from tests.sinks.line_servers import take, web_server
from tests.sources.test_mqtt import Publisher

import tidemill as tm
from tidemill.testing import ManualClock


@dataclass
class Fault:
    """A run, what happens to it, and what its pages say then."""

    pipeline: tm.Pipeline
    strike: Callable[[Any], Any]
    mend: Callable[[Any], Any]
    says: str
    """A pattern of the first line of ``/healthz``."""
    shown: dict[tuple[str, str], tuple[float, float]]
    """Of ``/metrics``, name and label: between which values."""
    ready: int = 503
    """Of ``/readyz``."""
    status: int = 503
    """Of ``/healthz``."""
    options: dict[str, Any] = field(default_factory=dict)


async def rows_out(run: Any, count: int) -> None:
    """Once so many have left the lanes."""
    while run.statistics().rows_out < count:  # noqa: ASYNC110 - they come without a word
        await asyncio.sleep(0)


MUCH = float("inf")
Place = tuple[Path, Callable[..., Any]]
"""A folder, and what makes brokers."""


@contextlib.asynccontextmanager
async def a_broker_is_away(place: Place) -> AsyncIterator[Fault]:
    broker = place[1]()
    source = tm.sources.MQTT(broker.url, "plant/{sensor}", client_id="run")

    async def strike(_: Any) -> None:
        await source.wait_subscribed()
        await asyncio.to_thread(broker.kill)

    yield Fault(
        live(source),
        strike,
        lambda _: asyncio.to_thread(broker.start),
        r"source mqtt: \d+ tr(y|ies), mqtt://127\.0\.0\.1:\d+ cannot be reached: Connection refused$",
        {("tidemill_source_connected", "mqtt"): (0, 0), ("tidemill_source_tries", "mqtt"): (1, MUCH)},
    )


@contextlib.asynccontextmanager
async def a_broker_stands_still(place: Place) -> AsyncIterator[Fault]:
    broker, clock = place[1](), ManualClock()
    source = tm.sources.MQTT(broker.url, "plant/{sensor}", client_id="run")
    publisher = Publisher(broker.port)

    async def strike(run: Any) -> None:
        await source.wait_subscribed()
        publisher.publish("plant/a", "1")
        await rows_out(run, 1)
        broker.hold()
        clock.advance(312.0)

    async def mend(_: Any) -> None:
        broker.hold(signal.SIGCONT)
        publisher.publish("plant/a", "2")

    yield Fault(
        live(source),
        strike,
        mend,
        r"source mqtt: connected, silent 312 s \(limit 300\)$",
        {
            ("tidemill_source_connected", "mqtt"): (1, 1),
            ("tidemill_source_last_record_age_seconds", "mqtt"): (312, 312),
        },
        ready=200,
        options={"clock": clock},
    )
    publisher.close()


@contextlib.asynccontextmanager
async def a_broker_of_a_sink_is_away(place: Place) -> AsyncIterator[Fault]:
    broker = place[1]()
    source, sink = tm.sources.TCP(), tm.sinks.MQTT(broker.url, "rows/{sensor}", name="bus")

    async def strike(_: Any) -> None:
        await send(source, reading(0))
        await asyncio.to_thread(broker.kill)
        await send(source, reading(1))

    yield Fault(
        live(source, sink),
        strike,
        lambda _: asyncio.to_thread(broker.start),
        r"sink bus: \d+ tr(y|ies), mqtt://127\.0\.0\.1:\d+ cannot be reached: Connection refused",
        {("tidemill_tries", ""): (1, MUCH), ("tidemill_progressing", ""): (0, 0)},
    )


@contextlib.asynccontextmanager
async def a_broker_of_a_sink_stands_still(place: Place) -> AsyncIterator[Fault]:
    broker, clock = place[1](), ManualClock()
    source, sink = tm.sources.TCP(), tm.sinks.MQTT(broker.url, "rows/{sensor}", name="bus")

    async def strike(run: Any) -> None:
        await run.started.wait()
        broker.hold()
        await send(source, reading(0))
        while not run.statistics().sink_flows[0].waiting:  # noqa: ASYNC110 - rows are handed over without a word
            await asyncio.sleep(0)
        clock.advance(312.0)

    async def mend(_: Any) -> None:
        broker.hold(signal.SIGCONT)
        await send(source, reading(1))  # it had been silent as well

    yield Fault(
        live(source, sink),
        strike,
        mend,
        r"sink bus: 1 batch waits, the oldest for 312 s \(limit 301\)$",
        {("tidemill_sink_waiting_seconds", "bus"): (312, 312), ("tidemill_sink_waiting_batches", "bus"): (1, 1)},
        ready=200,
        options={"clock": clock},
    )


@contextlib.asynccontextmanager
async def a_server_takes_no_posts(place: Place) -> AsyncIterator[Fault]:
    """It takes rows without a word until they are posted, at a commit; another sink has written them meanwhile."""
    well = [True]
    with web_server(lambda post: take(post) if well[0] else (503, {}, b"no leader")) as server:
        source = tm.sources.TCP()
        both = [tm.sinks.HTTP(server.url, name="hub"), tm.sinks.Lines(place[0] / "rows.ndjson")]

        async def strike(run: Any) -> None:
            await run.started.wait()
            well[0] = False
            await send(source, reading(0))

        def mend(_: Any) -> None:
            well[0] = True

        yield Fault(
            live(source, both),
            strike,
            mend,
            r"sink hub: \d+ tr(y|ies), http://127\.0\.0\.1:\d+/write takes nothing now: it answers 503 .*: no leader",
            {("tidemill_tries", ""): (1, MUCH), ("tidemill_progressing", ""): (0, 0)},
        )


@contextlib.asynccontextmanager
async def a_lane_hangs(place: Place) -> AsyncIterator[Fault]:
    clock, source = ManualClock(), tm.sources.TCP()
    held, going = place[0] / "held", place[0] / "going"

    def hangs(batch: tm.Batch) -> dict[str, Any]:
        held.touch()
        while not going.exists():
            time.sleep(0.001)
        return {"twice": batch["value"] * 2}

    async def strike(_: Any) -> None:
        await send(source, reading(0))
        while not held.exists():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.001)
        clock.advance(312.0)

    async def mend(_: Any) -> None:
        going.touch()
        await send(source, reading(1))

    yield Fault(
        tm.Pipeline(source, tm.Plan(tm.Map(hangs)), tm.sinks.Latest(), name="plant"),
        strike,
        mend,
        r"lane 0: 1 slab, none finished for 312 s \(limit 300\), in a call of Map\(hangs\)$",
        {("tidemill_lane_waiting_seconds", "0"): (312, 312)},
        ready=200,
        options={"clock": clock, "lanes": 1},
    )


@contextlib.asynccontextmanager
async def checkpoints_fail(place: Place) -> AsyncIterator[Fault]:
    """The log goes on for a while: it has taken its room ahead."""
    with small_disk(place[0] / "disk") as disk:
        source = tm.sources.TCP()

        async def strike(run: Any) -> None:
            await send(source, reading(0))
            while not run.statistics().state.checkpoint:  # noqa: ASYNC110 - they come without a word
                await asyncio.sleep(0)
            await asyncio.to_thread(disk.fill)
            await send(source, reading(1))

        yield Fault(
            live(source),
            strike,
            lambda _: disk.empty(),
            r"(checkpoint|state folder): \d+ tr(y|ies), .*/disk/state/.* cannot be written: No space left on device$",
            {("tidemill_tries", ""): (1, MUCH), ("tidemill_checkpoint_age_seconds", ""): (0, MUCH)},
            options={"state": tm.State(disk.place / "state", log_min_free=0, checkpoint_s=0.05)},
        )


@contextlib.asynccontextmanager
async def dead_letters_cannot_be_written(place: Place) -> AsyncIterator[Fault]:
    with small_disk(place[0] / "disk") as disk:
        source = tm.sources.TCP()

        async def strike(_: Any) -> None:
            await asyncio.to_thread(disk.fill)
            await send(source, *[b"no json"] * 100)

        yield Fault(
            live(source),
            strike,
            lambda _: disk.empty(),
            r"dead letters: \d+ tr(y|ies), .*/dead\.ndjson cannot be written: No space left on device$",
            {("tidemill_tries", ""): (1, MUCH)},
            options={"dead_letters": disk.place / "dead.ndjson"},
        )


@contextlib.asynccontextmanager
async def the_disk_of_the_log_is_nearly_full(place: Place) -> AsyncIterator[Fault]:
    with small_disk(place[0] / "disk") as disk:
        source = tm.sources.TCP()

        async def strike(run: Any) -> None:
            await send(source, reading(0))
            await rows_out(run, 1)
            await asyncio.to_thread(disk.fill, leave=4 << 20)
            while not run.statistics().state.log_full:
                await send(source, reading(1))

        yield Fault(
            live(source),
            strike,
            lambda _: disk.empty(),
            r"ingest log: full, so sources wait: the disk has 16777216 bytes left \(log_min_free\) or fewer; make room there$",
            {("tidemill_log_full", ""): (1, 1), ("tidemill_log_room_bytes", ""): (-MUCH, 0)},
            ready=200,
            status=200,
            options={"state": tm.State(disk.place / "state", log_min_free=16 << 20)},
        )


FAULTS = [
    a_broker_is_away,
    a_broker_stands_still,
    a_broker_of_a_sink_is_away,
    a_broker_of_a_sink_stands_still,
    a_server_takes_no_posts,
    a_lane_hangs,
    checkpoints_fail,
    dead_letters_cannot_be_written,
    the_disk_of_the_log_is_nearly_full,
]


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_pages_of_a_run_name_what_is_wrong_with_it_and_forget_it(
    fault: Any, tmp_path: Path, own_mosquitto: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, the culprit first."""
    monkeypatch.setattr("tidemill.sinks.connecting.PATIENCE_S", 0.2)
    monkeypatch.setattr("tidemill.engine.oversight.LOOK_S", 3_600)  # else dead letters are a fault too, a second later
    async with fault((tmp_path, own_mosquitto)) as of:
        options = {"lanes": 0, "state": tmp_path / "state", "dead_letters": tmp_path / "dead.ndjson", **of.options}
        async with tm.serve(of.pipeline, metrics=ANYWHERE, **options) as run:
            if (striking := of.strike(run)) is not None:
                await striking

            def named(status: int, text: str) -> bool:
                lines = text.removeprefix("the run progresses\n").splitlines()
                return status == of.status and re.match(of.says, lines[0] if lines else "") is not None

            last = ""

            def expected(status: int, text: str) -> bool:
                nonlocal last
                last = f"{status} {text}"
                return named(status, text)

            try:
                async with asyncio.timeout(120):
                    await ask_until(run, "/healthz", expected)
            except TimeoutError:
                pytest.fail(f"it said {last}")
            for _ in range(20):  # and it does not say so only now and then
                status, text = await ask(run, "/healthz")
                assert named(status, text), text
            counts = await told(run)
            for metric, (least, most) in of.shown.items():
                assert least <= counts[metric] <= most, (metric, counts[metric])
            assert counts["tidemill_progressing", ""] == (of.status == 200)
            assert (await ask(run, "/readyz"))[0] == of.ready
            if (mending := of.mend(run)) is not None:
                await mending
            clock = of.options.get("clock")

            def well(status: int, text: str) -> bool:
                nonlocal last
                last = f"{status} {text}"
                if clock is not None:
                    clock.advance(0.1)  # checkpoints are made by it
                return text == "the run progresses\n"

            try:
                async with asyncio.timeout(120):
                    await ask_until(run, "/healthz", well)
                    await ask_until(run, "/readyz", lambda status, _: status == 200)
            except TimeoutError:
                pytest.fail(f"it said {last}")
