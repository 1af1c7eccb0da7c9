"""HTTP: what is posted is answered when it is safe, and what is not taken is told why."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import gzip
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Self

import pytest

import tidemill as tm
from tidemill import files
from tidemill.clock import SystemClock
from tidemill.errors import InputError, OutsideError, PlanError
from tidemill.formats.lines import text_of
from tidemill.letters import DeadLetter
from tidemill.sources import HTTP, SourceContext, http_bodies, http_connection
from tidemill.sources.http_server import Server
from tidemill.testing import ListSink


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps({"sensor": "S", "time": 1, "value": value}).encode() + b"\n" for value in values)


class Sender:
    """Posts, each over a connection of its own."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._port, self._tls = port, tls

    def _post(self, body: Any, headers: dict[str, str], path: str) -> tuple[int, Any, dict[str, str]]:
        with contextlib.closing(self._connected()) as connection:
            connection.request("POST", path, body, headers, encode_chunked=not isinstance(body, bytes))
            answer = connection.getresponse()
            told = answer.read()
            return answer.status, json.loads(told) if told.startswith(b"{") else told, dict(answer.headers)

    def _connected(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection("localhost", self._port, timeout=120, context=self._tls)
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)

    async def post(self, body: Any, path: str = "/ingest", **headers: str) -> tuple[int, Any, dict[str, str]]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await asyncio.to_thread(self._post, body, named, path)


class Engine:
    """Stands for the engine: takes batches, and says when they are safe."""

    def __init__(self, source: HTTP, *, tells_kept: bool = True, keeps: bool = True) -> None:
        self.source, self.keeps = source, keeps
        self.rows: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.letters: list[DeadLetter] = []
        self.batches = self.largest = 0
        self.pull = asyncio.Event()
        self.pull.set()
        self.context = SourceContext(SystemClock(), self.letters.append, tells_kept=tells_kept)
        self.task = asyncio.ensure_future(self._take())

    async def _take(self) -> None:
        async for batch in self.source.stream(self.context):
            self.rows += batch.to_rows()
            if batch.key_column is not None:
                self.keys += batch.keys[batch.key].tolist()
            self.batches += 1
            self.largest = max(self.largest, len(batch))
            await self.pull.wait()
            if self.keeps:
                self.source.kept(self.batches)

    async def __aenter__(self) -> Self:
        await self.source.wait_listening()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.context.stopping.set()
        async with asyncio.timeout(120):
            await self.task


A_JSON = {"Content_Type": "application/json"}
BODIES = {
    "lines": (lines(1, 2), {}),
    "lines without a last end": (lines(1, 2)[:-1], {}),
    "an array": (json.dumps([{"sensor": "S", "value": 1}, {"sensor": "S", "value": 2}]).encode(), "application/json"),
    "gzip": (gzip.compress(lines(1, 2)), {"Content_Encoding": "gzip"}),
    "gzip filled up with zeros": (gzip.compress(lines(1, 2)) + bytes(512), {"Content_Encoding": "gzip"}),
    "with an offer of HTTP/2": (
        lines(1, 2),
        {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAMAAABkAAQCAAAAAAIAAAAA"},
    ),
    "lines behind a byte order mark": (b"\xef\xbb\xbf" + lines(1, 2), {}),
    "an array behind one": (b"\xef\xbb\xbf[" + lines(1)[:-1] + b"," + lines(2) + b"]", "application/json"),
    "lines that call themselves JSON": (b"\n" + lines(1, 2), "application/json"),
    "gzip of two members": (gzip.compress(lines(1)) + gzip.compress(lines(2)), {"Content_Encoding": "gzip"}),
}


@pytest.mark.parametrize(("body", "headers"), BODIES.values(), ids=BODIES)
async def test_what_is_posted_is_taken_in_order(body: bytes, headers: Any) -> None:
    """In every form."""
    headers = {"Content_Type": headers} if isinstance(headers, str) else headers
    async with Engine(HTTP()) as engine:
        status, told, _ = await Sender(engine.source.port).post(body, **headers)
        assert (status, told) == (202, {"records": 2})
        assert [row["value"] for row in engine.rows] == [1, 2]


_DATA_SEGMENTS_IN = 152  # in the kernel's struct tcp_info


async def test_an_answer_comes_in_one_piece() -> None:
    """Its head and its body, as the system counts what came; also one that says no more than that the rest may come."""
    head = b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 39\r\n\r\n"
    async with Engine(HTTP()) as engine:
        with socket.create_connection(("127.0.0.1", engine.source.port), timeout=120) as to:
            for number in range(1, 4):
                to.sendall(head)
                assert (await asyncio.to_thread(to.recv, 4096)).startswith(b"HTTP/1.1 100")
                to.sendall(lines(1))
                answer = await asyncio.to_thread(to.recv, 4096)
                assert answer.startswith(b"HTTP/1.1 202")
                assert answer.endswith(b'{"records":1}')
                told = to.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                assert int.from_bytes(told[_DATA_SEGMENTS_IN : _DATA_SEGMENTS_IN + 4], sys.byteorder) == 2 * number


@pytest.mark.parametrize("body", [b"", b"\n\n"])
async def test_a_body_without_a_record_is_answered_though_nobody_else_posts(body: bytes, tmp_path: Path) -> None:
    """With state too: nothing of it has to reach the disk."""
    source = HTTP()
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=tmp_path) as run:
        _, port = await source.wait_listening()
        assert (await Sender(port).post(body))[:2] == (202, {"records": 0})
        run.stop_soon()
        await run.wait()


