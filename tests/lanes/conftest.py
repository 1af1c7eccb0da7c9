"""What the tests of `tidemill.Lanes` share: open lanes for a whole file, and a telephone to functions that run in one."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator

import cloudpickle
import pytest
import pytest_asyncio

import tidemill as tm

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def call_home(port: int, name: str) -> str:
    """Runs in a lane: says that it runs, and waits to be told what to return."""
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(f"{name}\n".encode())
        told = line.recv(100)
    return told.decode()


class Telephone:
    """Hears of functions in lanes as they start, and tells them to end."""

    def __init__(self) -> None:
        self.lines: dict[str, asyncio.StreamWriter] = {}
        self.calls = 0
        self._heard = asyncio.Condition()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1")
        self.port = self._server.sockets[0].getsockname()[1]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = (await reader.readline()).decode().strip()
        async with self._heard:
            self.calls += 1
            self.lines[name] = writer
            self._heard.notify_all()

    async def hear(self, *names: str) -> None:
        """Return when functions of these names run."""
        async with self._heard:
            await self._heard.wait_for(lambda: set(names) <= set(self.lines))

    async def hear_any(self, count: int) -> list[str]:
        """Return when so many run: which."""
        async with self._heard:
            await self._heard.wait_for(lambda: len(self.lines) >= count)
            return list(self.lines)

    async def tell(self, name: str, what: str = "done") -> None:
        """Let it return."""
        writer = self.lines.pop(name)
        writer.write(what.encode())
        writer.close()

    async def close(self) -> None:
        for writer in self.lines.values():
            writer.close()
        self._server.close()


@pytest_asyncio.fixture(loop_scope="module")
async def telephone() -> AsyncIterator[Telephone]:
    made = Telephone()
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def home():
    """The function that calls home; ``home(port, name)``."""
    return call_home


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two() -> AsyncIterator[tm.Lanes]:
    """Two lanes."""
    async with tm.Lanes(2) as lanes:
        yield lanes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one() -> AsyncIterator[tm.Lanes]:
    """One lane, so that calls queue."""
    async with tm.Lanes(1) as lanes:
        yield lanes
