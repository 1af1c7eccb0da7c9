"""The sink TCP: lines over real connections that end when a test says so."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.sinks.line_servers import read_all, reset, tcp_server

import tidemill as tm
from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import InputError, OutsideError, PlanError
from tidemill.schema import Schema
from tidemill.sinks.connecting import connected
from tidemill.tls import server_context

OPEN = Schema(open=True)


def rows_from(start: int, end: int, **more: Any) -> list[dict[str, Any]]:
    return [{"sensor": f"S{n % 3}", "n": n, **more} for n in range(start, end)]


def numbers(lines: list[bytes]) -> list[int]:
    return [json.loads(line)["n"] for line in lines]


def written(sink: sinks.TCP, *batches: list[dict[str, Any]]) -> None:
    """Each with a flush."""
    for rows in batches:
        sink.write(Batch.from_rows(rows))
        sink.flush()


def acknowledging(most: int = 10**9) -> Callable[[Any, bytearray], None]:
    """Tells how many lines have come, up to so many; then it ends the connection, but reads on: what comes when nobody reads resets
    it, and what was told last may be lost with that."""

    def serve(connection: Any, came: bytearray) -> None:
        while data := connection.recv(1 << 16):
            came += data
            connection.sendall(b"%d\n" % min(came.count(b"\n"), most))
            if came.count(b"\n") >= most:
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass
                return

    return serve


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.sinks.connecting.PATIENCE_S", 0.5)


@pytest.mark.parametrize("lanes", [0, 1])
def test_rows_are_lines_in_order(lanes: int) -> None:
    """Of a run as a user writes it, line protocol with the options of `Lines`; all of them have come when it ends."""
    with tcp_server(read_all) as server:
        records = [{"sensor": f"S{n % 2}", "time": 1_700_000_000 + n, "n": float(n)} for n in range(1_000)]
        sink = sinks.TCP(server.url, format="influx", measurement="mill", precision="s", where="n >= 10")
        report = tm.run(tm.Pipeline(tm.sources.Records(records), tm.Lag("n"), sink), lanes=lanes)
        assert server.ended.acquire(timeout=120)
        assert server.lines == [
            b"mill,sensor=S%d n=%d.0,n_lag_1=%d.0 %d" % (n % 2, n, n - 2, 1_700_000_000 + n) for n in range(10, 1_000)
        ]
    assert report.sinks == {"tcp": 990}
    assert report.delivery["tcp"].startswith("best effort")


@pytest.mark.parametrize("lanes", [0, 1])
def test_the_numbers_of_rows_go_on_over_starts(tmp_path: Path, lanes: int) -> None:
    """They count all rows that the pipeline has made, also those that this sink is not given."""

    async def readings(start: int) -> AsyncIterator[dict[str, Any]]:
        for row in rows_from(start, start + 10):
            yield row

    with tcp_server(read_all) as server:
        for start in (0, 10):
            records = tm.sources.Records(readings(start), live=True)
            sink = sinks.TCP(server.url, numbered=True, where="n % 2 == 1", columns=["n"])
            tm.run(tm.Pipeline(records, tm.Plan(), sink, name="plant"), lanes=lanes, state=tmp_path / "state")
            assert server.ended.acquire(timeout=120)
        rows = [json.loads(line) for line in server.lines]
    assert rows == [{"n": n, "_epoch": 1 + n // 10, "_seq": n} for n in range(1, 20, 2)]


def test_what_has_no_place_in_a_line_is_counted() -> None:
    """As by `Lines`, in the same words."""
    with tcp_server(read_all) as server:
        sink = sinks.TCP(server.url, format="influx", measurement="m")
        sink.open(OPEN)
        sink.write(Batch.from_rows([{"sensor": "S", "value": None}, {"sensor": "S", "value": 1.5}]))
        sink.write(Batch.from_rows([]))
        sink.close()
        assert server.ended.acquire(timeout=120)
        assert server.lines == [b"m,sensor=S value=1.5"]
    statistics = sink.statistics()
    assert (statistics.rows, statistics.bytes) == (1, 21)
    assert statistics.left_out == {"rows without a field": 1}
    assert "line protocol has no such line" in sink.why_left_out("rows without a field")


def test_a_server_that_has_closed_the_connection_is_noticed_before_more_is_sent(caplog: Any) -> None:
    """Nothing is lost between two connections when there is a flush between them."""

    def some(connection: Any, came: bytearray) -> None:
        while came.count(b"\n") < 100:
            came += connection.recv(1 << 16)

    with tcp_server(some, some, read_all) as server:
        sink = sinks.TCP(server.url)
        sink.open(OPEN)
        for start in (0, 100, 200):
            sink.write(Batch.from_rows(rows_from(start, start + 100)))
            sink.flush()
            if start < 200:
                assert server.ended.acquire(timeout=120)
        sink.close()
        assert server.ended.acquire(timeout=120)
        assert [numbers(bytes(each).splitlines()) for each in server.came] == [
            [*range(start, start + 100)] for start in (0, 100, 200)
        ]
    assert sink.statistics().rows == 300


def test_a_connection_that_breaks_in_the_middle_goes_on_at_the_beginning_of_a_line(caplog: Any) -> None:
    """Over the next one whole lines come, in order, up to the last; what the broken one has lost is not known."""

    def broken(connection: Any, came: bytearray) -> None:
        while len(came) < 100_000:
            came += connection.recv(1 << 12)
        reset(connection)

    with tcp_server(broken, read_all) as server:
        sink = sinks.TCP(server.url)
        sink.open(OPEN)
        sink.write(Batch.from_rows(rows_from(0, 100_000, text="x" * 100)))  # more than any buffer takes
        sink.close()
        assert server.ended.acquire(timeout=120)
        assert server.ended.acquire(timeout=120)
        first, second = (numbers(bytes(each).split(b"\n")[:-1]) for each in server.came)
        assert first == [*range(len(first))]
        assert second == [*range(second[0], 100_000)]
        assert second[0] <= len(first) + 60_000  # what the system had taken is lost: some megabytes
    assert next(record.getMessage() for record in caplog.records).startswith(f"{server.url} is gone: ")


def test_with_acknowledgements_what_is_not_safe_is_sent_again() -> None:
    """Each connection that ends has lost what it had not acknowledged; all lines have come, and twice only those."""
    with tcp_server(acknowledging(40), acknowledging(100), acknowledging()) as server:
        sink = sinks.TCP(server.url, ack=True)
        sink.open(OPEN)
        for start in range(0, 2_000, 20):
            sink.write(Batch.from_rows(rows_from(start, start + 20)))
        sink.flush()
        assert sink.statistics().rows == 2_000
        sink.close()
        assert server.ended.acquire(timeout=120)
        assert server.ended.acquire(timeout=120)
        assert server.ended.acquire(timeout=120)
        first, second, third = (numbers(bytes(each).split(b"\n")[:-1]) for each in server.came)
        assert first[:40] == [*range(40)]
        assert second[:100] == [*range(40, 140)]
        assert third == [*range(140, 2_000)]


def test_what_was_acknowledged_of_a_block_is_not_sent_again() -> None:
    """Though the block was sent whole; and each acknowledgement is progress."""
    ends = [acknowledging(most) for most in (50, 10, 1)]
    with tcp_server(*ends, acknowledging()) as server:
        sink = sinks.TCP(server.url, ack=True)
        sink.open(OPEN)
        written(sink, rows_from(0, 100))
        sink.close()
        for _ in range(4):
            assert server.ended.acquire(timeout=120)
        begins = [numbers(bytes(each).split(b"\n")[:1])[0] for each in server.came]
        assert begins == [0, 50, 60, 61]
        assert sink.statistics().rows == 100


def test_acknowledgements_of_nothing_are_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says 0 for ever is told of like one that says nothing."""
    monkeypatch.setattr("tidemill.sinks.line_sender.PROGRESS_S", 0.1)

    def serve(connection: Any, came: bytearray) -> None:
        while True:
            connection.sendall(b"0\n")

    with tcp_server(serve) as server:
        sink = sinks.TCP(server.url, ack=True)
        sink.open(OPEN)
        with pytest.raises(OutsideError, match="acknowledged nothing"):
            written(sink, rows_from(0, 10))


