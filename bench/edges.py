"""What the ways in cost: each against the bare server, client or decoder, on the same input, in the same run.

``tcp``          NDJSON over one connection, against `asyncio.Protocol` and msgspec's ``decode_lines``
``http``         posts of 100 lines, against a bare starlette route that reads the body and answers
``influx``       line protocol over one connection, against its decoder alone
``mqtt``         what a broker has kept for a session, QoS 0 and 1, against paho-mqtt's own loop
``connections``  10,000 connections, a tenth of them talking, against 100; and what an idle one takes
``metrics``      NDJSON over one connection with ``/metrics`` read once a second, against the same run without metrics
``flood``        lines that are no records, over one connection: how the loop is meanwhile
``lorawan``      nested JSON of a recording from the file to the rows, beside msgspec alone

The runs keep state: what comes is in the ingest log, on the disk, before it counts.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

import tidemill as tm
from bench import _common, _edges_connections, _edges_flood, _edges_metrics, _edges_mqtt
from bench._common import Table, Wrong, median, spread, timed
from bench._edges_run import in_turn, lines_of, sender, taken
from bench._edges_sender import POSTED, block

LINES = 1_000_000
POSTED_LINES = 1_000_000
_DECODED = 1 << 16
"""Bytes that the decoders get at a time, as from a socket."""


def measure(options: argparse.Namespace, table: Table) -> None:
    for name in options.only or CASES:
        CASES[name](options, table)


# -- lines over a connection ---------------------------------------------------------------------------------


def tcp(options: argparse.Namespace, table: Table) -> None:
    decode = msgspec.json.Decoder().decode_lines
    in_turn(
        *(options, table, "TCP, NDJSON / asyncio.Protocol + decode_lines", LINES, 0.6),
        bare=lambda: asyncio.run(_bare_lines(lambda data: len(decode(data)))),
        ours=lambda: taken(tm.sources.TCP(), LINES, lines_of(LINES, "ndjson"), options.folder),
    )


def influx(options: argparse.Namespace, table: Table) -> None:
    in_turn(
        *(options, table, "TCP, line protocol / its decoder alone", LINES, 0.6),
        bare=_decoder_alone,
        ours=lambda: taken(tm.sources.TCP(format="influx"), LINES, lines_of(LINES, "influx"), options.folder),
    )


class _Lines(asyncio.Protocol):
    """Whole lines to ``decode``, which says how many they are."""

    def __init__(self, decode: Callable[[bytes], int], done: asyncio.Future[float]) -> None:
        self._decode, self._done = decode, done
        self._rest, self._lines, self._began = b"", 0, 0.0

    def data_received(self, data: bytes) -> None:
        self._began = self._began or time.perf_counter()
        data = self._rest + data
        whole = data.rfind(b"\n") + 1
        self._lines += self._decode(data[:whole])
        self._rest = data[whole:]
        if self._lines == LINES:
            self._done.set_result(time.perf_counter() - self._began)


async def _bare_lines(decode: Callable[[bytes], int]) -> float:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    server = await loop.create_server(lambda: _Lines(decode, done), "127.0.0.1", 0)
    async with server:
        process = await sender("lines", server.sockets[0].getsockname()[1], LINES, "ndjson")
        took: float = await done
        await process.wait()
    return took


def _decoder_alone() -> float:
    """Over blocks as they come from a socket; nobody sends."""
    from tidemill.formats.line_formats import line_format

    decode = line_format("influx").decode
    lines = block("influx").splitlines(keepends=True)
    each = _DECODED // len(lines[0])
    blocks = [b"".join(lines[at : at + each]) for at in range(0, len(lines), each)]
    rounds = LINES // len(lines)

    def all_of_them() -> int:
        return sum(len(decode(one).rows) for _ in range(rounds) for one in blocks)

    seconds, made = timed(all_of_them)
    if made != rounds * len(lines):
        raise Wrong(f"{rounds * len(lines):,} lines gave {made:,} records")
    return seconds * LINES / made


# -- posts ---------------------------------------------------------------------------------------------------


def http(options: argparse.Namespace, table: Table) -> None:
    for at_once, parser in itertools.product((8, 64), ("h11", "httptools")):
        # An answer waits for the disk, so that few senders wait rather than work.
        what = f"HTTP, posts of {POSTED} lines, {at_once} under way / a bare starlette route, {parser}"
        in_turn(
            *(options, table, what, POSTED_LINES, 0.6),
            bare=lambda: asyncio.run(_bare_posts(at_once, parser)),  # noqa: B023 - called at once
            ours=lambda: taken(tm.sources.HTTP(), POSTED_LINES, _posts(at_once), options.folder),  # noqa: B023
        )


def _posts(at_once: int) -> Callable[[Any], Awaitable[object]]:
    async def fill(source: Any) -> None:
        _, port = await source.wait_listening()
        if await (await sender("posts", port, POSTED_LINES, at_once)).wait():
            raise Wrong("a post was refused")

    return fill


async def _bare_posts(at_once: int, parser: Any) -> float:
    """Reads the body and answers; what is in it, nobody asks. h11 reads requests unless httptools is installed."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    moments = []

    async def ingest(request: Request) -> Response:
        moments.append(time.perf_counter())
        await request.body()
        return Response(status_code=202)

    app = Starlette(routes=[Route("/ingest", ingest, methods=["POST"])])
    server = uvicorn.Server(
        uvicorn.Config(app, http=parser, lifespan="off", log_config=None, access_log=False, ws="none")
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        process = await sender("posts", listening.getsockname()[1], POSTED_LINES, at_once)
        await process.wait()
        server.should_exit = True
        await serving
    return time.perf_counter() - moments[0] if len(moments) < 2 else moments[-1] - moments[0]


# -- a recording of nested JSON ------------------------------------------------------------------------------


def lorawan(options: argparse.Namespace, table: Table) -> None:
    """The three files whose messages are alike, unpacked before."""
    paths = sorted((options.data / "campusiot_lorawan").glob("d1d1*.ndjson.gz"))
    if not paths:
        table.note("LoRaWAN recording", f"not in {options.data}; --data says where it is")
        return
    text = b"".join(gzip.decompress(path.read_bytes()) for path in paths)
    megabytes = len(text) / 1e6
    rates, bares = [], []
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-", dir=options.folder) as name:
        file = Path(name) / "lorawan.ndjson"
        file.write_bytes(text)
        for _ in range(options.runs):
            seconds, made = timed(lambda: len(msgspec.json.Decoder().decode_lines(file.read_bytes())))
            bares.append(megabytes / seconds)
            source = tm.sources.Lines(file, key="devEUI", time="_timestamp")
            pipeline = tm.Pipeline(source, tm.Rolling("fCnt", window=50, stats=["mean"]), tm.sinks.Callback(len))
            report = tm.run(pipeline)
            if report.rows_out != made:
                raise Wrong(f"{made:,} messages gave {report.rows_out:,} rows")
            rates.append(megabytes / report.seconds)
    table.note(
        f"LoRaWAN recording, {megabytes:.0f} MB, file to rows",
        f"{median(rates):.0f} MB/s{spread(rates, '{:.0f}')}; msgspec alone {median(bares):.0f} MB/s{spread(bares, '{:.0f}')}",
    )


CASES: dict[str, Callable[[argparse.Namespace, Table], None]] = {
    "tcp": tcp,
    "http": http,
    "influx": influx,
    "mqtt": _edges_mqtt.measure,
    "connections": _edges_connections.measure,
    "metrics": _edges_metrics.measure,
    "flood": _edges_flood.measure,
    "lorawan": lorawan,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), help="these cases (default: all)")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: where temporary files go)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="where the recordings are")
    _common.main(measure, parser, runs=3)