async def test_an_answer_comes_when_the_records_are_safe_and_no_sooner() -> None:
    """Other senders' records that are not safe do not hold it up."""
    async with Engine(HTTP(), keeps=False) as engine:
        posting = asyncio.ensure_future(Sender(engine.source.port).post(lines(1)))
        while not engine.rows:  # noqa: ASYNC110
            await asyncio.sleep(0)
        other = asyncio.ensure_future(Sender(engine.source.port).post(lines(2)))
        while len(engine.rows) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert not posting.done()
        engine.source.kept(1)
        assert (await posting)[0] == 202
        assert not other.done()
        engine.source.kept(2)
        assert (await other)[0] == 202


async def test_records_that_were_never_known_to_be_safe_are_asked_for_again() -> None:
    """The run ends, and nobody has kept them."""
    async with Engine(HTTP(), keeps=False) as engine:
        posting = asyncio.ensure_future(Sender(engine.source.port).post(lines(1)))
        while not engine.rows:  # noqa: ASYNC110
            await asyncio.sleep(0)
    status, told, headers = await posting
    assert (status, headers["retry-after"]) == (503, "1")
    assert "send them again" in told["error"]


async def test_a_body_that_is_still_coming_when_the_run_ends_is_asked_for_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At once, and nothing is logged: nobody is at fault."""
    async with Engine(HTTP()) as engine:
        head = b"POST /ingest HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n"
        reader, writer = await at_once(engine.source.port, head)
        await reader.readuntil(b"100 Continue\r\n\r\n")
        writer.write(lines(1))
    told = await reader.read()
    assert told.startswith(b"HTTP/1.1 503")
    assert b"the run ends; send these records again" in told
    assert not engine.rows
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
    writer.close()
    await writer.wait_closed()


async def test_without_state_an_answer_comes_when_the_records_were_taken_in() -> None:
    """There is nobody who could say more."""
    async with Engine(HTTP(), tells_kept=False, keeps=False) as engine:
        assert (await Sender(engine.source.port).post(lines(1)))[0] == 202
        assert len(engine.rows) == 1


REFUSED = {
    "no JSON": (lines(1) + b"nope\n" + lines(2), {}, 400, "line 2: the line is not JSON"),
    "line protocol": (
        b"mill speed=1 17\n",
        {},
        400,
        'JSON: JSON is malformed: invalid character (byte 0); this looks like line protocol: say format="influx"',
    ),
    "line protocol as JSON": (
        b"mill speed=1 17\n" * 5_000,
        {"Content_Type": "application/json"},
        400,
        'say format="influx"',
    ),
    "no object, far down": (lines(*range(2_000)) + b"[1]\n", {}, 400, "line 2001: the line holds a JSON array"),
    "an item of an array": (b'[{"sensor": "S"}, 7]', {"Content_Type": "application/json"}, 400, "item 2"),
    "a line beyond a limit that is no object": (lines(1) + b"[" * 40 + b"]" * 40 + b"\n" + lines(2), {}, 400, "line 2"),
    "what is broken behind one": (lines(1) + b'{"value":%b}\nnope\n' % (b"1" * 65), {}, 400, "line 3: the line is not"),
    "what is broken behind a number that is too large": (
        lines(1) + b'{"value":1e999,,}\n',
        {},
        400,
        "line 2: the line",
    ),
    "a number that is too large, and no object": (lines(1) + b"[1e999]\n", {}, 400, "line 2: the line"),
    "an item beyond a limit that is no object": (
        b'[{"sensor": "S"}, %b]' % (b"[" * 40 + b"]" * 40),
        A_JSON,
        400,
        "item 2",
    ),
    "an array too deep to be read": (b"[" * 40_000 + b"]" * 40_000, A_JSON, 400, "the body is nested too deeply"),
    "a line too deep to be read": (b"[" * 40_000 + b"]" * 40_000, {}, 400, "line 1: the line is nested too deeply"),
    "a broken array": (
        b'[{"sensor"',
        {"Content_Type": "application/json; charset=utf-8"},
        400,
        "the body is not JSON: Input data was truncated (byte 10, its end)",
    ),
    "an array broken within": (b'[{"sensor": "S"},,]', A_JSON, 400, "character (byte 17)"),
    "lines that call themselves JSON, of which one is none": (
        lines(1) + b"nope\n",
        A_JSON,
        400,
        "line 2: the line is not",
    ),
    "an array that does not call itself so": (
        b'[{"sensor": "S"}]',
        {},
        400,
        "line 1: the line holds a JSON array, not an object; for JSON as a whole say Content-Type: application/json",
    ),
    "an object over lines": (b'{\n"sensor": "S"\n}', {}, 400, "say Content-Type: application/json"),
    "a body that says it is too long": (lines(*range(3_000)), {}, 413, "longer than 100000 bytes"),
    "packed far beyond": (gzip.compress(b" " * 10_000_000), {"Content_Encoding": "gzip"}, 413, "longer than"),
    "not gzip": (lines(1), {"Content_Encoding": "gzip"}, 400, "not gzip"),
    "members far beyond": (gzip.compress(b" " * 9_000) * 200, {"Content_Encoding": "gzip"}, 413, "longer than"),
    "behind a gzip": (gzip.compress(lines(1)) + b"more", {"Content_Encoding": "gzip"}, 400, "not gzip"),
    "half a second member": ((gzip.compress(lines(1)) * 2)[:-9], {"Content_Encoding": "gzip"}, 400, "not whole gzip"),
    "half a gzip": (gzip.compress(lines(1))[:-9], {"Content_Encoding": "gzip"}, 400, "not whole gzip"),
    "another packing": (lines(1), {"Content_Encoding": "br"}, 415, "br is not known"),
}


@pytest.mark.parametrize(("body", "headers", "status", "told"), REFUSED.values(), ids=REFUSED)
async def test_of_a_body_that_is_refused_nothing_is_taken(body: bytes, headers: Any, status: int, told: str) -> None:
    """The answer says why; the next body is taken."""
    async with Engine(HTTP(limit=100_000)) as engine:
        sender = Sender(engine.source.port)
        answer = await sender.post(body, **headers)
        assert answer[0] == status
        assert told in answer[1]["error"]
        assert (await Sender(engine.source.port).post(lines(5)))[0] == 202
        assert [row["value"] for row in engine.rows] == [5]


@pytest.mark.parametrize("packing", ["identity", "gzip"])
async def test_a_body_of_unknown_length_is_read_no_further_than_the_limit(
    packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in pieces, ten times as many bytes; packed, it unpacks to nothing."""

    def far_beyond() -> Any:
        for _ in range(50):
            yield lines(*range(1_000)) if packing == "identity" else gzip.compress(b"") * 500

    monkeypatch.setattr(http_connection, "_LINGER_S", 120)
    async with Engine(HTTP(limit=100_000)) as engine:
        assert (await Sender(engine.source.port).post(far_beyond(), Content_Encoding=packing))[0] == 413
        assert engine.rows == []


