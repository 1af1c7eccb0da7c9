"""The source MQTT, against a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

import tidemill as tm
from tidemill.batch import Batch
from tidemill.clock import SystemClock
from tidemill.core.backoff import Backoff
from tidemill.engine.health import judged
from tidemill.engine.reading import SourceReader
from tidemill.errors import InputError, PlanError
from tidemill.letters import DeadLetter
from tidemill.sources import MQTT, SourceContext
from tidemill.testing import ListSink, ManualClock

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
        async with asyncio.timeout(120):
            await self.task


async def soon(condition: Callable[[], bool], task: asyncio.Task[None]) -> None:
    """Return when it is so."""
    async with asyncio.timeout(120):
        while not condition():
            if task.done():
                task.result()
            await asyncio.wait({task}, timeout=0.001)


@contextlib.asynccontextmanager
async def kept(source: MQTT, *, keeps: bool = True) -> AsyncIterator[Keeper]:
    """A source that has subscribed."""
    keeper = Keeper(source, keeps=keeps)
    subscribed = asyncio.ensure_future(source.wait_subscribed())
    await asyncio.wait({subscribed, keeper.task}, timeout=120, return_when=asyncio.FIRST_COMPLETED)
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


async def test_a_message_that_is_no_record_is_a_dead_letter_and_its_neighbours_flow(
    mosquitto: Any, publisher: Publisher, root: str
) -> None:
    """Accepted and dead are what was sent."""
    sent = ["1.5", "no number", '{"value": 2}', "[1, 2", b"\xff\xfe", "[3, 4]", '{"data": {"temp": 5}}', ""]
    async with kept(MQTT(mosquitto.url, f"{root}/{{sensor}}")) as keeper:
        for payload in sent:
            publisher.publish(f"{root}/S", payload)
        publisher.publish(f"{root}/S", "9")
        await soon(lambda: bool(keeper.rows) and keeper.rows[-1].get("value") == 9, keeper.task)
    assert [row["value"] for row in keeper.rows if "value" in row] == [1.5, 2, 3, 4, 9]
    assert len(keeper.letters) == 4
    assert {(letter.source, letter.key) for letter in keeper.letters} == {("mqtt", "S")}


async def test_fields_at_the_top_of_a_message_name_the_sensor_and_the_time_beside_paths(
    mosquitto: Any, publisher: Publisher, root: str
) -> None:
    """As ``key=`` and ``time=`` say; without these it is said that there are times."""
    message = json.dumps({"dev": "d1", "ts": 1_700_000_000, "data": {"temp": 20.5}})
    async with kept(MQTT(mosquitto.url, f"{root}/+", value="data.temp", key="dev", time="ts")) as keeper:
        publisher.publish(f"{root}/x", message)
        await keeper.until(1)
    assert (keeper.rows, keeper.keys) == ([{"value": 20.5, "dev": "d1", "ts": 1_700_000_000}], ["d1"])
    assert keeper.source.doubt(Batch({}, rows=0)) == ""
    async with kept(MQTT(mosquitto.url, f"{root}/+", value="data.temp")) as keeper:
        publisher.publish(f"{root}/x", message)
        await keeper.until(1)
    assert keeper.source.doubt(Batch({}, rows=0)).endswith("If that is when they were measured, say time='ts'.")


async def test_topics_that_overlap_are_told_at_the_first_connection(
    mosquitto: Any, publisher: Publisher, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker sends what is of both twice."""
    async with kept(MQTT(mosquitto.url, [f"{root}/{{sensor}}", f"{root}/#"])) as keeper:
        publisher.publish(f"{root}/S1", "1")
        await keeper.until(2)
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == (
        f"source mqtt: the topics '{root}/{{sensor}}' and '{root}/#' overlap: a broker may send a message of both twice, and it is "
        "two records then"
    )


