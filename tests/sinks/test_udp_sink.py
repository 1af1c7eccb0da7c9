"""The sink UDP: whole lines in real datagrams."""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any

import pytest

import tidemill as tm
from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import OutsideError, PlanError
from tidemill.schema import Schema

OPEN = Schema(open=True)


class Receiver:
    """Takes what comes, and waits for what must come."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"udp://127.0.0.1:{self.socket.getsockname()[1]}"

    def take(self, lines: int) -> list[bytes]:
        """Datagrams, until they have so many lines."""
        came: list[bytes] = []
        while sum(each.count(b"\n") for each in came) < lines:
            assert select.select([self.socket], [], [], 30)[0]
            came.append(self.socket.recv(1 << 17))
        return came


@pytest.fixture
def receiver() -> Any:
    made = Receiver()
    with made.socket:
        yield made


def sent(sink: sinks.UDP, *batches: list[dict[str, Any]]) -> sinks.UDP:
    sink.check()
    sink.open(OPEN)
    for rows in batches:
        sink.write(Batch.from_rows(rows))
        sink.flush()
    sink.close()
    return sink


@pytest.mark.parametrize("lanes", [0, 1])
def test_rows_are_whole_lines_in_datagrams(receiver: Receiver, lanes: int) -> None:
    """Of a run as a user writes it, as many in each as there is room for."""
    records = [{"sensor": f"S{n % 2}", "n": n} for n in range(200)]
    sink = sinks.UDP(receiver.url, columns=["n"])
    report = tm.run(tm.Pipeline(tm.sources.Records(records), tm.Lag("n"), sink), lanes=lanes)
    came = receiver.take(200)
    assert [json.loads(line)["n"] for each in came for line in each.splitlines()] == [*range(200)]
    assert all(each.endswith(b"\n") and len(each) <= 1_400 for each in came)
    assert len(came) < 20
    assert report.sinks == {"udp": 200}
    assert report.delivery["udp"] == "at-most-once"


def test_a_long_line_has_a_datagram_of_its_own_and_one_that_none_holds_is_counted(receiver: Receiver) -> None:
    """Its neighbours go."""
    texts = ["a", "b" * 5_000, "c", "d" * 70_000, "e"]
    sink = sent(sinks.UDP(receiver.url), [{"text": text} for text in texts])
    came = receiver.take(4)
    assert [[json.loads(line)["text"][0] for line in each.splitlines()] for each in came] == [
        ["a"],
        ["b"],
        ["c"],
        ["e"],
    ]
    assert sink.statistics().left_out == {"(too large)": 1}
    assert (sink.statistics().rows, sink.statistics().bytes) == (4, sum(map(len, came)))
    assert "65507 bytes" in sink.why_left_out("(too large)")


def test_rows_that_the_other_machine_refuses_are_counted(receiver: Receiver) -> None:
    """Where nobody listens, it says so of each datagram when the next is sent; the last is not told of."""
    receiver.socket.close()
    sink = sent(sinks.UDP(receiver.url), *([{"n": n}, {"n": n}] for n in range(10)))
    assert sink.statistics().left_out == {"(refused)": 18}
    assert sink.statistics().rows == 20
    assert "nobody listens at udp://127.0.0.1:" in sink.why_left_out("(refused)")


def test_line_protocol_reaches_influxdb(influx: Any) -> None:
    """Its UDP service reads all of it."""
    influx.query('CREATE DATABASE "datagrams"')
    sink = sinks.UDP(f"udp://127.0.0.1:{influx.udp_port}", format="influx", measurement="mill")
    sent(sink, [{"sensor": f"S{n % 3}", "time": 1_700_000_000 + n, "n": n} for n in range(300)])
    until = time.monotonic() + 120
    while not (found := influx.query("SELECT count(n) FROM mill", "datagrams")) or found[0]["count"] < 300:
        assert time.monotonic() < until, found
    assert [row["n"] for row in influx.query("SELECT n FROM mill", "datagrams")] == [*range(300)]


def test_a_place_that_there_is_no_way_to_is_one_sentence() -> None:
    """At the start."""
    with pytest.raises(OutsideError, match=r"^udp://255.255.255.255:9 cannot be reached: Permission denied\.$"):
        sinks.UDP("udp://255.255.255.255:9").open(OPEN)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("tcp://host:1", {}),
        ("udp://host", {}),
        ("udp://host:1", {"datagram": 0}),
        ("udp://host:1", {"datagram": 65_508}),
    ],
)
def test_what_cannot_be_is_refused_at_once(url: str, options: Any) -> None:
    """In one sentence."""
    with pytest.raises(PlanError):
        sinks.UDP(url, **options)