async def test_a_record_that_is_none_is_a_dead_letter_and_answered() -> None:
    """Sending it again would change nothing."""
    async with Engine(HTTP()) as engine:
        status, _, _ = await Sender(engine.source.port).post(b'{"value": 1}\n' + lines(2))
        assert status == 202
        assert [letter.reason_code for letter in engine.letters] == ["no_key"]
        assert [row["value"] for row in engine.rows] == [2]


LONG = "x" * 300_000
FILLING = [{"sensor": "S", "value": number, "said": "y" * 200} for number in range(1_500)]
METRICS = [{"name": "m", "tags": {}, "fields": {"value": 2.0}}, {"name": "m", "fields": {"said": LONG}}]
LONG_RECORDS = {
    "a line": ("ndjson", lines(1) + b'{"sensor":"S","said":"%b"}\n' % LONG.encode() + lines(2), {}, 2),
    "line protocol": ("influx", b'm value=1\nm said="%b"\nm value=2\n' % LONG.encode(), {}, 2),
    "a document": ("ndjson", json.dumps({"sensor": "S", "said": LONG}).encode(), A_JSON, 0),
    "an item": ("ndjson", json.dumps([FILLING[0], {"sensor": "S", "said": LONG}]).encode(), A_JSON, 1),
    "an item of braces": (
        "ndjson",
        json.dumps([{"sensor": "S", "said": "{" * 300_000}, FILLING[0]]).encode(),
        A_JSON,
        1,
    ),
    "a metric": ("telegraf-json", json.dumps({"metrics": METRICS}).encode(), {}, 1),
    "a metric of a document": ("telegraf-json", json.dumps({"metrics": METRICS}).encode(), A_JSON, 1),
    "a metric of two batches": ("telegraf-json", json.dumps([{"metrics": METRICS}, METRICS[0]]).encode(), A_JSON, 2),
}


@pytest.mark.parametrize(("form", "body", "headers", "rows"), LONG_RECORDS.values(), ids=LONG_RECORDS)
async def test_a_record_as_long_as_no_message_may_be_is_a_dead_letter(
    form: str, body: bytes, headers: Any, rows: int
) -> None:
    """256 KiB, as for TCP and MQTT, though the body may have more; its neighbours are taken, and it is answered with 202."""
    async with Engine(HTTP(format=form)) as engine:
        answer = await Sender(engine.source.port).post(body, **headers)
        assert (answer[0], answer[1]) == (202, {"records": rows})
        assert [(each.reason_code, each.reason) for each in engine.letters] == [
            ("oversize", "the record is longer than 262144 bytes")
        ]
        assert len(engine.letters[0].raw) > 300_000  # whole, so that it can be repaired
        assert len(engine.rows) == rows


