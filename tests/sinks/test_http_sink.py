"""The sink HTTP: what is posted, and what each answer makes of it; against real servers, InfluxDB among them."""

from __future__ import annotations

import base64
import email.utils
import html
import json
import select
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sinks.line_servers import Post, read_all, read_post, take, tcp_server, web_server

import tidemill as tm
from tidemill import sinks
from tidemill.batch import Batch
from tidemill.errors import InputError, OutsideError, PlanError
from tidemill.schema import Schema
from tidemill.sinks.base import Keeping
from tidemill.tls import server_context

OPEN = Schema(open=True)


def rows_from(start: int, end: int) -> list[dict[str, Any]]:
    return [{"sensor": f"S{n % 3}", "time": 1_700_000_000 + n, "n": n} for n in range(start, end)]


def written(sink: sinks.HTTP, *batches: list[dict[str, Any]], keeping: Keeping | None = None) -> sinks.HTTP:
    """Each with a flush, or a commit."""
    sink.check()
    if keeping is None:
        sink.open(OPEN)
    else:
        assert sink.resume(OPEN, keeping) == 0
    try:
        for rows in batches:
            sink.write(Batch.from_rows(rows))
            sink.flush()
    finally:
        sink.close()
    return sink


def numbers(lines: list[bytes]) -> list[int]:
    return [json.loads(line)["n"] for line in lines]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.sinks.connecting.PATIENCE_S", 0.5)


# -- what is posted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes", [0, 1])
def test_rows_are_posted_in_order(lanes: int) -> None:
    """Of a run as a user writes it, over one connection, with the token and the headers."""
    with web_server() as server:
        sink = sinks.HTTP(server.url, token="t0ken", headers={"X-Plant": "mill ü"}, body=4_000, columns=["n"])
        report = tm.run(tm.Pipeline(tm.sources.Records(rows_from(0, 1_000)), tm.Lag("n"), sink), lanes=lanes)
        assert numbers(server.taken) == [*range(1_000)]
        assert len(server.connections) == 1
        assert {len(b"".join(post.lines)) <= 4_000 for post in server.posts} == {True}
        post = server.posts[0]
        assert post.path == "/write?db=features"
        assert post.headers["Authorization"] == "Bearer t0ken"
        assert post.headers["Content-Type"] == "application/x-ndjson"
        assert post.headers["X-Plant"].encode("latin-1").decode() == "mill ü"
    assert report.sinks == {"http": 1_000}
    assert report.delivery["http"].startswith("at-least-once")


def test_one_sink_serves_a_run_inline_and_then_one_with_processes() -> None:
    """It keeps nothing of who had listened to its tries."""
    with web_server() as server:
        sink = sinks.HTTP(server.url, columns=["n"])
        for lanes in (0, 1):
            tm.run(tm.Pipeline(tm.sources.Records(rows_from(0, 3)), tm.Lag("n"), sink), lanes=lanes)
        assert numbers(server.taken) == [*range(3)] * 2


def test_line_protocol_is_posted_as_text_unless_a_header_says_otherwise() -> None:
    """Whichever way it is written."""
    for headers, said in (({}, "text/plain; charset=utf-8"), ({"content-type": "text/x"}, "text/x")):
        with web_server() as server:
            written(sinks.HTTP(server.url, format="influx", measurement="m", headers=headers), rows_from(0, 1))
            assert server.posts[0].headers["Content-Type"] == said
            assert server.taken == [b"m,sensor=S0 n=0i 1700000000000000000\n"]


def test_posts_may_be_packed() -> None:
    """With gzip; bytes are those of the lines."""
    with web_server() as server:
        sink = written(sinks.HTTP(server.url, gzip=True), rows_from(0, 100))
        assert server.posts[0].headers["Content-Encoding"] == "gzip"
        assert numbers(server.taken) == [*range(100)]
        assert sink.statistics().bytes == len(b"".join(server.taken))


