"""A recording, calibrated, with rolling statistics and a feature in NumPy, into a database.

python examples/replay.py                                   # writes features.db
tidemill run examples/replay.py --output features.ndjson    # the same plan, another end
tidemill check examples/replay.py                           # what each stage adds, without running it
"""

from pathlib import Path

import numpy as np

import tidemill as tm

DATA = Path(__file__).parent / "data"


def alarm(batch: tm.Batch) -> dict[str, np.ndarray]:
    """Runs in a lane, a worker process: columns are read-only 1-D arrays of len(batch)."""
    far = np.abs(batch["normalized"] - batch["normalized_mean_50"])
    return {"surprise": far / np.maximum(batch["normalized_std_50"], 0.05)}


plan = tm.Plan(
    tm.Calibrate(DATA / "calibration.csv"),  # value -> normalized
    tm.Rolling("normalized", window=50, stats=["mean", "std"]),  # -> normalized_mean_50, normalized_std_50
    tm.Map(alarm),  # -> surprise
)
pipeline = tm.Pipeline(
    tm.sources.Replay(DATA / "plant.csv", time="timestamp"),
    plan,
    tm.sinks.SQLite("features.db", if_exists="replace"),
)

report = tm.run(pipeline)  # `tidemill run` reads the file up to here and starts the pipeline itself
print(f"{report.rows_out:,} rows in features.db")