def test_a_server_that_answers_every_line_is_listened_to() -> None:
    """Else both sides would wait for each other as soon as all buffers are full."""

    def echo(connection: Any, came: bytearray) -> None:
        while data := connection.recv(1 << 16):
            came += data
            connection.sendall(b"taken, and thank you very much for this line\n" * data.count(b"\n"))

    with tcp_server(echo) as server:
        sink = sinks.TCP(server.url)
        sink.open(OPEN)
        written(sink, rows_from(0, 200_000))
        sink.close()
        assert server.ended.acquire(timeout=120)
        assert numbers(server.lines) == [*range(200_000)]
        assert len(server.came) == 1


def test_a_sink_that_waits_can_be_given_up_by_another_thread() -> None:
    """It raises soon, and nothing is counted."""
    waits = threading.Event()

    def serve(connection: Any, came: bytearray) -> None:
        came += connection.recv(1 << 16)
        waits.set()
        read_all(connection, came)

    with tcp_server(serve) as server:
        sink = sinks.TCP(server.url, ack=True)
        sink.open(OPEN)
        said: list[str] = []

        def write() -> None:
            with pytest.raises(OutsideError) as caught:
                written(sink, rows_from(0, 10))
            said.append(str(caught.value))

        thread = threading.Thread(target=write)
        thread.start()
        assert waits.wait(120)
        sink.give_up()
        thread.join(120)
        assert said == [f"{server.url} was given up."]
        sink.close()


