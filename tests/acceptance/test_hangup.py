"""SIGHUP: tables are looked at, nothing ends; unless it is the terminal that went away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PLANT = """
import tidemill as tm

source = tm.sources.TCP()
pipeline = tm.Pipeline(source, tm.Plan(tm.Calibrate("calibration.csv")), tm.sinks.Lines("rows.ndjson"))
"""


@contextlib.contextmanager
def running(folder: Path, **how: object) -> Iterator[tuple[subprocess.Popen[str], IO[str], int]]:
    """A live run that is ready, what it says, and the port that it listens on."""
    (folder / "plant.py").write_text(PLANT)
    (folder / "calibration.csv").write_text("sensor,baseline,scale\n*,1,1\n")
    command = [sys.executable, "-m", "tidemill", "run", "plant.py", "--lanes", "1", "--metrics", "127.0.0.1:0"]
    with (
        (folder / "told").open("w") as told,
        (folder / "told").open() as said,
        subprocess.Popen(command, cwd=folder, stderr=told, text=True, **how) as run,  # type: ignore[call-overload]
    ):
        try:
            port, url = heard(
                said, r"(?s)(?=.*listens on 127\.0\.0\.1:(\d+)\s).*/healthz are on (http://[0-9.:]+)\s", run
            ).groups()
            while not answers(f"{url}/readyz"):
                assert run.poll() is None
            yield run, said, int(port)
        finally:
            run.kill()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=120).close()
    except urllib.error.HTTPError:
        return False
    return True


def heard(said: IO[str], pattern: str, run: subprocess.Popen[str]) -> re.Match[str]:
    """What the log has said since the last call, once it has."""
    text = ""
    while (found := re.search(pattern, text)) is None:
        text += said.read()
        assert run.poll() is None, text
    return found


def send(port: int, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sender:
        sender.sendall(line)


def written(folder: Path, text: str, run: subprocess.Popen[str]) -> None:
    """Return when the sink has it."""
    rows = folder / "rows.ndjson"
    while not rows.exists() or text not in rows.read_text():
        assert run.poll() is None


def test_tables_are_looked_at_and_the_run_goes_on(tmp_path: Path) -> None:
    """Its lanes too, when the signal goes to all of its processes."""
    with running(tmp_path) as (run, said, port):
        (tmp_path / "calibration.csv").write_text("sensor,baseline,scale\n*,4,1\n")
        run.send_signal(signal.SIGHUP)
        heard(said, r"SIGHUP: looking at the files of tables and models(?s:.*)counts from record 1 on", run)
        run.send_signal(signal.SIGHUP)
        heard(said, r"calibration.csv is as it was", run)
        send(port, b'{"sensor": "S1", "value": 10}\n')
        written(tmp_path, '"normalized":6', run)
        run.send_signal(signal.SIGTERM)
        assert run.wait(120) == 0


def test_a_terminal_that_goes_away_stops_the_run_in_order(tmp_path: Path) -> None:
    """As closing a window does: else it would go on for ever, and nobody would see it."""
    ours, theirs = os.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    with running(tmp_path, stdin=theirs, start_new_session=True, preexec_fn=take_terminal) as (run, said, port):
        os.close(theirs)
        send(port, b'{"sensor": "S1", "value": 10}\n')
        written(tmp_path, '"value":10', run)
        os.close(ours)
        assert run.wait(120) == 0
        assert "the terminal is gone: stopping" in said.read()
