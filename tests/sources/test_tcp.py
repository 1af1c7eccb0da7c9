"""TCP: real sockets, bounded memory, every line once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tidemill.batch import Batch
from tidemill.clock import SystemClock
from tidemill.errors import OutsideError, PlanError
from tidemill.letters import MALFORMED, OVERSIZE, DeadLetter
from tidemill.sources import TCP, UDP, SourceContext


class Running:
    """A source that is being drained, and what it gave so far."""

    def __init__(self, source: TCP | UDP, *, pull: bool = True) -> None:
        self.source = source
        self.letters: list[DeadLetter] = []
        self.batches: list[Batch] = []
        self.context = SourceContext(SystemClock(), self.letters.append)
        self.pull = asyncio.Event()
        if pull:
            self.pull.set()
        self.task = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        async for batch in self.source.stream(self.context):
            self.batches.append(batch)
            await self.pull.wait()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for batch in self.batches for row in batch.to_rows()]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(120):
            while not condition():
                assert not self.task.done() or self.task.result() is None
                await asyncio.sleep(0.001)

    async def stop(self) -> None:
        self.context.stopping.set()
        self.pull.set()
        async with asyncio.timeout(120):
            await self.task


@contextlib.asynccontextmanager
async def running(source: TCP | UDP, *, pull: bool = True) -> AsyncIterator[Running]:
    run = Running(source, pull=pull)
    try:
        async with asyncio.timeout(120):
            await source.wait_listening()
        yield run
    finally:
        await run.stop()


async def send(address: tuple[str, int], *chunks: bytes) -> None:
    _, writer = await asyncio.open_connection(*address)
    for chunk in chunks:
        writer.write(chunk)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


def line(sensor: str, value: float) -> bytes:
    return json.dumps({"sensor": sensor, "time": value, "value": value}).encode() + b"\n"


async def test_lines_of_many_connections_arrive_once_and_in_order() -> None:
    """300 senders at once: every record once, each connection's in its order."""
    async with running(TCP()) as run:
        senders = [send(run.source.address, b"".join(line(f"S{n}", k) for k in range(20))) for n in range(300)]
        await asyncio.gather(*senders)
        await run.until(lambda: len(run.rows) == 6_000)
        await run.until(lambda: run.source.statistics().connections == 0)
    by_sensor: dict[str, list[float]] = {}
    for row in run.rows:
        by_sensor.setdefault(row["sensor"], []).append(row["value"])
    assert len(by_sensor) == 300
    assert all(values == list(range(20)) for values in by_sensor.values())
    assert run.source.statistics().records == 6_000
    assert all(batch.arrived_ns for batch in run.batches)
    assert not run.source.statistics().connected


async def test_lines_cut_anywhere_are_whole() -> None:
    """A record that comes byte by byte is one record; a last line without an end counts when the sender closes."""
    data = line("a", 1) + line("b", 2).rstrip(b"\n")
    async with running(TCP()) as run:
        await send(run.source.address, *(data[place : place + 1] for place in range(len(data))))
        await run.until(lambda: len(run.rows) == 2)
    assert [row["sensor"] for row in run.rows] == ["a", "b"]


