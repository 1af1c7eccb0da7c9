"""HTTP among those who mean no good: they are in nobody's way."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import ssl
from collections.abc import Callable
from typing import Any

import pytest

import tidemill as tm
from tidemill.core.admission import Admission
from tidemill.errors import PlanError
from tidemill.sources import HTTP, http_connection, http_server, listening
from tidemill.testing import ListSink
from tidemill.tls import client_context

BODY = b'{"sensor":"S1","time":1,"value":1.5}\n'
HEAD = b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY)


async def post(port: int, *, tls: ssl.SSLContext | None = None, head: bytes = HEAD) -> int:
    """The status, over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(head + BODY)
    status = int((await reader.readline()).split()[1])
    writer.close()
    await writer.wait_closed()
    return status


async def closed(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(120):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


@pytest.mark.parametrize("said", [b"", b"P", HEAD[:-2], HEAD + BODY + b"P"])
async def test_a_head_that_does_not_end_is_not_waited_for(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first of a connection nor a later one; others are answered meanwhile."""
    monkeypatch.setattr(http_connection, "_HEAD_S", 0.2)
    source = HTTP()
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        assert await post(port) == 202
        if said.startswith(HEAD + BODY):
            assert b"202" in await reader.readline()
            await reader.readuntil(b"}")
        assert await closed(reader)
        writer.close()
        run.stop_soon()
        await run.wait()


@pytest.fixture(scope="module")
def certified(authority: Any) -> dict[str, Any]:
    """Options of a source that takes posts over TLS."""
    cert, key = authority.signed("refusing")
    return {"cert": cert, "cert_key": key}


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(
    ("said", "status"),
    [
        (
            b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\nContent-Length: %d\r\n\r\n",
            413,
        ),
        (b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", 401),
        (b"no HTTP %d\r\n\r\n", 400),
    ],
    ids=["too long", "without the token", "no HTTP"],
)
async def test_a_refusal_reaches_who_is_still_sending(
    said: bytes,
    status: int,
    encrypted: bool,
    certified: dict[str, Any],
    authority: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A broken connection would be all that it sees, and it would post the same again and again."""
    monkeypatch.setattr(http_connection, "_LINGER_S", 120)
    source, size = HTTP(token="secret", limit=100_000, **(certified if encrypted else {})), 20_000_000
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run, asyncio.timeout(120):
        _, port = await source.wait_listening()
        trusting = client_context(authority.ca) if encrypted else None
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        writer.write(said % size + bytes(size))
        await writer.drain()
        assert int((await reader.readline()).split()[1]) == status
        writer.close()
        run.stop_soon()
        await run.wait()


@pytest.mark.parametrize("requests", [1, 3])
async def test_who_says_that_it_sends_no_more_is_answered(requests: int) -> None:
    """And then the connection is closed: without its answer a sender would send all of it again."""
    source, sink = HTTP(), ListSink()
    async with tm.serve(tm.Pipeline(source, tm.Plan(), sink), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write((HEAD + BODY) * requests)
        writer.write_eof()
        async with asyncio.timeout(120):
            assert (await reader.read()).count(b"HTTP/1.1 202") == requests
        writer.close()
        run.stop_soon()
        report = await run.wait()
    assert report.rows_out == requests


async def test_of_what_is_not_whole_nothing_is_waited_for_when_no_more_is_sent() -> None:
    """A body that was announced and will not come."""
    source = HTTP()
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + BODY[:-5])
        writer.write_eof()
        assert await closed(reader)
        writer.close()
        run.stop_soon()
        report = await run.wait()
    assert report.records_in == 0


CHUNKED = b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    "said",
    [
        b"POST /",
        b"POST /ingest HTTP/1.1\r\nX: ",
        HEAD + BODY + b"POST /",
        CHUNKED + b"1;x=",
        CHUNKED + CHUNK + b"0\r\nX: ",
    ],
    ids=["a path", "a header", "a second head", "what is said of a chunk", "a trailer"],
)
async def test_what_goes_on_for_ever_is_not_held(said: bytes) -> None:
    """Megabytes of one name, or value, that never end: the connection is closed before they are there."""
    source = HTTP()
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            for _ in range(1_000):
                writer.write(bytes(b"a" * 65_536))
                await writer.drain()
        assert writer.transport.is_closing()
        reading = reader.read()
        with contextlib.suppress(ConnectionError):
            await reading
        assert await post(port) == 202
        run.stop_soon()
        await run.wait()


LARGE_HEADS = {
    "a header": HEAD[:-2] + b"X: " + b"a" * 100_000 + b"\r\n\r\n" + BODY,
    "headers": HEAD[:-2] + b"a:b\r\n" * 16_000 + b"\r\n" + BODY,
    "trailers": CHUNKED + CHUNK + b"0\r\n" + b"a:b\r\n" * 16_000 + b"\r\n",
}


@pytest.mark.parametrize("said", LARGE_HEADS.values(), ids=LARGE_HEADS)
async def test_a_head_that_ends_is_not_taken_either_when_it_is_too_large(said: bytes) -> None:
    """However soon it is there."""
    source = HTTP()
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        assert await closed(reader)
        assert await post(port) == 202
        writer.close()
        run.stop_soon()
        report = await run.wait()
    assert report.rows_out == 1


MANY = {
    "a path that is not there": (b"GET /n HTTP/1.1\r\n\r\n", b"404"),
    "posts": (HEAD + BODY, b"202"),
}


@pytest.mark.parametrize(("said", "status"), MANY.values(), ids=MANY)
async def test_who_asks_again_and_again_is_answered_as_often_and_has_few_requests_waiting(
    said: bytes, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once and over one connection: what is made of a request takes many times its bytes, so it waits unparsed."""
    many = 30_000 // len(said)
    waiting: list[int] = []

    def begun(connection: http_connection._Connection) -> None:
        waiting.append(len(connection.pipeline))
        on_headers_complete(connection)

    on_headers_complete = http_connection._Connection.on_headers_complete
    monkeypatch.setattr(http_connection._Connection, "on_headers_complete", begun)
    source = HTTP()
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said * many)
        writer.write(HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + BODY)
        answers = await reader.read()
        writer.close()
        run.stop_soon()
        report = await run.wait()
    assert answers.count(b"HTTP/1.1 " + status) == many + (status == b"202")
    assert report.rows_out == answers.count(b"HTTP/1.1 202") >= 1
    assert 1 <= max(waiting) <= 8_192 // len(said) + 1


async def test_bodies_that_are_still_coming_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are packed; what comes as a whole is taken meanwhile, and what is coming may go on."""
    monkeypatch.setattr(http_server, "_UNFINISHED", 1_000)
    source = HTTP(limit=1_300)
    rest = b" " * 600 + BODY
    packed = gzip.compress(b" " * 900)[:-8]
    begun = HEAD.replace(b"%d" % len(BODY), b"%d\r\nExpect: 100-continue" % (600 + len(rest)))
    beyond = HEAD.replace(b"%d" % len(BODY), b"1300\r\nContent-Encoding: gzip") + packed
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        first, its_writer = await asyncio.open_connection("127.0.0.1", port)
        its_writer.write(begun)
        assert await first.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        its_writer.write(b" " * 600)
        second, other_writer = await asyncio.open_connection("127.0.0.1", port)
        other_writer.write(beyond)
        assert b"429" in await second.readline()
        assert await post(port) == 202
        its_writer.write(rest)
        assert b"202" in await first.readline()
        for writer in (its_writer, other_writer):
            writer.close()
        run.stop_soon()
        report = await run.wait()
    assert report.rows_out == 2


async def test_a_body_may_be_as_long_as_the_limit_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beyond what bodies that are coming have together by default."""
    monkeypatch.setattr(http_server, "_UNFINISHED", 1_000)
    source = HTTP(limit=10_000)
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHUNKED + b"%x\r\n%s\r\n" % (5_000 + len(BODY), b" " * 5_000 + BODY) + b"0\r\n\r\n")
        assert b"202" in await reader.readline()
        writer.close()
        run.stop_soon()
        report = await run.wait()
    assert report.rows_out == 1


async def test_connections_beyond_the_limit_are_turned_away_counted_and_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are there are answered; it is told although nobody posts anything; when one leaves, there is room."""
    caplog.set_level(logging.WARNING, "tidemill")
    monkeypatch.setattr(listening, "_SWEEP_S", 0.01)
    source = HTTP(connections=2)
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        first, second = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in (first, second):
            writer.write(HEAD + BODY)
            assert b"202" in await reader.readline()
        third, its_writer = await asyncio.open_connection("127.0.0.1", port)
        assert await closed(third)
        its_writer.close()
        assert source.statistics().turned_away == 1
        async with asyncio.timeout(120):
            while not caplog.records:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.005)
        told = f"source {source.name}: 1 connection was turned away, the last from 127.0.0.1: 2 are open, and connections=2"
        assert [record.getMessage() for record in caplog.records] == [told]
        first[1].close()
        await first[1].wait_closed()
        async with asyncio.timeout(120):
            while source._admission._all > 1:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.005)
        assert await post(port) == 202
        second[1].close()
        run.stop_soon()
        report = await run.wait()
    assert report.rows_out == 3


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not holds():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)


