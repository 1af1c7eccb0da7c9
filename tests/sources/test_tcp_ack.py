"""TCP(ack=True): a line is acknowledged when it is safe, and no sooner; what was not is sent again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ports import HeldPort

from tidemill.clock import SystemClock
from tidemill.letters import DeadLetter
from tidemill.sources import TCP, SourceContext
from tidemill.sources.acknowledgements import Acknowledgements
from tidemill.tls import client_context

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "tcp-acknowledged.md"


def line(number: int) -> bytes:
    return json.dumps({"sensor": "a", "time": number, "value": number}).encode() + b"\n"


async def turns() -> None:
    """Let others have the loop, often enough for whatever they would do."""
    for _ in range(100):
        await asyncio.sleep(0)


async def soon(condition: Callable[[], bool]) -> None:
    """Return when it is so."""
    async with asyncio.timeout(120):
        while not condition():
            await turns()


class Keeper:
    """Stands for the engine: takes batches, and says when they are safe."""

    def __init__(self, source: TCP, clock: Any = None, **lent: Any) -> None:
        self.source = source
        self.letters: list[DeadLetter] = []
        self.values: list[list[int]] = []
        """Of each batch, the values in it."""
        self.context = SourceContext(clock or SystemClock(), self.letters.append, **lent)
        self.task = asyncio.ensure_future(self._take())

    async def _take(self) -> None:
        async for batch in self.source.stream(self.context):
            self.values.append([row["value"] for row in batch.to_rows()])

    def keep(self) -> None:
        """All that was taken is safe."""
        self.source.kept(len(self.values))

    @property
    def count(self) -> int:
        return sum(map(len, self.values))

    async def until(self, records: int, letters: int = 0) -> None:
        await soon(lambda: self.count >= records and len(self.letters) >= letters)

    async def stop(self) -> None:
        self.context.stopping.set()
        async with asyncio.timeout(120):
            await self.task


@contextlib.asynccontextmanager
async def kept(
    source: TCP, clock: Any = None, **lent: Any
) -> AsyncIterator[tuple[Keeper, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A source with one sender."""
    keeper = Keeper(source, clock, **lent)
    await source.wait_listening()
    reader, writer = await asyncio.open_connection(*source.address)
    try:
        yield keeper, reader, writer
    finally:
        keeper.keep()
        writer.close()
        await keeper.stop()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_lines_that_come_while_nothing_is_gained_by_them_are_one_batch() -> None:
    """While the disk is busy they wait, as bytes; a whole read does not."""
    disk = asyncio.Event()
    asked = 0

    async def busy() -> None:
        nonlocal asked
        asked += 1
        await disk.wait()

    async with kept(TCP(ack=True), gather=busy) as (keeper, _, writer):
        writer.write(line(1))
        await soon(lambda: asked == 1)
        for number in (2, 3):
            before = keeper.source.buffered
            writer.write(line(number))
            await soon(lambda before=before: keeper.source.buffered > before)
        assert keeper.count == 0
        disk.set()
        await keeper.until(3)
        assert keeper.values == [[1, 2, 3]]
        disk.clear()
        writer.write(b"".join(map(line, range(2_000))))
        await soon(lambda: keeper.count >= 500)
        disk.set()
        await keeper.until(2_003)


async def test_a_line_is_acknowledged_when_it_is_safe_and_no_sooner() -> None:
    """Nothing comes for what is only read; then the number of all lines so far, for each connection its own."""
    async with kept(TCP(ack=True)) as (keeper, reader, writer):
        writer.write(line(1) + line(2) + line(3)[:-5])
        await keeper.until(2)
        other_reader, other = await asyncio.open_connection(*keeper.source.address)
        other.write(line(9))
        await keeper.until(3)
        hearing = asyncio.ensure_future(reader.readline())
        keeper.source.kept(0)
        await turns()
        assert not hearing.done()
        keeper.keep()
        assert await hearing == b"2\n"
        assert await other_reader.readline() == b"1\n"
        writer.write(line(3)[-5:] + line(4))
        await keeper.until(5)
        keeper.keep()
        assert await reader.readline() == b"4\n"
        other.close()
        await other.wait_closed()


