"""The plant: recordings that have everything a plant's have, and the command that runs the pipeline over one."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORDED = HERE / "plants" / "recorded.py"
POISON = 999.0
FILE_SINKS = ("sqlite", "ndjson", "csv", "ndjson.gz", "parquet")
"""Every exactly-once sink that needs no server; PostgreSQL is the sixth."""

_GARBAGE = ("no json", '{"sensor": "S1", "time": ', '{"time": 1.0, "value": 2.0}', "[]", "", "\x00\x00")


def lines_of(records: int, seed: int, sensors: int = 200) -> list[str]:
    """NDJSON: some sensors talk much more than others, some fall silent; one record in fifty is sent twice, to the bit,
    at once or a little later; the clock steps back now and then; some lines are no records, some readings no numbers."""
    rng = np.random.default_rng(seed)
    share = 1.0 / (1.0 + np.arange(sensors))
    chosen = rng.choice(sensors, records, p=share / share.sum())
    steps = rng.exponential(max(0.02, 200.0 / records), records)
    steps[rng.random(records) < 0.002] = -5.0
    times = 1.7e9 + np.cumsum(steps)
    values = np.round(20.0 + 5.0 * rng.standard_normal(records), 3)
    values[rng.random(records) < 0.001] = POISON
    fate = rng.random(records)
    lines: list[str] = []
    again: list[str] = []
    for n in range(records):
        line = json.dumps(
            {"sensor": f"S{chosen[n]}", "time": round(float(times[n]), 3), "value": float(values[n]), "n": n}
        )
        lines.append(line)
        if fate[n] < 0.01:
            lines.append(line)
        elif fate[n] < 0.02:
            again.append(line)
        elif fate[n] < 0.023 and n > 10:
            lines.append(_GARBAGE[n % len(_GARBAGE)])
        elif fate[n] < 0.024 and n > 10:
            lines.append(json.dumps({"sensor": "S0", "time": float(times[n]), "value": "n/a", "n": n}))
        if len(again) == 5:
            lines += again
            again.clear()
    return lines


@dataclass(frozen=True)
class Plant:
    """One folder with a recording, and the pipeline over it."""

    folder: Path
    input: Path
    sinks: tuple[str, ...] = FILE_SINKS
    plan: str = "rows"
    lanes: int = 2
    work: float = 0.0
    """Seconds a record takes in a lane."""
    checkpoint_s: float = 0.2
    file: Path = RECORDED
    more: Mapping[str, str] = field(default_factory=dict)
    """Of the environment."""
    options: Sequence[str] = ()
    """Of the command line."""

    @classmethod
    def recorded(cls, folder: Path, records: int, seed: int, *, suffix: str = "ndjson", **kept: Any) -> Plant:
        """A new folder with a new recording."""
        folder.mkdir(parents=True)
        input_ = folder / f"plant.{suffix}"
        lines = lines_of(records, seed)
        if suffix == "csv":
            with input_.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["sensor", "time", "value", "n"])
                for row in map(_parsed, lines):
                    writer.writerow(
                        ["no", "csv"]
                        if row is None
                        else [row.get(name, "") for name in ("sensor", "time", "value", "n")]
                    )
        else:
            input_.write_text("".join(f"{line}\n" for line in lines))
        rng = np.random.default_rng(seed + 1)
        rows = [f"S{n},{20 + rng.integers(5)},{1 + rng.integers(9)}" for n in range(200)]
        (folder / "calibration.csv").write_text("\n".join(["sensor,baseline,scale", *rows, ""]))
        return cls(folder, input_, **kept)

    def beside(self, name: str, **changed: Any) -> Plant:
        """The same over the same recording, in a folder of its own beside this one."""
        folder = self.folder.parent / name
        folder.mkdir()
        shutil.copy(self.folder / "calibration.csv", folder)
        return replace(self, folder=folder, **changed)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def command(self, *, keep: bool = True) -> list[str]:
        """What a person would type."""
        state = ["--state", "state", "--checkpoint-s", str(self.checkpoint_s)] if keep else ["--no-state"]
        return [
            sys.executable,
            "-m",
            "tidemill",
            "run",
            str(self.file),
            "--lanes",
            str(self.lanes),
            *state,
            *self.options,
        ]

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "PLANT_INPUT": str(self.input),
            "PLANT_SINKS": ",".join(self.sinks),
            "PLANT_WORK": str(self.work),
            "PLANT_PLAN": self.plan,
            **self.more,
        }


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "sensor" in row else None