def test_a_login_in_the_address_is_shown_to_the_server_alone() -> None:
    """As Basic; with what it refers to, encoded or not."""
    with web_server() as server:
        sink = written(sinks.HTTP(server.url.replace("://", "://mill:pa%40ss@")), rows_from(0, 1))
        assert server.posts[0].headers["Authorization"] == "Basic bWlsbDpwYUBzcw=="
        assert server.posts[0].headers["Host"] == f"127.0.0.1:{server.port}"
        assert repr(sink) == f"HTTP('http://127.0.0.1:{server.port}/write')"


# -- what answers mean -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 1, 1, 40]), min_size=1, max_size=40),
    bad=st.sets(st.integers(0, 39), max_size=8),
    limit=st.sampled_from([60, 150, 10_000]),
    cuts=st.lists(st.integers(1, 20), max_size=4),
)
def test_lines_that_a_server_refuses_are_counted_and_their_neighbours_taken_once(
    sizes: list[int], bad: set[int], limit: int, cuts: list[int]
) -> None:
    """Whichever they are, however posts are cut: by 400 for a whole post that has a bad line, by 413 for one that is long."""

    def answer(post: Post) -> Any:
        if sum(map(len, post.lines)) > limit:
            return 413, {}, b"too long"
        return (400, {}, b"a line is bad") if bad & set(numbers(post.lines)) else take(post)

    rows = [{"n": n, "text": "x" * size} for n, size in enumerate(sizes)]
    lines = [len(json.dumps(row, separators=(",", ":"))) + 1 for row in rows]
    with web_server(answer) as server:
        batches, start = [], 0
        for cut in [*cuts, len(rows)]:
            batches.append(rows[start : start + cut])
            start += cut
        sink = written(sinks.HTTP(server.url), *filter(None, batches))
        large = {n for n, size in enumerate(lines) if size > limit}
        assert numbers(server.taken) == [n for n in range(len(rows)) if n not in bad | large]
        counted = Counter({"(too large)": len(large), "(refused)": len((bad & set(range(len(rows)))) - large)})
        assert sink.statistics().left_out == +counted
        assert sink.statistics().rows == len(server.taken)


def test_a_server_that_takes_less_is_posted_less_from_then_on() -> None:
    """It says so a few times, not for each post."""

    def answer(post: Post) -> Any:
        return take(post) if sum(map(len, post.lines)) <= 5_000 else (413, {}, b"")

    with web_server(answer) as server:
        written(sinks.HTTP(server.url), *(rows_from(start, start + 1_000) for start in range(0, 5_000, 1_000)))
        assert numbers(server.taken) == [*range(5_000)]
        refused = sum(sum(map(len, post.lines)) > 5_000 for post in server.posts)
        assert refused < 10


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, None])
def test_what_is_to_come_later_is_posted_again(status: int | None) -> None:
    """So is a post whose answer was lost: then the server has it twice, and it counts once."""
    left = [3]

    def answer(post: Post) -> Any:
        left[0] -= 1
        return take(post) if left[0] < 0 else None if status is None else (status, {}, b"not now")

    with web_server(answer) as server:
        sink = written(sinks.HTTP(server.url), rows_from(0, 10), rows_from(10, 20))
        assert numbers(server.taken) == [*range(20)]
        assert len(server.posts) == 5
    assert sink.statistics().rows == 20
    assert sink.statistics().left_out == {}


@pytest.mark.parametrize(
    ("asked", "at_most"),
    [("120", 120), ("in two minutes", 120), ("9" * 5_000, 3_600), ("Fri, 31 Dec 9999 23:59:59 GMT", 3_600)],
    ids=["seconds", "a date", "many digits", "a far date"],
)
def test_who_asks_for_more_time_than_there_is_is_not_asked_again(impatient: None, asked: str, at_most: int) -> None:
    """It is told as the server's own word, and left to the run, for as long as it asks for: an hour at most."""
    if asked == "in two minutes":
        asked = email.utils.format_datetime(datetime.now(UTC) + timedelta(minutes=2), usegmt=True)
    said = r"takes nothing now: it answers 429 Too Many Requests: too much waits\.$"
    with web_server(lambda _: (429, {"Retry-After": asked}, b'{"error": "too much\\nwaits"}')) as server:
        with pytest.raises(OutsideError, match=said) as caught:
            written(sinks.HTTP(server.url), rows_from(0, 10))
        assert 1 < caught.value.after_s <= at_most
        assert len(server.posts) == 1


