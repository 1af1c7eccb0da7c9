"""An interrupt of a notebook's cell: the run stops in order, and the notebook goes on."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CELL = """
import asyncio, logging, sys, threading
import psutil
import tidemill as tm

def readings():
    n = 0
    while True:
        yield {"sensor": f"s{n % 50}", "time": n, "value": float(n)}
        n += 1

def stuck(batch):
    print("begun", flush=True)
    while True:
        pass

begun = []

def seen(batch):
    if not begun:
        begun.append(True)
        print("begun", flush=True)

async def cell():
    plan = tm.Plan(tm.Map(stuck)) if sys.argv[2] == "stuck" else tm.Plan()
    sinks = [tm.sinks.Lines("rows.ndjson"), tm.sinks.Callback(seen)]
    try:
        tm.run(tm.Pipeline(tm.sources.Records(readings()), plan, sinks), lanes=int(sys.argv[1]), grace=3600)
    except KeyboardInterrupt:
        print("interrupted", flush=True)

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
asyncio.new_event_loop().run_until_complete(cell())
print("threads", threading.active_count(), "processes", len(psutil.Process().children()), flush=True)
"""


@contextlib.contextmanager
def notebook(folder: Path, *words: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CELL, *map(str, words)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_with(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if word in line)


@pytest.mark.parametrize("lanes", [0, 2])
def test_an_interrupted_cell_stops_its_run(tmp_path: Path, lanes: int) -> None:
    """What was read is written, no thread and no process is left, and then the interrupt is raised."""
    with notebook(tmp_path, lanes, "free") as process:
        line_with(process, "begun")
        process.send_signal(signal.SIGINT)
        line_with(process, "interrupted")
        assert line_with(process, "threads") == "threads 1 processes 0\n"
    values = [json.loads(line)["value"] for line in (tmp_path / "rows.ndjson").read_text().splitlines()]
    assert values
    assert values == [float(n) for n in range(len(values))]


def test_a_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    """Though a function hangs and the grace is an hour."""
    with notebook(tmp_path, 2, "stuck") as process:
        line_with(process, "begun")
        process.send_signal(signal.SIGINT)
        line_with(process, "once more to leave at once")
        process.send_signal(signal.SIGINT)
        line_with(process, "interrupted")
        line_with(process, "threads")
        assert process.wait(120) == 0
