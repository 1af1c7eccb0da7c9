"""``tidemill new --mqtt``: listens to a real broker, and writes a plan that works on what comes."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

import tidemill as tm
from tidemill.app.load import load
from tidemill.app.new.live_command import new_live
from tidemill.app.new.roles import Given
from tidemill.errors import InputError, OutsideError
from tidemill.formats.payloads import PayloadReader
from tidemill.testing import ListSink

Publish = Callable[[dict[str, Any]], None]


@pytest.fixture
def broker(own_mosquitto: Any) -> Any:
    return own_mosquitto()


@pytest.fixture
def retain(broker: Any) -> Publish:
    """Have the broker hold these messages, so that whoever comes hears them at once."""

    def publish(messages: dict[str, Any]) -> None:
        client = paho.Client(CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        sent = [client.publish(topic, payload, 1, retain=True) for topic, payload in messages.items()]
        for each in sent:
            each.wait_for_publish(30)
        client.disconnect()
        client.loop_stop()

    return publish


@pytest.fixture
def hears(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have it stop listening after so many messages, whenever they come."""
    return lambda count: monkeypatch.setattr("tidemill.app.new.live._MOST", count)


def listened(folder: Path, url: str, **given: str) -> tm.Pipeline:
    """What ``new`` makes of what it hears; its test is run."""
    assert new_live(str(folder / "plant.py"), url, "#", 60, Given(**given), force=False) == 0
    runpy.run_path(str(folder / "test_plant.py"))["test_the_plan_makes_what_pandas_makes"]()
    return load(str(folder / "plant.py")).pipeline


