"""W1 in Bytewax: keyed logic, one process per worker, the input in partitions by sensor, as from a broker.

Records are made, and keys are text, before the clock runs. The clock runs from the first batch that any worker asks
for to the last one that any worker's sink got.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bytewax.operators as op
import numpy as np
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from bench.peers._w1 import WINDOWS, OfAllSensors, OfOneSensor, Program, answer, now

IDIOMS = ("afresh", "running", "numpy", "micro-batches")
_SHARDS = 8
"""Keys of the micro-batches: enough that their hashes use both workers, few enough that a batch stays large."""
_ARGUMENTS = "BENCH_PEERS_ARGUMENTS"


class Part(StatefulSourcePartition):
    """One partition's batches."""

    def __init__(self, batches: list[list[Any]]) -> None:
        self.batches = iter(batches)
        self.began = 0.0

    def next_batch(self) -> list[Any]:
        if not self.began:
            self.began = now()
            _told["began"].append(self.began)
        batch = next(self.batches, None)
        if batch is None:
            raise StopIteration
        return batch

    def snapshot(self) -> None:
        return None


class Parts(FixedPartitionedSource):
    """A partition per worker, or per shard."""

    def __init__(self, count: int, batches_of: Callable[[int], list[list[Any]]]) -> None:
        self.count = count
        self.batches_of = batches_of

    def list_parts(self) -> list[str]:
        return [str(number) for number in range(self.count)]

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> Part:
        return Part(self.batches_of(int(for_part)))


class EachRow(StatefulBatchLogic):
    """One sensor's window; its calibration comes with the first reading."""

    window: Callable[[], Any]
    mu: list[float]
    sd: list[float]

    def __init__(self) -> None:
        self.add = type(self).window().add

    def on_batch(self, values: list[Any]) -> tuple[list[Any], bool]:
        sensor = values[0][0]
        mu, sd, add = self.mu[sensor], self.sd[sensor], self.add
        out = []
        for _, ts, value in values:
            x = (value - mu) / sd
            out.append((sensor, ts, x, *add(x)))
        return out, StatefulBatchLogic.RETAIN

    def snapshot(self) -> None:
        return None


class EachBatch(EachRow):
    """NumPy over the readings of one sensor that came together; a list of columns is one item of output."""

    def on_batch(self, values: list[Any]) -> tuple[list[Any], bool]:
        sensor = values[0][0]
        x = (np.array([value for _, _, value in values]) - self.mu[sensor]) / self.sd[sensor]
        ts = np.array([ts for _, ts, _ in values])
        return [(np.full(len(x), sensor), ts, x, *self.add(x))], StatefulBatchLogic.RETAIN


class EachShard(StatefulBatchLogic):
    """All sensors of a shard at once, by hand."""

    mu: np.ndarray
    sd: np.ndarray

    def __init__(self) -> None:
        self.windows = OfAllSensors(len(self.mu))

    def on_batch(self, values: list[Any]) -> tuple[list[Any], bool]:
        out = []
        for sensor, ts, value in values:
            x = (value - self.mu[sensor]) / self.sd[sensor]
            out.append((sensor, ts, x, *self.windows.add(sensor, x)))
        return out, StatefulBatchLogic.RETAIN

    def snapshot(self) -> None:
        return None


class Kept(StatelessSinkPartition):
    """Keeps what it gets, and says when."""

    def __init__(self, program: Program, columns: bool, worker: int) -> None:
        self.program, self.columns, self.worker = program, columns, worker
        self.items: list[Any] = []
        self.first = self.last = 0.0

    def write_batch(self, items: list[Any]) -> None:
        self.items.extend(made for _, made in items)
        self.last = now()
        self.first = self.first or self.last

    def close(self) -> None:
        rows = sum(len(part[0]) for part in self.items) if self.columns else len(self.items)
        if rows:
            keep = self.program.keep_columns if self.columns else self.program.keep
            keep(self.items, f"rows-{self.worker}")
        told = {"began": _told["began"], "first": self.first, "last": self.last, "rows": rows}
        (self.program.out / f"worker-{self.worker}.json").write_text(json.dumps(told))


class Keep(DynamicSink):
    def __init__(self, program: Program, columns: bool) -> None:
        self.program, self.columns = program, columns

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Kept:
        return Kept(self.program, self.columns, worker_index)


_told: dict[str, list[float]] = {"began": []}


def flow(program: Program | None = None) -> Dataflow:
    """In a worker's process, which gets the arguments through its environment."""
    program = program or Program(IDIOMS, shlex.split(os.environ[_ARGUMENTS]))
    columns = program.idiom in ("numpy", "micro-batches")
    mu, sd = program.calibration()
    EachShard.mu, EachShard.sd = mu, sd
    EachRow.mu, EachRow.sd = mu.tolist(), sd.tolist()
    EachRow.window = WINDOWS.get(program.idiom, OfOneSensor)
    if program.idiom == "micro-batches":
        source, logic = Parts(_SHARDS, lambda part: _shards(program, part)), EachShard
    else:
        source = Parts(program.workers, lambda part: _keyed(program, part))
        logic = EachBatch if columns else EachRow
    made = Dataflow("w1")
    stream = op.input("in", made, source)
    stream = op.stateful_batch("roll", stream, lambda _: logic())
    op.output("out", stream, Keep(program, columns))
    return made


def _keyed(program: Program, part: int) -> list[list[Any]]:
    readings = [
        (f"S{sensor}", (sensor, ts, value))
        for sensor, ts, value in program.readings()
        if sensor % program.workers == part
    ]
    size = max(program.batch // program.workers, 1)
    return [readings[start : start + size] for start in range(0, len(readings), size)]


def _shards(program: Program, part: int) -> list[list[Any]]:
    columns = [program.column(name) for name in ("sensor", "ts", "value")]
    batches = []
    for start in range(0, program.records, program.batch):
        cut = [column[start : start + program.batch] for column in columns]
        mine = cut[0] % _SHARDS == part
        batches.append([(f"shard {part}", tuple(column[mine] for column in cut))])
    return batches


def _run(program: Program) -> tuple[float, int, float]:
    """All workers once: seconds, rows, and when the first row was there. One alone needs no process of its own."""
    for file in program.out.iterdir():
        file.unlink()
    if program.workers == 1:
        _told["began"].clear()
        run_main(flow(program))
        return _read(program)
    addresses = ";".join(f"127.0.0.1:{port}" for port in _free_ports(program.workers))
    environment = {**os.environ, _ARGUMENTS: shlex.join(sys.argv[1:])}
    workers = []
    for number in range(program.workers):
        command = [sys.executable, "-m", "bytewax.run", "bench.peers.bytewax_w1:flow()"]
        command += ["-i", str(number), "-a", addresses]
        workers.append(subprocess.Popen(command, env=environment))
    codes = [worker.wait() for worker in workers]
    if any(codes):
        raise SystemExit("a Bytewax worker failed")
    return _read(program)


def _read(program: Program) -> tuple[float, int, float]:
    told = [json.loads(file.read_text()) for file in Path(program.out).glob("worker-*.json")]
    seconds = max(each["last"] for each in told) - min(time for each in told for time in each["began"])
    return seconds, sum(each["rows"] for each in told), min(each["first"] for each in told if each["rows"])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


if __name__ == "__main__":
    asked = Program(IDIOMS)
    made = [_run(asked) for _ in range(asked.runs)]
    answer([seconds for seconds, _, _ in made], made[-1][1], first_at=made[0][2])
