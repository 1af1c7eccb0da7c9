"""R14: 100,000 damaged messages for each decoder of what comes over a network: each is a record or a letter, and hurts no other.

The messages are those of the recordings; `test_influx_lines` does the same for line protocol.
"""

from __future__ import annotations

import gzip
import random
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from tidemill.formats.edge import Edge
from tidemill.formats.line_formats import known_of, line_format, set_up
from tidemill.formats.payloads import PayloadReader

pytestmark = pytest.mark.slow

MESSAGES = 100_000
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


def blocks(messages: list[bytes]) -> list[list[bytes]]:
    chance = random.Random(14)
    return [[mutated(chance, chance.choice(messages)) for _ in range(_BLOCK)] for _ in range(MESSAGES // _BLOCK)]


def without_hanging(work: Callable[[], int]) -> int:
    start = time.process_time()
    made = work()
    assert time.process_time() - start < _HANG_S
    return made


@pytest.mark.parametrize("name", ["ndjson", "telegraf-json"])
def test_each_damaged_line_is_records_or_letters_and_hurts_no_neighbour(name: str, recordings: Path) -> None:
    """A line of NDJSON is one of both; a batch of Telegraf's is as many as it has metrics, and at least one if it holds any."""
    messages = recorded(recordings)
    good = b'{"sensor":"good","time":1,"value":%d}'
    if name == "telegraf-json":
        messages = [as_telegraf(message, number) for number, message in enumerate(messages)]
        good = b'{"name":"good","fields":{"value":%d},"timestamp":1}'
    form, edge = line_format(name), Edge(arrival=True, fallback="peer")
    set_up(edge, form)
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
    """Alone in its message, as MQTT has it; a list in it may make several. 100,000 over the three."""
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

    for damaged in blocks(recorded(recordings))[:: 2 if value is None else 4]:
        without_hanging(lambda damaged=damaged: one(damaged))
    assert min(accepted, dead) > 1_000
