"""The sink MQTT, against a real broker."""

from __future__ import annotations

import itertools
import json
import queue
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

import tidemill as tm
from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import InputError, OutsideError, PlanError
from tidemill.schema import Schema

_NUMBERS = itertools.count(1)
OPEN = Schema(open=True)


class Reader:
    """Somebody else's client; the broker may keep its session."""

    def __init__(self, port: int, topic: str, *, kept: bool = False) -> None:
        self._came: queue.Queue[Any] = queue.Queue()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, f"reader-{next(_NUMBERS)}", clean_session=not kept)
        subscribed: queue.Queue[Any] = queue.Queue()
        self.client.on_message = lambda _c, _d, message: self._came.put(message)
        self.client.on_subscribe = lambda *_: subscribed.put(None)
        self.client.on_connect = lambda *_: self.client.subscribe(topic, 2)
        self.client.reconnect_delay_set(1, 1)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        subscribed.get(timeout=120)

    def take(self, count: int) -> list[Any]:
        return [self._came.get(timeout=120) for _ in range(count)]

    def take_until(self, enough: Callable[[list[Any]], bool]) -> list[Any]:
        """Messages up to the one with which it is so."""
        taken: list[Any] = []
        while not enough(taken):
            taken.append(self._came.get(timeout=120))
        return taken

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def root() -> str:
    """A topic that no other test knows."""
    return f"sink{next(_NUMBERS)}"


@pytest.fixture
def broker(own_mosquitto: Any) -> Any:
    """One that does not save all it has at each message."""
    return own_mosquitto(autosave_on_changes="false")


@pytest.fixture
def reader(broker: Any, root: str) -> Iterator[Reader]:
    made = Reader(broker.port, f"{root}/#")
    yield made
    made.close()


def written(sink: sinks.MQTT, *batches: list[dict[str, Any]]) -> sinks.MQTT:
    sink.check()
    sink.open(OPEN)
    for rows in batches:
        sink.write(sink.chosen(Batch.from_rows(rows)))
        sink.flush()
    sink.close()
    return sink


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_each_row_is_a_message_to_the_topic_of_its_columns(
    broker: Any, reader: Reader, root: str, version: str, qos: int
) -> None:
    """In order, as JSON, with the quality of service that was asked for; more of them than may be under way at once."""
    rows = [
        {"site": "north", "sensor": f"S{n % 3}", "n": n, "value": n / 7, "note": "é\n" if n % 2 else None}
        for n in range(1_500)
    ]
    sink = written(sinks.MQTT(broker.url, f"{root}/{{site}}/{{sensor}}", qos=qos, version=version), rows)
    came = reader.take(len(rows))
    assert [json.loads(each.payload) for each in came] == rows
    assert [each.topic for each in came] == [f"{root}/north/{row['sensor']}" for row in rows]
    assert {each.qos for each in came} == {qos}
    assert sink.statistics().rows == len(rows)
    assert sink.statistics().bytes == sum(len(each.payload) for each in came)


def test_a_run_publishes_from_a_process_of_its_own(broker: Any, reader: Reader, root: str) -> None:
    """As a user writes it; what is not asked for stays here, though the topic needs it."""
    records = tm.sources.Records([{"sensor": f"S{n % 2}", "value": float(n)} for n in range(10)])
    sink = sinks.MQTT(broker.url, f"{root}/{{sensor}}", columns=["value", "value_lag_1"], where="value > 1")
    report = tm.run(tm.Pipeline(records, tm.Lag("value"), sink), lanes=1)
    came = [(each.topic, json.loads(each.payload)) for each in reader.take(8)]
    assert came == [(f"{root}/S{n % 2}", {"value": n, "value_lag_1": n - 2}) for n in range(2, 10)]
    assert report.sinks == {"mqtt": 8}
    assert report.delivery["mqtt"].startswith("at-least-once")


def test_one_column_may_be_the_whole_payload(broker: Any, reader: Reader, root: str) -> None:
    """Numbers and flags as in JSON, texts as they are; a row without a value publishes nothing, and is counted."""
    values: list[Any] = [[1, 2.5, None, float("nan")], ["hot", None], [True], [[1, {"a": 2}]]]
    rows = [[{"n": f"{kind}{n}", "value": each} for n, each in enumerate(some)] for kind, some in enumerate(values)]
    sink = written(sinks.MQTT(broker.url, f"{root}/{{n}}", payload="value"), *rows)
    came = {each.topic.rpartition("/")[2]: each.payload for each in reader.take(5)}
    assert came == {"00": b"1", "01": b"2.5", "10": b"hot", "20": b"true", "30": b'[1,{"a":2}]'}
    assert sink.statistics().left_out == {"value": 3}
    assert sink.statistics().rows == 5
    assert "payload" in sink.why_left_out("value")