async def test_a_line_that_a_reset_connection_cuts_is_no_record() -> None:
    """A part of a number is a number too: who closes has said all, whose connection breaks has not."""
    async with running(TCP(format="influx")) as run:
        _, writer = await asyncio.open_connection(*run.source.address)
        writer.write(b"mill,line=L1 speed=40.1\nmill,line=L1 speed=4")
        await run.until(lambda: run.source.buffered == len("mill,line=L1 speed=4") and len(run.rows) == 1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        await run.until(lambda: run.source.statistics().connections == 0)
        assert run.source.buffered == 0
    assert [row["speed"] for row in run.rows] == [40.1]
    assert [(letter.raw, letter.reason) for letter in run.letters] == [
        ("mill,line=L1 speed=4", "the connection broke in the middle of this line")
    ]


async def test_bad_lines_touch_nobody() -> None:
    """Malformed and oversize lines are letters; the connection and its neighbours flow."""
    async with running(TCP(limit=1_000)) as run:
        await send(run.source.address, line("a", 1), b"nonsense\n", b"x" * 50_000 + b"\n", line("a", 2), b"[1]\n")
        await send(run.source.address, line("b", 1))
        await run.until(lambda: len(run.rows) == 3 and len(run.letters) == 3)
    assert sorted(letter.reason_code for letter in run.letters) == [MALFORMED, MALFORMED, OVERSIZE]


async def test_without_a_sensor_the_connection_is_the_sensor() -> None:
    """The peer names the sensor, the arrival is the time; a named key field must be there."""
    async with running(TCP()) as run:
        _, writer = await asyncio.open_connection(*run.source.address)
        host, port = writer.get_extra_info("sockname")[:2]
        writer.write(b'{"value": 1}\n{"value": 2, "sensor": "S"}\n')
        await run.until(lambda: len(run.rows) == 2)
        writer.close()
        await writer.wait_closed()
    keys = [key for batch in run.batches for key in batch.keys[batch.key].tolist()]
    assert keys == [f"{host}:{port}", "S"]
    now = SystemClock().wall_ns()
    assert all(0 <= now - ns < 60 * 10**9 for batch in run.batches for ns in batch.time.tolist())
    async with running(TCP(key="machine")) as run:
        await send(run.source.address, b'{"value": 1}\n')
        await run.until(lambda: len(run.letters) == 1)


async def test_a_reader_that_stops_stops_the_senders() -> None:
    """Back-pressure: when nobody pulls, memory stays bounded, senders wait, and nothing is lost."""
    source = TCP(buffer=100_000)
    record = json.dumps({"sensor": "a", "time": 1, "text": "x" * 1_000}).encode() + b"\n"
    count, senders = 8_000, 4
    async with running(source, pull=False) as run:
        sending = [
            asyncio.ensure_future(send(source.address, *[record * 100] * (count // 100))) for _ in range(senders)
        ]
        await run.until(lambda: source.buffered > 60_000)
        most = 0
        for _ in range(300):
            await asyncio.sleep(0)
            most = max(most, source.buffered)
        assert most < 100_000 + senders * (1 << 15) + 4 * len(record)
        assert not any(task.done() for task in sending)
        run.pull.set()
        await asyncio.gather(*sending)
        await run.until(lambda: source.statistics().records == count * senders)
    assert len(run.rows) == count * senders
    assert source.buffered == 0


async def test_stopping_yields_what_was_read_and_rejects_the_cut_line() -> None:
    """At the end of the run whole lines come out, a half line is a letter, and the port is free again."""
    source = TCP()
    run = Running(source)
    await source.wait_listening()
    _, writer = await asyncio.open_connection(*source.address)
    writer.write(line("a", 1) + b'{"sensor": "b"')
    await run.until(lambda: len(run.rows) == 1 and source.buffered > 0)
    await run.stop()
    assert [letter.reason_code for letter in run.letters] == [MALFORMED]
    assert "ended in the middle" in run.letters[0].reason
    TCP(port=source.port).check()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize("ack", [False, True])
async def test_what_comes_beyond_the_buffer_is_not_read_after_the_stop(ack: bool) -> None:
    """What was read by then are records, and no more is, however much is sent."""
    source = TCP(buffer=100_000, ack=ack)
    run = Running(source, pull=False)
    await source.wait_listening()
    sending = asyncio.ensure_future(send(source.address, *[line("a", 1) * 1_000] * 1_000))
    await run.until(lambda: source.buffered > 100_000)
    waiting = source.buffered
    run.context.stopping.set()
    run.pull.set()
    await run.until(lambda: source.buffered == 0)
    source.kept(len(run.batches))
    async with asyncio.timeout(120):
        await run.task
    assert (len(run.rows) - len(run.batches[0])) * len(line("a", 1)) <= waiting
    with pytest.raises(ConnectionError):
        await sending


def test_a_busy_port_is_refused_at_start() -> None:
    """The error names the port and the host; a host that is none is refused too."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OutsideError, match=f"port {port} on 127.0.0.1 is in use"):
            TCP(port=port).check()
    with pytest.raises(OutsideError, match="cannot"):
        TCP(host="203.0.113.7", port=0, exposed=True).check()
    with pytest.raises(PlanError, match="port"):
        TCP(port=70_000)


async def test_unfinished_lines_of_all_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many senders that never end their lines cannot fill the memory together."""
    monkeypatch.setattr("tidemill.sources.tcp_connection._UNFINISHED", 100_000)
    async with running(TCP()) as run:
        writers = [(await asyncio.open_connection(*run.source.address))[1] for _ in range(10)]
        for writer in writers:
            writer.write(b"y" * 30_000)
        await run.until(lambda: len(run.letters) >= 1)
        assert run.source.buffered <= 100_000 + (1 << 15)
        for writer in writers:
            writer.write(b"\n" + line("a", 1))
        await run.until(lambda: len(run.rows) == 10)
        for writer in writers:
            writer.close()
            await writer.wait_closed()
    assert {letter.reason_code for letter in run.letters} <= {OVERSIZE, MALFORMED}
    assert len(run.letters) == 10


SENDERS = """
import json, socket, sys
host, port, senders, records = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sockets = [socket.create_connection((host, port)) for _ in range(senders)]
for number in range(records):
    for place, each in enumerate(sockets):
        each.sendall(json.dumps({"sensor": f"S{place}", "time": number, "value": number}).encode() + b"\\n")
sys.stdin.readline()
for each in sockets:
    each.close()
"""


async def test_two_thousand_connections_from_another_process() -> None:
    """2,000 sensors connected at once, 5 records each: every record once, in each sensor's order."""
    senders, records = 2_000, 5
    async with running(TCP()) as run:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            SENDERS,
            *map(str, (*run.source.address, senders, records)),
            stdin=asyncio.subprocess.PIPE,
        )
        await run.until(lambda: run.source.statistics().records == senders * records)
        assert run.source.statistics().connections == senders
        await process.communicate(b"\n")
        assert process.returncode == 0
        await run.until(lambda: run.source.statistics().connections == 0)
    by_sensor: dict[str, list[int]] = {}
    for row in run.rows:
        by_sensor.setdefault(row["sensor"], []).append(row["value"])
    assert len(by_sensor) == senders
    assert all(values == list(range(records)) for values in by_sensor.values())
