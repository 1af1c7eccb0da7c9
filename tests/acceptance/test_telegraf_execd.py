"""tidemill as a `[[processors.execd]]` child: Telegraf is played through pipes, with the lines that its pages show."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from line_protocol_parser import parse_line
from tests.formats.test_influx_lines import SAMPLES

PLANT = """
import numpy as np
import tidemill as tm

def talkative(batch):
    print("a word on standard output")
    return {"half": batch["usage_idle"] / 2 if "usage_idle" in batch else np.full(len(batch), np.nan)}

pipeline = tm.Pipeline(
    tm.sources.Lines("-", format="influx"),
    tm.Plan(tm.Map(talkative, adds={"half": float})),
    tm.sinks.Lines("-", format="influx", tags="text"),
)
"""
STAMPED = [line for line in SAMPLES if line.rsplit(" ", 1)[1].isdigit()]
PATIENCE_S = 60.0


class Telegraf:
    """Writes metrics to the child's standard input, and reads from its standard output what comes while both are open."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        self._read = b""

    def send(self, *lines: str) -> None:
        _of(self.child.stdin).write("".join(f"{line}\n" for line in lines).encode())
        _of(self.child.stdin).flush()

    def receive(self, count: int) -> list[str]:
        """So many lines, as soon as they are there."""
        out = _of(self.child.stdout)
        while self._read.count(b"\n") < count:
            assert select.select([out], [], [], PATIENCE_S)[0], "nothing came"
            data = os.read(out.fileno(), 1 << 16)
            assert data, "the child closed its standard output"
            self._read += data
        lines = self._read.split(b"\n")
        self._read = b"\n".join(lines[count:])
        return [line.decode() for line in lines[:count]]

    def rest(self) -> bytes:
        """What comes until the child closes its side."""
        return self._read + _of(self.child.stdout).read()


def _of(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


@pytest.fixture
def execd(tmp_path: Path) -> Callable[..., Any]:
    """Starts the child as Telegraf does: ``command = ["tidemill", "run", "plant.py"]``."""

    @contextmanager
    def started(plant: str = PLANT, *more: str) -> Iterator[Telegraf]:
        (tmp_path / "plant.py").write_text(plant)
        with (tmp_path / "log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "tidemill", "run", "plant.py", *more],
                cwd=tmp_path,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        with child:
            try:
                yield Telegraf(child)
            finally:
                if child.poll() is None:
                    child.kill()

    return started


def parsed(line: str) -> dict[str, Any]:
    """By another parser than ours; texts of fields are tags there."""
    made = parse_line(line)
    texts = {name: item for name, item in made["fields"].items() if isinstance(item, str)}
    fields = {name: item for name, item in made["fields"].items() if name not in texts}
    return {**made, "tags": {**made["tags"], **texts}, "fields": fields}


def test_metrics_come_back_while_telegraf_keeps_the_pipe_open(execd: Callable[..., Any], tmp_path: Path) -> None:
    """Each as it was, with the plan's field added to those that it is for; a closed pipe ends the child, and well."""
    with execd() as telegraf:
        for sample in STAMPED:
            telegraf.send(sample)
            (line,) = telegraf.receive(1)
            got, wanted = parsed(line), parsed(sample)
            if "usage_idle" in wanted["fields"]:
                wanted["fields"]["half"] = wanted["fields"]["usage_idle"] / 2
            assert got == wanted
        telegraf.send(*STAMPED, "mill speed=fast", *STAMPED)
        assert len(telegraf.receive(2 * len(STAMPED))) == 2 * len(STAMPED)
        telegraf.send(STAMPED[0])
        _of(telegraf.child.stdin).close()
        assert parsed(telegraf.rest().decode())["measurement"] == "cpu"
        assert telegraf.child.wait(PATIENCE_S) == 0
    (letter,) = map(json.loads, (tmp_path / "dead_letters.ndjson").read_text().splitlines())
    assert letter["raw"] == "mill speed=fast"
    told = (tmp_path / "log").read_text()
    assert "the columns are" in told
    assert "a word on standard output" in told


def test_sigterm_ends_the_child_after_what_it_has_read(execd: Callable[..., Any]) -> None:
    """Telegraf sends it when the child does not end by itself."""
    with execd() as telegraf:
        telegraf.send(*STAMPED)
        telegraf.receive(1)
        telegraf.child.send_signal(signal.SIGTERM)
        rest = telegraf.rest()
        assert rest.count(b"\n") == len(STAMPED) - 1
        assert rest.endswith(b"\n")
        assert telegraf.child.wait(PATIENCE_S) == 0


def test_with_state_windows_go_on_when_telegraf_starts_the_child_again(execd: Callable[..., Any]) -> None:
    """It closed the pipe, which is not the end of its metrics."""
    plant = """
import tidemill as tm

source = tm.sources.Lines("-", format="influx", goes_on=True)
plan = tm.Plan(tm.Rolling("n", window=3, stats=["sum"]))
pipeline = tm.Pipeline(source, plan, tm.sinks.Lines("-", format="influx"))
"""
    for n, total in ((1, 1), (2, 3)):
        with execd(plant, "--state", "state", "--lanes", "0") as telegraf:
            telegraf.send(f"m n={n} {n}")
            assert telegraf.receive(1) == [f"m n={n}.0,n_sum_3={total}.0 {n}"]
            _of(telegraf.child.stdin).close()
            assert telegraf.rest() == b""
            assert telegraf.child.wait(PATIENCE_S) == 0
