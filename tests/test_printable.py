"""Text from outside is harmless wherever a person reads it."""

from __future__ import annotations

import ast
import http.server
import logging
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.app.cli import answer
from tidemill.app.logs import logging_to_stderr
from tidemill.app.status import _named
from tidemill.app.status_command import status
from tidemill.core.dead_rate import DeadRate, MaxDead
from tidemill.core.heartbeat import Heartbeat
from tidemill.engine.health import _line
from tidemill.engine.pages import _said
from tidemill.formats.edge import Edge
from tidemill.printable import in_one_line, lines_printable, printable, quoted

NASTY = {
    "orders to a terminal": "pump\x1b[2J\x1b]0;owned\x07\x9b31m",
    "lines of their own": "pump\nREADY=1\r\n2026-01-01 ERROR all is lost\x85\u2028\u2029\v\f",
    "the other way round": "pump\u202egnp.exe\u2066\u200b",
    "no text": "pump\udc80\ufeff\x00\ue000",
    "long": "pump" * 2_500,
}


@given(st.text() | st.sampled_from(list(NASTY.values())))
def test_nothing_gives_orders_and_nothing_printable_is_changed(text: str) -> None:
    """Whatever it holds; what was escaped can be told from nothing else that a terminal would obey."""
    assert printable(text).isprintable()
    assert printable(text) == text or not text.isprintable()
    assert in_one_line(text, longest=50).isprintable()
    assert all(part.isprintable() for line in lines_printable(text).split("\n") for part in line.split("\t"))
    assert lines_printable(text).count("\n") == text.count("\n")
    assert quoted(text).isprintable()
    if len(text) <= 80:
        assert ast.literal_eval(quoted(text)) == text


@given(st.text(), st.integers(1, 50))
def test_what_is_too_long_is_cut_where_it_is_seen(text: str, longest: int) -> None:
    """With a sign, and never within what stands for one character."""
    whole = "".join(map(printable, text[:longest]))
    assert printable(text, longest=longest) == (whole if len(text) <= longest else f"{whole}…")


def of_a_service(name: str) -> str:
    return Heartbeat(None).look(0, progresses=False, status=f"sink db: {name}").removeprefix("STATUS=")


def of_a_dead_letter(name: str) -> str:
    rate = DeadRate(MaxDead.of("0/60s"), now_ns=0)
    rate.buried("wrong_type", sensor=name, source="mqtt")
    found = rate.look(1, now_ns=1)
    assert found is not None
    return found.lead


def of_fields(name: str) -> str:
    edge = Edge(key="sensor", time="time", source="mqtt")
    edge.rows([{name: 1}])
    return edge.explain()


READERS: dict[str, Callable[[str], str]] = {
    "the service manager": of_a_service,
    "dead letters": of_a_dead_letter,
    "what a broker said": _line,
    "values left out": lambda name: _named({name: 3}),
    "fields that were seen": of_fields,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", NASTY)
def test_whoever_shows_a_name_shows_one_short_line(reader: str, name: str) -> None:
    """That begins as the name does."""
    shown = READERS[reader](NASTY[name])
    assert shown.isprintable()
    assert "pump" in shown
    assert len(shown) < 900


def refuse(name: str) -> None:
    raise ValueError(name)


def logged(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of a log that tells of it in its sentence, in a field, and in a traceback."""
    with logging_to_stderr():
        try:
            refuse(name.replace("\n", ""))
        except ValueError:
            logging.getLogger("tidemill").exception("sensor %s", name, extra={"sensor": name})
    return capsys.readouterr().err.split("\n")


@pytest.mark.parametrize("name", NASTY)
def test_a_log_an_error_and_a_page_keep_their_lines(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a traceback too, whose lines are its own."""
    lines = logged(NASTY[name], capsys)
    assert all(line.isprintable() for line in lines)
    assert len(lines) == len(logged("pump", capsys))
    page = _said(503, f"one\n{NASTY[name]}").body
    assert all(line.isprintable() for line in page.decode().split("\n"))
    assert answer(["check", NASTY[name].replace("\0", ""), "--debug"]) != 0
    assert all(line.isprintable() for line in capsys.readouterr().err.split("\n"))


def test_what_answers_instead_of_a_run_gives_the_terminal_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    """It may be anybody's program."""

    class Anybody(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("X-Tidemill", "run")
            self.end_headers()
            self.wfile.write("ok\nlanes \x1b[2J\u202e\x07\n".encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Anybody) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        assert status(f"127.0.0.1:{server.server_port}") == 0
        answering.join()
    assert capsys.readouterr().out == "ok\nlanes \\x1b[2J\\u202e\\x07\n"
