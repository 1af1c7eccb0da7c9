"""A run that is asked over a real socket how it is, while all is well and during a fault."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tests.postgres_server import PostgresServer
from tests.sinks.line_servers import Post, take, web_server
from tests.web import asked

import tidemill as tm
from tidemill.engine import page_server, showing
from tidemill.engine.pages import Seen, page
from tidemill.engine.run import Run
from tidemill.testing import ManualClock

ANYWHERE = "127.0.0.1:0"


async def ask(run: Any, path: str) -> tuple[int, str]:
    return await asyncio.to_thread(asked, run.metrics_url + path)


async def ask_until(run: Any, path: str, expected: Callable[[int, str], bool]) -> str:
    """The page, once it is as expected."""
    while True:
        status, text = await ask(run, path)
        if expected(status, text):
            return text


async def told(run: Any) -> dict[tuple[str, str], float]:
    """The metrics, by name and value of the label."""
    _, text = await ask(run, "/metrics")
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, next(iter(sample.labels.values()), "")): sample.value for sample in samples}


async def send(source: tm.sources.TCP, *lines: bytes) -> None:
    await source.wait_listening()
    _, writer = await asyncio.open_connection(*source.address)
    writer.write(b"".join(line + b"\n" for line in lines))
    writer.close()
    await writer.wait_closed()


def reading(number: int) -> bytes:
    return json.dumps({"sensor": f"s{number % 3}", "time": 1_700_000_000 + number, "value": float(number)}).encode()


def live(source: Any, sink: Any = None) -> tm.Pipeline:
    return tm.Pipeline(source, tm.Plan(), sink or tm.sinks.Latest(), name="plant")


# -- all is well -----------------------------------------------------------------------------------------------


async def test_a_run_counts_what_it_did(tmp_path: Path, lanes: int) -> None:
    """Records in, rows out, and what was rejected, as the parser of Prometheus' library reads it."""
    source = tm.sources.TCP()
    options: Any = {"lanes": lanes, "state": tmp_path / "state", "metrics": ANYWHERE}
    async with tm.serve(live(source), dead_letters=tmp_path / "dead.ndjson", **options) as run:
        await send(source, *map(reading, range(50)), b"no json", b'{"sensor": "a", "value": ')
        while (
            (counts := await told(run))["tidemill_records_out_total", ""] < 50
            or counts["tidemill_records_in_total", ""] < 52  # the line that was cut may come alone
            or not counts["tidemill_sink_records_total", "latest"]
        ):
            pass
        assert counts["tidemill_records_in_total", ""] == 52
        assert counts["tidemill_dead_total", "malformed"] == 2
        assert counts["tidemill_source_records_total", "tcp"] == 50
        assert counts["tidemill_sensors", ""] == 3
        assert counts["tidemill_progressing", ""] == counts["tidemill_ready", ""] == 1
        assert counts["tidemill_end_to_end_seconds_count", ""] <= 50
        assert {label for name, label in counts if name == "tidemill_lane_restarts_total"} == set(
            map(str, range(lanes or 1))
        )
        text = await ask_until(run, "/healthz?verbose", lambda _, text: "measured yet" not in text)
        assert text.startswith("the run progresses\n")
        assert re.search(r"^.* (is|are) the limit", text, re.MULTILINE)  # on a busy machine, its processors
        assert "source tcp: connected, 50 records" in text
        assert await ask(run, "/readyz") == (200, "ready\n")
        assert (await ask(run, "/"))[0] == 404
    assert run.report is not None
    assert run.metrics_url == ""


async def test_what_has_not_been_yet_is_not_told_of_as_the_last() -> None:
    """Neither a record nor a commit, until there is one."""
    source = tm.sources.TCP()
    async with tm.serve(live(source, tm.sinks.Latest()), lanes=0, state=False, metrics=ANYWHERE) as run:
        await source.wait_listening()
        _, text = await ask(run, "/healthz?verbose")
        assert "source tcp: connected, 0 records, 0 rejected, none so far\n" in text
        assert "sink latest: 0 rows, no commit so far\n" in text
        await send(source, reading(0))
        text = await ask_until(run, "/healthz?verbose", lambda _, text: "so far" not in text)
        assert re.search(r"source tcp: connected, 1 record, 0 rejected, the last \d+\.\d s ago\n", text)
        assert re.search(r"sink latest: 1 row, the last commit \d+\.\d s ago\n", text)


