"""The stream engines beside tidemill: their environments, their programs, and each one's idioms.

`make bench-peers` makes the environments. A peer that is not there is a line that says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench._common import Wrong
from bench._streams_w1 import Readings

HOME: Final = Path(__file__).parent / ".peers"
_LIMIT_S = 900


class Absent(Exception):
    """The peer's environment has not been made."""


@dataclass(frozen=True)
class Idiom:
    """One way to write W1 for a peer."""

    peer: str
    idiom: str
    what: str
    kind: str = "usual"
    """``usual`` and ``running sums``: the engine keys the state; ``by hand``: all of W1 in NumPy, the engine carries it."""
    workers: int = 1
    records: float = 1.0
    """Its share of the records that peers get: the slow ones get fewer."""
    warm_s: float = 0.0


KINDS: Final = ("usual", "running sums", "by hand")
IDIOMS: Final = (
    Idiom("streamz", "afresh", "streamz, accumulate, a deque per sensor"),
    Idiom("bytewax", "afresh", "Bytewax, stateful_batch, a deque per sensor, 1 process"),
    Idiom("bytewax", "afresh", "the same, 2 processes", workers=2),
    Idiom("bytewax", "numpy", "Bytewax, stateful_batch, NumPy over a sensor's records of a batch"),
    Idiom("pathway", "afresh", "Pathway, stateful_many, a deque per sensor", records=0.5),
    Idiom("pathway", "afresh", "the same, 2 threads", records=0.5, workers=2),
    Idiom("pyflink", "over-rows", "PyFlink, SQL OVER ROWS by event time, parallelism 2", workers=2, warm_s=20),
    Idiom("pyflink", "over-rows-arrival", "the same by arrival", workers=2, warm_s=20),
    Idiom("streamz", "running", "streamz, running sums", "running sums"),
    Idiom("bytewax", "running", "Bytewax, running sums, 1 process", "running sums"),
    Idiom("bytewax", "running", "the same, 2 processes", "running sums", workers=2),
    Idiom("pathway", "running", "Pathway, running sums", "running sums", records=0.5),
    Idiom("streamz", "micro-batches", "streamz, W1 by hand in NumPy, micro-batches of 32,768", "by hand", records=4),
    Idiom(
        "bytewax", "micro-batches", "Bytewax, W1 by hand in NumPy, micro-batches, 2 processes", "by hand", 2, records=4
    ),
)


def started(peer: str, program: str, *arguments: object, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a peer's program in its own environment; its answer, with ``spawned_at`` on the clock of all processes."""
    python = HOME / peer / "bin" / "python"
    if not python.exists():
        raise Absent(f"{peer} is not installed: make bench-peers")
    command = [str(python), "-m", f"bench.peers.{program}", *map(str, arguments)]
    spawned = time.clock_gettime(time.CLOCK_MONOTONIC)
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **(environment or {})},
        cwd=HOME.parent.parent,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise Wrong(f"{peer} failed: {done.stderr.strip().splitlines()[-1:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**answer, "spawned_at": spawned}


def w1(idiom: Idiom, readings: Readings, folder: Path, records: int, runs: int = 1) -> tuple[list[float], float, float]:
    """Records per second of each run, the largest error, and seconds from the program's start to its first output."""
    with tempfile.TemporaryDirectory(prefix="tidemill-bench-") as out:
        answer = started(
            idiom.peer,
            f"{idiom.peer}_w1",
            *(folder, out, "--idiom", idiom.idiom, "--records", records, "--runs", runs),
            *("--workers", idiom.workers, "--warm-s", idiom.warm_s),
            environment={"PATHWAY_THREADS": str(idiom.workers)},
        )
        made = np.concatenate([np.load(file) for file in sorted(Path(out).glob("*.npy"))])
    error = readings.check(made, records, answer["rows"])
    return [records / seconds for seconds in answer["seconds"]], error, answer["first_at"] - answer["spawned_at"]
