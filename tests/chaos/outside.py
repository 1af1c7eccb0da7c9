"""How far a plant is, from outside: what its sinks have committed, and what is in its state folder."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.chaos.plant import Plant

_NOTES = {"ndjson": "position.json", "ndjson.gz": "position.json", "csv": "position.json", "csv.gz": "position.json",
          "parquet": "manifest.json"}  # fmt: skip


def position(plant: Plant) -> int:
    """The least position that a sink has committed; 0 where that cannot be seen."""
    return min((position_of(plant, sink) for sink in plant.sinks), default=0)


def position_of(plant: Plant, sink: str) -> int:
    """What one sink has committed."""
    if sink == "sqlite":
        return _of_sqlite(plant.folder / "rows.db")
    if sink == "postgres":
        return _of_postgres(plant.more["PLANT_POSTGRES"])
    return int(_note(_folder_of(plant, sink) / _NOTES[sink]).get("position", 0))


def _folder_of(plant: Plant, sink: str) -> Path:
    """The sink's own in the state folder: named like it, with what a name of a folder should not have quoted."""
    folders = plant.state / "sinks"
    with contextlib.suppress(OSError, StopIteration):
        return folders / next(name for name in os.listdir(folders) if unquote(name) == sink)  # noqa: PTH208 - the quickest
    return folders / sink


def _of_sqlite(path: Path) -> int:
    if not path.exists():
        return 0
    with contextlib.suppress(sqlite3.Error):
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.2)
        try:
            found = connection.execute("SELECT max(position) FROM tidemill_positions").fetchone()
            return found[0] or 0
        finally:
            connection.close()
    return 0


def _of_postgres(database: str) -> int:
    import psycopg

    with contextlib.suppress(psycopg.Error), psycopg.connect(database) as connection:
        found = connection.execute("SELECT max(position) FROM tidemill_positions").fetchone()
        return (found and found[0]) or 0
    return 0


def _note(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, KeyError):
        first = path.read_bytes().split(b"\n")[0]
        note: dict[str, Any] = json.loads(first)["note"]
        return note
    return {}


def epoch(plant: Plant) -> int:
    """How often the engine has begun."""
    with contextlib.suppress(OSError, ValueError):
        return int((plant.state / "epoch").read_text())
    return 0


def half_written(plant: Plant) -> list[str]:
    """Checkpoints that have begun to be written and are not published."""
    with contextlib.suppress(OSError):
        return [path.name for path in (plant.state / "checkpoints").iterdir() if path.name.startswith(".")]
    return []


def checkpoints(plant: Plant) -> list[str]:
    """Those that are published."""
    with contextlib.suppress(OSError):
        return sorted(path.name for path in (plant.state / "checkpoints").iterdir() if not path.name.startswith("."))
    return []