@pytest.mark.parametrize("asked", ["", "-5", "soon", "1e999", "\xb2", "Fri, 99 Dec 2026"])
def test_who_asks_for_no_time_that_there_is_is_asked_again(asked: str) -> None:
    """With pauses of our own."""
    left = [2]

    def answer(post: Post) -> Any:
        left[0] -= 1
        return take(post) if left[0] < 0 else (503, {"Retry-After": asked}, b"")

    with web_server(answer) as server:
        assert written(sinks.HTTP(server.url), rows_from(0, 10)).statistics().rows == 10


@pytest.mark.parametrize("status", [401, 403, 404, 405, 301])
def test_who_refuses_whatever_is_posted_ends_the_run_unless_it_was_right_before(status: int, tmp_path: Path) -> None:
    """With the server's words, and what to look at. With state it is known to have been right also after the next start, of this address alone."""
    refusing = [True]

    def answer(post: Post) -> Any:
        return (status, {"Location": "http://127.0.0.1:1/"}, b"no such thing") if refusing[0] else take(post)

    keeping = Keeping(tmp_path, "plant", 1)
    with web_server(answer) as server:
        for kept in (None, keeping):
            with pytest.raises(
                InputError, match=rf"refuses what is posted: it answers {status} .*no such thing\.$"
            ) as caught:
                written(sinks.HTTP(server.url), rows_from(0, 10), keeping=kept)
            assert ("(see token=, headers= or url): " in str(caught.value)) == (status in (401, 403))
        refusing[0] = False
        sink = sinks.HTTP(server.url)
        sink.resume(OPEN, keeping)
        sink.write(Batch.from_rows(rows_from(0, 10)))
        sink.commit(10)
        refusing[0] = True
        sink.write(Batch.from_rows(rows_from(10, 20)))
        with pytest.raises(OutsideError, match="no such thing"):
            sink.commit(20)
        sink.close()
        with pytest.raises(OutsideError, match="no such thing"):
            written(sinks.HTTP(server.url), rows_from(10, 20), keeping=keeping)
        for other in (server.url.replace("/write", "/other"), server.url.replace("db=features", "db=typo")):
            with pytest.raises(InputError, match="no such thing"):
                written(sinks.HTTP(other), rows_from(10, 20), keeping=keeping)


def test_who_refuses_each_of_the_first_lines_ends_the_run() -> None:
    """It is not the lines' fault then, and is told after a hundred of them; who has taken one is posted all others."""
    told = r"each of the first 100 lines, .* 400 Bad Request: unable to parse\.$"
    with (
        web_server(lambda _: (400, {}, b'{"message": "unable to parse"}')) as server,
        pytest.raises(InputError, match=told),
    ):
        written(sinks.HTTP(server.url), rows_from(0, 1_000))
    with web_server(lambda post: take(post) if numbers(post.lines) == [7] else (400, {}, b"")) as server:
        sink = written(sinks.HTTP(server.url), rows_from(0, 200))
        assert sink.statistics().left_out == {"(refused)": 199}


def test_a_line_that_is_refused_is_told_of_once_with_the_words_of_the_server(caplog: Any) -> None:
    """What it says is no more than a line of text, whatever it is."""
    with web_server(lambda post: (422, {}, b"\x1b[2J bad\r\nline " + b"x" * 100_000) if post else None) as server:
        sink = written(sinks.HTTP(server.url), rows_from(0, 3))
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"http://127.0.0.1:{server.port}/write refuses a line: it answers 422 ")
    assert len(told) < 400
    assert told.isprintable()
    assert "left out" in sink.why_left_out("(refused)")


