"""Every example runs as a person would start it."""

from __future__ import annotations

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
    with sqlite3.connect(tmp_path / "features.db") as database:
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


def test_model_finds_the_strange_readings(tmp_path: Path) -> None:
    """Rolling features through an ONNX model, and what it scores high into a database."""
    told = start("model.py", tmp_path)
    with sqlite3.connect(tmp_path / "strange.db") as database:
        scores = database.execute(
            "SELECT score, normalized, normalized_mean_50, normalized_std_50 FROM strange"
        ).fetchall()
    assert told == f"{len(scores)} of 940 readings are strange\n"
    assert scores
    for score, reading, mean, std in scores:
        assert score == pytest.approx(abs(reading - mean) / max(std, 0.05), rel=1e-4)


def test_every_example_is_tested() -> None:
    """A new example needs a test here."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"replay.py", "classic.py", "in_app.py", "model.py"}


@pytest.mark.parametrize("name", ["plant.csv", "calibration.csv"])
def test_the_data_is_what_its_maker_makes(tmp_path: Path, name: str) -> None:
    """The committed files can be made again, byte by byte."""
    maker = tmp_path / "make.py"
    maker.write_text((EXAMPLES / "data" / "make.py").read_text())
    subprocess.run([sys.executable, maker], check=True)
    assert (tmp_path / name).read_bytes() == (EXAMPLES / "data" / name).read_bytes()
