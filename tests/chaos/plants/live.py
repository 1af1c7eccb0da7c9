"""The plant on line: sensors send over TCP. What it writes is in the current folder, the port that it listens on in ``port``,
where it shows its pages in ``pages``.

PLANT_SINKS       which sinks: those of the plant on record
PLANT_LANES       how many lanes
PLANT_CHECKPOINT  seconds from one checkpoint to the next
PLANT_METRICS     where it shows its pages; nowhere where this is not set
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np

import tidemill as tm


def drift(state: float, record: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """A state of each sensor that remembers every reading there was."""
    state = 0.9 * state + record["value"]
    return state, {"drift": state}


def leaked(batch: Any) -> dict[str, Any]:
    """Looks at a field that few records have, and most reads do not bring: it is there all the same."""
    return {"leaked": np.nan_to_num(batch["leak"])}


PLAN = tm.Plan(
    tm.Map(leaked, adds={"leaked": float}),
    tm.Select("sensor", "time", "value", "n", "leaked"),
    tm.Calibrate([{"sensor": "*", "baseline": 20.0, "scale": 3.0}]),
    tm.Rolling("normalized", window=50, stats=["mean", "std"]),
    tm.Lag("value"),
    tm.scan(drift, 0.0, columns=["value"], adds={"drift": float}),
)
OPEN = {
    "sqlite": lambda: tm.sinks.SQLite("rows.db", name="sqlite"),
    "parquet": lambda: tm.sinks.Parquet("rows", name="parquet"),
    "postgres": lambda: tm.sinks.PostgreSQL(os.environ["PLANT_POSTGRES"], os.environ["PLANT_TABLE"], name="postgres"),
    **{
        name: lambda name=name: tm.sinks.Lines(f"rows.{name}", name=name)
        for name in ("ndjson", "csv", "ndjson.gz", "csv.gz")
    },
}


async def main() -> None:
    """Run until a signal comes; what is told has a name that is there at once or not at all."""
    source = tm.sources.TCP(ack=True)
    sinks = [OPEN[name]() for name in os.environ["PLANT_SINKS"].split(",")]
    state = tm.State("state", checkpoint_s=float(os.environ["PLANT_CHECKPOINT"]))
    pipeline = tm.Pipeline(source, PLAN, sinks, name="plant")
    options: Any = {"lanes": int(os.environ["PLANT_LANES"]), "metrics": os.environ.get("PLANT_METRICS") or False}
    async with tm.serve(pipeline, state=state, handle_signals=True, **options) as run:
        await source.wait_listening()
        tell("pages", run.metrics_url)
        tell("port", str(source.port))
        await run.wait()


def tell(name: str, what: str) -> None:
    """To whoever wants to send, or to look."""
    hidden = Path(f".{name}")
    hidden.write_text(what)
    hidden.rename(name)


if __name__ == "__main__":
    asyncio.run(main())
