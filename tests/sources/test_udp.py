"""UDP: real sockets, bounded memory, and each datagram a record, a dead letter, or counted as lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.formats.test_influx_lines import SAMPLES
from tests.sources.test_tcp import Running, running

import tidemill as tm
from tidemill.app.status import summary
from tidemill.engine.exposition import Reading, exposed
from tidemill.engine.metrics import Distribution, Spread
from tidemill.errors import OutsideError, PlanError
from tidemill.formats import alike_kernel, json_alike
from tidemill.formats.json_alike import JsonAlike
from tidemill.formats.line_formats import line_format
from tidemill.letters import MALFORMED, OVERSIZE
from tidemill.sources import UDP
from tidemill.sources.udp_losses import Losses
from tidemill.stages.statistics.compiled import load_kernels

SMALL = 4_096  # bytes of buffer: room for a few datagrams


@contextlib.contextmanager
def sender(address: tuple[str, int]) -> Iterator[socket.socket]:
    """One that waits for nothing: what it sends over loopback is in the buffer of the source, or lost, when it returns."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.connect(address)
        yield made


def record(value: int, sensor: str = "a") -> bytes:
    return json.dumps({"sensor": sensor, "time": 1 + value, "value": value}).encode()


def values(rows: list[dict[str, Any]]) -> list[Any]:
    return [row["value"] for row in rows]


async def test_a_datagram_holds_lines() -> None:
    """One or more, the last with or without an end; several senders' do not mix, and each one's stay in order."""
    async with running(UDP()) as run:
        with sender(run.source.address) as one, sender(run.source.address) as other:
            for n in range(50):
                one.send(record(3 * n) + b"\n" + record(3 * n + 1))
                other.send(record(n, "b") + b"\n")
                one.send(b"\n" + record(3 * n + 2) + b"\n\n")
                one.send(b"")
        await run.until(lambda: len(run.rows) == 200)
    assert values([row for row in run.rows if row["sensor"] == "a"]) == list(range(150))
    assert values([row for row in run.rows if row["sensor"] == "b"]) == list(range(50))
    assert run.letters == []


async def test_a_byte_order_mark_is_no_part_of_a_datagram() -> None:
    """Some senders write one before each text."""
    async with running(UDP()) as run:
        with sender(run.source.address) as one:
            for n in range(2):
                one.send(b"\xef\xbb\xbf" + record(n))
        await run.until(lambda: len(run.rows) == 2)
    assert (values(run.rows), run.letters) == ([0, 1], [])


async def test_the_sensor_is_the_senders_address_where_nothing_else_says_it() -> None:
    """Whatever port it sends from; ``key`` may use the port too. The time is that of the arrival."""
    for key in (None, "{peer_host}/{peer_port}"):
        async with running(UDP(key=key)) as run:
            with sender(run.source.address) as one:
                port = one.getsockname()[1]
                one.send(b'{"value": 1}')
                await run.until(lambda: bool(run.rows))
        (batch,) = run.batches
        assert batch.keys.tolist() == ["127.0.0.1" if key is None else f"127.0.0.1/{port}"]
        assert batch.time.tolist()[0] > 1_700_000_000 * 10**9


async def test_line_protocol_comes_by_udp() -> None:
    """As `outputs.socket_writer` sends it: a metric in each datagram."""
    async with running(UDP(format="influx")) as run:
        with sender(run.source.address) as one:
            for sample in [*SAMPLES, "mill speed=fast"]:
                one.send(sample.encode() + b"\n")
        await run.until(lambda: len(run.rows) == len(SAMPLES) and bool(run.letters))
    wanted = line_format("influx").decode("\n".join(SAMPLES).encode()).rows
    assert [dict(sorted(row.items())) for row in run.rows] == [dict(sorted(row.items())) for row in wanted]
    assert [(letter.reason_code, letter.raw) for letter in run.letters] == [(MALFORMED, "mill speed=fast")]
    assert run.batches[0].keys[0] == "cpu,cpu=cpu-total,host=loaner"


async def test_a_datagram_that_is_too_long_is_a_dead_letter() -> None:
    """Alone: those around it, of the same sender, are records."""
    async with running(UDP(limit=60)) as run:
        with sender(run.source.address) as one:
            for data in (record(1), record(2, "x" * 60), record(3)):
                one.send(data)
        await run.until(lambda: len(run.rows) == 2 and bool(run.letters))
        assert run.source.statistics().rejected == 1
    (letter,) = run.letters
    assert (letter.reason_code, letter.reason) == (OVERSIZE, "the datagram is longer than 60 bytes")
    assert letter.raw == record(2, "x" * 60).decode()
    assert values(run.rows) == [1, 3]


async def test_the_largest_datagram_is_taken_whole() -> None:
    """65,507 bytes."""
    data = record(1, "x" * 65_450)
    data = data[:-1] + b" " * (65_507 - len(data)) + b"}"
    async with running(UDP()) as run:
        with sender(run.source.address) as one:
            one.send(data)
        await run.until(lambda: len(run.rows) == 1)


