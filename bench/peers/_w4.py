"""W4, for all: a recording of a thousand sensors, the mean of each one's last 50 values as lines, and what is wrong with a file
of them after the run was killed."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SENSORS = 1_000
WINDOW = 50
_NEAR = 1e-9


@dataclass(frozen=True)
class Recording:
    """Records numbered from 0, on disk, and the mean that belongs to each."""

    path: Path
    means: np.ndarray

    @classmethod
    def of(cls, path: Path, records: int, seed: int = 0) -> Recording:
        random = np.random.default_rng(seed)
        sensors = random.integers(0, SENSORS, records).tolist()
        values = random.normal(50, 15, records).round(6).tolist()
        windows: list[deque[float]] = [deque(maxlen=WINDOW) for _ in range(SENSORS)]
        means = np.empty(records)
        with path.open("w", encoding="utf-8") as file:
            for number, (sensor, value) in enumerate(zip(sensors, values, strict=True)):
                window = windows[sensor]
                window.append(value)
                means[number] = sum(window) / len(window)
                file.write(f'{{"sensor":"S{sensor}","time":{number / 1000},"seq":{number},"value":{value}}}\n')
        return cls(path, means)

    def __len__(self) -> int:
        return len(self.means)

    def judge(self, rows: Iterable[tuple[int, float] | None]) -> Verdict:
        """Rows of number and mean, as they were found; None for one that is none."""
        seen = np.zeros(len(self), np.int64)
        wrong = 0
        for row in rows:
            if row is None:
                wrong += 1
                continue
            number, mean = row
            seen[number] += 1
            wrong += abs(mean - self.means[number]) > _NEAR
        return Verdict(int((seen == 0).sum()), int((seen > 1).sum()), int(seen.sum() - (seen > 0).sum()), int(wrong))


@dataclass(frozen=True)
class Verdict:
    """What is wrong with an output."""

    lost: int
    """Records without a row."""
    doubled: int
    """Records with more than one row."""
    surplus: int
    """Rows above one for each record."""
    wrong: int
    """Rows with another mean, and lines that were torn."""


def rows_of_lines(path: Path) -> Iterable[tuple[int, float] | None]:
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                yield None
            else:
                yield row["seq"], row["value_mean_50"]