@pytest.mark.parametrize("lanes", [0, 1])
def test_what_a_sink_has_to_say_is_in_the_log_of_the_run(lanes: int, caplog: Any, capfd: Any) -> None:
    """Also from a process of its own, which writes nothing past it."""
    with web_server(lambda post: (400, {}, b"no %s") if b'"n":1}' in b"".join(post.lines) else take(post)) as server:
        sink = sinks.HTTP(server.url, name="hub", columns=["n"])
        tm.run(tm.Pipeline(tm.sources.Records(rows_from(0, 3)), tm.Lag("n"), sink), lanes=lanes)
        assert numbers(server.taken) == [0, 2]
    (told,) = [record for record in caplog.records if "refuses a line" in record.getMessage()]
    assert told.levelname == "WARNING"
    assert told.getMessage() == f"{server.url.partition('?')[0]} refuses a line: it answers 400 Bad Request: no %s."
    assert capfd.readouterr().err == ""
    if lanes:
        assert told.sink == "hub"


def test_an_answer_with_more_to_say_than_is_read_costs_its_connection_and_no_more() -> None:
    """The next post goes over another."""
    with web_server(lambda post: (200, {}, b"x" * 1_000_000)) as server:
        written(sinks.HTTP(server.url), rows_from(0, 3), rows_from(3, 6))
        assert numbers(server.taken) == [*range(6)]
        assert len(server.connections) == 2


def test_a_server_that_is_away_is_one_sentence(impatient: None) -> None:
    """After the tries that it gets; closing afterwards is quiet."""
    sink = sinks.HTTP("http://127.0.0.1:1/write?p=canary")
    with pytest.raises(OutsideError, match=r"^http://127.0.0.1:1/write cannot be reached: Connection refused\.$"):
        written(sink, rows_from(0, 1))
    sink.close()


def test_each_try_is_told_until_one_goes_well() -> None:
    """Why it failed, and that this is over; a post that is taken at once tells nothing."""
    answers = [(503, {}, b""), None, take(Post("", {}, [])), take(Post("", {}, []))]
    told: list[str] = []
    with web_server(lambda _: answers.pop(0)) as server:
        sink = sinks.HTTP(server.url)
        sink.tried = told.append
        written(sink, rows_from(0, 3), rows_from(3, 6))
    first, second, over = told
    assert "takes nothing now: it answers 503 Service Unavailable" in first
    assert "does not answer" in second
    assert over == ""


ODD = {
    "shorter than it says": b"Content-Length: 100\r\n\r\nab",
    "a length below nothing": b"Content-Length: -2\r\n\r\nab",
    "a chunk of no size": b"Transfer-Encoding: chunked\r\n\r\nhello\r\n",
    "a chunk of a size below nothing": b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
}


LAST_WORDS = {
    "nothing, 1.1": b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    "nothing, 1.0": b"HTTP/1.0 204 No Content\r\n\r\n",
    "of a length": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    "of no length": b"HTTP/1.0 200 OK\r\n\r\nok",
    "in chunks": b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("last", LAST_WORDS.values(), ids=LAST_WORDS)
def test_a_server_may_close_its_connection_with_each_answer(last: bytes) -> None:
    """Every line is posted once, each post over a connection of its own."""

    def serve(connection: Any, came: bytearray) -> None:
        read_post(connection, came)
        connection.sendall(last)

    with tcp_server(serve) as server:
        sink = written(sinks.HTTP(f"http://127.0.0.1:{server.port}"), rows_from(0, 3), rows_from(3, 6))
        assert sink.statistics().rows == 6
        assert [bytes(each).count(b"POST ") for each in server.came] == [1, 1]


def test_what_a_server_says_as_it_closes_its_connection_is_told(impatient: None) -> None:
    """And not that the connection is closed."""
    with (
        web_server(lambda _: (503, {"Connection": "close"}, b"tomorrow")) as server,
        pytest.raises(OutsideError, match="takes nothing now: it answers 503 Service Unavailable: tomorrow"),
    ):
        written(sinks.HTTP(server.url), rows_from(0, 3))


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_lines_are_taken_when_the_server_has_said_so_whatever_it_says_then(odd: bytes) -> None:
    """The next post goes over another connection."""

    def serve(connection: Any, came: bytearray) -> None:
        read_post(connection, came)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + odd)

    with tcp_server(serve) as server:
        sink = written(sinks.HTTP(f"http://127.0.0.1:{server.port}"), rows_from(0, 3), rows_from(3, 6))
        assert sink.statistics().rows == 6
        assert [bytes(each).count(b"POST ") for each in server.came] == [1, 1]


