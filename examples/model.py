"""A recording through an ONNX model: rolling features, a score from the model, and the readings it finds strange.

python examples/model.py        # writes strange.db and prints what it found; needs tidemill[onnx]
"""

from pathlib import Path

import tidemill as tm

HERE = Path(__file__).parent

plan = tm.Plan(
    tm.Calibrate(HERE / "data" / "calibration.csv"),  # value -> normalized
    tm.Rolling("normalized", window=50, stats=["mean", "std"]),  # -> normalized_mean_50, normalized_std_50
    tm.Model(
        HERE / "models" / "scorer.onnx",
        inputs=["normalized", "normalized_mean_50", "normalized_std_50"],
        outputs=["score"],
    ),
    tm.Filter("score > 3"),
)
pipeline = tm.Pipeline(
    tm.sources.Replay(HERE / "data" / "plant.csv", time="timestamp"),
    plan,
    tm.sinks.SQLite("strange.db", table="strange", if_exists="replace"),
)

report = tm.run(pipeline)
print(f"{report.rows_out:,} of {report.records_in:,} readings are strange")