async def test_lines_that_are_no_records_are_acknowledged_too() -> None:
    """Malformed, empty and oversize lines count, and come as empty batches with nothing but rejects before them."""
    async with kept(TCP(ack=True, limit=1_000)) as (keeper, reader, writer):
        writer.write(b"nonsense\n")
        await keeper.until(0, letters=1)
        writer.write(b"x" * 50_000)
        await keeper.until(0, letters=2)
        writer.write(b"x" * 50_000 + b"\n")
        writer.write(b"\n\n")
        writer.write(line(1))
        await keeper.until(1)
        keeper.keep()
        assert await reader.readline() == b"5\n"
        assert [] in keeper.values


@pytest.mark.parametrize("rest", [b"", b'{"value": 2}', b"y" * 2_000], ids=["whole", "no end", "oversize"])
async def test_a_sender_that_is_done_gets_its_last_number(rest: bytes) -> None:
    """It shuts down its side, hears of all its lines (the last needs no end), and then the connection is closed."""
    async with kept(TCP(ack=True, limit=1_000)) as (keeper, reader, writer):
        writer.write(line(1) + rest)
        writer.write_eof()
        await keeper.until(1 + rest.startswith(b"{"), letters=rest.startswith(b"y"))
        hearing = asyncio.ensure_future(reader.read())
        await turns()
        assert not hearing.done()
        async with asyncio.timeout(120):
            while not hearing.done():
                keeper.keep()
                await asyncio.sleep(0)
        assert hearing.result().splitlines()[-1] == (b"2" if rest else b"1")


async def test_a_sender_with_nothing_to_hear_is_closed_at_once() -> None:
    """It sent nothing, or has heard of all."""
    async with kept(TCP(ack=True)) as (_, reader, writer):
        writer.write_eof()
        async with asyncio.timeout(120):
            assert await reader.read() == b""


async def test_over_tls_a_sender_waits_for_its_number_and_closes_then(authority: Any) -> None:
    """Nothing of TLS stands between it and its number, as long as it has not said that it has sent all."""
    cert, key = authority.signed("us")
    keeper = Keeper(TCP(ack=True, cert=cert, cert_key=key))
    address = await keeper.source.wait_listening()
    reader, writer = await asyncio.open_connection(*address, ssl=client_context(authority.ca))
    writer.write(line(1) + line(2))
    await keeper.until(2)
    keeper.keep()
    async with asyncio.timeout(120):
        assert await reader.readline() == b"2\n"
    writer.close()
    await writer.wait_closed()
    await keeper.stop()


async def test_a_line_cut_by_a_broken_connection_is_no_record() -> None:
    """The sender was not told, and will send it again; what it had ended counts."""
    async with kept(TCP(ack=True)) as (keeper, _, writer):
        raw = socket.create_connection(keeper.source.address)
        raw.sendall(line(1) + line(2)[:10])
        await keeper.until(1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # closing resets
        raw.close()
        await soon(lambda: keeper.source.statistics().connections == 1)
        writer.write(line(3))
        await keeper.until(2)
        assert keeper.source.buffered == 0
    assert [value for batch in keeper.values for value in batch] == [1, 3]
    assert keeper.letters == []


async def test_numbers_that_nobody_reads_take_no_memory() -> None:
    """Of ten thousands only the newest waits, whatever the sender does; when it reads, the newest is the last."""
    source = TCP(ack=True)
    keeper = Keeper(source)
    await source.wait_listening()
    sender = socket.socket()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # as little as the system allows
    sender.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sender, source.address)
    await turns()
    (connection,) = source._connections
    transport = connection._transport
    assert transport is not None
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    most = 0
    for count in range(1, 30_001):
        connection.acknowledge(count)
        most = max(most, transport.get_write_buffer_size())
    assert 0 < most <= len(b"30000\n")
    heard = b""
    async with asyncio.timeout(120):
        while not heard.endswith(b"\n30000\n"):
            heard += await loop.sock_recv(sender, 1 << 16)
    numbers = list(map(int, heard.split()))
    assert numbers == sorted(set(numbers))
    assert len(numbers) < 30_000
    sender.close()
    await keeper.stop()


