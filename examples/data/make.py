"""Makes plant.csv and calibration.csv beside this file: eight sensors of an imaginary plant, ten minutes, seeded."""

from __future__ import annotations

import csv
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

HERE = Path(__file__).parent
START = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)
SENSORS = {  # name: (baseline, scale, unit)
    "boiler-1": (82.0, 6.0, "C"),
    "boiler-2": (79.5, 6.0, "C"),
    "inlet-1": (14.0, 2.5, "C"),
    "inlet-2": (13.5, 2.5, "C"),
    "pump-1": (3.2, 0.4, "bar"),
    "pump-2": (3.1, 0.4, "bar"),
    "flow-1": (41.0, 5.0, "l/min"),
    "flow-2": (38.0, 5.0, "l/min"),
}


def main() -> None:
    chance = random.Random(2026)
    with (HERE / "calibration.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sensor", "baseline", "scale"])
        writer.writerows([name, baseline, scale] for name, (baseline, scale, _) in SENSORS.items())
    with (HERE / "plant.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["timestamp", "sensor", "value", "unit"])
        for second in range(0, 600, 5):
            for index, (name, (baseline, scale, unit)) in enumerate(SENSORS.items()):
                if chance.random() < 0.02:
                    continue  # a reading that never arrived
                wave = math.sin(second / 60 + index)
                value = baseline + scale * (0.5 * wave + chance.gauss(0, 0.15))
                if name == "pump-2" and 300 <= second < 330:
                    value -= 6 * scale  # it loses pressure for half a minute
                moment = START + timedelta(seconds=second, milliseconds=100 * index)
                writer.writerow([moment.isoformat(timespec="milliseconds"), name, f"{value:.3f}", unit])


if __name__ == "__main__":
    main()