def test_numbers_on_a_topic_for_each_sensor(
    broker: Any, retain: Publish, hears: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The levels that vary are named, arrival is the time, and what was heard is a recording that the plan works on."""
    hears(8)
    retain({f"plant/{'ab'[n % 2]}/S{n}/temperature": str(20 + n) for n in range(6)} | {"alarm": "on", "other": "3"})
    source = listened(tmp_path, broker.url).sources[0]
    assert isinstance(source, tm.sources.MQTT)
    assert (source.topics, source.key) == (("plant/{group}/{sensor}/temperature",), "{group}/{sensor}")
    plan = (tmp_path / "plant.py").read_text()
    (tmp_path / "kept.py").write_text(plan.replace('    # keep="7d", ', '    keep="7d", '))
    (kept,) = load(str(tmp_path / "kept.py")).pipeline.sinks
    assert kept._ages is not None  # what the plan says of a file that grows for ever is what there is to write
    told = capsys.readouterr().out
    assert "6 messages on 6 topics" in told
    assert "1 topic is left out ('other'); 1 message holds no reading" in told
    sink = ListSink()
    replay = tm.sources.Replay(tmp_path / "heard.ndjson", key=source.key)
    tm.run(tm.Pipeline(replay, load(str(tmp_path / "plant.py")).pipeline.plan, sink), lanes=0)
    assert sorted((row["sensor"], row["value"], row["normalized"]) for row in sink.rows) == [
        (f"S{n}", 20 + n, 0.0) for n in range(6)
    ]
    assert all(type(row["time"]) is int for row in sink.rows), "else nobody could draw them over time"


def test_readings_inside_of_messages(broker: Any, retain: Publish, hears: Any, tmp_path: Path) -> None:
    """A path for each column that is needed; the records that are kept have these, and what the topic binds."""
    payloads = {
        f"up/d{n}": json.dumps({"ts": 1_700_000_000_000 + n, "rx": [1], "data": {"temp": n / 2}}) for n in range(4)
    }
    hears(4)
    retain(payloads)
    pipeline = listened(tmp_path, broker.url)
    source = pipeline.sources[0]
    assert (source.key, source.time) == ("sensor", "ts")
    assert 'value={"temp": "data.temp", "ts": "ts"}' in (tmp_path / "plant.py").read_text()
    kept = [json.loads(line) for line in (tmp_path / "heard.ndjson").read_text().splitlines()]
    assert sorted(kept, key=lambda row: row["ts"]) == [
        {"sensor": f"d{n}", "topic": f"up/d{n}", "temp": n / 2, "ts": 1_700_000_000_000 + n} for n in range(4)
    ]


@pytest.mark.parametrize("given", [{}, {"key": "dev.deviceName"}])
def test_devices_that_share_a_topic_and_are_named_inside_of_their_messages(
    broker: Any, retain: Publish, hears: Any, tmp_path: Path, given: dict[str, str]
) -> None:
    """The source takes the name from there; more may come than the one that was heard."""
    hears(1)
    payload = json.dumps({"dev": {"deviceName": "D1"}, "time": "2024-03-01T00:00:00Z", "x": 20})
    retain({"telemetry": payload})
    source = listened(tmp_path, broker.url, **given).sources[0]
    assert (source.topics, source.key, source.time) == (("telemetry",), "deviceName", "time")
    paths = {"x": "x", "deviceName": "dev.deviceName", "time": "time"}
    assert f"value={json.dumps(paths)}" in (tmp_path / "plant.py").read_text()
    (read,), _ = PayloadReader(paths).read(payload.encode())
    assert json.loads((tmp_path / "heard.ndjson").read_text()) == {**read, "topic": "telemetry"}
    assert (tmp_path / "calibration.csv").read_text() == "sensor,baseline,scale\nD1,20,1\n"


def test_one_topic_is_one_sensor_where_nothing_names_any(
    broker: Any, retain: Publish, hears: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is said, and not taken for a field that names it."""
    hears(1)
    retain({"telemetry": json.dumps({"time": "2024-03-01T00:00:00Z", "x": 20})})
    assert listened(tmp_path, broker.url).sources[0].key == "{topic}"
    assert "sensor    key='{topic}' (no field names a sensor: each topic is taken for one)" in capsys.readouterr().out


def test_devices_that_share_a_topic(broker: Any, retain: Publish, hears: Any, tmp_path: Path) -> None:
    """A list of records on one topic: the key is a field, as in a recording."""
    hears(9)
    retain(
        {
            "telemetry": json.dumps(
                [{"device": f"D{n % 2}", "time": f"2024-03-01T00:00:{n:02}Z", "x": n} for n in range(9)]
            )
        }
    )
    source = listened(tmp_path, broker.url).sources[0]
    assert (source.topics, source.key, source.time) == (("telemetry",), "device", "time")
    assert len((tmp_path / "calibration.csv").read_text().splitlines()) == 3


def test_a_password_goes_to_no_file_and_to_no_line(
    broker: Any,
    retain: Publish,
    hears: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the address or from the environment; the plan reads it from there."""
    hears(2)
    retain({"plant/S1": "20", "plant/S2": "21"})
    password = "s3cret-canary"
    (tmp_path / "b").mkdir()
    monkeypatch.setenv("MQTT_PASSWORD", password)
    listened(tmp_path, broker.guarded_url.replace("//", f"//tidemill:{password}@"))
    listened(tmp_path / "b", broker.guarded_url.replace("//", "//tidemill@"))
    captured = capsys.readouterr()
    texts = [
        path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".py", ".csv", ".ndjson")
    ]
    assert len(texts) == 8
    assert password not in "".join((*texts, captured.out, captured.err))
    plans = [(folder / "plant.py").read_text().split("client_id=") for folder in (tmp_path, tmp_path / "b")]
    assert plans[0][0] == plans[1][0]


def test_two_plans_of_one_name_do_not_end_each_others_connection(
    broker: Any, retain: Publish, hears: Any, tmp_path: Path
) -> None:
    """Each has a client_id of its own, that begins with the plan's name."""
    hears(2)
    retain({"plant/S1": "20", "plant/S2": "21"})
    names = []
    for person in "ab":
        (tmp_path / person).mkdir()
        new_live(str(tmp_path / person / "plant.py"), broker.url, "#", 60, Given(), force=False)
        names.append(load(str(tmp_path / person / "plant.py")).pipeline.sources[0].client_id)
    assert names[0] != names[1]
    assert all(re.fullmatch("tidemill-plant-[0-9a-f]{6}", name) for name in names)


def test_a_broker_that_says_nothing_refuses_or_is_not_there(
    broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence each, and nothing is written."""
    plan = str(tmp_path / "plant.py")
    with pytest.raises(InputError, match=r"nothing was heard of mqtt://.*--seconds, or to other topics with --topic"):
        new_live(plan, broker.url, "#", 0.1, Given(), force=False)
    with pytest.raises(InputError, match=r"wrong|authorized"):
        new_live(plan, broker.guarded_url.replace("//", "//me:not-it@"), "#", 0.1, Given(), force=False)
    broker.stop()
    monkeypatch.setattr("tidemill.app.new.live._CONNECT_S", 0.2)
    with pytest.raises(OutsideError, match="no broker answers at mqtt://"):
        new_live(plan, broker.url, "#", 0.1, Given(), force=False)
    with pytest.raises(InputError, match="more than 0"):
        new_live(plan, broker.url, "#", 0, Given(), force=False)
    assert list(tmp_path.iterdir()) == []


def test_readings_in_a_list(
    broker: Any, retain: Publish, hears: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --value it is said what to give; with it each item is a record, and what tells the items apart is in the key."""
    hears(3)
    payloads = {
        f"up/{n}": json.dumps(
            {
                "device": "ab"[n % 2],
                "ts": 1_700_000_000 + n,
                "metrics": [{"name": "temp", "value": 20 + n}, {"name": "flow", "value": n / 2}],
            }
        )
        for n in range(3)
    }
    retain(payloads)
    with pytest.raises(InputError, match=r"are in a list; --value 'metrics\[\*\]\.value' makes a record of each"):
        new_live(str(tmp_path / "plant.py"), broker.url, "#", 60, Given(), force=False)
    with pytest.raises(InputError, match=r"no message has items in a list at 'metric\[\*\].value'"):
        new_live(str(tmp_path / "plant.py"), broker.url, "#", 60, Given(value="metric[*].value"), force=False)
    source = listened(tmp_path, broker.url, value="metrics[*].value", key="{device}/{name}").sources[0]
    assert source.key == "{device}/{name}"
    plan = (tmp_path / "plant.py").read_text()
    assert 'value={"value": "metrics[*].value", "device": "device", "name": "metrics[*].name", "ts": "ts"}' in plan
    kept = [json.loads(line) for line in (tmp_path / "heard.ndjson").read_text().splitlines()]
    assert {(row["device"], row["name"], row["ts"] - 1_700_000_000, row["value"]) for row in kept} == {
        ("ab"[n % 2], name, n, value) for n in range(3) for name, value in (("temp", 20 + n), ("flow", n / 2))
    }
    paths = {"value": "metrics[*].value", "device": "device", "name": "metrics[*].name", "ts": "ts"}
    read = [row for payload in payloads.values() for row in PayloadReader(paths).read(payload.encode())[0]]
    fields = [{name: item for name, item in row.items() if name in paths} for row in kept]
    assert sorted(fields, key=str) == sorted(({name: row[name] for name in fields[0]} for row in read), key=str)
    assert "3 messages on 3 topics" in capsys.readouterr().out
    (tmp_path / "guessed").mkdir()
    assert listened(tmp_path / "guessed", broker.url, value="metrics[*].value").sources[0].key == "{sensor}/{name}"
