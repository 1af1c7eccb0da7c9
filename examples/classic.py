"""A function on lists of dicts, as people already have them, over every core and unchanged.

python examples/classic.py      # prints NDJSON: the records as they came, and two new fields
"""

import math
from pathlib import Path
from typing import Any

import tidemill as tm

DATA = Path(__file__).parent / "data"


def features(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Plain Python, written long before tidemill: no NumPy, no columns, no imports from tidemill."""
    for record in records:
        record["normalized"] = round((record["value"] - 20) / 60, 4)
        record["feature"] = round(math.sqrt(abs(record["normalized"])) * math.log(abs(record["value"]) + 1), 4)
    return records


pipeline = tm.Pipeline(
    tm.sources.Replay(DATA / "plant.csv", time="timestamp"),
    tm.MapRows(features),
    tm.sinks.Lines("-"),
)

tm.run(pipeline)
