"""MQTT against a real broker that refuses, is held, or is shown what it should not see."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from tests.sources.test_mqtt import Publisher, kept, soon

from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import InputError, TidemillError
from tidemill.letters import OVERSIZE
from tidemill.schema import Schema
from tidemill.sources import MQTT

_NUMBERS = itertools.count(1)


@pytest.fixture
def root() -> str:
    """A topic that no other test knows."""
    return f"refused{next(_NUMBERS)}"


@pytest.fixture
def publisher(mosquitto: Any) -> Iterator[Publisher]:
    made = Publisher(mosquitto.port)
    yield made
    made.close()


async def test_messages_come_through_tls(own_mosquitto: Any, authority: Any, root: str) -> None:
    """Both ways: what the sink publishes is what the source reads."""
    broker = own_mosquitto(tls=authority.signed("good"))
    url = f"mqtts://127.0.0.1:{broker.tls_port}"
    async with kept(MQTT(url, f"{root}/{{sensor}}", ca=authority.ca)) as keeper:
        sink = sinks.MQTT(url, f"{root}/{{sensor}}", payload="value", ca=authority.ca)
        await asyncio.to_thread(_publish, sink)
        await keeper.until(500)
    assert [row["value"] for row in keeper.rows] == list(range(500))


def _publish(sink: sinks.MQTT) -> None:
    sink.open(Schema(open=True))
    sink.write(Batch.from_rows([{"sensor": "S", "value": n} for n in range(500)]))
    sink.close()


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda authority: authority.signed("old", expired=True), "expired"),
        (lambda authority: authority.signed("other", "broker.example"), "not valid for '127.0.0.1'"),
        (lambda authority: authority.alone("selfmade"), "self-signed"),
    ],
    ids=["expired", "another-host", "self-signed"],
)
async def test_a_certificate_that_proves_nothing_ends_the_run(
    own_mosquitto: Any, authority: Any, root: str, made: Any, why: str
) -> None:
    """In one sentence that says why and what to look at, from the source and from the sink."""
    broker = own_mosquitto(tls=made(authority))
    url = f"mqtts://127.0.0.1:{broker.tls_port}"
    with pytest.raises(InputError) as of_source:
        async with kept(MQTT(url, f"{root}/{{sensor}}", ca=authority.ca)):
            pass
    with pytest.raises(InputError) as of_sink:
        sinks.MQTT(url, f"{root}/{{sensor}}", ca=authority.ca).open(Schema(open=True))
    for told in (str(of_source.value), str(of_sink.value)):
        assert "shows a certificate that is not trusted" in told
        assert why in told.replace("mismatch, certificate is ", "").replace("self signed", "self-signed")
        assert "Give ca=" in told
        assert "\n" not in told


async def test_a_port_that_speaks_no_tls_is_asked_about(mosquitto: Any, root: str) -> None:
    """A plain port ends the connection, or answers what makes no sense."""
    sink = sinks.MQTT(mosquitto.url.replace("mqtt://", "mqtts://"), f"{root}/{{sensor}}")
    with pytest.raises(TidemillError, match="TLS"):
        sink.open(Schema(open=True))


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_two_runs_that_share_a_subscription_get_each_message_once_in_sum(
    mosquitto: Any, publisher: Publisher, root: str, version: str
) -> None:
    """And both get some."""
    pattern = f"$share/group/{root}/{{sensor}}"
    async with (
        kept(MQTT(mosquitto.url, pattern, version=version)) as one,
        kept(MQTT(mosquitto.url, pattern, version=version)) as two,
    ):
        for number in range(300):
            publisher.publish(f"{root}/S", str(number))
        await soon(lambda: len(one.rows) + len(two.rows) >= 300, one.task)
    assert sorted(row["value"] for row in one.rows + two.rows) == list(range(300))
    assert one.rows
    assert two.rows


async def test_a_message_over_the_limit_is_a_dead_letter(mosquitto: Any, publisher: Publisher, root: str) -> None:
    """One byte below it is none; neither costs the connection."""
    limit = 256 << 10
    topic = f"{root}/S"
    room = limit - len(topic)
    async with kept(MQTT(mosquitto.url, f"{root}/{{sensor}}")) as keeper:
        for size in (room, room + 1, 4 * limit):
            publisher.publish(topic, b'{"text":"' + b"x" * (size - 11) + b'"}')
        publisher.publish(topic, "9")
        await keeper.until(2, letters=2)
    assert [len(row.get("text", "")) for row in keeper.rows] == [room - 11, 0]
    assert [letter.reason_code for letter in keeper.letters] == [OVERSIZE] * 2


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_subscription_that_is_refused_ends_the_run_in_one_sentence(
    own_mosquitto: Any, root: str, version: str
) -> None:
    """It names the topic."""
    broker = own_mosquitto(mute=True)
    with pytest.raises(InputError, match=rf"^source mqtt: .* refuses the subscription to '{root}/\+': ") as caught:
        async with kept(MQTT(broker.url, f"{root}/{{sensor}}", version=version)):
            pass
    assert "\n" not in str(caught.value)


def test_a_topic_that_is_refused_ends_the_sink_in_one_sentence(own_mosquitto: Any, root: str) -> None:
    """Where the broker says so."""
    broker = own_mosquitto(acl="topic readwrite other/#\n")
    sink = sinks.MQTT(broker.url, f"{root}/{{sensor}}")
    sink.open(Schema(open=True))
    sink.write(Batch.from_rows([{"sensor": "S"}]))
    with pytest.raises(InputError, match=rf"refuses what is published to '{root}/\{{sensor\}}': not authorized"):
        sink.flush()
    sink.close()


async def test_a_broker_that_is_held_is_left_and_found_again(
    own_mosquitto: Any, root: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It answers no ping any more: the connection is given up, and made again when the broker goes on."""
    monkeypatch.setattr("tidemill.sources.mqtt_connection._KEEPALIVE_S", 1)
    monkeypatch.setattr("tidemill.sources.mqtt_connection._MISC_S", 0.05)
    broker = own_mosquitto()
    source = MQTT(broker.url, f"{root}/{{sensor}}", client_id=root)
    async with kept(source) as keeper:
        broker.hold()
        with caplog.at_level("WARNING", "tidemill"):
            await soon(lambda: "Connecting again in" in caplog.text, keeper.task)
        assert not source.statistics().connected
        broker.hold(signal.SIGCONT)
        await soon(lambda: source.statistics().connected, keeper.task)
        publisher = Publisher(broker.port)
        publisher.publish(f"{root}/S", "7")
        await keeper.until(1)
        publisher.close()
    assert keeper.rows[-1]["value"] == 7