TOKEN = "a-token-of-the-plant"


@pytest.fixture(scope="module")
def exposed(authority: Any) -> Callable[[int], HTTP]:
    """One beyond this machine, with TLS, and so many connections of one host."""
    cert, key = authority.signed("exposed")
    return lambda per_host: HTTP("0.0.0.0", token=TOKEN, cert=cert, cert_key=key, per_host=per_host)


async def test_over_tls_those_who_say_nothing_count_among_their_hosts(
    exposed: Callable[[int], HTTP], authority: Any
) -> None:
    """Beyond ``per_host`` they are closed at once and counted; when one leaves, there is room for who means it."""
    source, trusting = exposed(2), client_context(authority.ca)
    shown = HEAD.replace(b"Host", b"Authorization: Bearer %s\r\nHost" % TOKEN.encode())
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for number in range(1, 4):
            third, its_writer = await asyncio.open_connection("127.0.0.1", port)
            assert await closed(third)
            its_writer.close()
            assert (source._admission.open, source.statistics().turned_away) == (2, number)
        assert source.statistics().last_away == "127.0.0.1, which has 2 open, and per_host=2"
        silent.pop()[1].close()
        await until(lambda: source._admission.open == 1)
        assert await post(port, tls=trusting, head=shown) == 202
        await until(lambda: source._admission.open == 1)
        run.stop_soon()
        await run.wait()
    assert source._admission.open == 0
    assert await closed(silent[0][0])
    silent[0][1].close()


@pytest.mark.parametrize("said", [b"", HEAD + BODY])
async def test_who_does_not_agree_on_tls_makes_room(
    said: bytes, exposed: Callable[[int], HTTP], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it says something else, or nothing in the time that there is for it."""
    if not said:
        monkeypatch.setattr(listening, "_HANDSHAKE_S", 0.05)
    leave, left = Admission.leave, []

    def leaving(self: Admission, host: str) -> None:
        leave(self, host)
        left.append(host)

    monkeypatch.setattr(Admission, "leave", leaving)
    source = exposed(1)
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        for number in (1, 2):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            await until(lambda number=number: len(left) == number)
            writer.close()
        assert source.statistics().turned_away == 0
        run.stop_soon()
        await run.wait()


def test_numbers_of_connections_are_checked() -> None:
    """None at all would be a source that takes nothing."""
    with pytest.raises(PlanError, match="connections=0 of HTTP"):
        HTTP(connections=0)
