"""R23: a network between the senders and `TCP` that splits, stalls and resets, as one may; and no line is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import deque
from pathlib import Path
from typing import Self

import tidemill as tm
from tidemill.sources import TCP
from tidemill.testing import ListSink

EVENTS = 200
LINES = 2_000
SENDERS = 4
_RESET = struct.pack("ii", 1, 0)


class Between:
    """A proxy that does something to each connection: after some bytes it splits what comes into single ones, holds it back
    until others have gone on, or cuts it off with a reset, to both sides."""

    def __init__(self, port: int, seed: int) -> None:
        self._to = port
        self._chance = random.Random(seed)
        self.events: dict[str, int] = dict.fromkeys(("split", "stall", "reset", "half"), 0)

    async def __aenter__(self) -> Self:
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._tasks.__aexit__(None, None, None)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, out = await asyncio.open_connection("127.0.0.1", self._to)
        both = (writer, out)
        backward = self._tasks.create_task(self._pump(there, writer))
        try:
            await self._disturbed(reader, out, both)
            await backward
        except OSError:
            backward.cancel()
        finally:
            for each in both:
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    async def _disturbed(
        self, reader: asyncio.StreamReader, out: asyncio.StreamWriter, both: tuple[asyncio.StreamWriter, ...]
    ) -> None:
        while data := await reader.read(self._chance.choice((40, 400, 4_000))):
            what = self._chance.choice((*self.events, "pass", "pass"))
            if what in self.events:
                self.events[what] += 1
            if what == "reset":
                out.write(data[: self._chance.randrange(len(data))])
                for each in both:
                    each.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    each.transport.abort()
                raise ConnectionResetError
            if what == "half":  # of what is there is sent, and then nothing for a while, in the middle of a line
                half = self._chance.randrange(len(data))
                out.write(data[:half])
                await asyncio.sleep(0.01)
                data = data[half:]
            if what == "stall":
                await asyncio.sleep(0.02)
            for piece in [data] if what != "split" else [bytes([byte]) for byte in data]:
                out.write(piece)
                await out.drain()
        out.write_eof()


def line(sender: int, number: int) -> bytes:
    return b'{"sensor":"S%d","time":%d,"number":%d}\n' % (sender, 1_700_000_000 + number, number)


async def deliver(port: int, lines: deque[bytes]) -> None:
    """As a sender should: what was not acknowledged is sent again."""
    while lines:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"".join(list(lines)[:100]))
                writer.write_eof()
                done = 0
                while count := await reader.readline():
                    while done < int(count):
                        lines.popleft()
                        done += 1
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        await asyncio.sleep(0)


def descriptors() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


async def test_a_bad_network_loses_and_doubles_nothing_and_leaves_nothing_open(tmp_path: Path) -> None:
    """Senders that send again what was not acknowledged, and `Dedup`: each line once, in its sender's order."""
    source, sink = TCP(ack=True), ListSink()
    pipeline = tm.Pipeline(source, tm.Plan(tm.Dedup()), sink)
    async with tm.serve(pipeline, lanes=0, state=tm.State(tmp_path)) as run:
        _, port = await source.wait_listening()
        before = descriptors()
        events = 0
        rounds = 0
        while events < EVENTS:
            async with Between(port, seed=rounds) as between, asyncio.TaskGroup() as senders:
                for sender in range(SENDERS):
                    some = range(rounds * LINES, (rounds + 1) * LINES)
                    senders.create_task(deliver(between.port, deque(line(sender, number) for number in some)))
            events += sum(between.events.values())
            assert min(between.events.values()) > 0
            rounds += 1
        async with asyncio.timeout(120):
            while source.statistics().connections or descriptors() > before:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        run.stop_soon()
        report = await run.wait()
    for sender in range(SENDERS):
        numbers = [row["number"] for row in sink.rows if row["sensor"] == f"S{sender}"]
        assert numbers == list(range(rounds * LINES))
    assert report.dead_letters == 0
    assert report.deduplicated > 0