def test_a_value_that_is_no_level_of_a_topic_is_published_nowhere(broker: Any, reader: Reader, root: str) -> None:
    """Above all not in another place; each row is counted under the column at fault, and its neighbours flow."""
    texts = ["a/b", "+", "#", "", "nul\0", None, "half \ud800"]
    batches = [[{"site": "x", "sensor": each} for each in some] for some in (texts, [1.5], [True], [[1]])]
    batches += [[{"site": "a/b", "sensor": "S"}, {"site": "x"}], [{"site": "x", "sensor": "S", "last": 1}]]
    sink = written(sinks.MQTT(broker.url, f"{root}/{{site}}/{{sensor}}"), *batches)
    assert [each.topic for each in reader.take(1)] == [f"{root}/x/S"]
    assert sink.statistics().left_out == {"sensor": len(texts) + 4, "site": 1}
    assert sink.statistics().rows == 1
    assert "'sensor' is no level of a topic" in sink.why_left_out("sensor")


def test_what_is_retained_waits_for_who_subscribes_later(mosquitto: Any, root: str) -> None:
    """The newest row of each topic."""
    rows = [{"sensor": f"S{n % 2}", "value": n} for n in range(6)]
    written(sinks.MQTT(mosquitto.url, f"{root}/{{sensor}}", retain=True), rows)
    late = Reader(mosquitto.port, f"{root}/#")
    came = {each.topic: json.loads(each.payload)["value"] for each in late.take(2)}
    late.close()
    assert came == {f"{root}/S0": 4, f"{root}/S1": 5}


@pytest.mark.parametrize("qos", [1, 2])
def test_a_broker_that_is_restarted_gets_every_row(own_mosquitto: Any, root: str, qos: int) -> None:
    """While messages are under way: what it had not acknowledged is published again, at least once, in order."""
    broker = own_mosquitto(autosave_on_changes="false")
    reader = Reader(broker.port, f"{root}/#", kept=True)
    sink = sinks.MQTT(broker.url, f"{root}/{{sensor}}", qos=qos)
    sink.open(OPEN)
    for turn in range(4):
        rows = [{"sensor": "S", "n": n, "note": 2_000 * "x"} for n in range(100 * turn, 100 * turn + 100)]
        sink.write(Batch.from_rows(rows))  # more than is sent together
        broker.restart()
    sink.close()
    came = reader.take_until(lambda taken: bool(taken) and json.loads(taken[-1].payload)["n"] == 399)
    reader.close()
    assert list(dict.fromkeys(json.loads(each.payload)["n"] for each in came)) == list(range(400))


def test_a_broker_that_is_away_is_one_sentence(root: str) -> None:
    """At the start at once; later after some tries."""
    with pytest.raises(OutsideError, match=r"^mqtt://127.0.0.1:1 cannot be reached: Connection refused\.$"):
        sinks.MQTT("mqtt://127.0.0.1:1", f"{root}/{{sensor}}").open(OPEN)


