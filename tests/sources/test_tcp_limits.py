"""TCP among those who mean no good, or mean well and are too many: nobody is in the way of the others."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import re
import resource
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from tests.web import asked

import tidemill as tm
from tidemill.clock import SystemClock
from tidemill.core.admission import Admission
from tidemill.errors import OutsideError, PlanError
from tidemill.sources import TCP, listening
from tidemill.sources.inbox import Inbox
from tidemill.sources.listening import bound
from tidemill.sources.tcp_connection import Block, Connection
from tidemill.testing import ListSink
from tidemill.tls import client_context

MANY = 2_000
SECOND_NS = 10**9


@pytest.fixture
def files_allowed() -> Iterator[None]:
    """As many open files as the system lets this process have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 20_000), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=120)


def line(number: int) -> bytes:
    return b'{"sensor":"S%d","time":%d,"value":1.5}\n' % (number, number)


@contextlib.contextmanager
def all_closed(sockets: list[socket.socket]) -> Iterator[list[socket.socket]]:
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


@contextlib.contextmanager
def few_files(more: int) -> Iterator[int]:
    """So many more files may be open than are; yields the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = sum(1 for _ in Path("/dev/fd").iterdir()) + more
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        yield few
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def closed_by_the_other_side(to: socket.socket) -> bool:
    to.settimeout(120)
    try:
        return to.recv(1) == b""
    except ConnectionResetError:
        return True


def run_on(loop: str, main: Coroutine[Any, Any, None]) -> None:
    """On asyncio's own loop, or on the one that accepts by itself."""
    factory = None
    if loop == "uvloop":
        uvloop = pytest.importorskip("uvloop", reason="it is in the dev extra")
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)


