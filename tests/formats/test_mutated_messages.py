"""R14: damaged messages for each decoder of what comes over a network: each is a record or a letter, and hurts no other.

The messages are those of the recordings; `test_influx_lines` does the same for line protocol.
"""

from __future__ import annotations

import gzip
import os
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from tidemill.formats.decoded import Decoded
from tidemill.formats.edge import Edge
from tidemill.formats.line_formats import LineFormat, known_of, line_format, set_up
from tidemill.formats.payloads import PayloadReader
from tidemill.sources.http_bodies import Posted, Refused, records_of

pytestmark = pytest.mark.slow

MESSAGES = int(os.environ.get("TIDEMILL_MESSAGES", "100000"))
_BLOCK = 100
_HANG_S = 1.0
"""Of a processor's time, not of the clock's."""
ODD = [
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[" * 300,
    b'{"a":' * 40,
    b",",
    b":",
    b"null",
    b"NaN",
    b"1e999",
    b"9" * 5_000,
    b"\0",
    b"\xff",
]
ODD += [b"\xed\xa0\x80", b"\\ud800", b"Infinity", b"true", b" ", b"\t", b"-", b"1e-400"]


def mutated(chance: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0:
                del data[place : place + chance.randint(1, 20)]
            case 1:
                data[place:place] = chance.choice(ODD)
            case 2:
                data[place : place + 1] = bytes([chance.randrange(256)])
            case 3:
                del data[place:]
            case 4:
                data[place:place] = data[: chance.randint(0, 40)]
            case _:
                other = chance.randrange(len(data) + 1)
                data[place:place] = data[other : other + chance.randint(1, 40)]
    return bytes(data).replace(b"\n", b" ").replace(b"\r", b" ")


def recorded(recordings: Path) -> list[bytes]:
    """Small and large ones, flat and nested."""
    paths = sorted((recordings / "campusiot_lorawan").glob("*.ndjson.gz"))
    messages = [
        b'{"sensor":"boiler-1","time":1700000000.5,"value":81.3}',
        b'{"sensor":"a","value":-1,"unit":"C","ok":true}',
    ]
    for path in paths:
        with gzip.open(path) as lines:
            messages += [line.rstrip() for line in islice(lines, 5)]
    return messages


def as_telegraf(message: bytes, number: int) -> bytes:
    """The flat parts of a message as Telegraf would send them, alone or in a batch."""
    fields = {name: item for name, item in msgspec.json.decode(message).items() if not isinstance(item, dict | list)}
    metric = {"name": "lora", "tags": {"host": "a"}, "fields": fields, "timestamp": 1_700_000_000 + number}
    return msgspec.json.encode({"metrics": [metric, metric]} if number % 3 == 0 else metric)


def blocks(messages: list[bytes]) -> Iterator[list[bytes]]:
    chance = random.Random(14)
    for _ in range(MESSAGES // _BLOCK):
        yield [mutated(chance, chance.choice(messages)) for _ in range(_BLOCK)]


def decoder(name: str, recordings: Path) -> tuple[list[bytes], bytes, LineFormat, Edge]:
    """Messages of the format, one that is good and takes a value, and what reads them."""
    form, edge = line_format(name), Edge(arrival=True, fallback="peer")
    set_up(edge, form)
    messages = recorded(recordings)
    if name == "ndjson":
        return messages, b'{"sensor":"good","time":1,"value":%d}', form, edge
    messages = [as_telegraf(message, number) for number, message in enumerate(messages)]
    return messages, b'{"name":"good","fields":{"value":%d},"timestamp":1}', form, edge


def without_hanging(work: Callable[[], int]) -> int:
    start = time.process_time()
    made = work()
    assert time.process_time() - start < _HANG_S
    return made


@pytest.mark.parametrize("name", ["ndjson", "telegraf-json"])
def test_each_damaged_line_is_records_or_letters_and_hurts_no_neighbour(name: str, recordings: Path) -> None:
    """A line of NDJSON is one of both; a batch of Telegraf's is as many as it has metrics, and at least one if it holds any."""
    messages, good, form, edge = decoder(name, recordings)
    accepted = dead = 0

    def one(damaged: list[bytes]) -> int:
        nonlocal accepted, dead
        made = form.decode(b"\n".join((good % 1, *damaged, good % 2)))
        values = [row["value"] for row in made.rows if "good" in (row.get("sensor"), row.get("measurement"))]
        assert values == [1, 2]
        if name == "ndjson":
            assert len(made.rows) + len(made.bad) == 2 + sum(1 for line in damaged if line.strip())
        known = known_of(made, {"peer": "p"})
        letters = [edge.refuse(bad.reason_code, bad.reason, bad.raw) for bad in made.bad]
        batch, more = edge.rows(made.rows, known=known, parsed=True)
        assert len(batch) + len(more) == len(made.rows)
        accepted += len(batch)
        dead += len(letters) + len(more)
        return len(batch)

    for damaged in blocks(messages):
        assert without_hanging(lambda damaged=damaged: one(damaged)) >= 2
    assert min(accepted, dead) > 5_000


@pytest.mark.parametrize(
    "value", [None, "fCnt", {"rssi": "rxInfo[*].rssi", "frame": "fCnt"}], ids=["whole", "path", "list"]
)
def test_each_damaged_payload_is_readings_or_says_why_not(value: str | dict[str, str] | None, recordings: Path) -> None:
    """Alone in its message, as MQTT has it; a list in it may make several."""
    reader, edge = PayloadReader(value), Edge(arrival=True, fallback="topic")
    accepted = dead = 0

    def one(damaged: list[bytes]) -> int:
        nonlocal accepted, dead
        for payload in damaged:
            rows, bad = reader.read(payload)
            assert rows or bad
            batch, letters = edge.rows(rows, known=[{"topic": "t"}] * len(rows), parsed=True)
            assert len(batch) + len(letters) == len(rows)
            accepted += len(batch)
            dead += len(letters) + len(bad)
        return accepted

    for damaged in blocks(recorded(recordings)):
        without_hanging(lambda damaged=damaged: one(damaged))
    assert min(accepted, dead) > 1_000


@pytest.mark.parametrize("name", ["ndjson", "telegraf-json"])
async def test_each_damaged_array_is_records_and_letters_or_refused_as_a_whole(name: str, recordings: Path) -> None:
    """Posted over HTTP, between two good items: they are taken with what is between them, or nothing is."""
    messages, good, form, edge = decoder(name, recordings)
    taken = accepted = refused = 0

    async def one(message: bytes) -> list[Decoded]:
        nonlocal taken, refused
        body = b"[%b,%b,%b]" % (good % 1, message, good % 2)
        posted = Posted(body, lambda _: None, document=True, known={}, arrived_ns=1, wall_ns=1)
        try:
            parts = await records_of(posted, form, 1 << 13)
        except Refused as why:
            refused += why.status == 400
            return []
        taken += 1
        rows = [row for made in parts for row in made.rows]
        assert (rows[0]["value"], rows[-1]["value"]) == (1, 2)
        return parts

    for damaged in blocks(messages):
        start = time.process_time()
        parts = [made for message in damaged for made in await one(message)]
        rows = [row for made in parts for row in made.rows]
        known = [each for made in parts for each in made.known or [{"peer": "p"}] * len(made.rows)]
        batch, letters = edge.rows(rows, known=known, parsed=True)
        assert time.process_time() - start < _HANG_S
        assert len(batch) + len(letters) == len(rows)
        accepted += len(batch)
    assert taken + refused == MESSAGES
    assert min(accepted, refused) > 2_000