def test_a_broker_that_stands_still_is_not_said_to_refuse(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection, and says nothing."""
    monkeypatch.setattr("tidemill.sinks.mqtt_publisher.ANSWER_S", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as still:
        address = f"mqtt://127.0.0.1:{still.getsockname()[1]}"
        with pytest.raises(OutsideError, match=f"^{address} does not answer to CONNECT\\.$"):
            sinks.MQTT(address, f"{root}/{{sensor}}").open(OPEN)


def test_a_broker_that_stays_away_fails_the_write_and_lets_go(own_mosquitto: Any, root: str, monkeypatch: Any) -> None:
    """After the tries that it gets; closing afterwards is quiet, and the sink can be opened again."""
    monkeypatch.setattr("tidemill.sinks.connecting.PATIENCE_S", 0.3)
    broker = own_mosquitto()
    sink = sinks.MQTT(broker.url, f"{root}/{{sensor}}")
    sink.open(OPEN)
    broker.kill()
    sink.write(Batch.from_rows([{"sensor": "S"}]))
    with pytest.raises(OutsideError, match="cannot be reached"):
        sink.flush()
    sink.close()
    broker.start()
    reader = Reader(broker.port, f"{root}/#")
    written(sink, [{"sensor": "S", "value": 1}])
    assert json.loads(reader.take(1)[0].payload) == {"sensor": "S", "value": 1}
    reader.close()


_RUN = """
import sys
import tidemill as tm
url, topic, state, lanes = sys.argv[1:]
records = tm.sources.Records([{"sensor": "S", "value": n} for n in range(8_000)])
sink = tm.sinks.MQTT(url, topic, numbered=True, columns=["value"])
tm.run(tm.Pipeline(records, tm.Plan(), sink, name="numbers"), lanes=int(lanes), state=state)
"""


@pytest.mark.parametrize("lanes", [0, 1])
def test_rows_that_come_twice_bear_the_same_number(
    broker: Any, reader: Reader, root: str, tmp_path: Path, lanes: int
) -> None:
    """The run is killed and started again: who leaves out numbers that it has seen has each row once, in order."""
    (tmp_path / "run.py").write_text(_RUN)
    call = [sys.executable, tmp_path / "run.py", broker.url, f"{root}/{{value}}", tmp_path / "state", str(lanes)]
    first = subprocess.Popen(call)
    came = reader.take(500)
    first.kill()
    assert first.wait() < 0
    subprocess.run(call, check=True, timeout=120)
    came += reader.take_until(lambda taken: bool(taken) and json.loads(taken[-1].payload)["_seq"] == 7_999)
    rows = [json.loads(each.payload) for each in came]
    assert all(row["_seq"] == row["value"] for row in rows)
    kept: list[int] = []
    for row in rows:
        if not kept or row["_seq"] > kept[-1]:
            kept.append(row["_seq"])
    assert kept == list(range(8_000))
    assert rows[-1]["_epoch"] == rows[0]["_epoch"] + 1


@pytest.mark.parametrize("password", [None, "wrong-canary"])
def test_a_password_that_is_refused_is_one_sentence(mosquitto: Any, root: str, password: str | None) -> None:
    """It names what to look at, and never the password."""
    user = {} if password is None else {"username": "tidemill", "password": password}
    for version in ("5", "3.1.1"):
        sink = sinks.MQTT(mosquitto.guarded_url, f"{root}/{{sensor}}", version=version, **user)
        with pytest.raises(InputError, match="check username and password") as caught:
            sink.open(OPEN)
        assert "canary" not in f"{caught.value}{sink!r}"
        assert "\n" not in str(caught.value)


def test_the_largest_message_of_a_broker_is_respected(own_mosquitto: Any, root: str) -> None:
    """A larger one is counted, and costs nobody the connection."""
    broker = own_mosquitto(max_packet_size=2_000)
    reader = Reader(broker.port, f"{root}/#")
    sink = written(sinks.MQTT(broker.url, f"{root}/S"), [{"text": "x" * 3_000}, {"text": "y"}])
    assert json.loads(reader.take(1)[0].payload) == {"text": "y"}
    reader.close()
    assert sink.statistics().left_out == {"(message too large)": 1}


@pytest.mark.parametrize(
    ("url", "topic", "options"),
    [
        ("http://host", "a/{sensor}", {}),
        ("mqtt://host", "a/+", {}),
        ("mqtt://host", "", {}),
        ("mqtt://host", "a/{sensor}", {"qos": 3}),
        ("mqtt://host", "a/{sensor}", {"version": "4"}),
        ("mqtt://host", "a/{sensor}", {"client_id": ""}),
        ("mqtt://host", "a/{sensor}", {"payload": "value", "columns": ["value"]}),
        ("mqtt://host", "a/{sensor}", {"payload": "value", "numbered": True}),
        ("mqtt://host", "a/{sensor}", {"ca": "ca.pem"}),
    ],
)
def test_what_cannot_be_is_refused_at_once(url: str, topic: str, options: Any) -> None:
    """In one sentence."""
    with pytest.raises(PlanError):
        sinks.MQTT(url, topic, **options)


def test_a_column_that_the_plan_does_not_give_is_refused_at_start() -> None:
    """One that the topic needs, the payload, and one that takes the numbers' names."""
    schema = tm.Batch.from_rows([{"sensor": "S", "_seq": 1}]).schema
    for options in ({"topic": "a/{site}"}, {"topic": "a", "payload": "value"}, {"topic": "a", "numbered": True}):
        with pytest.raises(PlanError):
            sinks.MQTT("mqtt://host", **options).bind(schema)