async def test_readings_of_others_do_not_change_what_one_reads() -> None:
    """Rates are since one's own last reading, however often the pages are asked for."""
    clock = ManualClock()
    source = tm.sources.TCP()
    async with tm.serve(live(source), lanes=0, state=False, clock=clock, metrics=ANYWHERE) as run:
        run.statistics()
        await send(source, *map(reading, range(20)))
        while run._statistics("another").rows_out < 20:  # noqa: ASYNC110 - records come without a word
            await asyncio.sleep(0)
        clock.advance(2.0)
        await ask(run, "/metrics")
        assert run.statistics().records_per_s == 10.0


# -- faults ----------------------------------------------------------------------------------------------------


async def test_a_silent_source_is_named() -> None:
    """From the limit on; a record is enough to be well again."""
    clock = ManualClock()
    source = tm.sources.TCP(name="hall")
    async with tm.serve(live(source), lanes=0, state=False, clock=clock, metrics=ANYWHERE) as run:
        await send(source, reading(0))
        while run.statistics().rows_out < 1:  # noqa: ASYNC110 - records come without a word
            await asyncio.sleep(0)
        clock.advance(300.0)
        assert await ask(run, "/healthz") == (200, "the run progresses\n")
        clock.advance(12.0)
        assert await ask(run, "/healthz") == (503, "source hall: connected, silent 312 s (limit 300)\n")
        counts = await told(run)
        assert counts["tidemill_source_last_record_age_seconds", "hall"] == 312
        assert counts["tidemill_progressing", ""] == 0
        await send(source, b"not a record")  # one that is rejected shows that somebody is there
        await ask_until(run, "/healthz", lambda status, _: status == 200)


async def test_a_sink_that_takes_nothing_is_named_and_not_the_source_that_waits_for_it() -> None:
    """Its rows wait, and so does everything before it."""
    clock = ManualClock()
    source = tm.sources.TCP()
    going = asyncio.Event()

    async def take(_: tm.Batch) -> None:
        await going.wait()

    pipeline = live(source, tm.sinks.Callback(take, name="screen"))
    async with tm.serve(pipeline, lanes=0, state=False, clock=clock, metrics=ANYWHERE) as run:
        await send(source, *map(reading, range(10)))
        while not run.statistics().sink_flows[0].waiting:  # noqa: ASYNC110 - records come without a word
            await asyncio.sleep(0)
        clock.advance(301.0)
        status, text = await ask(run, "/healthz")
        assert status == 503
        assert text.startswith("sink screen: ")
        assert "the oldest for 301 s (limit 300)" in text
        going.set()
        await send(source, reading(11))
        await ask_until(run, "/healthz", lambda status, _: status == 200)