SHARED = {
    "all levels are bound": (["{root}/{{site}}/{{sensor}}"], "{site}/{sensor}"),
    "one is not": (["{root}/+/{{sensor}}"], "{topic}"),
    "two patterns": (["{root}/n/{{sensor}}", "{root}/s/{{sensor}}"], "{topic}"),
    "two patterns that bind other levels": (
        ["{root}/n/{{sensor}}", "{root}/s/{{sensor}}", "{root}/{{site}}/{{line}}/{{sensor}}"],
        "{topic}",
    ),
}


@pytest.mark.parametrize(("topics", "key"), SHARED.values(), ids=SHARED)
async def test_two_topics_that_are_taken_for_one_sensors_are_told_once(
    mosquitto: Any, publisher: Publisher, root: str, caplog: pytest.LogCaptureFixture, topics: list[str], key: str
) -> None:
    """With the key to type, under which they are two; who has said what the key is hears nothing."""
    patterns = [topic.format(root=root) for topic in topics]

    async def heard(**options: Any) -> tuple[set[str], list[str]]:
        caplog.clear()
        async with kept(MQTT(mosquitto.url, patterns, **options)) as keeper:
            for topic in ("n/temp", "n/flow", "s/temp", "s/flow", "n/temp"):
                publisher.publish(f"{root}/{topic}", "1")
            await keeper.until(5)
        return set(keeper.keys), [record.message for record in caplog.records if record.levelname == "WARNING"]

    keys, (said,) = await heard()
    assert keys == {"temp", "flow"}
    assert said == (
        f"source mqtt: the topics '{root}/n/temp' and '{root}/s/temp' are taken for one sensor's, 'temp'. If they are two, say "
        f"key='{key}'; if one, key='sensor'."
    )
    keys, told = await heard(key=key)
    assert (len(keys), told) == (4, [])
    assert (await heard(key="sensor"))[1] == []


