"""Whole runs beside a real Mosquitto, one of which is killed: nothing that the engine had taken is missing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.small_plants import asked, count_in

_RUN = """
import asyncio, pathlib, sys
import tidemill as tm

url, qos, name = sys.argv[1:]
value = {"seq": "seq", "time": "seq", "eui": "it.devEUI", "rssi": "it.rxInfo[0].rssi"}
source = tm.sources.MQTT(url, "lora/{sensor}/+", value=value, qos=int(qos), client_id=name)
plan = tm.Plan(tm.Dedup(within=20_000, max_records=20_000))
pipeline = tm.Pipeline(source, plan, tm.sinks.SQLite("out.db"), name="plant")


async def main():
    state = tm.State("state", checkpoint_s=0.5)
    async with tm.serve(pipeline, lanes=1, state=state, report="report.json", handle_signals=True) as run:
        await source.wait_subscribed()
        pathlib.Path("subscribed").touch()
        await run.wait()


asyncio.run(main())
"""
_PUBLISH = """
import gzip, os, socket, sys, time

port, qos, window, held_at, until, *paths = sys.argv[1:]
qos, window, held_at = int(qos), int(window), int(held_at)
under_way = {}  # number -> packet


def packet(kind, body):
    length, head = len(body), bytearray([kind])
    while True:
        length, byte = length >> 7, length & 0x7F
        head.append(byte | 0x80 if length else byte)
        if not length:
            return bytes(head) + body


def messages():
    for number, path in enumerate(paths):
        lines = gzip.open(path) if path.endswith(".gz") else [b"{}"] * int(path)
        for seq, line in enumerate(lines):
            topic = b"lora/%d/%d" % (number, seq)
            yield len(topic).to_bytes(2, "big") + topic, b'{"seq":%d,"it":%b}' % (seq, line.strip())


def held(messages):
    for number, message in enumerate(messages):
        while number == held_at and not os.path.exists(until):
            time.sleep(0.01)
        yield message


def connected():
    while True:
        try:
            made = socket.create_connection(("127.0.0.1", int(port)))
            made.sendall(packet(0x10, b"\\0\\4MQTT\\4\\0\\0\\0\\0\\6sender"))
            assert made.recv(4)[3:] == b"\\0"  # taken
            made.sendall(b"".join(under_way.values()))
            return made
        except (OSError, AssertionError):
            time.sleep(0.05)


coming, mid, more, line = held(messages()), 0, True, connected()
came = b""
while more or under_way:
    going = []
    while more and len(under_way) < window:
        message = next(coming, None)
        more = message is not None
        if more:
            mid = mid % 65535 + 1
            under_way[mid] = packet(0x30 | qos << 1, message[0] + mid.to_bytes(2, "big") + message[1])
            going.append(under_way[mid])
    try:
        line.sendall(b"".join(going))
        data = line.recv(1 << 16)
        if not data:
            raise ConnectionError
        came += data
        answers = []
        while len(came) >= 4:  # each is of four bytes
            kind, number, came = came[0], came[2:4], came[4:]
            if kind == 0x50:
                answers.append(b"\\x62\\2" + number)
            else:
                under_way.pop(int.from_bytes(number, "big"), None)
        line.sendall(b"".join(answers))
    except OSError:
        line.close()
        line, came = connected(), b""
"""
"""In a few lines of its own, since it must be faster than who is tried. Whatever is not acknowledged is published again."""


_STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _runs_end() -> Iterator[None]:
    """Also those of a test that fails."""
    yield
    while _STARTED:
        left = _STARTED.pop()
        if left.poll() is None:
            os.killpg(left.pid, signal.SIGKILL)
            left.wait()


class Plant:
    """A run in a folder, as a process group of its own."""

    def __init__(self, folder: Path, url: str, qos: int) -> None:
        folder.mkdir(exist_ok=True)
        self.name = folder.name
        """Of its session."""
        self._folder, self._arguments = folder, [url, str(qos), self.name]

    def start(self) -> None:
        """Return when it has subscribed."""
        (self._folder / "subscribed").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, *self._arguments], cwd=self._folder, start_new_session=True
        )
        _STARTED.append(self.process)
        self.until((self._folder / "subscribed").exists)

    def kill(self) -> None:
        """All of it, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0

    def rows(self) -> list[tuple[str, int]]:
        """(sensor, seq) of what is committed."""
        return asked(self._folder / "out.db", "SELECT sensor, seq FROM features")

    def count(self, sensor: int) -> int:
        return [name for name, _ in self.rows()].count(str(sensor))

    def report(self) -> dict[str, Any]:
        """Of its last start, which has ended."""
        made: dict[str, Any] = json.loads((self._folder / "report.json").read_text())
        return made

    def until_rows(self, count: int) -> None:
        self.until(lambda: count_in(self._folder / "out.db") >= count)

    def until(self, so: Any) -> None:
        until = time.monotonic() + 120
        while not so():
            assert self.process.poll() is None, "it ended by itself"
            assert time.monotonic() < until, f"{len(self.rows())} rows"
            time.sleep(0.05)