def test_a_row_counts_when_it_is_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never is, is told of as the server's; nothing of it counts."""
    monkeypatch.setattr("tidemill.sinks.line_sender.PROGRESS_S", 0.1)
    with tcp_server(read_all) as server:
        sink = sinks.TCP(server.url, ack=True)
        sink.open(OPEN)
        with pytest.raises(OutsideError, match=r"is gone: it has acknowledged nothing for .* TCP\(ack=True\)"):
            written(sink, rows_from(0, 10))
        sink.close()
        assert sink.statistics().rows == 0


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n", b"hello\n5\n", b"11\n", b"-1\n", b"\n", b"1" * 30, b"\x1b[2J\n"]
)
def test_an_answer_that_is_no_number_of_lines_ends_it(answer: bytes) -> None:
    """In a sentence that names what came, and what was awaited."""

    def serve(connection: Any, came: bytearray) -> None:
        came += connection.recv(1 << 16)
        connection.sendall(answer)
        read_all(connection, came)

    with tcp_server(serve) as server:
        sink = sinks.TCP(server.url, ack=True)
        sink.open(OPEN)
        with pytest.raises(InputError, match=r"where the number of lines that are safe was awaited") as caught:
            written(sink, rows_from(0, 10))
        sink.close()
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("secure", [False, True])
def test_a_server_that_reads_late_and_speaks_meanwhile_has_all_of_it(authority: Any, secure: bool) -> None:
    """At the end it is waited for: a connection that ends with something unread is reset, and what is on its way is gone."""
    flushed = threading.Event()

    def late(connection: Any, came: bytearray) -> None:
        flushed.wait(5)  # or the buffers of the system are full
        connection.sendall(b"hello\n")
        read_all(connection, came)

    tls = server_context(*authority.signed("late")) if secure else None
    with tcp_server(late, tls=tls) as server:
        sink = sinks.TCP(f"tls://127.0.0.1:{server.port}", ca=authority.ca) if secure else sinks.TCP(server.url)
        sink.open(OPEN)
        written(sink, rows_from(0, 20_000))
        flushed.set()
        sink.close()
        assert server.ended.acquire(timeout=120)
        assert numbers(server.lines) == [*range(20_000)]


def test_a_server_that_is_away_is_one_sentence() -> None:
    """At the start at once."""
    with pytest.raises(OutsideError, match=r"^tcp://127.0.0.1:1 cannot be reached: Connection refused\.$"):
        sinks.TCP("tcp://127.0.0.1:1").open(OPEN)


def test_a_server_that_goes_and_stays_away_fails_the_write_and_lets_go() -> None:
    """After the tries that it gets; closing afterwards is quiet."""
    with tcp_server(lambda *_: None) as server:
        sink = sinks.TCP(server.url)
        sink.open(OPEN)
        assert server.ended.acquire(timeout=120)
    with pytest.raises(OutsideError, match="cannot be reached: Connection refused"):
        sink.write(Batch.from_rows(rows_from(0, 1)))
    sink.close()
    with pytest.raises(PlanError, match="not open"):
        sink.flush()


def test_connections_that_end_at_once_are_not_made_ever_faster(caplog: Any) -> None:
    """A server that turns everybody away is given up in the end, and is not asked more than a few times."""
    with tcp_server(lambda connection, _came: reset(connection)) as server:
        sink = sinks.TCP(server.url, ack=True)

        def try_all() -> None:
            sink.open(OPEN)
            written(sink, *(rows_from(start, start + 10) for start in range(0, 10_000, 10)))

        with pytest.raises(OutsideError, match="Connection reset by peer"):
            try_all()
        sink.close()
        assert len(server.came) < 10