def test_what_a_server_says_is_no_danger_to_who_reads_it() -> None:
    """Not even JSON that is nested four thousand times."""
    with web_server(lambda _: (404, {}, b"[" * 4_000)) as server, pytest.raises(InputError, match="404 Not Found: "):
        written(sinks.HTTP(server.url), rows_from(0, 1))


def trickling(connection: Any, came: bytearray) -> None:
    read_post(connection, came)
    while True:
        connection.sendall(b"H")
        select.select([connection], [], [], 0.02)


def continuing(connection: Any, came: bytearray) -> None:
    read_post(connection, came)
    connection.settimeout(1)  # once nobody reads it any more
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 10)


@pytest.mark.parametrize("serve", [trickling, continuing, read_all])
def test_an_answer_comes_within_its_time_or_is_none(
    impatient: None, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, not only the next byte."""
    monkeypatch.setattr("tidemill.sinks.poster.PROGRESS_S", 0.2)
    with tcp_server(serve) as server, pytest.raises(OutsideError, match="does not answer"):
        written(sinks.HTTP(f"http://127.0.0.1:{server.port}"), rows_from(0, 1))


def test_a_server_may_answer_before_it_has_read_all() -> None:
    """It says that the post is too large, and reads no more of it: less is posted, over another connection."""

    def refusing(connection: Any, came: bytearray) -> None:
        read_post(connection, came, body=False)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        end.wait(120)

    def taking(connection: Any, came: bytearray) -> None:
        while True:
            read_post(connection, came)
            connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    end = threading.Event()
    with tcp_server(refusing, taking) as server:
        sink = sinks.HTTP(f"http://127.0.0.1:{server.port}", body=16 << 20)
        sink.open(OPEN)
        sink.write(Batch.from_rows([{"n": n, "text": "x" * 1_000} for n in range(8_000)]))  # more than any buffer takes
        flushing = threading.Thread(target=sink.flush)
        flushing.start()
        end.set()
        flushing.join(120)
        sink.close()
        assert sink.statistics().rows == 8_000


def test_a_word_before_the_answer_does_not_end_a_post() -> None:
    """Some servers say 100 without being asked, and read on."""

    def serve(connection: Any, came: bytearray) -> None:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        read_post(connection, came)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    with tcp_server(serve) as server:
        sink = sinks.HTTP(f"http://127.0.0.1:{server.port}", body=16 << 20)
        written(sink, [{"n": n, "text": "x" * 1_000} for n in range(8_000)])
        assert sink.statistics().rows == 8_000
        assert len(server.came) == 1


INTERIM = (
    b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nContent-Length: 9\r\n\r\n"
)


def test_words_before_the_answer_are_read_past() -> None:
    """Of any kind, also where they come together with it; the connection serves the next post too."""

    def serve(connection: Any, came: bytearray) -> None:
        while True:
            read_post(connection, came)
            connection.sendall(
                INTERIM + b"HTTP/1.1 100 Continue\r\n\r\n" + INTERIM + b"HTTP/1.1 204 No Content\r\n\r\n"
            )

    with tcp_server(serve) as server:
        sink = written(sinks.HTTP(f"http://127.0.0.1:{server.port}"), rows_from(0, 3), rows_from(3, 6))
        assert sink.statistics().rows == 6
        assert len(server.came) == 1


def test_words_without_end_are_no_answer(impatient: None) -> None:
    """They are not read for as long as an answer may take."""

    def serve(connection: Any, came: bytearray) -> None:
        read_post(connection, came)
        connection.sendall(INTERIM * 200)
        read_all(connection, came)

    with (
        tcp_server(serve) as server,
        pytest.raises(OutsideError, match="does not answer: it says 102, 103 and the like"),
    ):
        written(sinks.HTTP(f"http://127.0.0.1:{server.port}"), rows_from(0, 1))


@pytest.mark.parametrize("at", ["flush", "close"])
def test_a_post_can_be_given_up_by_another_thread(at: str) -> None:
    """It raises soon, and nothing is counted."""
    waits = threading.Event()

    def serve(connection: Any, came: bytearray) -> None:
        read_post(connection, came)
        waits.set()
        read_all(connection, came)

    with tcp_server(serve) as server:
        sink = sinks.HTTP(f"http://127.0.0.1:{server.port}/a")
        said: list[str] = []

        def write() -> None:
            sink.open(OPEN)
            sink.write(Batch.from_rows(rows_from(0, 10)))
            with pytest.raises(OutsideError) as caught:
                getattr(sink, at)()
            said.append(str(caught.value))

        thread = threading.Thread(target=write)
        thread.start()
        assert waits.wait(120)
        sink.give_up()
        thread.join(120)
        assert said == [f"http://127.0.0.1:{server.port}/a was given up."]
        assert len(server.came) == 1
        assert sink.statistics().rows == 0


def test_one_line_that_is_too_large_says_nothing_of_others() -> None:
    """It is left out; posts are as large as before, and never larger than they may be."""
    rows = [*rows_from(0, 50), {"text": "x" * 50_000}, *rows_from(50, 300)]
    with web_server(lambda post: take(post) if len(b"".join(post.lines)) < 50_000 else (413, {}, b"")) as server:
        sink = written(sinks.HTTP(server.url, body=1_000), *([row] for row in rows[:60]), rows[60:])
        assert sink.statistics().left_out == {"(too large)": 1}
        assert numbers(server.taken) == [*range(300)]
        assert max(len(b"".join(post.lines)) for post in server.posts if len(post.lines) > 1) <= 1_000
        assert len(server.posts) < 60 + 20


def test_a_server_that_takes_more_again_is_posted_more_again() -> None:
    """After a while."""
    refused = [3]

    def answer(post: Post) -> Any:
        refused[0] -= 1
        return take(post) if refused[0] < 0 else (413, {}, b"")

    with web_server(answer) as server:
        written(sinks.HTTP(server.url), *(rows_from(start, start + 200) for start in range(0, 20_000, 200)))
        assert numbers(server.taken) == [*range(20_000)]
        assert [len(post.lines) for post in server.posts[-3:]] == [200] * 3


# -- who may know what -----------------------------------------------------------------------------------


ECHOES = {
    "as they came": str,
    "in JSON": json.dumps,
    "in HTML": html.escape,
    "in an address": quote,
    "in a form": quote_plus,
}


@pytest.mark.parametrize("form", ECHOES.values(), ids=ECHOES)
@pytest.mark.parametrize("way", ["written out", "kept elsewhere"])
def test_what_is_secret_is_shown_to_the_server_alone(way: str, form: Any, monkeypatch: Any, tmp_path: Path) -> None:
    """Never told, though the server repeats it in any form; where lines go is told, unless it is kept elsewhere."""
    token, key, password, query = (f'c4nary {each}/"<ü>"' for each in ("token", "key", "password", "query"))
    (tmp_path / "token").write_text(token + "\n")
    for name, value in (("KEY", key), ("PASSWORD", password), ("QUERY", query), ("BUCKET", "c4nary-bucket")):
        monkeypatch.setenv(f"PLANT_{name}", value)
    kept = way == "kept elsewhere"

    def answer(post: Post) -> Any:
        repeated = [*post.headers.values(), *(value for _, value in parse_qsl(urlsplit(post.path).query))]
        seen = [each.encode("latin-1").decode() for each in repeated[:-3]] + repeated[-3:]
        return 403, {}, form(" | ".join(seen)).encode()

    with web_server(answer) as server:
        url = f"{server.url}&bucket={'${env:PLANT_BUCKET}' if kept else 'open'}"
        url += f"&key={'${env:PLANT_QUERY}' if kept else quote(query, safe='')}"
        login = url.replace("://", f"://mill:{'${env:PLANT_PASSWORD}' if kept else quote(password, safe='')}@")
        for sink in (
            sinks.HTTP(
                url,
                token=f"${{file:{tmp_path}/token}}" if kept else token,
                headers={"X-Key": "${env:PLANT_KEY}" if kept else key},
            ),
            sinks.HTTP(login),
        ):
            with pytest.raises(InputError, match=r"403.*\*\*\*") as caught:
                written(sink, rows_from(0, 1))
            said = f"{caught.value}{sink!r}"
            assert "c4nary" not in said
            assert base64.b64encode(password.encode()).decode()[:8] not in said
            assert base64.b64encode(f"mill:{password}".encode()).decode() not in said
            assert "features" in said
        first, second = server.posts
        assert (
            first.path == f"/write?db=features&bucket={'c4nary-bucket' if kept else 'open'}&key={quote(query, safe='')}"
        )
        assert first.headers["Authorization"].encode("latin-1").decode() == f"Bearer {token}"
        assert second.headers["Authorization"] == f"Basic {base64.b64encode(f'mill:{password}'.encode()).decode()}"


@pytest.mark.parametrize("query", ["k=c4nary%2fx", "k=%634nary", "k=c4n%61ry;x", "c4nary", "c4nary&db=x"])
def test_what_is_secret_in_a_query_is_not_told_as_it_was_written(query: str) -> None:
    """In a server's own request line, say."""
    with web_server(lambda post: (403, {}, post.path.encode())) as server:
        with pytest.raises(InputError, match=r"/write\?") as caught:
            written(sinks.HTTP(f"http://127.0.0.1:{server.port}/write?{query}"), rows_from(0, 1))
        for secret in ("c4nary", "%634nary", "c4n%61ry"):
            assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda authority: authority.signed("expired", expired=True), "certificate has expired"),
        (lambda authority: authority.signed("other", "192.0.2.7"), "IP address mismatch"),
        (lambda authority: authority.alone("alone"), "self-signed certificate"),
    ],
)
def test_a_server_that_is_not_trusted_is_posted_nothing(authority: Any, made: Any, said: str) -> None:
    """Expired, of another host, or signed by nobody: one sentence that says which."""
    with web_server(tls=server_context(*made(authority))) as server:
        with pytest.raises(InputError, match=said):
            written(sinks.HTTP(server.url, ca=authority.ca), rows_from(0, 1))
        assert server.posts == []


