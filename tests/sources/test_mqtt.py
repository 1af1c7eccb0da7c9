"""The source MQTT, against a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

import tidemill as tm
from tidemill.clock import SystemClock
from tidemill.letters import DeadLetter
from tidemill.sources import MQTT, SourceContext

_NUMBERS = itertools.count(1)


class Publisher:
    """Somebody else's client, with a thread of its own."""

    def __init__(self, port: int, version: int = paho.MQTTv5) -> None:
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=version)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        self._sent: list[Any] = []

    def publish(self, topic: str, payload: Any, qos: int = 1, *, retain: bool = False) -> None:
        self._sent.append(self.client.publish(topic, payload, qos, retain))

    async def published(self) -> None:
        """Return when the broker has all of it."""
        sent, self._sent = self._sent, []
        for each in sent:
            await asyncio.to_thread(each.wait_for_publish, 30)
            assert each.is_published()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def publisher(mosquitto: Any) -> Iterator[Publisher]:
    made = Publisher(mosquitto.port)
    yield made
    made.close()


@pytest.fixture
def root() -> str:
    """A topic that no other test knows."""
    return f"test{next(_NUMBERS)}"


class Keeper:
    """Stands for the engine: takes batches, and says when they are safe."""

    def __init__(self, source: MQTT, *, keeps: bool = True) -> None:
        self.source = source
        self.letters: list[DeadLetter] = []
        self.rows: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.batches = 0
        self.keeps = keeps
        """Whether each batch is safe at once."""
        self.context = SourceContext(SystemClock(), self.letters.append)
        self.task = asyncio.ensure_future(self._take())

    async def _take(self) -> None:
        async for batch in self.source.stream(self.context):
            self.rows += batch.to_rows()
            self.keys += batch.keys[batch.key].tolist()
            self.batches += 1
            if self.keeps:
                self.keep()

    def keep(self) -> None:
        """All that was taken is safe."""
        self.source.kept(self.batches)

    async def until(self, rows: int, letters: int = 0) -> None:
        await soon(lambda: len(self.rows) >= rows and len(self.letters) >= letters, self.task)

    async def stop(self) -> None:
        self.context.stopping.set()
        async with asyncio.timeout(30):
            await self.task


async def soon(condition: Callable[[], bool], task: asyncio.Task[None]) -> None:
    """Return when it is so."""
    async with asyncio.timeout(30):
        while not condition():
            if task.done():
                task.result()
            await asyncio.wait({task}, timeout=0.001)


@contextlib.asynccontextmanager
async def kept(source: MQTT, *, keeps: bool = True) -> AsyncIterator[Keeper]:
    """A source that has subscribed."""
    keeper = Keeper(source, keeps=keeps)
    subscribed = asyncio.ensure_future(source.wait_subscribed())
    await asyncio.wait({subscribed, keeper.task}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
    subscribed.cancel()
    if keeper.task.done():
        keeper.task.result()
    try:
        yield keeper
    finally:
        keeper.keep()
        await keeper.stop()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_numbers_become_readings_of_the_topics_sensor(
    mosquitto: Any, publisher: Publisher, root: str, version: str, qos: int
) -> None:
    """In the broker's order, at each quality of service of both versions, with the columns that the topic binds."""
    source = MQTT(mosquitto.url, f"{root}/{{site}}/{{sensor}}", qos=qos, version=version)
    async with kept(source) as keeper:
        for number in range(300):
            publisher.publish(f"{root}/north/S{number % 3}", str(number), qos)
        await keeper.until(300)
    assert keeper.rows == [{"site": "north", "sensor": f"S{n % 3}", "value": n} for n in range(300)]
    assert keeper.keys == [f"S{n % 3}" for n in range(300)]
    assert keeper.letters == []
    assert source.statistics().records == 300


def test_a_plan_runs_over_messages(mosquitto: Any, root: str) -> None:
    """From the broker to a sink, through the ingest log, as a user writes it."""
    rows: list[dict[str, Any]] = []

    async def main() -> Any:
        source = MQTT(mosquitto.url, f"{root}/{{sensor}}")
        pipeline = tm.Pipeline(source, tm.Lag("value"), tm.sinks.Callback(rows.extend, rows=True))
        async with tm.serve(pipeline, lanes=0) as run:
            await source.wait_subscribed()
            publisher = Publisher(mosquitto.port)
            for number in range(10):
                publisher.publish(f"{root}/S", json.dumps({"value": number, "unit": "C"}))
            await publisher.published()
            publisher.close()
            while len(rows) < 10:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await run.stop()
            return run.statistics()

    asyncio.run(main())
    assert [row["value"] for row in rows] == list(range(10))
    assert [row["value_lag_1"] for row in rows][1:] == list(range(9))
    assert rows[0]["sensor"] == "S"
    assert rows[0]["unit"] == "C"