WHOLE = {
    "a key that is misspelt": (
        {"value": {"temp": "object.temp", "dev": "dev"}, "key": "{dev}"},
        {"devId": "d1", "object": {"temp": 20}},
        {"key": "devId"},
    ),
    "a time of another name": ({"value": "data.temp", "time": "at"}, {"ts": 1_700_000_000, "data": {"temp": 20.5}}, {"time": "ts"}),
    "a field that the topic hides": (
        {"value": "data.temp", "time": "at"},
        {"sensor": "inner", "ts": 1_700_000_000, "data": {"temp": 20.5}},
        {"time": "ts"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "message", "mended"), WHOLE.values(), ids=WHOLE)
async def test_a_dead_letter_holds_the_whole_message_out_of_which_paths_took_columns(
    mosquitto: Any, publisher: Publisher, root: str, tmp_path: Path, wrong: Any, message: Any, mended: Any
) -> None:
    """With the columns and what the topic binds: it was acknowledged, so what no path took must come back when the plan is mended."""
    async with kept(MQTT(mosquitto.url, f"{root}/{{site}}/{{sensor}}", **wrong)) as keeper:
        publisher.publish(f"{root}/north/S1", json.dumps(message))
        await keeper.until(0, letters=1)
    (letter,) = keeper.letters
    taken = {"temp": 20} if "dev" in wrong["value"] else {"value": 20.5}
    hidden = {"message": {"sensor": "inner"}} if "sensor" in message else {}
    assert letter.raw == {**message, "site": "north", "sensor": "S1", **taken, **hidden}
    dead = tmp_path / "dead.ndjson"
    dead.write_text(json.dumps({"raw": letter.raw, "key": letter.key, "time": letter.time_ns}))
    again = ListSink()
    await asyncio.to_thread(tm.run, tm.Pipeline(tm.sources.DeadLetters(dead, **mended), tm.Plan(), again), lanes=0)
    (batch,) = again.batches
    assert batch.keys.tolist() == (["d1"] if "dev" in wrong["value"] else ["S1"])
    assert "ts" not in message or batch.time.tolist() == [1_700_000_000 * 10**9]


async def test_what_the_broker_had_retained_is_passed_over_and_counted(
    mosquitto: Any, publisher: Publisher, root: str
) -> None:
    """It may be days old; who wants it says so."""
    publisher.publish(f"{root}/S", "1", retain=True)
    await publisher.published()
    for option, values in (("skip", [2]), ("take", [1, 3])):
        source = MQTT(mosquitto.url, f"{root}/{{sensor}}", retained=option)
        async with kept(source) as keeper:
            publisher.publish(f"{root}/S", str(values[-1]))
            await keeper.until(len(values))
        assert [row["value"] for row in keeper.rows] == values
        assert source.statistics().skipped == (option == "skip")


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_nothing_is_acknowledged_before_it_is_safe(
    mosquitto: Any, publisher: Publisher, root: str, version: str
) -> None:
    """A run that ends before its log has anything gets all of it again at the next start, in order."""

    def source() -> MQTT:
        return MQTT(mosquitto.url, f"{root}/{{sensor}}", client_id=root, version=version)

    first = Keeper(source(), keeps=False)
    async with asyncio.timeout(120):
        await first.source.wait_subscribed()
    for number in range(20):
        publisher.publish(f"{root}/S", str(number))
    await first.until(20)
    first.task.cancel()  # killed: nothing was kept
    await asyncio.gather(first.task, return_exceptions=True)
    async with kept(source()) as second:
        await second.until(20)
        publisher.publish(f"{root}/S", "20")
        await second.until(21)
    assert [row["value"] for row in second.rows] == list(range(21))
    async with kept(source()) as third:
        publisher.publish(f"{root}/S", "21")
        await soon(lambda: bool(third.rows) and third.rows[-1]["value"] == 21, third.task)
    assert [row["value"] for row in third.rows] == [21]


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("qos", [1, 2])
async def test_an_orderly_end_waits_until_the_broker_has_heard_all(
    mosquitto: Any, publisher: Publisher, root: str, version: str, qos: int
) -> None:
    """The next start comes at once, takes the session over, and gets nothing again: a broker reads one packet a turn."""
    for turn in range(3):
        async with kept(MQTT(mosquitto.url, f"{root}/{{sensor}}", qos=qos, client_id=root, version=version)) as keeper:
            for number in range(50 * turn, 50 * turn + 50):
                publisher.publish(f"{root}/S", str(number), qos)
            await keeper.until(50)
        assert [row["value"] for row in keeper.rows] == list(range(50 * turn, 50 * turn + 50))


async def test_what_the_broker_has_beyond_the_buffer_at_the_stop_is_left_to_it(
    mosquitto: Any, publisher: Publisher, root: str
) -> None:
    """A full buffer is emptied, and nothing more is read: else the end would wait until the broker has nothing more."""
    source = MQTT(mosquitto.url, f"{root}/{{sensor}}", buffer=10_000)
    context = SourceContext(SystemClock(), [].append, tells_kept=False)
    batches = source.stream(context)
    first = asyncio.ensure_future(anext(batches))
    await source.wait_subscribed()
    for _ in range(1_000):
        publisher.publish(f"{root}/S", "1234")
    await publisher.published()
    await first
    async with asyncio.timeout(120):
        while source.buffered <= 10_000:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
    waiting = source.buffered // 204
    context.stopping.set()
    assert sum([len(batch) async for batch in batches]) == waiting


async def test_more_than_the_buffer_may_come_before_the_broker_has_answered(
    own_mosquitto: Any, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that was kept brings what waits in it first: each message once, and what is behind the answer waits there."""
    monkeypatch.setattr("tidemill.sources.mqtt_connection._ANSWER_S", 20.0)
    broker = own_mosquitto(autosave_on_changes="false", autosave_interval=0)
    async with kept(MQTT(broker.url, f"{root}/{{sensor}}", client_id=root)):
        pass
    publisher = Publisher(broker.port)
    for number in range(100):
        publisher.publish(f"{root}/S", str(number))
    await publisher.published()
    source = MQTT(broker.url, f"{root}/{{sensor}}", client_id=root, buffer=10_000)
    context = SourceContext(SystemClock(), [].append, tells_kept=False)
    batches = source.stream(context)
    rows = (await anext(batches)).to_rows()
    async with asyncio.timeout(120):
        await source.wait_subscribed()
    assert source.statistics().tries == 0
    held = source.buffered
    for number in range(100, 200):
        publisher.publish(f"{root}/S", str(number))
    await publisher.published()
    assert source.buffered == held > 10_000
    while len(rows) < 200:
        rows += (await anext(batches)).to_rows()
    assert [row["value"] for row in rows] == list(range(200))
    context.stopping.set()
    assert [len(batch) async for batch in batches] == []
    publisher.close()


async def test_a_broker_that_is_held_does_not_hold_the_end(
    own_mosquitto: Any, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever does not hear the goodbye is left after a while."""
    monkeypatch.setattr("tidemill.sources.mqtt_connection._GOODBYE_S", 0.2)
    broker = own_mosquitto()
    async with kept(MQTT(broker.url, f"{root}/{{sensor}}")):
        broker.hold()
    broker.kill()


async def test_a_broker_that_is_restarted_loses_nothing_that_it_had_taken(own_mosquitto: Any, root: str) -> None:
    """With a session of a name; a message may come twice, and none is missing."""
    broker = own_mosquitto()
    source = MQTT(broker.url, f"{root}/{{sensor}}", client_id=root)
    async with kept(source) as keeper:
        for turn in range(3):
            publisher = Publisher(broker.port)
            for number in range(50 * turn, 50 * turn + 50):
                publisher.publish(f"{root}/S", str(number))
            await publisher.published()
            publisher.close()
            await asyncio.to_thread(broker.restart)
        seen = keeper.rows
        await soon(lambda: {row["value"] for row in seen} == set(range(150)), keeper.task)
    first = list(dict.fromkeys(row["value"] for row in seen))
    assert first == list(range(150))


async def test_a_broker_that_counts_anew_from_where_it_had_saved_has_its_new_messages_taken(
    own_mosquitto: Any, root: str
) -> None:
    """With QoS 2 a message that comes again is known by its number, until the broker has said that it forgets it. A broker that
    was killed has forgotten what it had numbered since it saved, and gives these numbers to other messages."""
    broker = own_mosquitto(autosave_on_changes="false", autosave_interval=0)
    source = MQTT(broker.url, f"{root}/{{sensor}}", qos=2, client_id=root)
    async with kept(source, keeps=False) as keeper:
        await asyncio.to_thread(broker.restart)  # so that it has saved the session
        for turn in range(2):
            await soon(lambda: source.statistics().connected, keeper.task)
            publisher = Publisher(broker.port)
            for number in range(3 * turn, 3 * turn + 3):
                publisher.publish(f"{root}/S", str(number), 2)
            await keeper.until(3 * turn + 3)
            publisher.close()
            await asyncio.to_thread(broker.kill)
            await asyncio.to_thread(broker.start)
    assert [row["value"] for row in keeper.rows] == list(range(6))


@pytest.mark.parametrize("password", [None, "wrong-canary"])
async def test_a_password_that_is_refused_ends_the_run_in_one_sentence(
    mosquitto: Any, root: str, password: str | None
) -> None:
    """It names what to look at, and never the password."""
    user = {} if password is None else {"username": "tidemill", "password": password}
    with pytest.raises(InputError) as caught:
        async with kept(MQTT(mosquitto.guarded_url, f"{root}/{{sensor}}", **user)):
            pass
    told = str(caught.value)
    assert told.startswith("source mqtt: ")
    assert "canary" not in told
    assert "\n" not in told


async def test_a_broker_that_is_away_is_asked_again(root: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log says why, and when; the source's statistics count the tries, and say why, too."""
    source = MQTT("mqtt://127.0.0.1:1", f"{root}/{{sensor}}")
    assert (source.statistics().tries, source.statistics().trouble) == (0, "")
    keeper = Keeper(source)
    with caplog.at_level("WARNING", "tidemill"):
        await soon(lambda: source.statistics().tries == 2, keeper.task)
    assert "Connecting again in" in caplog.text
    assert source.statistics().trouble == "mqtt://127.0.0.1:1 cannot be reached: Connection refused"
    await keeper.stop()


async def test_two_runs_with_one_client_id_are_told_of_each_other(
    mosquitto: Any, root: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker lets each in and drops the other. One that does it without a word, as Mosquitto did up to 2.0: after the third
    time within seconds the source asks."""
    monkeypatch.setattr("tidemill.sources.mqtt.Backoff", lambda: Backoff(0.01, 0.02))
    told = "is gone: another client with the same client_id has taken over; give each run one of its own"
    asked = f"is gone: the connection was lost (is another run using client_id {root!r}?)"
    with caplog.at_level("WARNING", "tidemill"):
        async with (
            kept(MQTT(mosquitto.url, f"{root}/{{sensor}}", client_id=root)) as one,
            kept(MQTT(mosquitto.url, f"{root}/{{sensor}}", client_id=root)),
        ):
            await soon(lambda: asked in caplog.text or told in caplog.text, one.task)
    lost = [
        record.getMessage() for record in caplog.records if "is gone: the connection was lost" in record.getMessage()
    ]
    assert not any(asked in each for each in lost[:3])


async def test_a_broker_that_stays_away_fills_no_log(
    root: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first tries are told; the others are in what the run says of itself each minute."""
    monkeypatch.setattr("tidemill.sources.mqtt.Backoff", lambda: Backoff(0.001, 0.001))
    source = MQTT("mqtt://127.0.0.1:1", f"{root}/{{sensor}}")
    keeper = Keeper(source)
    with caplog.at_level("INFO", "tidemill"):
        await soon(lambda: source.statistics().tries == 10, keeper.task)
    assert caplog.text.count("Connecting again in") == 3
    await keeper.stop()


async def test_tries_begin_anew_with_each_connection(own_mosquitto: Any, root: str) -> None:
    """A broker that is there again is no trouble any more."""
    broker = own_mosquitto()
    source = MQTT(broker.url, f"{root}/{{sensor}}")
    async with kept(source) as keeper:
        broker.kill()
        await soon(lambda: source.statistics().tries >= 2, keeper.task)
        assert "cannot be reached" in source.statistics().trouble
        broker.start()
        await soon(lambda: source.statistics().connected, keeper.task)
        assert (source.statistics().tries, source.statistics().trouble) == (0, "")


async def test_health_says_why_a_source_is_not_connected(root: str) -> None:
    """Who is on call reads it in one line."""
    source = MQTT("mqtt://127.0.0.1:1", f"{root}/{{sensor}}")
    pipeline = tm.Pipeline(source, tm.Lag("value"), tm.sinks.Callback(lambda _: None))
    async with tm.serve(pipeline, lanes=0) as run:
        while source.statistics().tries < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        told = str(judged(run.statistics()))
        await run.stop()
    assert re.fullmatch(r"source mqtt: \d+ tries, mqtt://127\.0\.0\.1:1 cannot be reached: Connection refused", told)


@pytest.mark.parametrize(
    ("url", "topics", "options"),
    [
        ("http://host", "a/{sensor}", {}),
        ("mqtt://host", [], {}),
        ("mqtt://host", "a/#/b", {}),
        ("mqtt://host", "a/{sensor}", {"qos": 3}),
        ("mqtt://host", "a/{sensor}", {"retained": "maybe"}),
        ("mqtt://host", "a/{sensor}", {"version": "4"}),
    ],
)
def test_what_cannot_be_is_refused_at_once(url: str, topics: Any, options: Any) -> None:
    """In one sentence."""
    with pytest.raises(PlanError):
        MQTT(url, topics, **options)


NOTHING_THROUGH = {
    "paths": ("data.temp", '{"reading": {"celsius": 20}, "when": 1}', "value='reading.celsius'"),
    "no JSON": (None, "temp=20.5;hum=7", "neither a number nor JSON. An example: 'temp=20.5;hum=7'."),
}


@pytest.mark.parametrize(("value", "payload", "told"), NOTHING_THROUGH.values(), ids=NOTHING_THROUGH)
async def test_why_no_message_becomes_a_record_is_said_with_what_came(
    mosquitto: Any, publisher: Publisher, root: str, value: Any, payload: str, told: str
) -> None:
    """And nothing of key= and time=, which are not at fault."""
    async with kept(MQTT(mosquitto.url, f"{root}/{{sensor}}", value=value)) as keeper:
        publisher.publish(f"{root}/S1", payload)
        await keeper.until(0, letters=1)
        assert told in keeper.source.explain()
        assert "key=" not in keeper.source.explain()


async def test_what_an_earlier_plan_asked_for_is_told_by_its_topic(
    own_mosquitto: Any, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The session still has the subscription: said once, with what to do, and not that JSON is not read; a clean start mends it."""
    broker = own_mosquitto()
    publisher = Publisher(broker.port)

    async def sent(letters: int, **options: Any) -> Keeper:
        async with kept(MQTT(broker.url, "appl/{sensor}", client_id=root, **options)) as keeper:
            publisher.publish("app/S1", '{"value": 1}')
            publisher.publish("app/S2", '{"value": 2}')
            publisher.publish("appl/S1", '{"value": 3}')
            await keeper.until(1, letters)
        return keeper

    async with kept(MQTT(broker.url, "app/{sensor}", client_id=root)):
        pass
    later = await sent(2)
    assert [(letter.reason_code, letter.key) for letter in later.letters] == [
        ("unasked", "app/S1"),
        ("unasked", "app/S2"),
    ]
    assert "asks for the topic 'app/S2'; if an earlier run with client_id" in later.letters[1].reason
    assert later.source.explain().endswith("keeps for it.")
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == f"source mqtt: {later.letters[0].reason}"
    assert "give another client_id=, or run once with clean_start=True" in line
    clean = await sent(0, clean_start=True)
    again = await sent(0)
    assert [clean.rows, clean.letters] == [again.rows, again.letters] == [[{"sensor": "S1", "value": 3}], []]
    publisher.close()


@pytest.mark.parametrize("retained", [False, True])
async def test_topics_on_which_nothing_comes_are_named_in_the_log(
    mosquitto: Any, publisher: Publisher, root: str, caplog: pytest.LogCaptureFixture, retained: bool
) -> None:
    """After half a minute, once, with what lists the topics that there are; or what passes over the messages that there are."""
    if retained:
        publisher.publish(f"{root}/S1", "20", retain=True)
        await publisher.published()
    clock = ManualClock()
    source = MQTT(mosquitto.url, f"{root}/{{sensor}}")
    reader = SourceReader(clock, lambda _: None, asyncio.Event())
    reading = asyncio.ensure_future(reader.read(source, give=lambda _: asyncio.sleep(0), refuse=lambda _: None))
    await source.wait_subscribed()
    await soon(lambda: source.statistics().skipped == int(retained), reading)
    for _ in range(40):
        reader.look()
        clock.advance(1)
    (line,) = [record.getMessage() for record in caplog.records if f"{root}/+" in record.getMessage()]
    if retained:
        assert "only retained messages" in line
    else:
        assert f"no message on '{root}/+' so far" in line
        assert f"tidemill new other.py --mqtt {mosquitto.url}" in line
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
