"""A flood of records that cannot go on holds nobody: few of them become letters in one turn of the loop, whatever sends them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tidemill import sources
from tidemill.clock import SystemClock
from tidemill.letters import AT_A_TIME, DeadLetter
from tidemill.sources.base import Source, SourceContext

BAD = 3 * AT_A_TIME + 7
GOOD = b'{"sensor":"last","time":"2023-11-14T22:13:20Z","value":1.5}\n'
FLOODS = {
    "no JSON": b"nonsense\n",
    "no objects": b"[1, 2]\n",
    "no time": b'{"sensor":"a","time":"soon","value":1.5}\n',
    "no number": b'{"sensor":"a","time":"2023-11-14T22:13:20Z","value":"x"}\n',
    "no sensor": b'{"sensor":"","time":"2023-11-14T22:13:20Z","value":1.5}\n',
}


class Turns:
    """How many letters come in each turn of the loop."""

    def __init__(self) -> None:
        self.letters = 0
        self.most = 0
        self._this = 0
        self._counting = True
        self._turn()

    def _turn(self) -> None:
        self.most, self._this = max(self.most, self._this), 0
        if self._counting:
            asyncio.get_running_loop().call_soon(self._turn)

    def reject(self, letter: DeadLetter) -> None:
        assert letter.reason
        self.letters += 1
        self._this += 1

    def end(self) -> int:
        self._counting = False
        return max(self.most, self._this)


async def most_in_a_turn(source: Source, fill: Callable[[Any], Awaitable[object]], *, bad: int = BAD) -> int:
    """Of the letters of so many bad records, and a good one, read with ``float`` declared for its value."""
    turns = Turns()
    context = SourceContext(SystemClock(), turns.reject, tells_kept=False)
    filling = asyncio.ensure_future(fill(source))
    rows = 0
    async for batch in source.stream(context):
        rows += len(batch)
        if rows and turns.letters == bad:
            context.stopping.set()
    await filling
    assert (rows, turns.letters, source.statistics().rejected) == (1, bad, bad)
    return turns.end()


async def over_tcp(source: Any, data: bytes) -> None:
    _, writer = await asyncio.open_connection(*await source.wait_listening())
    writer.write(data)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_over_tcp(flood: bytes) -> None:
    """Also where they come in one piece."""
    source = sources.TCP(columns={"value": float})
    assert 0 < await most_in_a_turn(source, lambda source: over_tcp(source, flood * BAD + GOOD)) <= AT_A_TIME


async def test_over_http() -> None:
    """Records that are well said and none here."""
    source = sources.HTTP(columns={"value": float})
    body = FLOODS["no time"] * BAD + GOOD

    async def post(source: Any) -> None:
        head = b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(
            body
        )
        reader, writer = await asyncio.open_connection(*await source.wait_listening())
        writer.write(head + body)
        assert b" 202 " in await reader.readline()
        await reader.read()
        writer.close()

    assert 0 < await most_in_a_turn(source, post) <= AT_A_TIME


async def test_over_udp() -> None:
    """As many as a datagram holds."""
    bad = 60_000 // len(FLOODS["no time"])

    async def send(source: Any) -> None:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=await source.wait_listening()
        )
        transport.sendto(FLOODS["no time"] * bad + GOOD)
        transport.close()

    assert 0 < await most_in_a_turn(sources.UDP(columns={"value": float}), send, bad=bad) <= AT_A_TIME


@pytest.mark.parametrize("form", ["csv", "ndjson"])
async def test_through_a_pipe(tmp_path: Path, form: str) -> None:
    """Lines of CSV with a cell too many, and of JSON that is none."""
    path = tmp_path / f"pipe.{form}"
    os.mkfifo(path)
    good = b"sensor,time,value\nlast,2023-11-14T22:13:20Z,1.5\n" if form == "csv" else GOOD
    flood = b"a,2023-11-14T22:13:20Z,1.5,2\n" if form == "csv" else FLOODS["no JSON"]

    async def write(source: Any) -> None:
        await asyncio.to_thread(path.write_bytes, good + flood * BAD)

    assert 0 < await most_in_a_turn(sources.Lines(path, format=form), write) <= AT_A_TIME


@pytest.mark.parametrize("of", ["file", "table", "list", "iterator"])
async def test_of_recordings(tmp_path: Path, of: str) -> None:
    """That are read in a thread, or lie in memory."""
    rows = [*[{"sensor": "a", "time": "soon", "value": 1.5}] * BAD, json.loads(GOOD)]
    path = tmp_path / "recording.ndjson"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pd.DataFrame({name: [row[name] for row in rows] for name in ("sensor", "value")})
    table["time"] = pd.to_datetime([np.nan] * BAD + [1_700_000_000], unit="s")
    made: dict[str, Callable[[], Source]] = {
        "file": lambda: sources.Replay(path),
        "table": lambda: sources.Frame(table),
        "list": lambda: sources.Records(rows),
        "iterator": lambda: sources.Records(iter(rows)),
    }
    source = made[of]()
    source.check()

    async def nothing(source: Any) -> None: ...

    assert 0 < await most_in_a_turn(source, nothing) <= AT_A_TIME
