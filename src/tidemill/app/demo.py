"""``tidemill demo``: a thousand synthetic sensors and this machine's own, into a database that can be read meanwhile."""

from __future__ import annotations

import datetime as dt
import logging
import math
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from tidemill import files, sinks, sources
from tidemill.app.exit_codes import ExitCode
from tidemill.app.logs import logging_to_stderr
from tidemill.app.running import ended
from tidemill.app.standard_streams import write_out
from tidemill.app.status import Watch, summary, watching
from tidemill.engine.entrance import run
from tidemill.engine.metrics import Statistics
from tidemill.engine.pipeline import Pipeline
from tidemill.engine.run import Run
from tidemill.errors import InputError
from tidemill.stages.calibrate import Calibrate
from tidemill.stages.map_rows import MapRows
from tidemill.stages.rolling import Rolling

__all__ = ["demo", "demo_pipeline", "surprise"]

SENSORS: Final = 1_000
MOST_BYTES: Final = 1_000_000_000
"""The demo ends by itself when its database is this large."""
LINE_EVERY_S: Final = 2.0
_COLUMNS_FIRST: Final = {"sensor", *(f"normalized_{stat}_50" for stat in ("mean", "std", "min", "max"))}
"""Of a demo's table as it is made, before there is a reading."""
_COLUMNS_LATER: Final = {"surprise", "alarm"}
"""Those that its function adds: of a demo that was stopped at once, the table has neither them nor rows."""
QUERY: Final = (
    "SELECT sensor, count(*) AS readings, round(avg(value), 2) AS mean, round(max(surprise), 2) AS most_surprising, "
    "sum(alarm) AS alarms FROM features GROUP BY sensor ORDER BY most_surprising DESC LIMIT 10"
)


def surprise(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How far each reading is from its own sensor's last 50, in their standard deviations. Plain Python, on purpose."""
    for record in records:
        distance = abs(record["normalized"] - record["normalized_mean_50"])
        spread = record["normalized_std_50"]
        known = spread is not None and spread > 0 and not math.isnan(distance)
        record["surprise"] = round(distance / spread, 4) if known else 0.0
        record["alarm"] = record["surprise"] > 5
    return records


def demo_pipeline(output: Path, rate: float) -> Pipeline:
    """Two sources, both of which begin now → calibrate → rolling(50) → a plain Python function → SQLite."""
    now = dt.datetime.now(dt.UTC).isoformat()
    return Pipeline(
        [
            sources.Synthetic(SENSORS, rate, shape="mixed", spikes=0.0005, gaps=0.001, start=now),
            sources.Host(interval=1.0),
        ],
        [
            Calibrate(calibration()),
            Rolling("normalized", window=50, stats=["mean", "std", "min", "max"]),
            MapRows(surprise),
        ],
        sinks.SQLite(output),
        name="demo",
    )


def calibration() -> dict[str, tuple[float, float]]:
    """Baseline and scale: this machine's byte counts in their own range, everything else around 20 by 5."""
    import psutil

    memory = psutil.virtual_memory().total / 2
    rates = dict.fromkeys(("disk.read", "disk.written", "net.sent", "net.received"), (0.0, 1e6))
    return {"*": (20.0, 5.0), "memory.available": (memory, memory), **rates}


def demo(*, seconds: float | None, rate: float, lanes: int | None, output: Path) -> ExitCode:
    """Run it, show it, and end with a summary and a query to paste."""
    pipeline = demo_pipeline(output, rate)
    Run(pipeline, lanes=lanes, seconds=seconds, state=False)  # what cannot be run costs no earlier demo its database
    remove_own(output)
    note = f"rows in {output} (readable now); Ctrl-C to stop"
    write_out(f"1,000 synthetic sensors at {rate:,.0f} records/s and this machine's own, into {output}\n")
    with (
        watching(sys.stdout, title="tidemill demo", line_every_s=LINE_EVERY_S, note=note) as watch,
        logging_to_stderr(),
    ):
        report = run(pipeline, lanes=lanes, seconds=seconds, on_statistics=_until_full(output, watch), state=False)
    write_out(f"\n{summary(report)}\nYour features, by sensor:\n\n  {paste(output)}\n")
    return ended(report)


def _until_full(output: Path, watch: Watch) -> Watch:
    """Show the statistics, and stop the run, as Ctrl-C would, when the database has become too large."""
    stopped = False

    def see(statistics: Statistics) -> None:
        nonlocal stopped
        watch(statistics)
        if not stopped and sum(part.stat().st_size for part in _parts(output) if part.exists()) >= MOST_BYTES:
            stopped = True
            logging.getLogger("tidemill").info("%s has reached %d MB; the demo ends", output, MOST_BYTES // 10**6)
            signal.raise_signal(signal.SIGINT)

    return see


def _parts(output: Path) -> list[Path]:
    """A SQLite database and the files that belong to it while it is written."""
    return [output, *(output.with_name(output.name + suffix) for suffix in ("-wal", "-shm"))]


def remove_own(output: Path) -> None:
    """Delete an earlier demo's database; raises `InputError` for a file that no demo made."""
    if not output.exists():
        return
    if not _is_own(output):
        raise InputError(f"{files.absolute(output)} is there and no demo made it; name another file with --output.")
    for part in _parts(output):
        part.unlink(missing_ok=True)


def _is_own(output: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"{output.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            columns = {row[1] for row in database.execute("PRAGMA table_info(features)")}
            if tables != ["features"] or not columns >= _COLUMNS_FIRST:
                return False
            return columns >= _COLUMNS_LATER or not database.execute("SELECT 1 FROM features LIMIT 1").fetchall()
    except sqlite3.Error:
        return False


def paste(output: Path) -> str:
    """A command that shows the features: with the sqlite3 program, or with Python where there is none."""
    if shutil.which("sqlite3"):
        return f'sqlite3 -column -header {_quoted(output)} "{QUERY}"'
    code = f"import sqlite3; [print(*row) for row in sqlite3.connect({str(output)!r}).execute({QUERY!r})]"
    return f'{_quoted(Path(sys.executable))} -c "{code}"'


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
