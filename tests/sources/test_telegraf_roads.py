"""Line protocol and Telegraf's JSON by TCP, as `outputs.socket_writer` sends them, and by HTTP, as `outputs.http` does."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.formats.test_influx_lines import SAMPLES
from tests.sources.test_http import Engine, Sender
from tests.sources.test_tcp import Running, running, send
from tests.sources.test_tcp_ack import Keeper, soon

from tidemill.batch import Batch
from tidemill.clock import SystemClock
from tidemill.errors import PlanError
from tidemill.formats.line_formats import line_format
from tidemill.letters import MALFORMED
from tidemill.sources import HTTP, TCP, UDP, Lines, Source, SourceContext

LINES = "".join(f"{line}\n" for line in SAMPLES).encode()
METRICS = [
    {
        "fields": {"field_1": 30, "field_2": 4, "n_images": 660},
        "name": "docker",
        "tags": {"host": "raynor"},
        "timestamp": 1458229140,
    },
    {"fields": {"field_1": 30.5, "on": True}, "name": "docker", "tags": {"host": "raynor"}, "timestamp": 1458229141},
]
"""As the page of Telegraf's serializer shows them."""
TEXT = "text/plain; charset=utf-8"
"""What `outputs.http` calls its bodies, whatever is in them."""
RECORDS = [
    {"measurement": "docker", "host": "raynor", "time": 1458229140000000000, **METRICS[0]["fields"]},
    {"measurement": "docker", "host": "raynor", "time": 1458229141000000000, **METRICS[1]["fields"]},
]


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without the order of their fields, which a batch of several measurements does not keep."""
    return [dict(sorted(row.items())) for row in rows]


def keys(run: Running) -> list[str]:
    return [name for batch in run.batches for name in batch.keys[batch.key].tolist()]


# -- TCP -------------------------------------------------------------------------------------------


async def test_line_protocol_comes_by_tcp() -> None:
    """In pieces that end anywhere: each sample as a file would give it, its sensor its series; a bad line alone is lost."""
    source = TCP(format="influx")
    data = LINES + b"mill speed=fast\n" + LINES
    async with running(source) as run:
        await send(source.address, *(data[at : at + 7] for at in range(0, len(data), 7)))
        await run.until(lambda: len(run.rows) == 2 * len(SAMPLES) and bool(run.letters))
    assert plain(run.rows) == plain(line_format("influx").decode(LINES).rows * 2)
    assert keys(run)[0] == "cpu,cpu=cpu-total,host=loaner"
    assert [(letter.reason_code, letter.raw) for letter in run.letters] == [(MALFORMED, "mill speed=fast")]


async def test_telegrafs_json_comes_by_tcp() -> None:
    """A metric on each line, with seconds unless ``precision`` says what else; keys of several senders do not mix."""
    for precision, scale in ((None, 1), ("ms", 1000)):
        source = TCP(format="telegraf-json", precision=precision, key="{host}/{peer_host}")
        data = b"".join(
            json.dumps({**metric, "timestamp": metric["timestamp"] * scale}).encode() + b"\n" for metric in METRICS
        )
        async with running(source) as run:
            await asyncio.gather(*(send(source.address, data) for _ in range(3)))
            await run.until(lambda: len(run.rows) == 6)
        assert plain(run.rows) == plain(RECORDS * 3)
        assert set(keys(run)) == {"raynor/127.0.0.1"}


async def test_lines_of_every_format_are_acknowledged_alike() -> None:
    """Each counts, also one that is none."""
    keeper = Keeper(source := TCP(format="influx", ack=True))
    await source.wait_listening()
    reader, writer = await asyncio.open_connection(*source.address)
    writer.write(b"m value=1 1\n\n# no record\nm value=none\nm value=2 2\n")
    await soon(lambda: [value for values in keeper.values for value in values] == [1.0, 2.0])
    source.kept(len(keeper.values))
    assert await reader.readline() == b"5\n"
    writer.close()
    keeper.context.stopping.set()
    await keeper.task


# -- HTTP ------------------------------------------------------------------------------------------


BODIES = {
    "lines": ("influx", LINES, {"Content_Type": TEXT}),
    "lines, gzip": ("influx", gzip.compress(LINES), {"Content_Type": TEXT, "Content_Encoding": "gzip"}),
    "lines, whatever they are called": ("influx", LINES, {"Content_Type": "application/json"}),
}


@pytest.mark.parametrize(("form", "body", "headers"), BODIES.values(), ids=BODIES)
async def test_line_protocol_comes_by_http(form: str, body: bytes, headers: dict[str, str]) -> None:
    """As Telegraf's output posts it."""
    async with Engine(HTTP(format=form)) as engine:
        status, told, _ = await Sender(engine.source.port).post(body, **headers)
        assert (status, told) == (202, {"records": len(SAMPLES)})
    assert plain(engine.rows) == plain(line_format("influx").decode(LINES).rows)


