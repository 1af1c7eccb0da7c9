"""Signals under load: what was read is finished and written, nothing is left behind, and the exit code says which."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import tidemill as tm
from tidemill.engine import entrance
from tidemill.testing import ListSink

ENDLESS = """
import tidemill as tm

def busy(rows):
    return [{**row, "twice": 2 * row["value"]} for row in rows]

def readings():
    i = 0
    while True:
        yield {"sensor": f"s{i % 50}", "time": i, "value": float(i)}
        i += 1

pipeline = tm.Pipeline(
    tm.sources.Records(readings()),
    tm.Plan(tm.Rolling("value", window=50, stats=["mean"]), tm.MapRows(busy)),
    tm.sinks.Lines("-"),
)
"""

STUCK = """
import time
import tidemill as tm

def stuck(rows):
    time.sleep(3600)
    return rows

pipeline = tm.Pipeline(
    tm.sources.Records([{"sensor": "a", "time": 1, "value": 1.0}]),
    tm.MapRows(stuck),
    [tm.sinks.Lines("o.ndjson")],
)
"""

AWAY = """
import tidemill as tm

pipeline = tm.Pipeline(tm.sources.TCP(ack=True), tm.Plan(), tm.sinks.TCP("tcp://127.0.0.1:1"))
"""

END_S = 60  # far beyond what an orderly end takes; a hang fails here instead of at the suite's timeout


@contextlib.contextmanager
def running(folder: Path, text: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    (folder / "plant.py").write_text(text)
    command = [sys.executable, "-m", "tidemill", "run", "plant.py", *map(str, words)]
    with (
        (folder / "told").open("w") as told,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=told, text=True) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Every process that it started, however deep."""
    return psutil.Process(process.pid).children(recursive=True)


def all_gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=END_S)[1]


@pytest.mark.parametrize(
    ("stop", "lanes"),
    [
        (signal.SIGINT, 2),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 0, marks=pytest.mark.slow),
    ],
)
def test_a_signal_under_load_ends_in_order(
    tmp_path: Path, stop: signal.Signals, lanes: int, balanced: Callable[[dict[str, Any]], bool]
) -> None:
    """Exit code 0; every line whole, in input order, one for each record read; no process left."""
    with running(tmp_path, ENDLESS, "--lanes", lanes, "--report", "r.json") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5_000)]  # the run is at full load
        children = family(process)
        process.send_signal(stop)
        rest = process.stdout.read()
        assert process.wait(END_S) == 0, (tmp_path / "told").read_text()
    text = "".join(lines) + rest
    assert text.endswith("\n")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["time"] for row in rows] == list(range(len(rows)))
    report = json.loads((tmp_path / "r.json").read_text())
    assert balanced(report)
    assert (report["in_flight"], report["rows_out"]) == (0, len(rows))
    assert len(children) >= lanes
    assert all_gone(children)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_sink_is_away_tells_what_is_left(tmp_path: Path, stop: signal.Signals) -> None:
    """Exit code 5 and the error, behind the summary of what came in, and of what the next start finds in the log."""
    told = tmp_path / "told"
    with running(tmp_path, AWAY, "--lanes", "0", "--no-metrics", "--report", "r.json") as process:
        listens, said = None, ""
        while listens is None or "Once more from the last checkpoint" not in said:
            assert process.poll() is None, said
            said = told.read_text()
            listens = re.search(r"listens on 127\.0\.0\.1:(\d+)\s", said)
        with socket.create_connection(("127.0.0.1", int(listens[1]))) as sender:
            sender.sendall(b'{"sensor": "a", "time": 1, "value": 1.0}\n')
            assert sender.recv(100) == b"1\n"  # it is in the log
            process.send_signal(stop)
            assert process.wait(END_S) == 5, told.read_text()
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["rows_out"], report["position"], report["behind"], report["log_waiting"]) == (0, 0, 0, 1)
    text = told.read_text()
    assert "\nleft for the next start: 1 log entry\n" in text
    assert text.splitlines()[-1] == "tidemill: tcp://127.0.0.1:1 cannot be reached: Connection refused."


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_leaves_at_once(tmp_path: Path, stop: signal.Signals, code: int) -> None:
    """A function that will not return for an hour does not hold the user."""
    with running(tmp_path, STUCK, "--lanes", 1, "--grace", 3600) as process:
        children = started(process)
        process.send_signal(stop)
        until(process, lambda: "once more" in (tmp_path / "told").read_text())
        assert insisted(process, stop) == code
    assert all_gone(children)


def insisted(process: subprocess.Popen[str], stop: signal.Signals) -> int:
    """The exit code after a signal, and another one, until it has left: those that come together are one."""
    for _ in range(2_000):
        process.send_signal(stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.01)
    raise AssertionError("it goes on")


HOLDING = """
import pathlib, time
import tidemill as tm

def hold(*_):
    pathlib.Path("o.ndjson").touch()
    while True:
        time.sleep(0.01)

def readings():
    yield {"sensor": "a", "time": 1, "value": 1.0}
    hold()

pipeline = tm.Pipeline(SOURCE, PLAN, SINK)
"""
RECORDS = 'tm.sources.Records([{"sensor": "a", "time": 1, "value": 1.0}])'