async def test_a_loop_that_is_held_is_named_by_the_thread_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocking code of the application, which nobody on the loop could tell of."""
    monkeypatch.setattr(page_server, "ANSWER_S", 0.05)
    source = tm.sources.TCP()
    held, go = threading.Event(), threading.Event()

    def block(_: tm.Batch) -> None:
        held.set()
        go.wait(120)

    seen: list[tuple[int, str]] = []
    async with tm.serve(live(source, tm.sinks.Callback(block)), lanes=0, state=False, metrics=ANYWHERE) as run:
        url = run.metrics_url

        def watch() -> None:
            held.wait(120)
            seen.extend(asked(url + path) for path in ("/healthz", "/readyz", "/metrics"))
            go.set()

        watching = threading.Thread(target=watch)
        watching.start()
        await send(source, reading(0))
        await asyncio.to_thread(watching.join)
    assert [status for status, _ in seen] == [503, 503, 503]
    assert seen[0][1].startswith("event loop: held, no answer for 0.05 s")


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """One that may be stopped."""
    made = PostgresServer()
    made.start()
    yield made
    made.remove()


async def test_a_database_that_is_away_is_named_with_its_tries_and_forgotten_when_rows_go_on(
    server: PostgresServer, tmp_path: Path
) -> None:
    """While it is away, records go into the log; when it is back, nothing is missing. No page shows the password."""
    source = tm.sources.TCP()
    sink = tm.sinks.PostgreSQL(server.url(), name="history")
    async with tm.serve(live(source, sink), lanes=0, state=tmp_path / "state", metrics=ANYWHERE) as run:
        await send(source, *map(reading, range(10)))
        while (await told(run))[
            "tidemill_sink_commit_age_seconds", "history"
        ] > 1 or not run.statistics().state.checkpoint:
            pass
        await asyncio.to_thread(server.stop, "immediate")
        await send(source, *map(reading, range(10, 20)))
        text = await ask_until(run, "/healthz?verbose", lambda status, text: status == 503 and "3 tries" in text)
        assert text.startswith("sink history: 3 tries, postgresql://127.0.0.1:")
        assert "refused" in text
        assert "the sink history is the limit: nothing gets through" in text
        assert "s3cret-canary" not in text
        status, text = await ask(run, "/readyz")
        assert status == 503
        assert text.startswith("sink history: ")
        counts = await told(run)
        assert counts["tidemill_tries", ""] >= 3
        assert counts["tidemill_log_waiting_entries", ""] > 0  # for as long as nobody can write them
        assert counts["tidemill_log_seconds_left", ""] > 0
        assert counts["tidemill_log_full", ""] == 0
        await asyncio.to_thread(server.start)
        await ask_until(run, "/healthz", lambda status, _: status == 200)
        assert (await told(run))["tidemill_tries", ""] == 0
    assert server.query("SELECT count(*), sum(value) FROM features") == [(20, 190.0)]


@pytest.mark.parametrize("kept", [False, True])
async def test_a_sink_that_tries_again_by_itself_is_named_at_once_and_forgotten(
    tmp_path: Path, lanes: int, kept: bool
) -> None:
    """It may be back in a moment: the run is called neither well nor ill meanwhile."""
    well = threading.Event()
    with web_server(lambda post: take(post) if well.is_set() else (503, {}, b"no leader")) as server:
        source = tm.sources.TCP()
        pipeline = live(source, tm.sinks.HTTP(server.url, name="hub"))
        state = tm.State(tmp_path / "state", checkpoint_s=0.05) if kept else False
        async with tm.serve(pipeline, lanes=lanes, state=state, metrics=ANYWHERE) as run:
            await send(source, *map(reading, range(10)))
            text = await ask_until(run, "/healthz?verbose", lambda status, text: "2 tries" in text)
            told_of, limit, *_ = text.splitlines()
            assert re.fullmatch(r"sink hub: 2 tries, http://\S+/write takes nothing now: .*: no leader", told_of)
            assert limit == "the sink hub is the limit: nothing gets through"
            assert (await ask(run, "/healthz"))[0] == 200
            assert (await ask(run, "/readyz"))[0] == 200
            assert (await told(run))["tidemill_tries", ""] >= 2
            well.set()
            await ask_until(run, "/healthz", lambda _, text: text == "the run progresses\n")
            assert (await told(run))["tidemill_tries", ""] == 0
        assert len(server.taken) == 10


@pytest.mark.parametrize("kept", [False, True])
async def test_a_sink_that_does_not_answer_is_named_and_forgotten(
    tmp_path: Path, lanes: int, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a minute after it was asked, with a line in the log; rows that only wait for their commit are nothing to tell."""
    asked_for, going, clock = threading.Event(), threading.Event(), ManualClock()

    def answer(post: Post) -> Any:
        asked_for.set()
        going.wait(120)
        return take(post)

    with web_server(answer) as server:
        source = tm.sources.TCP()
        pipeline = live(source, tm.sinks.HTTP(server.url, name="hub"))
        state = tm.State(tmp_path / "state", checkpoint_s=60.0) if kept else False
        async with tm.serve(pipeline, lanes=lanes, state=state, clock=clock, metrics=ANYWHERE) as run:
            await send(source, reading(0))
            while not run.statistics().sink_flows[0].waiting:  # noqa: ASYNC110 - records come without a word
                await asyncio.sleep(0)
            if kept:
                clock.advance(40.0)
                while run.statistics().sink_flows[0].call_s:  # noqa: ASYNC110 - the sink writes it down in a moment
                    await asyncio.sleep(0)
                assert (await ask(run, "/healthz")) == (200, "the run progresses\n")
                clock.advance(60.0)
            await asyncio.to_thread(asked_for.wait)
            clock.advance(31.0)
            run._oversight.look()
            said = "sink hub: no answer for 31 s, 1 batch waits"
            assert any(record.getMessage().endswith(f"not well: {said}") for record in caplog.records)
            text = (await ask(run, "/healthz"))[1]
            assert text.splitlines()[0] == said
            going.set()
            await send(source, reading(1))
            clock.advance(1.0)
            await ask_until(run, "/healthz", lambda _, text: text == "the run progresses\n")


