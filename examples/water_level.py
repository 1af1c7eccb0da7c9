"""Is a reading good? Quality flags of a tide gauge, by four tests of QARTOD, the manual of ocean observing systems.

python examples/water_level.py                    # an invented gauge; prints the readings that are not good
tidemill check examples/water_level.py            # what each stage adds, without running it

A real recording is a CSV file with columns time and sea_surface_height_above_sea_level (m), such as
water_level_example.csv of github.com/ioos/ioos_qc (folder docs/source/examples). On that one the flags are those of the
project's own program with the thresholds of its own example:

tidemill run examples/water_level.py --input water_level_example.csv --key '{stem}' --time time --output flags.parquet
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

import tidemill as tm

LEVEL = "sea_surface_height_above_sea_level"  # m
GOOD, UNKNOWN, SUSPECT, FAIL, MISSING = 1, 2, 3, 4, 9

STUCK = {4: SUSPECT, 7: FAIL}  # so many readings, one an hour, that differ by less than ..
TOLERANCE = 0.001  # m
TESTS = ("gross_range_test", "flat_line_test", "rate_of_change_test", "spike_test_before")


class Neighbours:
    """What a reading is beside the two before it. A test that needs the *next* reading is about the one before.

    A stream does not wait: a reading's row goes out at once, and the next row says whether it was a spike.
    """

    def __init__(self) -> None:
        self.level = np.full(2, np.nan)  # m
        self.time = np.zeros(2, np.int64)  # ns

    def update_many(self, batch: tm.Batch) -> dict[str, np.ndarray]:
        """Gets the records of one gauge that came together, in order; returns columns of ``len(batch)``.

        ``rate``          change since the reading before, m/s
        ``level_before``  the reading before, m
        ``spike_before``  how far that is from the middle between its neighbours, m
        """
        level = np.concatenate([self.level, batch[LEVEL]])
        time = np.concatenate([self.time, batch.time])
        self.level, self.time = level[-2:].copy(), time[-2:].copy()
        with np.errstate(divide="ignore"):  # two levels at one time: infinitely fast
            rate = np.abs(np.diff(level)[1:] / (np.diff(time)[1:] / 1e9))
        return {
            "rate": rate,
            "level_before": level[1:-1],
            "spike_before": np.abs(level[1:-1] - (level[:-2] + level[2:]) / 2),
        }


def flags(batch: tm.Batch) -> dict[str, np.ndarray]:
    """Each test's flag; of two that hold, the later one in its list."""
    level, spike = batch[LEVEL], batch["spike_before"]
    stuck = [(batch[f"{LEVEL}_max_{n}"] - batch[f"{LEVEL}_min_{n}"] < TOLERANCE, flag) for n, flag in STUCK.items()]
    return {
        "gross_range_test": flagged(level, (~between(level, -2, 3), SUSPECT), (~between(level, -10, 10), FAIL)),
        "flat_line_test": flagged(level, *stuck),
        "rate_of_change_test": flagged(level, (batch["rate"] > 0.001, SUSPECT)),
        "spike_test_before": flagged(
            batch["level_before"],
            (spike > 0.8, SUSPECT),
            (spike > 3, FAIL),
            (np.isnan(spike), UNKNOWN),
        ),
    }


def between(level: np.ndarray, low: float, high: float) -> np.ndarray:
    return (level >= low) & (level <= high)


def flagged(level: np.ndarray, *tests: tuple[np.ndarray, int]) -> np.ndarray:
    flag = np.full(len(level), GOOD)
    for holds, value in tests:
        flag[holds] = value
    flag[np.isnan(level)] = MISSING
    return flag


def gauge(hours: int = 500) -> Iterator[dict[str, Any]]:
    """A tide that does not exist; twice a wave hits the gauge, and once it freezes."""
    for hour in range(hours):
        level = 0.5 + 0.8 * np.sin(hour * 2 * np.pi / 12.42)
        if 200 <= hour < 220:
            level = 0.75
        elif hour in (100, 300):
            level += 4.0
        yield {"sensor": "harbour", "time": hour * 3600, LEVEL: round(float(level), 3)}


plan = tm.Plan(
    *(tm.Rolling(LEVEL, window=n, stats=["min", "max"], min_periods=n) for n in STUCK),
    tm.Keyed(Neighbours, columns=[LEVEL], adds=dict.fromkeys(["rate", "level_before", "spike_before"], float)),
    tm.Map(flags, adds=dict.fromkeys(TESTS, int)),
)
pipeline = tm.Pipeline(
    tm.sources.Records(gauge()),
    plan,
    tm.sinks.Lines(
        "-",
        where="gross_range_test > 1 or flat_line_test > 1 or rate_of_change_test > 1 or spike_test_before in (3, 4)",
        columns=["sensor", "time", LEVEL, *TESTS],
    ),
)

tm.run(pipeline)  # `tidemill run` reads the file up to here and starts the pipeline itself