async def test_two_thousand_connections_of_every_kind_lose_no_whole_line(files_allowed: None, tmp_path: Path) -> None:
    """R17: some say one line, some half a line, some nothing, some shut one side, some are cut off: the lines count."""
    source, sink = TCP(), ListSink()
    pipeline = tm.Pipeline(source, tm.Rolling("value", window=5), sink)
    sockets: list[socket.socket] = []
    with all_closed(sockets):
        async with tm.serve(pipeline, lanes=0, state=tm.State(tmp_path)) as run:
            _, port = await source.wait_listening()
            for number in range(MANY):
                sockets.append(await asyncio.to_thread(connected, port))
                match number % 5:
                    case 0:
                        sockets[-1].sendall(line(number))
                    case 1:
                        sockets[-1].sendall(line(number) + b'{"sensor":"half')
                    case 2:
                        pass
                    case 3:
                        sockets[-1].sendall(line(number))
                        sockets[-1].shutdown(socket.SHUT_WR)
                    case _:
                        sockets[-1].sendall(line(number))
            await until(lambda: run.statistics().records_in == MANY * 4 // 5)
            for number in range(4, MANY, 5):  # cut off, as by a power failure
                sockets[number].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sockets[number].close()
            sockets[0].sendall(line(0))
            await until(lambda: run.statistics().records_in == MANY * 4 // 5 + 1)
            run.stop_soon()
            report = await run.wait()
    assert report.rows_out == MANY * 4 // 5 + 1
    assert report.dead_letters == report.records_in - report.rows_out == MANY // 5  # the halves, which nobody finished
    assert {row["sensor"] for row in sink.rows} == {f"S{number}" for number in range(MANY) if number % 5 != 2}


async def test_connections_beyond_the_limit_are_turned_away_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """Those that are there go on; when one leaves, there is room for another."""
    caplog.set_level(logging.WARNING)
    source, sink = TCP(connections=3), ListSink()
    sockets: list[socket.socket] = []
    with all_closed(sockets):
        async with tm.serve(tm.Pipeline(source, tm.Plan(), sink), lanes=0, state=False) as run:
            _, port = await source.wait_listening()
            for _ in range(3):
                sockets.append(await asyncio.to_thread(connected, port))
                await until(lambda: source.statistics().connections == len(sockets))
            sockets.append(await asyncio.to_thread(connected, port))
            assert await asyncio.to_thread(closed_by_the_other_side, sockets[-1])
            sockets.pop().close()
            assert (source.statistics().connections, source.statistics().turned_away) == (3, 1)
            assert run.statistics().source_flows[0].turned_away == 1
            sockets[0].sendall(line(1))
            await until(lambda: run.statistics().records_in == 1)
            sockets.pop().close()
            await until(lambda: source.statistics().connections == 2)
            sockets.append(await asyncio.to_thread(connected, port))
            sockets[-1].sendall(line(2))
            await until(lambda: run.statistics().records_in == 2)
            source._sweep(SystemClock().monotonic_ns())
            run.stop_soon()
            await run.wait()
    (told,) = [record.getMessage() for record in caplog.records if "turned away" in record.getMessage()]
    assert told == (
        f"source {source.name}: 1 connection was turned away, the last from 127.0.0.1: 3 are open, and connections=3"
    )


async def test_one_host_does_not_take_the_room_of_all(caplog: pytest.LogCaptureFixture) -> None:
    """Beyond this machine it has so many connections at a time, and the next one when one of them is closed."""
    caplog.set_level(logging.WARNING)
    source = TCP("0.0.0.0", exposed=True, per_host=2)
    sockets: list[socket.socket] = []
    with all_closed(sockets):
        async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
            _, port = await source.wait_listening()
            for _ in range(2):
                sockets.append(await asyncio.to_thread(connected, port))
                await until(lambda: source.statistics().connections == len(sockets))
            for _ in range(2):
                with await asyncio.to_thread(connected, port) as third:
                    assert await asyncio.to_thread(closed_by_the_other_side, third)
            assert run.statistics().source_flows[0].turned_away == 2
            source._sweep(SystemClock().monotonic_ns())
            sockets.pop().close()
            await until(lambda: source.statistics().connections == 1)
            sockets.append(await asyncio.to_thread(connected, port))
            sockets[-1].sendall(line(1))
            await until(lambda: run.statistics().records_in == 1)
            run.stop_soon()
            await run.wait()
    (told,) = [record.getMessage() for record in caplog.records if "turned away" in record.getMessage()]
    assert told.endswith("2 connections were turned away, the last from 127.0.0.1, which has 2 open, and per_host=2")


async def test_running_out_of_files_stops_nobody_who_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """R18: no more connections are taken than leave files for the log and checkpoints, and later there is room again."""
    caplog.set_level(logging.WARNING)
    source, sink = TCP(), ListSink()
    sockets: list[socket.socket] = []
    with few_files(400), all_closed(sockets):
        async with tm.serve(
            tm.Pipeline(source, tm.Plan(), sink), lanes=0, state=tm.State(tmp_path, checkpoint_s=0.05)
        ) as run:
            _, port = await source.wait_listening()
            with contextlib.suppress(OSError):  # both sides are this process: it runs out itself
                while not source.statistics().turned_away:
                    sockets.append(await asyncio.to_thread(connected, port))
                    await until(
                        lambda: source.statistics().connections + source.statistics().turned_away == len(sockets)
                    )
            sockets[0].sendall(line(1))
            await until(lambda: run.statistics().records_in == 1)
            while len(sockets) > 1:
                sockets.pop().close()
            await until(lambda: source.statistics().connections == 1)
            sockets.append(await asyncio.to_thread(connected, port))
            sockets[-1].sendall(line(2))
            await until(lambda: run.statistics().records_in == 2)
            run.stop_soon()
            report = await run.wait()
    assert (report.rows_out, report.dead_letters) == (2, 0)


CROWD = """
import socket, sys

def come(number):
    return socket.create_connection(("127.0.0.1", ports[number % 2]), timeout=120)

ports = [int(port) for port in sys.argv[1:]]
there = [come(number) for number in range(160)]
print("there", flush=True)
for number in map(int, sys.stdin):
    line = b'{"sensor":"S%d","time":%d,"value":1.5}\\n' % (number, number)
    there[0].sendall(line)
    there[1].sendall(b"POST /ingest HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (len(line), line))
    print(there[1].recv(1000).split()[1].decode(), flush=True)
    for each in there[2:]:
        each.close()
"""


@dataclass
class Crowd:
    """Senders of another process, which connect to several listeners, and stay until they are told."""

    ports: list[str]
    process: asyncio.subprocess.Process

    @classmethod
    async def of(cls, script: str, *sources: Any) -> Self:
        """One that is there."""
        ports = [str((await source.wait_listening())[1]) for source in sources]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, *ports, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        made = cls(ports, process)
        assert await made.heard() == b"there\n"
        return made

    def say(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)

    async def heard(self) -> bytes:
        assert self.process.stdout is not None
        return await self.process.stdout.readline()

    async def leave(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()


async def test_two_listeners_have_no_more_files_between_them_than_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """R18: both turn away who comes beyond what the process may have open, its pages say so, and those who are there go on."""
    caplog.set_level(logging.WARNING)
    tcp, http, sink = TCP(name="tcp"), tm.sources.HTTP(name="http"), ListSink()
    pipeline = tm.Pipeline([tcp, http], tm.Plan(), sink)
    with few_files(200) as few:
        async with tm.serve(
            pipeline, lanes=0, state=tm.State(tmp_path, checkpoint_s=0.05), metrics="127.0.0.1:0"
        ) as run:
            crowd = await Crowd.of(CROWD, tcp, http)
            await until(lambda: min(each.statistics().turned_away for each in (tcp, http)) > 0)
            status, _ = await asyncio.to_thread(asked, f"{run.metrics_url}/metrics")
            assert status == 200
            _, text = await asyncio.to_thread(asked, f"{run.metrics_url}/healthz")
            assert text.startswith("the run progresses\n")
            assert re.search(
                r"source tcp: at least \d+ connections were turned away within 60 s, the last from 127", text
            )
            _, text = await asyncio.to_thread(asked, f"{run.metrics_url}/healthz?verbose")
            for source in ("tcp", "http"):
                assert re.search(
                    rf"source {source}: \d+ connections turned away, the last from 127.0.0.1: "
                    rf"\d+ are open, and no more files may be opened by this process \(ulimit -n {few}\)",
                    text,
                )
            crowd.say(b"1\n")
            assert await crowd.heard() == b"202\n"
            await until(lambda: tcp.statistics().connections == 1)
            there = await asyncio.to_thread(connected, int(crowd.ports[0]))  # they have left: there is room again
            with there:
                there.sendall(line(2))
                await until(lambda: run.statistics().records_in == 3)
            await crowd.leave()
            run.stop_soon()
            report = await run.wait()
    assert (report.rows_out, report.dead_letters) == (3, 0)
    assert not [record for record in caplog.records if record.name == "asyncio"]


ONE_BEFORE_THE_OTHER = """
import socket, sys

def come(port):
    return socket.create_connection(("127.0.0.1", port), timeout=120)

tcp, http = map(int, sys.argv[1:])
there = [come(tcp) for number in range(160)]
print("there", flush=True)
sys.stdin.readline()
line = b'{"sensor":"S1","time":1,"value":1.5}\\n'
def answered(to):
    try:
        to.sendall(b"POST /ingest HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (len(line), line))
        return to.recv(1000)
    except ConnectionError:
        return b""

for number in range(16):
    while True:  # the process may have had a file of its own open for a moment
        one = come(http)
        if answer := answered(one):
            break
        one.close()
    there.append(one)
    print(answer.split()[1].decode(), flush=True)
sys.stdin.readline()
"""


async def test_a_listener_with_a_crowd_leaves_another_its_few() -> None:
    """R18: whoever comes to the other is taken, the first sixteen of them, though more come to the first than there is room for."""
    tcp, http = TCP(name="tcp"), tm.sources.HTTP(name="http")
    with few_files(200):
        async with tm.serve(tm.Pipeline([tcp, http], tm.Plan(), ListSink()), lanes=0, state=False) as run:
            crowd = await Crowd.of(ONE_BEFORE_THE_OTHER, tcp, http)
            await until(lambda: tcp.statistics().connections + tcp.statistics().turned_away == 160)
            assert tcp.statistics().turned_away > 0
            crowd.say(b"\n")
            for _ in range(16):
                assert await crowd.heard() == b"202\n"
            await crowd.leave()
            run.stop_soon()
            await run.wait()


def test_a_loop_that_accepts_by_itself_leaves_the_process_its_files_too() -> None:
    """As uvloop does, which asks the listening socket for its number alone."""
    uvloop = pytest.importorskip("uvloop", reason="it is in the dev extra")
    tcp, http = TCP(name="tcp"), tm.sources.HTTP(name="http")

    async def crowded() -> tm.RunReport:
        async with tm.serve(tm.Pipeline([tcp, http], tm.Plan(), ListSink()), lanes=0, state=False) as run:
            crowd = await Crowd.of(CROWD, tcp, http)
            await until(lambda: min(each.statistics().turned_away for each in (tcp, http)) > 0)
            crowd.say(b"1\n")
            await until(lambda: run.statistics().records_in == 2)
            await crowd.leave()
            run.stop_soon()
            return await run.wait()

    with few_files(200), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(crowded()).rows_out == 2
    for each in (tcp, http):
        assert "no more files may be opened by this process" in each.statistics().last_away


def test_who_comes_when_all_files_are_in_use_is_turned_away() -> None:
    """Whatever took them: there is one to give up, and so the loop is not asked to try again for ever."""
    admission = Admission(10, None, "connections=10")
    with bound("127.0.0.1", 0, "TCP", admission=admission) as door:
        door.listen()
        sockets = [connected(door.getsockname()[1]) for _ in range(3)]
        with all_closed(sockets), few_files(0) as few, all_closed([]) as others:
            with contextlib.suppress(OSError):
                while True:
                    others.append(socket.socket())
            for number, each in enumerate(sockets, start=1):
                with pytest.raises(ConnectionAbortedError):
                    door.accept()
                assert closed_by_the_other_side(each)
                assert admission.turned_away == number
    assert admission.last == f"127.0.0.1: 0 are open, and no more files may be opened by this process (ulimit -n {few})"


def test_when_nobody_comes_the_file_that_may_be_given_up_stays() -> None:
    """Else the next who comes while all files are in use could not be turned away, nor any other."""
    admission = Admission(10, None, "connections=10")
    with bound("127.0.0.1", 0, "TCP", admission=admission) as door:
        door.listen()
        door.setblocking(False)
        with socket.socket() as late, few_files(0), all_closed([]) as others:
            for comes in (None, door.getsockname()):
                with contextlib.suppress(OSError):
                    while True:
                        others.append(socket.socket())
                if comes is not None:
                    late.connect(comes)
                with pytest.raises(BlockingIOError if comes is None else ConnectionAbortedError):
                    door.accept()
    assert admission.turned_away == 1


def test_a_listener_that_gets_no_file_says_so() -> None:
    """In a sentence, as for each other reason why there is no listening."""
    with few_files(0), all_closed([]) as others:
        with contextlib.suppress(OSError):
            while True:
                others.append(socket.socket())
        with pytest.raises(OutsideError, match=r"TCP port 0 on 127\.0\.0\.1 cannot be used: Too many open files"):
            bound("127.0.0.1", 0, "TCP", admission=Admission(10, None, ""))
        others.pop().close()
        bound("127.0.0.1", 0, "TCP", admission=Admission(10, None, "")).close()


def connection(source: TCP, clock: tm.testing.ManualClock) -> Connection:
    return Connection(source, Inbox[Block](1 << 20, lambda: None, lambda: None), clock, memoryview(bytearray(1 << 12)))


class _Transport(asyncio.Transport):
    """What a connection asks of one."""

    def __init__(self) -> None:
        super().__init__({"peername": ("10.0.0.7", 5)})
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


def brings(to: Connection, data: bytes) -> None:
    to.get_buffer(-1)[: len(data)] = data
    to.buffer_updated(len(data))


@pytest.mark.parametrize(
    ("said", "after_s", "idle_s", "closed", "reason"),
    [
        (line(1), 3_600, None, False, None),
        (line(1), 59, 60, False, None),
        (line(1), 61, 60, True, None),
        (line(1) + b'{"half', 59, None, False, None),
        (line(1) + b'{"half', 61, None, True, "had not come to its end after 60 s"),
        (b'{"half', 31, 30, True, "brought nothing more"),
    ],
)
def test_a_connection_is_closed_when_it_is_slower_than_anybody_who_means_it(
    said: bytes, after_s: int, idle_s: int | None, closed: bool, reason: str | None
) -> None:
    """A line that does not come to its end, and, where it is asked for, silence; a sensor that is silent is not."""
    clock = tm.testing.ManualClock()
    source, transport = TCP(idle=idle_s), _Transport()
    one = connection(source, clock)
    one.connection_made(transport)
    brings(one, said)
    one.check(clock.monotonic_ns() + after_s * SECOND_NS, source._idle_ns)
    assert transport.aborted is closed
    letters = source._taken_lost()
    assert [reason in letter.reason for letter in letters if reason] == [True] * bool(reason)


def test_a_line_that_drips_is_not_kept_alive_by_its_drops() -> None:
    """Each second a byte: what counts is when the line began."""
    clock = tm.testing.ManualClock()
    source, transport = TCP(idle=10), _Transport()
    one = connection(source, clock)
    one.connection_made(transport)
    for _ in range(61):
        assert not transport.aborted
        brings(one, b"{")
        clock.advance(1)
        one.check(clock.monotonic_ns(), source._idle_ns)
    assert transport.aborted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "0.0.0.0"}, "anybody there could send; give it cert="),
        ({"host": "0.0.0.0", "cert": "c.pem"}, "anybody there could send; give it cert="),
        ({"ca": "ca.pem"}, "which needs cert="),
        ({"connections": 0}, "connections=0 of TCP must be a number of 1 or more"),
        ({"per_host": -1}, "per_host=-1 of TCP must be a number of 1 or more"),
        ({"idle": "soon"}, "idle of TCP"),
    ],
)
def test_what_would_let_anybody_in_is_refused(options: dict[str, object], said: str) -> None:
    """Each in a sentence that says what to give."""
    with pytest.raises(PlanError, match=said):
        TCP(**options)