def test_over_tls_with_a_certificate_that_is_trusted(authority: Any) -> None:
    """With one connection for all posts, large ones first: what TLS says of itself meanwhile is no answer."""
    with web_server(tls=server_context(*authority.signed("server"))) as server:
        written(sinks.HTTP(server.url, ca=authority.ca), rows_from(0, 5_000), rows_from(5_000, 5_003))
        assert numbers(server.taken) == [*range(5_003)]
        assert len(server.connections) == 1


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("mqtt://host", {}),
        ("host:8086/write", {}),
        ("http://", {}),
        ("http://host:99999/", {}),
        ("http://host/a b", {}),
        (None, {}),
        ("http://host", {"format": "csv"}),
        ("http://host", {"tags": ["sensor"]}),
        ("http://host", {"token": ""}),
        ("http://host", {"token": "a\nb"}),
        ("http://host", {"token": "a", "headers": {"authorization": "b"}}),
        ("http://me:pass@host", {"token": "a"}),
        ("http://host", {"headers": {"a b": "c"}}),
        ("http://host", {"headers": {"content-length": "5"}}),
        ("http://host", {"headers": {1: "5"}}),
        ("http://host", {"body": "512k"}),
        ("http://a..b/", {}),
        ("http://host:0/", {}),
        ("http://host", {"headers": "Authorization: a"}),
        ("http://host", {"headers": {"a": "b\r\nc: d"}}),
        ("http://host", {"headers": {"a": 1}}),
        ("http://host", {"body": 0}),
        ("http://host", {"ca": "ca.pem"}),
    ],
)
def test_what_cannot_be_is_refused_at_once(url: Any, options: Any) -> None:
    """In one sentence that shows nothing of what may be secret."""
    with pytest.raises(PlanError) as caught:
        sinks.HTTP(url, **options)
    assert "host/a b" not in str(caught.value)
    assert "me:" not in str(caught.value)


