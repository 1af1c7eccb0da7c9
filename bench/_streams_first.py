"""In a fresh process: the clock's time at which tidemill's first row of a short W1 is at its sink."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

import tidemill as tm
from bench._streams_w1 import Readings, batches, plan

if __name__ == "__main__":
    folder, records = Path(sys.argv[1]), int(sys.argv[2])
    columns = {name: np.load(folder / f"{name}.npy") for name in ("sensor", "ts", "value", "mu", "sd")}
    readings = Readings(**columns)
    times: list[float] = []
    sink = tm.sinks.Callback(lambda _: times.append(time.clock_gettime(time.CLOCK_MONOTONIC)))
    tm.run(tm.Pipeline(tm.sources.Records(batches(readings, records), time="ts"), plan(readings), sink))
    print(json.dumps({"first_at": times[0]}))