def publisher(
    port: int, qos: int, window: int, *what: Path | int, held_at: int = -1, until: Path | str = ""
) -> subprocess.Popen[bytes]:
    """Publishes the lines of recordings, or so many messages, each with its place in ``seq`` and in its topic; after ``held_at``
    of them it waits for a file."""
    words = map(str, (port, qos, window, held_at, until, *what))
    return subprocess.Popen([sys.executable, "-c", _PUBLISH, *words])


def test_all_messages_of_a_recording_come_once_though_the_engine_is_killed(
    own_mosquitto: Any, recordings: Path, tmp_path: Path
) -> None:
    """46,706 of nested JSON, 78 MB, with QoS 2: after a kill -9 in the middle each is in the database once. The broker sends
    again what it had not heard the acknowledgement of, thousands of messages when it is busy, and `Dedup` drops them."""
    paths = sorted((recordings / "campusiot_lorawan").glob("*.gz"))
    broker = own_mosquitto(autosave_on_changes="false", autosave_interval=0)
    plant = Plant(tmp_path, broker.url, 2)
    plant.start()
    killed = tmp_path / "killed"
    sender = publisher(broker.port, 2, 500, *paths, held_at=46_000, until=killed)
    plant.until_rows(15_000)
    plant.kill()
    before = len(plant.rows())
    assert 15_000 <= before < 46_706
    killed.touch()
    plant.start()
    plant.until_rows(46_706)
    assert sender.wait(120) == 0
    plant.stop()
    rows = plant.rows()
    assert len(rows) == 46_706
    assert len(set(rows)) == 46_706


def test_a_broker_that_is_killed_five_times_loses_nothing_that_the_engine_had_acknowledged(
    own_mosquitto: Any, tmp_path: Path
) -> None:
    """With QoS 1 and with QoS 2: what a killed broker had taken and not saved is its own loss, and what comes twice it has sent
    twice; its log tells whose each one is. It numbers messages from where it had saved, here at the beginning, so that numbers
    come again which are half-way in the run."""
    broker = own_mosquitto(log_type="all", autosave_on_changes="false", autosave_interval=0)
    plants = [Plant(tmp_path / f"run-{qos}", broker.url, qos) for qos in (1, 2)]
    for plant in plants:
        plant.start()
    broker.restart()
    for turn in range(5):
        sender = publisher(broker.port, 2, 20, *[0] * turn, 300)  # the others are named in the topic by their turn
        for plant in plants:
            plant.until(lambda plant=plant, turn=turn: plant.count(turn) >= 50)
        broker.kill()
        broker.start()
        assert sender.wait(120) == 0
    sender = publisher(broker.port, 2, 20, *[0] * 5, 100)
    for plant in plants:
        plant.until(lambda plant=plant: ("5", 99) in plant.rows())  # all before it came before, or never will
        plant.stop()
    assert sender.wait(120) == 0
    log = (broker.folder / "mosquitto.log").read_text()
    for plant in plants:
        rows = plant.rows()
        assert len(rows) == len(set(rows))
        sent, acknowledged = sent_to(plant.name, log)
        assert len(acknowledged) > 500
        assert acknowledged <= set(rows), sorted(acknowledged - set(rows))
        report = plant.report()
        assert report["records_in"] == report["rows_out"] + report["deduplicated"] <= sent


def sent_to(client: str, log: str) -> tuple[int, set[tuple[str, int]]]:
    """How many messages the broker sent to a client, some of them twice; and by the last two levels of their topics those that
    it acknowledged, of QoS 2 with the first of its two words, after which the broker sends them no more."""
    sent: dict[str, tuple[str, int]] = {}
    times, done = 0, set()
    for mid, sensor, seq, acknowledged in re.findall(
        rf"Sending PUBLISH to {client} \(\w+, \w+, \w+, m(\d+), '[^']*/(\d+)/(\d+)'"
        rf"|Received PUB(?:ACK|REC) from {client} \(Mid: (\d+)",
        log,
    ):
        if seq:
            times += 1
            sent[mid] = (sensor, int(seq))
        else:
            done.add(sent[acknowledged])
    return times, done