def test_an_address_that_is_kept_elsewhere_is_judged_when_it_is_known(monkeypatch: Any) -> None:
    """At the start, without showing it."""
    monkeypatch.setenv("PLANT_URL", "ftp://c4nary/")
    sink = sinks.HTTP("${env:PLANT_URL}")
    assert repr(sink) == "HTTP('${env:PLANT_URL}')"
    with pytest.raises(InputError, match="must be http://HOST:PORT/PATH") as caught:
        sink.check()
    assert "c4nary" not in str(caught.value)


# -- InfluxDB --------------------------------------------------------------------------------------------


def test_influxdb_has_each_row(influx: Any) -> None:
    """With its tags, fields and times; a field that is of another kind there is left out and counted, its neighbours are not."""
    rows = [{"sensor": f"S{n % 3}", "time": 1_700_000_000 + n, "n": n, "value": n / 7} for n in range(1_000)]
    rows[500]["value"] = "broken"
    sink = sinks.HTTP(influx.url("rows"), format="influx", measurement="mill")
    written(sink, *([row] for row in rows[499:502]), rows[:499], rows[502:])
    found = influx.query("SELECT n, sensor, value FROM mill", "rows")
    assert found == [
        {"time": row["time"] * 10**9, **{name: row[name] for name in ("n", "sensor", "value")}}
        for row in rows
        if row["n"] != 500
    ]
    assert sink.statistics().left_out == {"(refused)": 1}
    assert sink.statistics().rows == 999


