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


SINKS = {
    "lines": ('tm.sinks.Lines("{}.ndjson", name="rows")', "out.ndjson"),
    "SQLite": ('tm.sinks.SQLite("{}.db", name="rows")', "out.db"),
    "Parquet": ('tm.sinks.Parquet("{}", name="rows")', "/out,"),
}


@pytest.mark.parametrize("sink", SINKS)
def test_a_check_refuses_an_output_that_is_elsewhere_than_its_rows_so_far(plant, sink):
    """As the start does, in its words."""
    folder = plant(ROLLING)
    (made, told) = SINKS[sink]
    text = (folder / "plant.py").read_text()
    for output, code in (("out", 0), ("elsewhere", 4)):
        (folder / "plant.py").write_text(text.replace('tm.sinks.Lines("out.ndjson")', made.format(output)))
        run = tidemill(folder, "run", "plant.py", "--state", "kept", "--lanes", "0")
        checked = tidemill(folder, "check", "plant.py", "--state", "kept")
        assert (run.returncode, checked.returncode) == (code, code), (run.stderr, checked.stderr)
    assert "up to now are in" in checked.stderr
    assert told in checked.stderr
    assert checked.stderr.splitlines()[-1] == run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("changed", "code", "told"),
    [
        (
            ', name="other")',
            4,
            "belongs to the pipeline 'plant', and this is 'other'. If it is the same, give it its name",
        ),
        (", max_keys=6)", 3, "has 7 sensors, and max_keys=6"),
        (", max_keys=7)", 0, ""),
    ],
)
def test_a_check_refuses_a_pipeline_that_the_state_is_not_for(plant, changed, code, told):
    """As the start does, in its words."""
    folder = plant(ROLLING)
    assert tidemill(folder, "run", "plant.py", "--state", "kept", "--lanes", "0").returncode == 0
    text = (folder / "plant.py").read_text()
    (folder / "plant.py").write_text(text.rstrip().removesuffix(")") + changed)
    checked = tidemill(folder, "check", "plant.py", "--state", "kept")
    assert checked.returncode == code, checked.stderr
    assert told in checked.stderr
    run = tidemill(folder, "run", "plant.py", "--state", "kept", "--lanes", "0")
    assert run.returncode == code
    assert told in run.stderr


def test_a_check_refuses_a_folder_that_cannot_serve_and_changes_nothing(plant):
    """Others may write to it, or it holds other things; what is not there yet is made by the start."""
    folder = plant(ROLLING)
    other = folder / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    checked = tidemill(folder, "check", "plant.py", "--state", "other")
    assert checked.returncode == 4
    assert "holds other things than a state" in checked.stderr
    assert tidemill(folder, "run", "plant.py", "--state", "kept", "--lanes", "0").returncode == 0
    kept = folder / "kept"
    kept.chmod(0o777)
    before = sorted((path, path.stat().st_mtime_ns) for path in kept.rglob("*"))
    checked = tidemill(folder, "check", "plant.py", "--state", "kept")
    assert checked.returncode == 4
    assert "may be written to by others; run chmod 700" in checked.stderr
    assert sorted((path, path.stat().st_mtime_ns) for path in kept.rglob("*")) == before