JSON_BODIES = {
    "a batch": json.dumps({"metrics": METRICS}).encode() + b"\n",
    "a metric on each line": b"".join(json.dumps(metric).encode() + b"\n" for metric in METRICS),
    "batches on lines": b"".join(json.dumps({"metrics": [metric]}).encode() + b"\n" for metric in METRICS),
}
DOCUMENTS = {
    "a batch": json.dumps({"metrics": METRICS}, indent=2).encode(),
    "an array": json.dumps(METRICS, indent=2).encode(),
    "an array of batches": json.dumps([{"metrics": [metric]} for metric in METRICS]).encode(),
}


@pytest.mark.parametrize(
    ("body", "kind"),
    [*((body, TEXT) for body in JSON_BODIES.values()), *((body, "application/json") for body in DOCUMENTS.values())],
    ids=[*JSON_BODIES, *(f"{name} as JSON" for name in DOCUMENTS)],
)
async def test_telegrafs_json_comes_by_http(body: bytes, kind: str) -> None:
    """Lines, unless the body is called JSON, which may have line breaks anywhere."""
    async with Engine(HTTP(format="telegraf-json")) as engine:
        status, told, _ = await Sender(engine.source.port).post(body, Content_Type=kind)
        assert (status, told) == (202, {"records": 2})
    assert plain(engine.rows) == plain(RECORDS)


async def test_a_long_batch_of_telegrafs_json_is_whole() -> None:
    """A thousand metrics and more on one line, in their order."""
    metrics = [{**METRICS[0], "fields": {"n": n}} for n in range(2_345)]
    async with Engine(HTTP(format="telegraf-json")) as engine:
        assert (await Sender(engine.source.port).post(json.dumps({"metrics": metrics}).encode()))[0] == 202
    assert [row["n"] for row in engine.rows] == list(range(2_345))


LONG = json.dumps({"metrics": [{**METRICS[0], "fields": {"n": n}} for n in range(2_345)]}).encode() + b"\n"
"""Batches of a line near the limit of 256 KiB."""


class Drained:
    """A source that is being drained, with the turn of the loop in which each batch came."""

    def __init__(self, source: Source) -> None:
        self.batches: list[Batch] = []
        self.turns: list[int] = []
        self._turn = 0
        self._context = SourceContext(SystemClock(), lambda _: None)
        self._tasks = [asyncio.ensure_future(self._drain(source)), asyncio.ensure_future(self._count())]

    async def _drain(self, source: Source) -> None:
        async for batch in source.stream(self._context):
            self.batches.append(batch)
            self.turns.append(self._turn)

    async def _count(self) -> None:
        while True:
            self._turn += 1
            await asyncio.sleep(0)

    @property
    def values(self) -> list[int]:
        return [int(row["n"]) for batch in self.batches for row in batch.to_rows()]

    async def stop(self) -> None:
        self._context.stopping.set()
        await self._tasks[0]
        self._tasks[1].cancel()

    def check(self) -> None:
        """All of the long line is there, in its order, and no turn of the loop had more than a small part of it."""
        assert self.values == list(range(2_345))
        assert max(map(len, self.batches)) <= 200
        assert len(set(self.turns)) == len(self.turns)


@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_a_long_line_of_a_pipe_takes_many_turns(tmp_path: Path, end: bytes) -> None:
    """So that nobody else waits for it; also the last one, without an end."""
    os.mkfifo(tmp_path / "pipe")
    drained = Drained(Lines(tmp_path / "pipe", format="telegraf-json"))
    writing = asyncio.to_thread((tmp_path / "pipe").write_bytes, LONG.removesuffix(b"\n") + end)
    async with asyncio.timeout(120):
        await writing
        await soon(lambda: len(drained.values) == 2_345)
        await drained.stop()
    drained.check()