def test_influxdb_that_refuses_whatever_comes_is_told_in_its_own_words(guarded_influx: Any) -> None:
    """A database that is not there, and who may not."""
    url = guarded_influx.url("rows", u=guarded_influx.user, p=guarded_influx.password)
    written(sinks.HTTP(url, format="influx", measurement="m"), rows_from(0, 10))
    assert guarded_influx.query("SELECT count(n) FROM m", "rows")[0]["count"] == 10
    for wrong, said in (
        (url.replace("db=rows", "db=other"), '404 Not Found: database not found: "other"'),
        (url.replace("u=mill", "u=nobody"), "401 Unauthorized (see token=, headers= or url): authorization failed"),
    ):
        with pytest.raises(InputError) as caught:
            written(sinks.HTTP(wrong, format="influx", measurement="m"), rows_from(0, 10))
        assert said in str(caught.value)
        assert "canary" not in str(caught.value)


_RUN = """
import sys
import tidemill as tm
url, state, lanes = sys.argv[1:]
records = tm.sources.Records([{"sensor": f"S{n % 5}", "time": 1_700_000_000 + n, "value": n} for n in range(20_000)])
sink = tm.sinks.HTTP(url, format="influx", measurement="mill", body=10_000)
tm.run(tm.Pipeline(records, tm.Rolling("value", window=3, stats=["sum"]), sink, name="mill"), lanes=int(lanes), state=state)
"""


@pytest.mark.parametrize("lanes", [0, 1])
def test_influxdb_has_each_row_once_after_a_kill(influx: Any, tmp_path: Path, lanes: int) -> None:
    """The run is killed while rows come, and started again: what is posted twice is one point there."""
    (tmp_path / "run.py").write_text(_RUN)
    url = influx.url(f"kills{lanes}")
    call = [sys.executable, tmp_path / "run.py", url, tmp_path / "state", str(lanes)]
    first = subprocess.Popen(call)
    while not influx.query("SELECT count(value) FROM mill", f"kills{lanes}"):
        pass
    first.kill()
    first.wait()
    subprocess.run(call, check=True, timeout=120)
    found = influx.query("SELECT value, value_sum_3 FROM mill", f"kills{lanes}")
    assert [row["value"] for row in found] == [*range(20_000)]
    assert [row["value_sum_3"] for row in found[10:]] == [3 * n - 15 for n in range(10, 20_000)]