BEYOND = {
    "is nested too deeply": b"[" * 40 + b"]" * 40,
    "holds a number of more than 64 digits": b"1" * 65,
    "has more than 1,024 fields": b"{%b}" % b",".join(b'"f%d":1' % number for number in range(1_100)),
}
PLACES = {
    "a line": ("ndjson", b'{"sensor":"S","value":1}\n{"sensor":"S","value":%b}\n{"sensor":"S","value":3}', {}, 2),
    "an item": ("ndjson", b'[{"sensor":"S","value":1}, {"sensor":"S",\n"value":%b}]', A_JSON, 1),
    "a document": ("ndjson", b'{"sensor":"S","value":%b}', A_JSON, 0),
    "a metric": ("telegraf-json", b'{"name":"m","fields":{"value":1}}\n{"name":"m","fields":{"value":%b}}', {}, 1),
    "a metric of a batch": (
        "telegraf-json",
        b'{"metrics":[%b]}' % (b'{"name":"m","fields":{"value":1}},' * 250 + b'{"name":"m","fields":{"value":%b}}'),
        {},
        250,
    ),
    "a metric of a long batch": (
        "telegraf-json",
        b'{"metrics":[%b]}' % (b'{"name":"m","fields":{"value":1}},' * 9_000 + b'{"name":"m","fields":{"value":%b}}'),
        {},
        9_000,
    ),
    "a metric of a document": (
        "telegraf-json",
        b'[{"name":"m","fields":{"value":1}}, {"metrics":[{"name":"m","fields":{"value":%b}}]}]',
        A_JSON,
        1,
    ),
}


OUT_OF_RANGE = {
    "a line": ("ndjson", lines(1) + b'{"sensor":"S","value":1e999}\n' + lines(2)),
    "a line of thousands of digits": ("ndjson", lines(1) + b'{"sensor":"S","value":%b}\n' % (b"1" * 5_000) + lines(2)),
    "line protocol": ("influx", b"m value=1\nm value=1e999\nm value=2\n"),
    "a metric of a batch": (
        "telegraf-json",
        b'{"metrics":[%b]}'
        % b",".join(b'{"name":"m","fields":{"value":%b}}' % value for value in (b"1", b"1e999", b"2")),
    ),
}


@pytest.mark.parametrize(("form", "body"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE)
async def test_a_number_that_is_too_large_is_no_reason_to_send_the_lines_beside_it_again(
    form: str, body: bytes
) -> None:
    """It is well said, and its record alone is a dead letter, at the first sight and at the second."""
    async with Engine(HTTP(format=form)) as engine:
        for time in (1, 2):
            answer = await Sender(engine.source.port).post(body)
            assert (answer[0], answer[1]) == (202, {"records": 2})
            assert [row["value"] for row in engine.rows] == [1, 2] * time
            assert len(engine.letters) == time


@pytest.mark.parametrize(("why", "beyond"), BEYOND.items())
@pytest.mark.parametrize(("form", "body", "headers", "rows"), PLACES.values(), ids=PLACES)
async def test_a_record_beyond_a_limit_of_json_is_a_dead_letter(
    why: str, beyond: bytes, form: str, body: bytes, headers: Any, rows: int
) -> None:
    """Alone: its neighbours are taken, also those of its batch, and all is answered with 202."""
    async with Engine(HTTP(format=form)) as engine:
        answer = await Sender(engine.source.port).post(body.replace(b"%b", beyond), **headers)
        assert (answer[0], answer[1]) == (202, {"records": rows})
        assert [letter.reason_code for letter in engine.letters] == ["malformed"]
        assert engine.letters[0].reason.endswith(why)
        assert engine.letters[0].raw.count('"value"') == 1
        assert len(engine.rows) == rows


SMALL = [{"name": "m", "tags": {"sensor": "S"}, "fields": {"said": row["said"]}} for row in FILLING]
TOGETHER = {
    "an array": ("ndjson", FILLING),
    "a batch": ("telegraf-json", {"metrics": SMALL}),
    "a batch with more": ("telegraf-json", {"metrics": SMALL, "version": 1}),
    "two batches": ("telegraf-json", [{"metrics": SMALL[:1_400]}, {"metrics": SMALL[1_400:]}]),
    "metrics among batches": ("telegraf-json", [*SMALL[:1], {"metrics": SMALL[2:]}, *SMALL[1:2]]),
    "metrics with more": ("telegraf-json", [each | {"metrics": []} for each in SMALL]),
}


@pytest.mark.parametrize(("form", "posted"), TOGETHER.values(), ids=TOGETHER)
async def test_many_records_may_be_longer_together(form: str, posted: Any) -> None:
    """An array and a batch of Telegraf's have the limit of the body, and only a record of them that of one."""
    async with Engine(HTTP(format=form)) as engine:
        assert (await Sender(engine.source.port).post(json.dumps(posted).encode(), **A_JSON))[0] == 202
        assert (len(engine.rows), engine.letters) == (len(FILLING), [])


async def test_too_much_that_waits_is_not_taken() -> None:
    """A sender hears when to come again, and does."""
    async with Engine(HTTP(buffer=100)) as engine:
        engine.pull.clear()
        first = asyncio.ensure_future(Sender(engine.source.port).post(lines(1)))
        while not engine.rows:  # noqa: ASYNC110
            await asyncio.sleep(0)
        second = asyncio.ensure_future(Sender(engine.source.port).post(lines(*range(10))))
        while not engine.source.buffered:  # noqa: ASYNC110
            await asyncio.sleep(0)
        status, _, headers = await Sender(engine.source.port).post(lines(3))
        assert (status, headers["retry-after"]) == (429, "1")
        engine.pull.set()
        assert ((await first)[0], (await second)[0]) == (202, 202)
        assert (await Sender(engine.source.port).post(lines(3)))[0] == 202
        assert len(engine.rows) == 12


async def test_while_too_much_waits_nobody_waits_for_the_disk() -> None:
    """What is there is taken at once then, so that senders are refused no longer than they must be."""
    source, waited = HTTP(buffer=100), []

    async def gather() -> None:
        assert source._inbox is not None
        waited.append(source._inbox.paused)

    engine = Engine(source)
    engine.context = dataclasses.replace(engine.context, gather=gather)
    async with engine:
        for values in ([1], range(20), [2]):
            assert (await Sender(source.port).post(lines(*values)))[0] == 202
    assert waited
    assert not any(waited)


async def test_a_token_must_be_shown() -> None:
    """Before anything is read."""
    async with Engine(HTTP(token="secret")) as engine:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "secret"}):
            status, told, _ = await Sender(engine.source.port).post(lines(1), **headers)
            assert status == 401
            assert "secret" not in told["error"]
        assert (await Sender(engine.source.port).post(lines(1), Authorization="Bearer secret"))[0] == 202
        assert len(engine.rows) == 1