def test_a_network_of_the_plants_own_may_be_said_to_be_one() -> None:
    """Then, and with certificates, it listens wherever it is told to."""
    assert TCP("0.0.0.0", exposed=True).host == "0.0.0.0"
    assert TCP("0.0.0.0", cert="c.pem", ca="ca.pem").host == "0.0.0.0"


async def test_only_who_shows_a_certificate_of_the_plants_may_send(authority: Any) -> None:
    """One without, and one with a certificate that somebody else has signed, are turned away at the handshake."""
    cert, key = authority.signed("us")
    senders = {"sensor": authority.signed("sensor"), "stranger": authority.alone("stranger"), "nobody": None}
    source, sink = TCP(cert=cert, cert_key=key, ca=authority.ca), ListSink()
    came = []
    async with tm.serve(tm.Pipeline(source, tm.Plan(), sink), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        for name, shown in senders.items():
            trusting = client_context(authority.ca, *(shown or ()))
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
                writer.write(b'{"sensor":"%s","time":1,"value":1.5}\n' % name.encode())
                if name == "sensor":
                    await until(lambda: run.statistics().records_in == 1)
                    came.append(name)
                else:
                    assert await reader.read() == b""
                writer.close()
                await writer.wait_closed()
        run.stop_soon()
        await run.wait()
    assert came == [row["sensor"] for row in sink.rows] == ["sensor"]


LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@pytest.fixture(scope="module")
def exposed(authority: Any) -> Callable[[int], TCP]:
    """One beyond this machine, with TLS, and so many connections of one host."""
    cert, key = authority.signed("exposed")
    return lambda per_host: TCP("0.0.0.0", cert=cert, cert_key=key, ca=authority.ca, per_host=per_host)


@pytest.fixture(scope="module")
def trusting(authority: Any) -> ssl.SSLContext:
    """Of a sender."""
    return client_context(authority.ca, *authority.signed("trusting"))


@LOOPS
def test_over_tls_those_who_say_nothing_count_among_their_hosts(
    loop: str, exposed: Callable[[int], TCP], trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond ``per_host`` they are closed at once, counted and told of; when one leaves, there is room for who means it."""
    caplog.set_level(logging.WARNING)
    source = exposed(2)
    silent: list[socket.socket] = []

    async def crowded() -> None:
        async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
            _, port = await source.wait_listening()
            silent.extend([await asyncio.to_thread(connected, port) for _ in range(2)])
            for number in range(1, 4):
                with await asyncio.to_thread(connected, port) as third:
                    assert await asyncio.to_thread(closed_by_the_other_side, third)
                assert (source._admission.open, source.statistics().turned_away) == (2, number)
            source._sweep(SystemClock().monotonic_ns())
            silent.pop().close()
            await until(lambda: source._admission.open == 1)
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
            writer.write(line(1))
            await until(lambda: run.statistics().records_in == 1)
            assert source._admission.open == 2
            writer.close()
            await until(lambda: source._admission.open == 1)
            run.stop_soon()
            await run.wait()
        assert source._admission.open == 0
        assert await asyncio.to_thread(closed_by_the_other_side, silent[0])

    with all_closed(silent):
        run_on(loop, crowded())
    (told,) = [record.getMessage() for record in caplog.records if "turned away" in record.getMessage()]
    assert told.endswith("3 connections were turned away, the last from 127.0.0.1, which has 2 open, and per_host=2")


@LOOPS
@pytest.mark.parametrize("said", [b"", b"no hello\n"])
def test_who_does_not_agree_on_tls_makes_room(
    loop: str, said: bytes, exposed: Callable[[int], TCP], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it says something else, or nothing in the time that there is for it."""
    if not said:
        monkeypatch.setattr(listening, "_HANDSHAKE_S", 0.05)
    source = exposed(1)

    async def disagree() -> None:
        async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
            _, port = await source.wait_listening()
            for _ in range(2):
                with await asyncio.to_thread(connected, port) as one:
                    await until(lambda: source._admission.open == 1)
                    one.sendall(said)
                    await until(lambda: source._admission.open == 0)
            assert source.statistics().turned_away == 0
            run.stop_soon()
            await run.wait()

    run_on(loop, disagree())


async def test_who_has_left_again_before_it_is_taken_is_known_by_its_address() -> None:
    """The system does not tell it any more: what it has sent is still its own."""
    source, sink = TCP(), ListSink()
    async with tm.serve(tm.Pipeline(source, tm.Plan(), sink), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        with connected(port) as gone:  # the loop, which would take it, is held
            address = gone.getsockname()
            gone.sendall(b'{"time":1,"value":1.5}\n')
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until(lambda: run.statistics().records_in == 1)
        run.stop_soon()
        await run.wait()
    assert [key for batch in sink.batches for key in batch.keys[batch.key].tolist()] == [f"127.0.0.1:{address[1]}"]


async def test_when_the_system_has_nothing_left_for_a_connection_it_is_taken_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither at once, which would hold the loop, nor never."""
    tries = 0
    accept = listening._Door.accept

    def out_of_memory(door: Any) -> tuple[socket.socket, Any]:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return accept(door)

    monkeypatch.setattr(listening._Door, "accept", out_of_memory)
    monkeypatch.setattr(listening, "_RETRY_S", 0.01)
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"].errno))
    source = TCP()
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        with await asyncio.to_thread(connected, port) as one:
            one.sendall(line(1))
            await until(lambda: run.statistics().records_in == 1)
        run.stop_soon()
        await run.wait()
    assert told == [errno.ENOBUFS]


async def test_a_connection_that_cannot_be_set_up_leaves_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems refuse an option of a socket whose sender has left."""

    async def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    source = TCP(connections=1)
    async with tm.serve(tm.Pipeline(source, tm.Plan(), ListSink()), lanes=0, state=False) as run:
        _, port = await source.wait_listening()
        with monkeypatch.context() as patched:
            patched.setattr(asyncio.get_running_loop(), "connect_accepted_socket", refused)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            writer.close()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(line(1))
        await until(lambda: run.statistics().records_in == 1)
        writer.close()
        run.stop_soon()
        report = await run.wait()
    assert report.rows_out == 1
