"""MQTT: what a broker has kept for a session comes at once; how fast it is taken, beside paho-mqtt's own loop."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tidemill as tm
from bench._common import Table, Wrong
from bench._edges_run import LIMIT_S, in_turn, taken
from bench._servers import server_module

MESSAGES = 100_000
SENSORS = 1_000
_AT_ONCE = 10_000
"""Messages that the publisher has under way; it can keep 65,535."""


def measure(options: argparse.Namespace, table: Table) -> None:
    with _broker() as broker:
        for qos, target, what in ((0, 0.7, "MQTT, QoS 0"), (1, 0.5, "MQTT, QoS 1, acknowledged when on the disk")):

            def bare(qos: int = qos) -> float:
                _fill(broker.port, "bare", qos)
                return _paho(broker.port, "bare", qos)

            def ours(qos: int = qos) -> Any:
                _fill(broker.port, "ours", qos)
                source = tm.sources.MQTT(broker.url, "ours/{site}/{sensor}", qos=qos, client_id="ours")
                return taken(source, MESSAGES, _nothing, options.folder)

            in_turn(options, table, f"{what} / paho-mqtt's loop", MESSAGES, target, bare, ours)


async def _nothing(source: Any) -> None:
    """The broker has it all."""


def _client(name: str, **options: Any) -> Any:
    import paho.mqtt.client as mqtt

    return mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5, **options)


def _connected(port: int, name: str) -> Any:
    """With a session that the broker keeps."""
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    client = _client(name)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3_600
    client.connect("127.0.0.1", port, clean_start=False, properties=properties)
    return client


def _fill(port: int, name: str, qos: int) -> None:
    """A session with all messages in it, and nobody there; each has topics of its own, since a session that is kept gets
    what comes for the others too."""
    subscriber = _connected(port, name)
    subscribed = []
    subscriber.on_connect = lambda *_: subscriber.subscribe(f"{name}/+/+", qos)
    subscriber.on_subscribe = lambda *_: subscribed.append(True)
    while not subscribed:
        subscriber.loop(0.1)
    subscriber.disconnect()
    while subscriber.loop(0.1) == 0:
        pass
    publisher = _client(f"{name}-publisher")
    publisher.max_inflight_messages_set(1_000)
    publisher.connect("127.0.0.1", port)
    publisher.loop_start()
    for number in range(MESSAGES):
        sent = publisher.publish(f"{name}/a/S{number % SENSORS}", b'{"value":%r,"level":3}' % (number % 997 / 8), qos)
        if number % _AT_ONCE == _AT_ONCE - 1 or number == MESSAGES - 1:
            sent.wait_for_publish(LIMIT_S)
    publisher.disconnect()
    publisher.loop_stop()


def _paho(port: int, name: str, qos: int) -> float:
    """Messages are counted; with QoS 1 it acknowledges each by itself, at once."""
    moments = []
    client = _connected(port, name)
    count = 0

    def message(*_: object) -> None:
        nonlocal count
        count += 1
        if count in (1, MESSAGES):
            moments.append(time.perf_counter())
            if count == MESSAGES:
                client.disconnect()

    client.on_message = message
    until = time.monotonic() + LIMIT_S
    while client.loop(0.1) == 0 or count < MESSAGES:
        if time.monotonic() > until:
            raise Wrong(f"paho-mqtt got {count:,} of {MESSAGES:,} messages with QoS {qos}")
    return moments[-1] - moments[0]


@contextmanager
def _broker() -> Iterator[Any]:
    """The tests' own, which keeps all that comes, in memory."""
    server = server_module("mosquitto_server").MosquittoServer(
        persistence="false", queue_qos0_messages="true", autosave_on_changes="false"
    )
    server.start()
    try:
        yield server
    finally:
        server.remove()