@pytest.mark.parametrize(
    ("edges", "stop", "code"),
    [
        ((RECORDS, "tm.Map(hold)", 'tm.sinks.Lines("-")'), signal.SIGINT, 130),
        pytest.param(
            ("tm.sources.Records(readings())", "tm.Plan()", 'tm.sinks.Lines("-")'),
            signal.SIGTERM,
            143,
            marks=pytest.mark.slow,
        ),
        pytest.param((RECORDS, "tm.Plan()", "tm.sinks.Callback(hold)"), signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
    ids=["Map", "Records", "Callback"],
)
def test_more_signals_leave_at_once_while_the_loop_is_held(
    tmp_path: Path, edges: tuple[str, str, str], stop: signal.Signals, code: int
) -> None:
    """By code of the user's that runs on it, and never returns."""
    text = HOLDING
    for word, edge in zip(("SOURCE", "PLAN", "SINK"), edges, strict=True):
        text = text.replace(word, edge)
    with running(tmp_path, text, "--lanes", 0, "--no-state") as process:
        started(process)
        assert insisted(process, stop) == code, (tmp_path / "told").read_text()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_signal_stops_a_run_on_any_loop(loop: str) -> None:
    """Also one that comes while the user's code runs; its handler is then what it was."""
    factory = pytest.importorskip(loop, reason="it is in the dev extra").new_event_loop
    before = signal.getsignal(signal.SIGTERM)

    def readings() -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            if number == 1_000:
                signal.raise_signal(signal.SIGTERM)
            yield {"sensor": "a", "time": number, "value": 1.0}

    sink = ListSink()
    pipeline = tm.Pipeline(tm.sources.Records(readings()), tm.Plan(), sink)
    with asyncio.Runner(loop_factory=factory) as runner:
        report = runner.run(tm.run_async(pipeline, lanes=0, handle_signals=True))
    assert report.in_flight == 0
    assert len(sink.rows) == report.records_in >= 1_000
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_that_come_together_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those of ``timeout``, which sends one to the process and one to its group: nobody has asked twice."""
    monkeypatch.setattr(entrance, "_SAME_NS", 1 << 62)  # what is together depends on no speed here

    def readings() -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            if number in (1_000, 1_001):
                signal.raise_signal(signal.SIGINT)
            yield {"sensor": "a", "time": number, "value": 1.0}

    sink = ListSink()
    report = tm.run(tm.Pipeline(tm.sources.Records(readings()), tm.Plan(), sink), lanes=0)
    assert len(sink.rows) == report.records_in >= 1_001


def test_the_grace_bounds_the_stop(tmp_path: Path) -> None:
    """Exit code 75; the report counts what was not finished."""
    with running(tmp_path, STUCK, "--lanes", 1, "--grace", 0.2, "--report", "r.json") as process:
        children = started(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(END_S) == 75, (tmp_path / "told").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["in_flight"] == 1
    assert all_gone(children)


def until(process: subprocess.Popen[str], true: Callable[[], bool]) -> None:
    """Return as soon as it is; fail when the process ends before."""
    while not true():
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"ended with {process.wait(0.01)} too early")


def started(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The run's processes, once the sink has opened its file: by then signals are handled."""
    output = Path(psutil.Process(process.pid).cwd()) / "o.ndjson"
    until(process, output.exists)
    return family(process)


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_run(tmp_path: Path) -> None:
    """``tidemill run ... --output - | head``: exit code 5, no traceback, no process left."""
    with running(tmp_path, ENDLESS, "--lanes", 1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = family(process)
        process.stdout.close()
        assert process.wait(END_S) == 5
    assert "Traceback" not in (tmp_path / "told").read_text()
    assert all_gone(children)


EARLY = """
import os, signal, sys

class Signalling:
    def find_spec(self, name, *_):
        if name == "{module}":
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Signalling())
from tidemill.app.cli import main
main(["check", "plant.py"])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("module", ["cyclopts", "tidemill.app.load"])
def test_a_signal_before_there_is_a_run_leaves_at_once(
    tmp_path: Path, module: str, number: signal.Signals, code: int
) -> None:
    """Without a word: at the imports of the command line, and at those of a command."""
    script = EARLY.format(module=module, number=int(number))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=END_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


LATE = """
import atexit, os, signal
import tidemill as tm

def late():
    for name in {names}:
        os.kill(os.getpid(), signal.Signals[name])

atexit.register(late)
pipeline = tm.Pipeline(tm.sources.Records([{{"sensor": "a", "time": 1, "value": 1.0}}]), tm.Plan(), tm.sinks.Lines("o.ndjson"))
"""


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["SIGTERM"], 0),
        (["SIGINT"], 0),
        (["SIGHUP", "SIGHUP"], 0),
        (["SIGINT", "SIGINT"], 130),
        (["SIGINT", "SIGTERM"], 143),
    ],
)
def test_a_signal_that_comes_when_all_is_done_changes_nothing(tmp_path: Path, names: list[str], code: int) -> None:
    """The run has ended, and its exit code is known, while the process takes its last breaths; a second one is still heeded."""
    with running(tmp_path, LATE.format(names=names), "--lanes", 0) as process:
        assert process.wait(END_S) == code
    assert (tmp_path / "o.ndjson").read_text().count("\n") == 1
    assert "Traceback" not in (tmp_path / "told").read_text()


AFTER = """
import signal
import tidemill as tm

def mine(number, frame):
    print("mine", flush=True)

signal.signal(signal.SIGTERM, mine)
pipeline = tm.Pipeline(tm.sources.Records([{"sensor": "a", "time": 1, "value": 1.0}]), tm.Plan(), tm.sinks.Lines("o.ndjson"))
tm.run(pipeline, lanes=0)
signal.raise_signal(signal.SIGTERM)
"""


def test_after_a_run_an_application_has_its_own_handlers_again(tmp_path: Path) -> None:
    """Those that it had before."""
    done = subprocess.run(
        [sys.executable, "-c", AFTER], cwd=tmp_path, capture_output=True, text=True, timeout=END_S, check=False
    )
    assert (done.returncode, done.stdout) == (0, "mine\n")
