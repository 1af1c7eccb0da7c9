"""State on the command line: run, check, checkpoint, log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PLANT = """
import tidemill as tm
plan = tm.Plan({stages})
pipeline = tm.Pipeline(tm.sources.Replay("in.ndjson"), plan, tm.sinks.Lines("out.ndjson"))
"""
ROLLING = 'tm.Rolling("value", window=50, stats=["mean"])'


@pytest.fixture
def plant(tmp_path):
    rows = [{"sensor": f"S{n % 7}", "time": n, "value": n % 13} for n in range(500)]
    (tmp_path / "in.ndjson").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(*stages: str) -> Path:
        (tmp_path / "plant.py").write_text(PLANT.format(stages=", ".join(stages)))
        return tmp_path

    write(ROLLING, 'tm.Lag("value")')
    return write


def tidemill(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tidemill", *words], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_run_with_state_is_resumed_and_a_changed_plan_asked_about_first(plant):
    folder = plant(ROLLING, 'tm.Lag("value")')
    assert tidemill(folder, "run", "plant.py", "--state", "kept", "--lanes", "1").returncode == 0
    plant(ROLLING, 'tm.Diff("value")')
    asked = tidemill(folder, "check", "plant.py", "--state", "kept")
    assert asked.returncode == 3
    assert "resume: Rolling('value', 50) keeps, Diff('value') starts empty, Lag('value') is dropped" in asked.stdout
    assert "exactly-once" in asked.stdout
    assert "--drop-state \"Lag('value')\"" in asked.stderr
    assert tidemill(folder, "check", "plant.py", "--state", "kept", "--drop-state", "Lag('value')").returncode == 0
    assert tidemill(folder, "run", "plant.py", "--state", "kept", "--lanes", "1").returncode == 3
    again = tidemill(folder, "run", "plant.py", "--state", "kept", "--lanes", "1", "--drop-state", "Lag('value')")
    assert again.returncode == 0
    assert "there is nothing left to do" in again.stderr


def test_to_start_over_moves_the_state_aside_and_leaves_the_output_alone(plant):
    """With the output still there nothing is started over, and all stays as it was."""
    folder = plant(ROLLING)
    run = ("run", "plant.py", "--state", "kept", "--lanes", "0")
    assert tidemill(folder, *run).returncode == 0
    refused = tidemill(folder, *run, "--fresh")
    assert refused.returncode == 4
    assert 'if_exists="append"' in refused.stderr
    assert not (folder / "kept.old-1").exists()
    assert len((folder / "out.ndjson").read_text().splitlines()) == 500
    (folder / "out.ndjson").rename(folder / "before.ndjson")
    assert tidemill(folder, *run, "--fresh").returncode == 0
    assert (folder / "kept.old-1" / "checkpoints").is_dir()
    assert (folder / "out.ndjson").read_text() == (folder / "before.ndjson").read_text()


def test_what_a_state_folder_holds_is_told(plant):
    folder = plant(ROLLING)
    assert tidemill(folder, "run", "plant.py", "--state", "kept", "--lanes", "0").returncode == 0
    listed = tidemill(folder, "checkpoint", "kept", "--verify")
    assert listed.returncode == 0
    assert "whole" in listed.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--no-state", "--fresh"), "--no-state keeps nothing"),
        (("--checkpoint-s", "5"), "name the folder with --state DIR"),
        (("--fresh",), "name the folder with --state DIR"),
        (("--state", "kept", "--checkpoint-s", "0"), "checkpoint_s=0"),
        (("--state", "plant.py"), "is a file"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_a_sentence(plant, words, told):
    folder = plant(ROLLING)
    refused = tidemill(folder, "run", "plant.py", *words)
    assert refused.returncode in {3, 4}
    assert told in refused.stderr
    assert not (folder / "out.ndjson").exists()
