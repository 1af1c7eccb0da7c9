r"""How unusual each reading is for its sensor: a score with memory, one object per sensor.

python examples/anomaly.py                                 # the example plant; prints when a pump lost pressure
tidemill run examples/anomaly.py --output scores.ndjson    # every reading with its score

Any recording with a column ``value`` will do. For the streams of the Numenta Anomaly Benchmark (github.com/numenta/NAB,
folder data/realKnownCause), each file one sensor, the scores are those that it publishes for its windowedGaussian:

tidemill run examples/anomaly.py --input ambient_temperature_system_failure.csv --key '{stem}' --time timestamp \
    --output scores.parquet
"""

import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

import tidemill as tm

DATA = Path(__file__).parent / "data"


class WindowedGaussian:
    """How improbable a value is under the normal distribution of those before it: 0.5 for the mean itself, to 1.

    The first ``window`` values are learned from one by one; after that the oldest ``step`` of the window give way to
    as many new ones at a time. The score of a value uses what was learned before it, so it depends on nothing but the
    sensor's own past.
    """

    def __init__(self, window: int = 6_400, step: int = 100) -> None:
        self.values = np.empty(window + step)  # the window, and behind it those that wait to get into it
        self.window, self.step = window, step
        self.count = 0  # of them
        self.mean, self.std = 0.0, 1.0

    def update(self, record: dict[str, Any]) -> dict[str, float]:
        """Gets the sensor's next record; returns its score, and from how many values that was learned."""
        value = float(record["value"])
        made = {"score": self.score(value) if self.count else 0.0, "learned": self.count}
        self.learn(value)
        return made

    def score(self, value: float) -> float:
        """1 - Q(distance from the mean, in standard deviations); Q is the normal distribution's upper tail."""
        return 1.0 - 0.5 * math.erfc(abs(value - self.mean) / (self.std * math.sqrt(2)))

    def learn(self, value: float) -> None:
        """The distribution is fitted afresh each time: no error builds up, however long it runs."""
        self.values[self.count] = value
        self.count += 1
        if self.count == len(self.values):
            self.values[: self.window] = self.values[self.step :]
            self.count = self.window
        elif self.count > self.window:
            return  # it waits
        known = self.values[: self.count]
        self.mean, self.std = float(known.mean()), float(known.std()) or 1e-6

    def snapshot(self) -> tuple[np.ndarray, float, float]:
        """What is kept outside of the lane. It may be left out, and then the whole object is: here, its free room too."""
        return self.values[: self.count], self.mean, self.std

    def restore(self, snapshot: tuple[np.ndarray, float, float]) -> None:
        """Be what the object was, in a new one: the lane that had it died."""
        known, self.mean, self.std = snapshot
        self.count = len(known)
        self.values[: self.count] = known


plan = tm.Plan(
    tm.Keyed(WindowedGaussian, columns=["value"], adds={"score": float, "learned": int}),
)
pipeline = tm.Pipeline(
    tm.sources.Replay(DATA / "plant.csv", time="timestamp"),
    plan,
    tm.sinks.SQLite("scores.db", if_exists="replace"),
)

tm.run(pipeline)  # `tidemill run` reads the file up to here and starts the pipeline itself

STOOD_OUT = "SELECT timestamp, sensor, value, score FROM features WHERE score > 0.9999 AND learned >= 20"
with closing(sqlite3.connect("scores.db")) as scores:
    for row in scores.execute(STOOD_OUT):
        print(*row)