async def test_the_end_of_a_run_waits_for_what_is_being_kept() -> None:
    """Lines that were read are acknowledged though the run ends; a cut one is neither counted nor rejected."""
    async with kept(TCP(ack=True)) as (keeper, reader, writer):
        writer.write(line(1) + line(2)[:10])
        await keeper.until(1)
        keeper.context.stopping.set()
        await turns()
        assert not keeper.task.done()
        keeper.keep()
        async with asyncio.timeout(120):
            await keeper.task
            assert await reader.readline() == b"1\n"
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
    assert keeper.letters == []


async def test_the_end_of_a_run_does_not_wait_for_ever(script_clock: Any) -> None:
    """When nobody keeps anything any more, it ends, and acknowledges nothing."""
    source = TCP(ack=True)
    keeper = Keeper(source, script_clock)
    await source.wait_listening()
    reader, writer = await asyncio.open_connection(*source.address)
    writer.write(line(1))
    await keeper.until(1)
    await keeper.stop()
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    assert script_clock.slept == [2.0]
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_without_acknowledgements_nothing_is_written_back() -> None:
    """A sender that knows nothing of them is not disturbed."""
    async with kept(TCP()) as (keeper, reader, writer):
        assert not keeper.source.acknowledges
        writer.write(line(1) + b"nonsense\n")
        writer.write_eof()
        await keeper.until(1, letters=1)
        assert await reader.read() == b""
    assert [] not in keeper.values


@pytest.mark.parametrize("seed", range(8))
async def test_the_pages_client_loses_nothing(seed: int, request: pytest.FixtureRequest) -> None:
    """Runs are killed at any moment, with lines taken that are not safe: each line becomes safe at least once, and the
    first time in order."""
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    client: dict[str, Any] = {}
    exec(code, client)  # what the page shows
    chance = random.Random(seed)
    held = HeldPort()
    request.addfinalizer(held.close)
    port = held.number
    count = 5_000
    lines = deque(map(line, range(count)))
    safe: list[int] = []
    sending = asyncio.ensure_future(asyncio.to_thread(client["deliver"], lines, ("127.0.0.1", port), 0.001))
    kills = 0
    async with asyncio.timeout(60):
        while not sending.done():
            keeper = Keeper(TCP(port=port, ack=True))
            await keeper.source.wait_listening()
            done = 0
            until = chance.randrange(1, 2_000) if kills < 5 else count * 2
            while keeper.count < until and not sending.done():
                if chance.random() < 0.3:
                    for batch in keeper.values[done : (taken := len(keeper.values))]:
                        safe += batch
                    done = taken
                    keeper.source.kept(done)
                await asyncio.sleep(0)
            keeper.task.cancel()  # what was taken and not kept is lost
            await asyncio.gather(keeper.task, return_exceptions=True)
            kills += 1
    assert not lines
    assert list(dict.fromkeys(safe)) == list(range(count))
    assert kills > 1


@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 5), max_size=3), max_size=30),
    st.lists(st.integers(0, 30), max_size=10),
    st.integers(1, 6),
)
def test_what_is_safe_is_what_the_kept_batches_brought(
    batches: list[dict[str, int]], keeps: list[int], most: int
) -> None:
    """However little is remembered: never a line too early, all of them in the end, and memory within its bound."""
    pending: Acknowledgements[str] = Acknowledgements(most)
    totals: dict[str, int] = {}
    after: list[dict[str, int]] = [{}]
    for grown in batches:
        for sender, lines in grown.items():
            totals[sender] = totals.get(sender, 0) + lines
        pending.yielded({sender: totals[sender] for sender in grown})
        after.append(dict(totals))
        assert sum(len(counts) for _, counts in pending._pending) <= most + 3
    told: dict[str, int] = {}
    for kept_batches in [*sorted(min(each, len(batches)) for each in keeps), len(batches)]:
        told |= pending.kept(kept_batches)
        assert all(count <= after[kept_batches].get(sender, 0) for sender, count in told.items())
    assert told == totals
    assert not pending.waiting