async def test_a_long_line_by_tcp_takes_many_turns_and_is_safe_with_its_last_record() -> None:
    """Not before: the sender would let go of the rest."""
    source = TCP(format="telegraf-json", ack=True)
    drained = Drained(source)
    async with asyncio.timeout(120):
        reader, writer = await asyncio.open_connection(*(await source.wait_listening()))
        writer.write(LONG)
        await soon(lambda: len(drained.values) == 2_345)
        source.kept(len(drained.batches) - 1)
        assert source._pending.waiting
        source.kept(len(drained.batches))
        assert await reader.readline() == b"1\n"
        writer.close()
        await drained.stop()
    drained.check()


async def test_a_long_datagram_takes_many_turns() -> None:
    """As long as they may be."""
    source = UDP(format="telegraf-json")
    drained = Drained(source)
    metrics = [{"name": "m", "fields": {"n": n}} for n in range(1_500)]
    async with asyncio.timeout(120):
        address = await source.wait_listening()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(json.dumps({"metrics": metrics}).encode(), address)
        await soon(lambda: len(drained.values) == 1_500)
        await drained.stop()
    assert max(map(len, drained.batches)) <= 200
    assert len(set(drained.turns)) == len(drained.turns)


REFUSED = {
    "a line": ("influx", b"m a=1 1\n\nm speed=fast 2\nm a=2 3\n", TEXT, "line", 3, "'speed'"),
    "a line far down": ("influx", b"m a=1 1\n" * 5_000 + b"m 2\n", TEXT, "line", 5_001, "field"),
    "a metric on a line": ("telegraf-json", b'{"metrics":[]}\n{"metrics":[{"name":"m"}]}', TEXT, "line", 2, "'fields'"),
    "a metric of an array": (
        "telegraf-json",
        b'[{"metrics":[]},{"name":"m"}]',
        "application/json",
        "item",
        2,
        "'fields'",
    ),
    "no JSON": ("telegraf-json", b"m a=1", TEXT, "line", 1, "not JSON"),
}


@pytest.mark.parametrize(("form", "body", "kind", "what", "number", "told"), REFUSED.values(), ids=REFUSED)
async def test_what_is_no_record_is_named_and_nothing_is_taken(
    form: str, body: bytes, kind: str, what: str, number: int, told: str
) -> None:
    """400, with the line, or of a JSON array the item, from 1."""
    async with Engine(HTTP(format=form)) as engine:
        status, answer, _ = await Sender(engine.source.port).post(body, Content_Type=kind)
        assert status == 400
        assert answer[what] == number
        assert answer["error"].startswith(f"{what} {number}: ")
        assert told in answer["error"]
    assert (engine.rows, engine.letters) == ([], [])


@pytest.mark.parametrize(
    ("form", "body"),
    [
        ("influx", b"m,host=a host=1 1\nm,host=a n=1 2\n"),
        ("telegraf-json", json.dumps({"metrics": [{**METRICS[0], "fields": {"host": 1}}, METRICS[0]]}).encode()),
    ],
)
async def test_a_metric_that_is_whole_and_no_record_is_a_dead_letter(form: str, body: bytes) -> None:
    """Telegraf would send the same batch again and again: it keeps what is answered with 400."""
    async with Engine(HTTP(format=form)) as engine:
        status, told, _ = await Sender(engine.source.port).post(body, Content_Type=TEXT)
        assert (status, told) == (202, {"records": 1})
    assert len(engine.rows) == 1
    assert ["'host'" in letter.reason for letter in engine.letters] == [True]


async def test_a_body_of_dead_letters_alone_is_answered() -> None:
    """They are safe when the batch behind them is."""
    async with Engine(HTTP(format="influx")) as engine:
        assert (await Sender(engine.source.port).post(b"m,a=1 a=1\n" * 3))[:2] == (202, {"records": 0})
    assert len(engine.letters) == 3


@pytest.mark.parametrize("source", [TCP, HTTP])
def test_formats_that_are_none_are_refused(source: Any) -> None:
    """In one sentence that names the source."""
    with pytest.raises(PlanError, match=f"format='csv' of {source.__name__}"):
        source(format="csv")
    with pytest.raises(PlanError, match=f"precision='h' of {source.__name__}"):
        source(format="influx", precision="h")
    with pytest.raises(PlanError, match=f"precision='s' of {source.__name__}"):
        source(precision="s")