async def test_who_guesses_at_the_token_is_told_to_wait_and_the_right_one_is_taken() -> None:
    """None of them gets in, all of them are counted, and others behind the same address are not silenced."""
    async with Engine(HTTP(token="secret")) as engine:
        answers = Counter()
        for number in range(1_000):
            status, _, headers = await Sender(engine.source.port).post(lines(1), Authorization=f"Bearer {number}")
            answers[status, headers.get("retry-after")] += 1
        assert (await Sender(engine.source.port).post(lines(1), Authorization="Bearer secret"))[0] == 202
        assert answers == {(401, None): 10, (429, "60"): 990}
        assert len(engine.rows) == 1
        assert engine.source.statistics().refused == 1_000


@pytest.mark.parametrize(
    ("proxy", "senders"),
    [(None, ["127.0.0.1"] * 3), ("10.0.0.0/8, 127.0.0.1", ["192.0.2.7", "192.0.2.7", "127.0.0.1"])],
)
async def test_who_the_sender_is_only_a_proxy_that_was_named_may_say(
    proxy: str | None, senders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a body comes packed or not, and whatever uvicorn is told by the environment."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    async with Engine(HTTP(proxy=proxy, key="{peer_host}")) as engine:
        sender = Sender(engine.source.port)
        for body, headers in ((lines(1), {}), (gzip.compress(lines(1)), {"Content_Encoding": "gzip"})):
            told = "10.0.0.1, 192.0.2.7, 10.9.9.9" if proxy else "192.0.2.7"
            assert (await sender.post(body, X_Forwarded_For=told, **headers))[0] == 202
        assert (await sender.post(lines(1)))[0] == 202
        assert engine.keys == senders


async def test_a_socket_for_both_families_knows_a_proxy_by_its_address() -> None:
    """There 127.0.0.1 is called ::ffff:127.0.0.1."""
    source = HTTP("::", proxy="127.0.0.1", key="{peer_host}", token="long enough of 16", plaintext=True)
    async with Engine(source) as engine:
        told = {"X_Forwarded_For": "192.0.2.7", "Authorization": "Bearer long enough of 16"}
        assert (await Sender(engine.source.port).post(lines(1), **told))[0] == 202
        assert engine.keys == ["192.0.2.7"]


@pytest.mark.parametrize("split", [False, True], ids=["whole", "in two"])
async def test_a_trailer_says_nothing_of_the_request(split: bool) -> None:
    """Neither who sends it, nor what may be posted, nor how it is packed."""
    head = b"POST /ingest HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n"
    body = b"%x\r\n%s\r\n0\r\n" % (len(lines(1)), lines(1))
    trailer = b"X-Forwarded-For: 203.0.113.9\r\nOrigin: https://elsewhere.example\r\nContent-Encoding: gzip\r\n\r\n"
    async with Engine(HTTP(proxy="127.0.0.1", key="{peer_host}")) as engine:
        reader, writer = await asyncio.open_connection("127.0.0.1", engine.source.port)
        writer.write(head + (b"" if split else body + trailer))
        if split:
            await asyncio.to_thread(os.sched_yield)
            writer.write(body + trailer)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 202")
        writer.close()
        await writer.wait_closed()
        assert engine.keys == ["192.0.2.7"]


async def at_once(port: int, requests: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Sent in one piece, which http.client does not do: it sends a head by itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(requests)
    return reader, writer


def post_of(body: bytes, length: bytes = b"") -> bytes:
    length = length or b"%d" % len(body)
    return b"POST /ingest HTTP/1.1\r\nHost: here\r\nContent-Length: %s\r\n\r\n%s" % (length, body)


async def test_a_post_that_is_there_as_a_whole_needs_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is its body kept when it was taken."""

    async def never(*_: object) -> None:
        raise AssertionError("an application was started")

    monkeypatch.setattr(Server, "_ingest", never)
    async with Engine(HTTP(), keeps=False) as engine:
        reader, writer = await at_once(engine.source.port, post_of(lines(1)))
        while not engine.rows:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert [len(each.cycle.body) for each in connections()] == [0]
    assert (await reader.read()).startswith(b"HTTP/1.1 503")
    writer.close()
    await writer.wait_closed()


def connections() -> list[Any]:
    return [each for each in gc.get_objects() if isinstance(each, http_connection._Connection) and each.parser]


async def test_a_length_of_thousands_of_digits_is_answered_as_any_other() -> None:
    """They count as what they say, and who sends it behind a post gets both answers."""
    long = post_of(lines(1), b"0" * 5_000 + b"%d" % len(lines(1)))
    async with Engine(HTTP()) as engine:
        reader, writer = await at_once(engine.source.port, post_of(lines(1)) + long + long)
        for _ in range(3):
            assert (await reader.readuntil(b'{"records":1}')).startswith(b"HTTP/1.1 202")
        writer.close()
        await writer.wait_closed()


async def test_a_fault_in_taking_a_post_costs_no_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of one that waited behind another: 500, and it is closed; the log says it."""
    checked, times = Server._checked, iter(range(100))

    def fails(server: Server, *arguments: Any) -> str:
        if next(times):
            raise ZeroDivisionError
        return checked(server, *arguments)

    monkeypatch.setattr(Server, "_checked", fails)
    async with Engine(HTTP()) as engine:
        reader, writer = await at_once(engine.source.port, post_of(lines(1)) * 3)
        answers = await reader.read()
        assert [answer[:3] for answer in answers.split(b"HTTP/1.1 ")[1:]] == [b"202", b"500"]
        writer.close()
        await writer.wait_closed()
    assert "could not be taken as a whole" in caplog.text


async def test_a_fault_in_answering_closes_the_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sender posts again elsewhere; the log says it."""
    monkeypatch.setattr(http_connection, "STATUS_LINE", {})
    async with Engine(HTTP()) as engine:
        reader, writer = await at_once(engine.source.port, post_of(lines(1)))
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert len(engine.rows) == 1
    assert "could not be answered" in caplog.text


@pytest.mark.parametrize("proxy", ["", "*", "a proxy", "10.0.0.1/8", ["127.0.0.1"], 5])
def test_a_proxy_that_is_no_address_is_refused(proxy: Any) -> None:
    with pytest.raises(PlanError, match=r"proxy=.* must be addresses or networks"):
        HTTP(proxy=proxy)


async def test_a_sender_that_reads_no_answers_is_answered_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """Posts that are there as a whole are answered as they are read; of who takes no answers, no more is taken than there is room
    for, and the rest when it does."""
    made, number = http_connection._Connection.connection_made, 10_000
    connections: list[Any] = []

    def with_little_room(connection: Any, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        made(connection, transport)
        connections.append(connection)

    monkeypatch.setattr(http_connection._Connection, "connection_made", with_little_room)
    posts = post_of(lines(1)) * number
    async with Engine(HTTP()) as engine:
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", engine.source.port)) as sender:
            sender.setblocking(False)
            sending = asyncio.ensure_future(loop.sock_sendall(sender, posts))
            while not any(connection.flow.write_paused for connection in connections):  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert 0 < len(engine.rows) < number
            answers = 0
            while answers < number:
                answers += (await loop.sock_recv(sender, 1 << 16)).count(b"{")
            await sending
            assert len(engine.rows) == number


async def test_what_a_web_page_posts_is_not_taken_without_a_token() -> None:
    """Any page that is looked at on this machine may post to its ports, and its browser says that it is one."""
    async with Engine(HTTP()) as engine:
        for origin in ("https://elsewhere.example", f"http://rebound.example:{engine.source.port}", "null", ""):
            status, told, _ = await Sender(engine.source.port).post(lines(1), Origin=origin)
            assert status == 403, origin
            assert "web page" in told["error"]
        assert (await Sender(engine.source.port).post(lines(2)))[0] == 202
        assert len(engine.rows) == 1
    async with Engine(HTTP(token="secret")) as engine:
        headers = {"Origin": "https://plant.example", "Authorization": "Bearer secret"}
        assert (await Sender(engine.source.port).post(lines(1), **headers))[0] == 202


async def test_other_paths_and_methods_are_not_there() -> None:
    """404 and 405, as everywhere."""
    async with Engine(HTTP(path="/in")) as engine:
        assert (await Sender(engine.source.port).post(lines(1)))[0] == 404
        assert (await Sender(engine.source.port).post(lines(1), path="/in"))[0] == 202


async def test_who_asks_for_a_head_alone_is_answered_and_may_post_behind_it() -> None:
    """Over the same connection: an answer that has no body does not wait for one."""
    async with Engine(HTTP()) as engine:
        reader, writer = await asyncio.open_connection("127.0.0.1", engine.source.port)
        with contextlib.closing(writer):
            writer.write(b"HEAD /ingest HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
            writer.write(b"POST /ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (39, lines(1)))
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 202 ")


def _certify(cert: Path, key: Path) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    named = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*made, *named, "-keyout", key, "-out", cert], check=True, capture_output=True)


async def test_bodies_come_by_https_too(tmp_path: Path) -> None:
    """With a certificate of our own, which the sender trusts."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    await asyncio.to_thread(_certify, cert, key)
    async with Engine(HTTP(cert=cert, cert_key=key)) as engine:
        tls = ssl.create_default_context(cafile=str(cert))
        assert (await Sender(engine.source.port, tls).post(lines(1)))[0] == 202
    with pytest.raises(InputError, match=r"cert\.pem cannot be used as a certificate with its private key"):
        HTTP(cert=cert, cert_key=cert).check()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other machines; give it a token="),
        ({"host": "0.0.0.0", "token": "t"}, "would send its token in the clear; give it cert="),
        ({"token": ""}, "is empty"),
        ({"host": "0.0.0.0", "token": "Short-0ne-of-15", "plaintext": True}, "token= has fewer than 16 characters"),
        ({"host": "0.0.0.0", "token": " " * 32, "plaintext": True}, "token= has fewer than 16 characters"),
        ({"path": "ingest"}, "must begin with a slash"),
        ({"limit": 0}, "must be a number of bytes"),
        ({"port": 70_000}, "must be a number from 0"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options: Any, told: str) -> None:
    """In one sentence."""
    with pytest.raises(PlanError, match=told) as refused:
        HTTP(**options)
    assert "Short-0ne" not in str(refused.value)


async def test_a_short_token_that_is_kept_elsewhere_is_refused_before_anybody_may_guess(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By `check`, and by a run for which it has become short since; not shown. On this machine any will do."""
    monkeypatch.setenv("INGEST_TOKEN", "Short-0ne-of-15")
    source = HTTP("0.0.0.0", token="${env:INGEST_TOKEN}", plaintext=True)
    HTTP(token="${env:INGEST_TOKEN}").check()
    with pytest.raises(InputError, match=r"on '0\.0\.0\.0' .* token= has fewer than 16 characters") as refused:
        source.check()
    assert "Short-0ne" not in str(refused.value)
    with pytest.raises(InputError, match="fewer than 16"):
        await anext(source.stream(SourceContext(SystemClock(), [].append)))
    monkeypatch.setenv("INGEST_TOKEN", "Long-enough-of-16")
    source.check()


async def test_a_run_that_is_ended_as_it_begins_to_listen_leaves_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would answer for nobody, and hold the port."""
    begun, startup = asyncio.Event(), Server.startup

    async def begin(server: Server, sockets: list[socket.socket] | None = None) -> None:
        begun.set()
        await asyncio.sleep(0)
        await startup(server, sockets)

    monkeypatch.setattr(Server, "startup", begin)
    reading = asyncio.ensure_future(anext(HTTP().stream(SourceContext(SystemClock(), [].append))))
    await begun.wait()
    reading.cancel()
    await asyncio.wait([reading])
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_a_check_looks_a_token_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the token that can be read is the one whose length is judged."""
    token = tmp_path / "token"
    token.write_text("Long-enough-of-16")
    token.chmod(0o600)
    looked: list[Path] = []
    look = files.head
    monkeypatch.setattr(files, "head", lambda place, count: (looked.append(place), look(place, count))[1])
    HTTP("0.0.0.0", token=f"${{file:{token}}}", plaintext=True).check()
    assert looked == [token]


def test_a_port_in_use_is_refused() -> None:
    """Before the run begins."""

    async def both() -> None:
        async with Engine(HTTP()) as engine:
            HTTP(port=engine.source.port).check()

    with pytest.raises(OutsideError, match="is in use by another program"):
        asyncio.run(both())


async def test_a_whole_run_answers_what_it_has_in_its_log_and_goes_on_from_there(tmp_path: Path, lanes: int) -> None:
    """With state: what was answered is in the table, once, over two starts."""

    def pipeline(source: HTTP) -> tm.Pipeline:
        return tm.Pipeline(source, tm.Plan(tm.Lag("value")), tm.sinks.Lines(tmp_path / "out.ndjson"), name="posted")

    for start in range(2):
        source = HTTP()
        async with tm.serve(pipeline(source), lanes=lanes, state=tmp_path / "state") as run:
            _, port = await source.wait_listening()
            for number in range(5):
                status, _, _ = await Sender(port).post(lines(10 * start + 2 * number, 10 * start + 2 * number + 1))
                assert status == 202
            await run.stop()
    rows = [json.loads(row) for row in (tmp_path / "out.ndjson").read_text().splitlines()]
    assert [row["value"] for row in rows] == list(range(20))
    assert [row["value_lag_1"] for row in rows[1:]] == list(range(19))


async def test_a_body_that_is_refused_ends_nothing() -> None:
    """An integer of line protocol that is too large is found at the first sight of its series, and at the second."""
    async with Engine(HTTP(format="influx")) as engine:
        sender = Sender(engine.source.port)
        for _ in range(2):
            status, told, _ = await sender.post(b"m v=99999999999999999999i 1700000000000000000\n")
            assert (status, told["line"]) == (400, 1)
        assert (await sender.post(b"m v=1 1700000000000000000\n"))[0] == 202
        assert [row["v"] for row in engine.rows] == [1.0]


async def test_a_line_of_line_protocol_that_is_cut_at_a_backslash_harms_no_other() -> None:
    """Whoever sends it shares the source with others, whose names may have that backslash before a space."""
    async with Engine(HTTP(format="influx")) as engine:
        sender = Sender(engine.source.port)
        assert (await sender.post(b"cpu,host=a\\"))[0] == 400
        assert (await sender.post(b"cpu,host=a\\ b v=2 1700000001000000000\n"))[0] == 202
        assert [row["host"] for row in engine.rows] == ["a b"]


async def test_nobody_is_told_to_say_the_format_that_is_said() -> None:
    """Of a line that is not text an answer shows one that could be read."""
    async with Engine(HTTP(format="influx")) as engine:
        _, told, _ = await Sender(engine.source.port).post(b"cpu,host=\xff v=2 1700000001000000000\n")
        assert told["error"] == "line 1: the line is not UTF-8"
        engine.source.edge.refuse("malformed", "the line is not UTF-8", r"cpu,host=\xff v=2")
        assert "say format" not in engine.source.explain()


async def test_of_a_body_that_is_not_json_only_the_beginning_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what tells its format: a megabyte that is not text either would take the loop a third of a second."""
    looked_at: list[int] = []

    def counted(raw: bytes) -> str:
        looked_at.append(len(raw))
        return text_of(raw)

    monkeypatch.setattr(http_bodies, "text_of", counted)
    async with Engine(HTTP()) as engine:
        status, _, _ = await Sender(engine.source.port).post(b"\xff" * 100_000, **A_JSON)
        assert (status, max(looked_at) < 5_000) == (400, True)


async def test_a_fault_of_the_decoder_costs_one_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sender is told so; what others post is taken."""
    async with Engine(HTTP()) as engine:
        sender = Sender(engine.source.port)
        real = engine.source._form.parts

        def faulty(block: bytes) -> Any:
            if b"666" in block:
                raise KeyError(666)
            return real(block)

        monkeypatch.setattr(engine.source._form, "parts", faulty)
        status, told, _ = await sender.post(lines(666))
        assert (status, told["error"]) == (500, "this body cannot be read here: KeyError")
        assert (await sender.post(lines(1)))[0] == 202


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/json"])
async def test_a_large_body_becomes_many_batches_and_is_answered_with_the_last(kind: str) -> None:
    """No turn of the loop has more than a thousand records of it, or of its dead letters."""
    rows = [{"sensor": "S", "time": 1, "value": value} for value in range(20_000)]
    body = json.dumps(rows).encode() if kind.endswith("/json") else lines(*range(20_000))
    async with Engine(HTTP(limit=4 << 20)) as engine:
        status, told, _ = await Sender(engine.source.port).post(body, Content_Type=kind)
        assert (status, told) == (202, {"records": 20_000})
        assert [row["value"] for row in engine.rows] == list(range(20_000))
        assert engine.largest <= 1_000
        nobody = b'{"time":1}\n' * 20_000
        assert (await Sender(engine.source.port).post(nobody))[0] == 202
        assert len(engine.letters) == 20_000


@pytest.mark.parametrize("compiled", [False, True], ids=["decoded", "read by kernels"])
async def test_bodies_that_come_together_keep_their_order_and_their_answers(
    compiled: bool, request: pytest.FixtureRequest
) -> None:
    """Of one shape or not, with and without a last end of line, empty, in one group or the next: each has its own records and
    its own answer."""
    if compiled:
        request.getfixturevalue("kernels_loaded")
    bodies = {
        "one": lines(*range(600)),
        "two": lines(*range(600, 1_200)).rstrip(b"\n"),
        "three": b'{"other": 1}\nno json\n',
        "four": b"",
        "five": lines(*range(1_200, 1_800)).replace(b"\n", b"\r\n"),
    }
    source = HTTP()
    source._amounts = source._amounts._replace(alike=50_000)
    async with Engine(source) as engine:
        engine.pull.clear()
        sender = Sender(engine.source.port)
        first = asyncio.ensure_future(sender.post(lines(-1)))
        while not engine.rows:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        told = [asyncio.ensure_future(sender.post(body)) for body in bodies.values()]
        assert engine.source._inbox is not None
        while len(engine.source._inbox._items) < len(bodies):  # noqa: ASYNC110 - behind the first, which is not safe yet
            await asyncio.sleep(0)
        engine.pull.set()
        assert (await first)[0] == 202
        answers = await asyncio.gather(*told)
        assert [(status, of.get("records"), of.get("line")) for status, of, _ in answers] == [
            (202, 600, None),
            (202, 600, None),
            (400, None, 2),
            (202, 0, None),
            (202, 600, None),
        ]
        assert sorted(row["value"] for row in engine.rows) == list(range(-1, 1_800))


async def test_posts_that_are_all_refused_are_told_of() -> None:
    """In the log, half a minute after the first, with what its sender was told."""
    async with Engine(HTTP()) as engine:
        assert engine.source.nothing_yet() == ""
        assert (await Sender(engine.source.port).post(b"mill speed=1 17\n"))[0] == 400
        told = engine.source.nothing_yet()
        assert told.startswith("nothing was taken so far, and 1 refused; the last sender was told 400: line 1: ")
        assert 'format="influx"' in told


async def test_what_is_no_http_behind_posts_is_told_behind_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first would be told that nothing of it was taken, while it is."""
    met = asyncio.Event()

    def garbled(connection: http_connection._Connection, why: str) -> None:
        garbled_before(connection, why)
        met.set()

    garbled_before = http_connection._Connection._garbled
    monkeypatch.setattr(http_connection._Connection, "_garbled", garbled)
    async with Engine(HTTP()) as engine:
        engine.pull.clear()
        reader, writer = await at_once(engine.source.port, post_of(lines(1)))
        while not engine.rows:  # noqa: ASYNC110
            await asyncio.sleep(0)
        writer.write(post_of(lines(2)) + post_of(lines(3), b"x"))
        async with asyncio.timeout(60):
            await met.wait()
            engine.pull.set()
            told = await reader.read()
        writer.close()
    assert [part[:3] for part in told.split(b"HTTP/1.1 ")[1:]] == [b"202", b"202", b"400"]
    assert b"This is not HTTP as it is read here" in told
    assert [row["value"] for row in engine.rows] == [1, 2]
