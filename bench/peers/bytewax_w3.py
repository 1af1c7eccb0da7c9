"""W3 in Bytewax: ``python -m bench.peers.bytewax_w3 ROUNDS RECORDS WORKERS``, a process per worker.

Each worker is a program of its own with its own part of the input, so that nothing crosses between them; their rates,
each from its first batch to its last row, are added.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from bench.peers._w1 import answer, now
from bench.peers._w3 import heavy, records_of

_BATCH = 20
_told: dict[str, Any] = {"began": 0.0, "rows": 0}


class Part(StatelessSourcePartition):
    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.batches = iter([records[start : start + _BATCH] for start in range(0, len(records), _BATCH)])

    def next_batch(self) -> list[dict[str, Any]]:
        _told["began"] = _told["began"] or now()
        batch = next(self.batches, None)
        if batch is None:
            raise StopIteration
        return batch


class Source(DynamicSource):
    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.records = records

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Part:
        return Part(self.records)


class Count(StatelessSinkPartition):
    def write_batch(self, items: list[Any]) -> None:
        _told["rows"] += len(items)
        _told["last"] = now()


class Sink(DynamicSink):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> Count:
        return Count()


def worker(rounds: int, records: list[dict[str, Any]]) -> None:
    flow = Dataflow("w3")
    stream = op.input("in", flow, Source(records))
    stream = op.map("heavy", stream, lambda record: {**record, "smoothed": heavy(record["value"], rounds)})
    op.output("out", stream, Sink())
    run_main(flow)
    print(json.dumps(_told), flush=True)


def main(rounds: int, count: int, workers: int, part: int | None = None) -> None:
    if part is not None:
        worker(rounds, records_of(count)[part::workers])
        return
    command = [sys.executable, "-m", "bench.peers.bytewax_w3", str(rounds), str(count), str(workers)]
    running = [subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE) for number in range(workers)]
    told = [json.loads(each.communicate()[0].splitlines()[-1]) for each in running]
    rows = sum(each["rows"] for each in told)
    answer([rows / sum(each["rows"] / (each["last"] - each["began"]) for each in told)], rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