async def test_a_database_that_is_away_at_the_start_is_waited_for(server: PostgresServer, tmp_path: Path) -> None:
    """Sources listen meanwhile, with a new state and with one that is there; what they took is in the table once."""
    for start in range(2):
        await asyncio.to_thread(server.stop, "immediate")
        source, sink = tm.sources.TCP(), tm.sinks.PostgreSQL(server.url(), name="history")
        run = Run(live(source, sink), lanes=0, state=tmp_path / "state", metrics=ANYWHERE)
        async with asyncio.TaskGroup() as group:
            group.create_task(run.execute())
            await send(source, *map(reading, range(10 * start, 10 * start + 10)))
            text = await ask_until(run, "/readyz", lambda _, text: "tries" in text)
            assert text.startswith("sink history: ")
            while source.statistics().records < 10:  # noqa: ASYNC110 - records come without a word
                await asyncio.sleep(0)
            await asyncio.to_thread(server.start)
            await ask_until(run, "/readyz", lambda status, _: status == 200)
            run.stop_soon()
        assert server.query("SELECT count(*), sum(value) FROM features") == [((10, 45.0), (20, 190.0))[start]]


async def test_what_stays_so_ends_a_live_run_at_the_start(postgres: PostgresServer, tmp_path: Path) -> None:
    """A wrong password, and whatever is in the way of a run that has no other try: without state, or over a recording."""

    async def refused(source: Any, database: str, state: Path | bool) -> str:
        with pytest.raises(tm.TidemillError) as caught:
            await tm.run_async(live(source, tm.sinks.PostgreSQL(database)), lanes=0, state=state)
        return f"{caught.type.__name__}: {caught.value}"

    away = postgres.url().replace(f":{postgres.port}/", ":1/")
    recorded = tm.sources.Records([{"sensor": "a", "time": 0.0, "value": 1.0}])
    for source, database, state, said in (
        (tm.sources.TCP(), postgres.url(password="another"), tmp_path / "live", "InputError: .*password"),
        (tm.sources.TCP(), away, False, "OutsideError: .*could not be reached"),
        (recorded, away, tmp_path / "recorded", "OutsideError: .*could not be reached"),
    ):
        assert re.match(said, await refused(source, database, state))