async def test_what_the_system_drops_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Every datagram is a record or lost, and a warning says so once."""
    async with running(UDP(buffer=SMALL)) as run:
        with sender(run.source.address) as one:
            for n in range(500):
                one.send(record(n))
        lost = run.source.statistics().lost
        assert 0 < lost < 500
        await run.until(lambda: len(run.rows) == 500 - lost)
        assert values(run.rows) == list(range(500 - lost))
    assert run.source.statistics().lost == lost
    told = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert [line.split(": ")[:2] for line in told] == [["source udp", f"{lost} datagrams are lost"]]
    assert run.letters == []


async def test_a_run_that_does_not_keep_up_holds_no_more_than_its_buffer() -> None:
    """What comes beyond waits in the system, and is dropped and counted there; all is one or the other at the end."""
    async with running(UDP(buffer=SMALL), pull=False) as run:
        with sender(run.source.address) as one:
            for n in range(2_000):
                one.send(record(n))
                await asyncio.sleep(0)
                assert run.source.buffered <= SMALL + 256 * 200
        await run.until(lambda: run.source.buffered > SMALL)
        run.pull.set()
        await run.until(lambda: len(run.rows) + run.source.statistics().lost == 2_000)
    assert values(run.rows) == sorted(values(run.rows))
    assert run.source.statistics().lost > 0


async def test_what_waits_in_the_system_is_read_at_the_end() -> None:
    """The loop has had no time for it before."""
    async with running(UDP()) as run:
        with sender(run.source.address) as one:
            for n in range(300):
                one.send(record(n))
    assert len(run.rows) + run.source.statistics().lost == 300
    assert len(run.rows) > 256


async def test_what_comes_after_the_stop_is_not_read() -> None:
    """Also when the buffer was full and has room again."""
    source = UDP(buffer=SMALL)
    run = Running(source, pull=False)
    await source.wait_listening()
    with sender(source.address) as one:
        while source.buffered <= SMALL:
            one.send(record(1))
            await asyncio.sleep(0)
        run.context.stopping.set()
        for _ in range(3):
            await asyncio.sleep(0)
        waiting = source.buffered
        one.send(record(2))
        run.pull.set()
        await run.until(run.task.done)
    assert waiting
    assert 2 not in values(run.rows)


def test_a_port_that_is_taken_is_refused() -> None:
    """Nobody shares it, since each would get some of what comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(OutsideError, match=f"UDP port {port} on 127.0.0.1 is in use"):
            UDP(port=port).check()
    UDP(port=port).check()


@pytest.mark.parametrize(("format_", "whole"), [("influx", SAMPLES[0].encode()), ("ndjson", record(7))])
async def test_every_damaged_datagram_is_accounted_for(format_: str, whole: bytes) -> None:
    """A record, a dead letter, or lost; and the one behind it is a record."""
    draw = random.Random(14)
    async with running(UDP(format=format_)) as run:
        with sender(run.source.address) as one:
            for n in range(2_000):
                data = bytearray(whole)
                for _ in range(draw.randint(1, 4)):
                    data[draw.randrange(len(data))] = draw.choice(b'\x00\xff"\\,= {}:e+i9')
                one.send(b"x" + data[1:] if data[:1] in b"# " else data)  # else it may be a comment
                if n % 50 == 0:
                    await asyncio.sleep(0)
            one.send(whole)
        await run.until(lambda: len(run.rows) + len(run.letters) + run.source.statistics().lost == 2_001)
    assert len(run.letters) > 1_000
    assert len(run.rows) > 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"port": 70_000}, "port=70000 of UDP"),
        ({"limit": 0}, "limit=0 of UDP"),
        ({"buffer": 0}, "of UDP"),
        ({"format": "csv"}, "format='csv' of UDP"),
        ({"precision": "s"}, "precision='s' of UDP"),
        ({"host": "0.0.0.0"}, "can be reached from other machines.*exposed=True"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options: Any, told: str) -> None:
    """In one sentence."""
    with pytest.raises(PlanError, match=told):
        UDP(**options)


async def test_what_is_lost_is_in_the_metrics_and_the_report(tmp_path: Path) -> None:
    """By its source; the other records are in the output."""
    source = UDP(buffer=SMALL)
    pipeline = tm.Pipeline(source, tm.Plan(), tm.sinks.Lines(tmp_path / "out.ndjson"))
    async with tm.serve(pipeline, lanes=0, state=None) as run:
        async with asyncio.timeout(120):
            await source.wait_listening()
        with sender(source.address) as one:
            for n in range(500):
                one.send(record(n))
        lost = source.statistics().lost
        spread = Spread(Distribution((), (), 0, 0), Distribution((), (), 0, 0), Distribution((), (), 0, 0))
        text = exposed(Reading(run.statistics(), spread))[1].decode()
        assert f'tidemill_source_lost_total{{source="udp"}} {lost:.1f}' in text.splitlines()
    report = run.report
    assert report is not None
    assert report.lost == {"udp": lost}
    assert report.records_in == 500 - lost
    assert f"lost before udp could read it: {lost}\n" in summary(report)


def test_losses_are_counted_over_sockets_and_told_when_they_grow() -> None:
    """Of each socket from its beginning; told at once, and again when they are ten times as many."""
    losses = Losses()
    told = []
    for sent in (20, 20, 400):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            listening.bind(("127.0.0.1", 0))
            losses.watch(listening)
            assert losses.news() == 0
            before = losses.read()
            with sender(listening.getsockname()) as one:
                for n in range(sent):
                    one.send(record(n))
            assert before < losses.read() < before + sent
            told.append(losses.news())
            losses.end()
    assert told[0] > 0
    assert told[1] == 0
    assert told[2] == losses.read()


async def test_datagrams_with_the_same_fields_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel where there is one, though their last lines had no end."""
    read: list[object] = []

    def noted(self: JsonAlike, block: bytes, kernel: Any, _read: Any = JsonAlike.read) -> Any:
        read.append(_read(self, block, kernel))
        return read[-1]

    monkeypatch.setattr(alike_kernel, "_in_use", [load_kernels()["read_alike"]])
    monkeypatch.setattr(json_alike, "SMALLEST", 1)
    monkeypatch.setattr(JsonAlike, "read", noted)
    async with running(UDP()) as run:
        with sender(run.source.address) as to:
            for n in range(20):
                to.send(record(n))
        await run.until(lambda: len(run.rows) == 20)
    assert values(run.rows) == list(range(20))
    assert read
    assert None not in read
