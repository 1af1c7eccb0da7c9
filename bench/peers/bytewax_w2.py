"""W2 in Bytewax: ``python -m bench.peers.bytewax_w2 RATE SECONDS``; one worker, which has no loop of its own to be late."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import numpy as np
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from bench.peers import _w2
from bench.peers._w1 import Afresh

_late: list[float] = []


class Due(StatelessSourcePartition):
    def __init__(self, pace: _w2.Pace) -> None:
        self.pace = pace
        self.keys = [f"S{number}" for number in range(_w2.SENSORS)]

    def next_batch(self) -> list[Any]:
        pace, keys = self.pace, self.keys
        if pace.over:
            raise StopIteration
        return [(keys[pace.sensors[number]], (pace.created(number), pace.values[number])) for number in pace.due()]

    def next_awake(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=_w2.TICK_S)


class Source(DynamicSource):
    def __init__(self, pace: _w2.Pace) -> None:
        self.pace = pace

    def build(self, step_id: str, worker_index: int, worker_count: int) -> Due:
        return Due(self.pace)


class Roll(StatefulBatchLogic):
    def __init__(self) -> None:
        self.add = Afresh().add

    def on_batch(self, values: list[Any]) -> tuple[list[Any], bool]:
        add = self.add
        return [
            (created, (value - 20.0) / 60.0, *add((value - 20.0) / 60.0)) for created, value in values
        ], StatefulBatchLogic.RETAIN

    def snapshot(self) -> None:
        return None


class Watch(StatelessSinkPartition):
    def write_batch(self, items: list[Any]) -> None:
        now = time.perf_counter()
        _late.extend([now - made[0] for _, made in items])


class Sink(DynamicSink):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> Watch:
        return Watch()


if __name__ == "__main__":
    flow = Dataflow("w2")
    stream = op.input("in", flow, Source(_w2.Pace(float(sys.argv[1]), float(sys.argv[2]))))
    stream = op.stateful_batch("roll", stream, lambda _: Roll())
    op.output("out", stream, Sink())
    run_main(flow)
    print(json.dumps(_w2.told(np.array(_late))))
