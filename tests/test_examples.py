"""Every example runs as a person would start it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


def start(name: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, EXAMPLES / name], cwd=folder, capture_output=True, text=True, timeout=100)  # noqa: PLW1510
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_replay_writes_features_to_a_database(tmp_path: Path) -> None:
    """The pump that lost pressure is the greatest surprise."""
    assert start("replay.py", tmp_path) == "940 rows in features.db\n"
    with contextlib.closing(sqlite3.connect(tmp_path / "features.db")) as database:
        ((sensor,),) = database.execute("SELECT sensor FROM features ORDER BY surprise DESC LIMIT 1")
    assert sensor == "pump-2"


def test_classic_keeps_every_field_and_adds_two(tmp_path: Path) -> None:
    """Names, order and values of the user's own fields as they came, and the function's two after them."""
    rows = [json.loads(line) for line in start("classic.py", tmp_path).splitlines()]
    assert len(rows) == 940
    assert list(rows[0]) == ["timestamp", "sensor", "value", "unit", "normalized", "feature"]
    assert rows[0]["normalized"] == round((rows[0]["value"] - 20) / 60, 4)


def test_in_app_serves_and_stops(tmp_path: Path) -> None:
    """Readings over TCP, the newest features out of `Latest`."""
    assert start("in_app.py", tmp_path).splitlines() == [
        f"{name}: last 59.0, mean of 50 34.5, max 59.0" for name in ("boiler-1", "boiler-2", "pump-1")
    ]


def test_anomaly_tells_when_the_pump_lost_pressure(tmp_path: Path) -> None:
    """Five readings stand out, all of them in that half minute."""
    rows = [line.split() for line in start("anomaly.py", tmp_path).splitlines()]
    assert len(rows) == 5
    assert {sensor for _, sensor, _, _ in rows} == {"pump-2"}
    assert all("06:05:00" <= timestamp[11:19] < "06:05:30" for timestamp, _, _, _ in rows)


def test_ecg_counts_the_beats_of_two_patients(tmp_path: Path) -> None:
    """Sixty and ninety a minute: every one is found but the last, which ends with the recording."""
    rows = [json.loads(line) for line in start("ecg.py", tmp_path).splitlines()]
    for bed, bpm in (("bed-1", 60), ("bed-2", 90)):
        beats = [row for row in rows if row["sensor"] == bed]
        places = [row["time"] - row["ago_s"] for row in beats]
        assert places == pytest.approx(
            [(0.5 + number) * 60 / bpm for number in range(20 * bpm // 60)][: len(beats)], abs=0.01
        )
        assert len(beats) >= 20 * bpm // 60 - 1
        assert [row["bpm"] for row in beats[1:]] == pytest.approx([bpm] * (len(beats) - 1), abs=3)


def test_water_level_prints_what_is_not_good(tmp_path: Path) -> None:
    """A wave: too fast both ways, out of range, a spike, with which the next row comes out. Then the frozen gauge."""
    rows = [json.loads(line) for line in start("water_level.py", tmp_path).splitlines()]
    waves = [row for row in rows if row["flat_line_test"] == 1]
    assert [row["time"] // 3_600 for row in waves] == [100, 101, 102, 300, 301, 302]
    assert [row["spike_test_before"] for row in waves] == [3, 4, 3] * 2
    stuck = [row for row in rows if row["flat_line_test"] > 1]
    assert [row["time"] // 3_600 for row in stuck] == list(range(203, 220))
    assert [row["flat_line_test"] for row in stuck] == [3] * 3 + [4] * 14


def test_model_finds_the_strange_readings(tmp_path: Path) -> None:
    """Rolling features through an ONNX model, and what it scores high into a database."""
    told = start("model.py", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "strange.db")) as database:
        scores = database.execute(
            "SELECT score, normalized, normalized_mean_50, normalized_std_50 FROM strange"
        ).fetchall()
    assert told == f"{len(scores)} of 940 readings are strange\n"
    assert scores
    for score, reading, mean, std in scores:
        assert score == pytest.approx(abs(reading - mean) / max(std, 0.05), rel=1e-4)


def test_every_example_is_tested() -> None:
    """A new example needs a test here."""
    tested = {"anomaly.py", "classic.py", "ecg.py", "in_app.py", "model.py", "replay.py", "water_level.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


@pytest.mark.parametrize("name", ["plant.csv", "calibration.csv"])
def test_the_data_is_what_its_maker_makes(tmp_path: Path, name: str) -> None:
    """The committed files can be made again, byte by byte."""
    maker = tmp_path / "make.py"
    maker.write_text((EXAMPLES / "data" / "make.py").read_text())
    subprocess.run([sys.executable, maker], check=True)
    assert (tmp_path / name).read_bytes() == (EXAMPLES / "data" / name).read_bytes()
