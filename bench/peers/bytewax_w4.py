"""W4 in Bytewax, in its documented way: files as source and sink, which know their place, and recovery partitions.

``python -m bytewax.recovery STORE 1`` once, then ``python -m bytewax.run bench.peers.bytewax_w4:flow('IN','OUT') -r STORE -s 1
-b 0``, and the same again after a kill.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import bytewax.operators as op
from bytewax.connectors.files import FileSink, FileSource
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic

from bench.peers._w4 import WINDOW


class Mean(StatefulBatchLogic):
    """The mean of one sensor's last values; a batch at a time, which is Bytewax's fastest way to call Python."""

    def __init__(self, resumed: list[float] | None) -> None:
        self.window = deque(resumed or (), WINDOW)

    def on_batch(self, values: list[Any]) -> tuple[list[str], bool]:
        window = self.window
        out = []
        for record in values:
            window.append(record["value"])
            record["value_mean_50"] = sum(window) / len(window)
            out.append(json.dumps(record))
        return out, StatefulBatchLogic.RETAIN

    def snapshot(self) -> list[float]:
        return list(self.window)


def _keyed(line: str) -> tuple[str, dict[str, Any]]:
    record = json.loads(line)
    return record["sensor"], record


def flow(source: str, out: str) -> Dataflow:
    made = Dataflow("w4")
    lines = op.input("in", made, FileSource(source, batch_size=10_000))
    records = op.map("keyed", lines, _keyed)
    rows = op.stateful_batch("mean", records, Mean)
    op.output("out", rows, FileSink(out))
    return made