# -- the server itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("finite", [True, False])
def test_a_live_script_shows_itself_where_the_command_line_does(
    finite: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By default, also without the library for numbers; a recording, which ends by itself, shows nothing."""
    monkeypatch.setattr("tidemill.engine.exposition.missing_library", lambda: "No numbers")
    caplog.set_level("INFO", "tidemill")
    source = tm.sources.Synthetic(1, None, count=1 if finite else None)
    answers: list[str] = []
    asking: list[threading.Thread] = []

    def ask_and_stop(url: str) -> None:
        answers.append(asked(f"{url}/healthz")[1])
        os.kill(os.getpid(), signal.SIGINT)

    def look(_: Any) -> None:
        for record in caplog.records:
            if record.msg == "/metrics and /healthz are on %s" and not asking:
                asking.append(threading.Thread(target=ask_and_stop, args=record.args))
                asking[0].start()

    tm.run(tm.Pipeline(source, tm.Plan(), tm.sinks.Latest()), lanes=0, state=False, on_statistics=look)
    for thread in asking:
        thread.join()
    assert answers == ([] if finite else ["the run progresses\n"])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_default_port_that_is_taken_is_a_warning_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second run on a machine must not fail for its metrics."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(showing, "DEFAULT_ADDRESS", address)
        async with tm.serve(live(tm.sources.TCP()), lanes=0, state=False, metrics=True) as run:
            assert run.metrics_url == ""
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
            (
                f"{address}, where the run was to show /metrics and /healthz, is in use by another program; choose another with "
                'metrics="HOST:PORT" (--metrics; port 0 takes a free one), or none with metrics=False (--no-metrics). '
                "The run goes on."
            )
        ]
        with pytest.raises(tm.OutsideError, match="is in use by another program"):
            async with tm.serve(live(tm.sources.TCP()), lanes=0, state=False, metrics=address):
                raise AssertionError("never entered")


@pytest.mark.parametrize("address", ["", "9464x", "1:2:3", "127.0.0.1:70000", "127.0.0.1:-1", "user@host:1", "a b:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """Before anything runs."""
    with pytest.raises(tm.PlanError, match="must be HOST:PORT"):
        tm.run(live(tm.sources.TCP()), metrics=address)


async def test_a_host_that_is_not_there_is_named() -> None:
    """In the words of the system."""
    with pytest.raises(tm.OutsideError, match=r"no\.such\.host\.invalid:1, where .* cannot be listened on: "):
        await tm.run_async(
            live(tm.sources.TCP()), lanes=0, state=False, metrics="no.such.host.invalid:1", metrics_exposed=True
        )


async def test_beyond_this_machine_nobody_reads_the_pages_unless_the_run_is_told_that_they_may() -> None:
    """They ask for no password: as with sources, it takes a word that a reviewer finds."""
    for address in ("0.0.0.0:0", "[::]:0", "plant.example:9464"):
        with pytest.raises(tm.PlanError, match=r"no password .* write metrics_exposed=True \(--metrics-exposed\) if"):
            await tm.run_async(live(tm.sources.TCP()), lanes=0, state=False, metrics=address)
    exposed: Any = {"metrics": "0.0.0.0:0", "metrics_exposed": True}
    async with tm.serve(live(tm.sources.TCP()), lanes=0, state=False, **exposed) as run:
        assert (await ask(run, "/healthz"))[0] == 200
    async with tm.serve(live(tm.sources.TCP()), lanes=0, state=False, metrics="[::1]:0") as run:
        assert run.metrics_url.startswith("http://[::1]:")
        assert (await ask(run, "/healthz"))[0] == 200


async def test_without_the_library_the_run_goes_on_and_says_once_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Health needs no library."""
    monkeypatch.setattr("tidemill.engine.exposition.importlib.util.find_spec", lambda _: None)
    async with tm.serve(live(tm.sources.TCP()), lanes=0, state=False, metrics=ANYWHERE) as run:
        assert await ask(run, "/metrics") == (
            501,
            (
                "The numbers of /metrics need the library prometheus-client, which is not installed; "
                'install it with: pip install "tidemill[metrics]"\n'
            ),
        )
        assert await ask(run, "/healthz") == (200, "the run progresses\n")
        assert caplog.text.count('pip install "tidemill[metrics]"') == 1


@pytest.mark.parametrize("target", ["/metrics", "/healthz", "/readyz", "/healthz?verbose"])
async def test_a_name_that_was_made_to_lead_here_shows_nothing(target: str) -> None:
    """A web page may ask any port of this machine, in a name of its own: only an address or localhost is answered."""
    source = tm.sources.TCP()
    async with tm.serve(live(source), lanes=0, state=False, metrics=ANYWHERE) as run:
        await source.wait_listening()  # before, it is not ready
        address = ("127.0.0.1", int(run.metrics_url.rpartition(":")[2]))
        for host, status in (
            ("127.0.0.1", b"200"),
            (f"localhost:{address[1]}", b"200"),
            ("[::1]:1", b"200"),
            (f"rebound.example:{address[1]}", b"403"),
            ("localhost.rebound.example", b"403"),
            ("127.0.0.1.rebound.example", b"403"),
            ("[rebound.example]", b"403"),
            ("\u00e9\x00", b"403"),
        ):
            for method in (b"GET", b"HEAD"):
                request = b"%b %b HTTP/1.0\r\nHost: %b\r\n\r\n" % (method, target.encode(), host.encode())
                answer = await asyncio.to_thread(exchanged, address, request)
                assert answer.split()[1] == status, (host, answer)
                assert status == b"200" or b"tidemill_" not in answer


ENDS = st.sampled_from(["etc/passwd", "", "metrics", "healthz", "\x00", "C:\\x", "[", "@[", "?" + "a&" * 40])
UPS = st.sampled_from(
    ["..", "%2e%2e", "%252e%252e", "..%2f", "%c0%ae%c0%ae", "..\\", ".", "", "//", "\u202e", "metrics"]
)


@given(st.lists(UPS, max_size=6), ENDS, st.sampled_from(["/", "//", "", "http://127.0.0.1/", "/metrics/", "/healthz;"]))
def test_no_target_leads_anywhere_but_to_the_pages(ups: list[str], end: str, begin: str) -> None:
    """Nor does any bring out a fault: there is no file behind a page."""
    target = begin + "/".join([*ups, end])
    path = target.partition("?")[0].partition("#")[0]
    made = page(target, lambda: Seen(None))
    known = re.fullmatch(r"(http://127\.0\.0\.1|//[^/]*)?/(metrics|healthz|readyz)", path) is not None
    assert made.status in ((200, 503, 501) if known else (404, 400)), target


def exchanged(address: tuple[str, int], request: bytes) -> bytes:
    with socket.create_connection(address, timeout=120) as connection:
        connection.sendall(request)
        return connection.makefile("rb").read()


async def test_clients_that_misbehave_keep_nobody_from_being_answered() -> None:
    """Other methods, what is no HTTP, lines without an end, and a dozen that say nothing."""
    async with tm.serve(live(tm.sources.TCP()), lanes=0, state=False, metrics=ANYWHERE) as run:
        port = int(run.metrics_url.rpartition(":")[2])
        address = ("127.0.0.1", port)
        with ExitStack() as silent:
            for _ in range(12):
                silent.enter_context(socket.create_connection(address))
            answers = [
                await asyncio.to_thread(exchanged, address, request)
                for request in (
                    b"POST /metrics HTTP/1.0\r\n\r\n",
                    b"\x16\x03\x01 rubbish\r\n\r\n",
                    b"GET /" + b"a" * 70_000 + b" HTTP/1.0\r\n\r\n",
                    b"GET /healthz?" + b"a&" * 1_000 + b" HTTP/1.0\r\n\r\n",
                    b"HEAD /healthz HTTP/1.0\r\n\r\n",
                )
            ]
            assert (await ask(run, "/healthz"))[0] == 200
        assert [answer.split()[1:2] for answer in answers[:1]] == [[b"501"]]
        assert b"400" in answers[1]
        assert b"414" in answers[2]
        assert answers[4].startswith(b"HTTP/1.0 200 ")
        assert answers[4].endswith(b"\r\n\r\n")
        assert (await ask(run, "/healthz"))[0] == 200


async def test_a_request_that_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it must come in time, though each byte does."""
    monkeypatch.setattr(page_server, "_CLIENT_S", 0.2)
    async with tm.serve(live(tm.sources.TCP()), lanes=0, state=False, metrics=ANYWHERE) as run:
        address = ("127.0.0.1", int(run.metrics_url.rpartition(":")[2]))

        def drip() -> bytes:
            with socket.create_connection(address) as connection:
                connection.sendall(b"GET /healthz HTTP/1.0\r\nX: ")
                connection.settimeout(0.02)
                for _ in range(1_000):
                    try:
                        connection.sendall(b"a")
                        return connection.recv(100)
                    except TimeoutError:
                        continue
                    except ConnectionError:
                        return b""
            raise AssertionError("it is waited for")

        assert await asyncio.to_thread(drip) == b""


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.0\r\nX: "])
async def test_clients_that_do_not_ask_make_room_for_those_that_do(said: bytes) -> None:
    """Those that were there first, one for each; a port scanner makes no threads without end."""
    async with tm.serve(live(tm.sources.TCP()), lanes=0, state=False, metrics=ANYWHERE) as run:
        address = ("127.0.0.1", int(run.metrics_url.rpartition(":")[2]))
        with ExitStack() as silent:
            many = [silent.enter_context(socket.create_connection(address, timeout=120)) for _ in range(40)]
            for each in many[-16:]:
                each.sendall(said)
            assert await ask(run, "/healthz") == (200, "the run progresses\n")
            assert await asyncio.to_thread(many[0].recv, 1) == b""
            many[-1].setblocking(False)
            with pytest.raises(BlockingIOError):
                many[-1].recv(1)
            assert sum("process_request_thread" in thread.name for thread in threading.enumerate()) <= 16


def test_more_clients_than_there_is_room_for_are_turned_away_while_all_wait_for_their_answer() -> None:
    """Nobody is cut off who has asked."""
    looks: queue.Queue[Callable[[], None]] = queue.Queue()
    loop = cast(asyncio.AbstractEventLoop, SimpleNamespace(call_soon_threadsafe=looks.put))
    server = page_server.PageServer(showing.address_of(ANYWHERE), loop, lambda: Seen(None))
    try:
        address = ("127.0.0.1", server.address.port)
        request = b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n"
        with ThreadPoolExecutor(16) as clients:
            asking = [clients.submit(exchanged, address, request) for _ in range(16)]
            waiting = [looks.get(timeout=120) for _ in asking]
            with suppress(ConnectionError):
                assert exchanged(address, request) == b""
            for look in waiting:
                look()
            assert {client.result().split()[1] for client in asking} == {b"200"}
    finally:
        server.close()


async def test_the_port_is_free_again_when_the_run_has_ended() -> None:
    """The next run may have it."""
    async with tm.serve(live(tm.sources.TCP()), lanes=0, state=False, metrics=ANYWHERE) as run:
        address = run.metrics_url.removeprefix("http://")
    async with tm.serve(live(tm.sources.TCP()), lanes=0, state=False, metrics=address) as again:
        assert again.metrics_url == f"http://{address}"


@pytest.mark.parametrize("broken", ["no metadata", "a library that cannot be imported"])
def test_a_run_ends_though_what_its_pages_need_is_broken(broken: str, tmp_path: Path) -> None:
    """A checkout on the path has no version, and somebody else's library may raise anything."""
    if broken == "no metadata":
        first = "import importlib.metadata as m; m.version = lambda name: m.Distribution.from_name('none of this name')"
    else:
        (tmp_path / "prometheus_client").mkdir()
        (tmp_path / "prometheus_client/__init__.py").write_text("raise AttributeError('broken')")
        first = "import sys; sys.path.insert(0, '.')"
    program = f"""{first}
import tidemill as tm
pipeline = tm.Pipeline(tm.sources.Records([{{"sensor": "S", "value": 1.0}}]), tm.Plan(), tm.testing.ListSink())
print(tm.run(pipeline, lanes=0, metrics="127.0.0.1:0").rows_out)
"""
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("1\n", "", 0)