def test_over_tls_with_a_certificate_that_is_trusted(authority: Any) -> None:
    """Lines, and acknowledgements."""
    cert, key = authority.signed("server")
    for ack, serve in ((False, read_all), (True, acknowledging())):
        with tcp_server(serve, tls=server_context(cert, key)) as server:
            sink = sinks.TCP(f"tls://127.0.0.1:{server.port}", ca=authority.ca, ack=ack)
            sink.check()
            sink.open(OPEN)
            written(sink, rows_from(0, 5_000), rows_from(5_000, 10_000))
            sink.close()
            assert server.ended.acquire(timeout=120)
            assert numbers(server.lines) == [*range(10_000)]
        assert sink.statistics().rows == 10_000


def test_over_tls_an_acknowledgement_is_believed_of_what_has_only_begun_to_go(
    authority: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a block that the system has no room for yet the server may have, and acknowledge, the first lines."""

    def narrow(*arguments: Any) -> Any:
        made = connected(*arguments)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        return made

    monkeypatch.setattr("tidemill.sinks.line_sender.connected", narrow)
    with tcp_server(acknowledging(), tls=server_context(*authority.signed("narrow"))) as server:
        sink = sinks.TCP(f"tls://127.0.0.1:{server.port}", ca=authority.ca, ack=True)
        sink.open(OPEN)
        written(sink, *(rows_from(start, start + 10_000) for start in range(0, 60_000, 10_000)))
        sink.close()
        assert server.ended.acquire(timeout=120)
        assert numbers(server.lines) == [*range(60_000)]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda authority: authority.signed("expired", expired=True), "certificate has expired"),
        (lambda authority: authority.signed("other", "192.0.2.7"), "IP address mismatch"),
        (lambda authority: authority.alone("alone"), "self-signed certificate"),
        (None, "is this its port for TLS"),
    ],
)
def test_a_server_that_is_not_trusted_is_sent_nothing(authority: Any, made: Any, said: str) -> None:
    """Expired, of another host, signed by nobody, or without TLS: one sentence that says which."""
    tls = None if made is None else server_context(*made(authority))

    def serve(connection: Any, came: bytearray) -> None:
        if made is None:
            connection.sendall(b"hello\n")
        read_all(connection, came)

    with tcp_server(serve, tls=tls) as server:
        sink = sinks.TCP(f"tls://127.0.0.1:{server.port}", ca=authority.ca)
        with pytest.raises(InputError, match=said):
            sink.open(OPEN)
        sink.close()
        assert server.ended.acquire(timeout=120)
        assert b"sensor" not in b"".join(map(bytes, server.came))


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("host:8094", {}),
        ("tcp://host", {}),
        ("tcp://host:99999", {}),
        ("udp://host:8094", {}),
        ("tcp://host:8094/path", {}),
        ("tcp://me:secret@host:8094", {}),
        (None, {}),
        ("tcp://host:8094", {"format": "csv"}),
        ("tcp://host:8094", {"measurement": "m"}),
        ("tcp://host:8094", {"ca": "ca.pem"}),
    ],
)
def test_what_cannot_be_is_refused_at_once(url: Any, options: Any) -> None:
    """In one sentence."""
    with pytest.raises(PlanError) as caught:
        sinks.TCP(url, **options)
    assert "secret" not in str(caught.value)


def test_a_column_that_the_plan_does_not_give_is_refused_at_start() -> None:
    """One that is wanted, or that ``where=`` reads, in both formats."""
    schema = Batch.from_rows([{"sensor": "S", "value": 1.5}]).schema
    for form in ({"format": "ndjson"}, {"format": "influx", "measurement": "m"}):
        for wanted in ({"columns": ["vlaue"]}, {"where": "vlaue > 1"}):
            with pytest.raises(PlanError, match="'vlaue'"):
                sinks.TCP("tcp://host:1", **form, **wanted).bind(schema)


def test_the_context_of_tls_is_checked_before_a_run(authority: Any) -> None:
    """A file that is not there is named."""
    with pytest.raises(InputError, match=r"nowhere\.pem"):
        sinks.TCP("tls://host:1", ca="nowhere.pem").check()
    assert isinstance(sinks.TCP("tls://host:1", ca=authority.ca)._tls(), ssl.SSLContext)
