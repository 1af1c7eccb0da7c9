"""Asking the command line things: versions, help, and words it does not know."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tidemill as tm


@pytest.mark.parametrize("words", [["--version"]])
def test_the_version_is_told(tidemill, words) -> None:
    """On stdout, with the name, and nothing else."""
    told = tidemill(*words)
    assert (told.returncode, told.stdout, told.stderr) == (0, f"tidemill {tm.__version__}\n", "")


def test_the_installed_command_is_the_module() -> None:
    """``tidemill`` and ``python -m tidemill`` are one program."""
    told = subprocess.run([Path(sys.executable).parent / "tidemill", "--version"], capture_output=True, text=True)  # noqa: PLW1510
    assert told.stdout == f"tidemill {tm.__version__}\n"


def test_help_names_the_commands_and_their_options(tidemill) -> None:
    """Every option of the documentation is in the help, with a sentence."""
    assert all(command in tidemill("--help").stdout for command in ("run", "check", "demo", "--version"))
    told = tidemill("run", "--help").stdout
    options = [
        "input",
        "output",
        "key",
        "time",
        "tz",
        "lanes",
        "seconds",
        "report",
        "dead-letters",
        "grace",
        "if-exists",
        "debug",
    ]
    assert all(f"--{option}" in told for option in options)


@pytest.mark.parametrize(
    "words",
    [["run"], ["run", "x.py", "--lames", "2"], ["run", "x.py", "--lanes", "two"], ["rum", "x.py"], ["--seconds"]],
)
def test_what_is_not_understood_ends_with_2(tidemill, words) -> None:
    """One line on stderr, no traceback, nothing run."""
    told = tidemill(*words)
    assert told.returncode == 2
    assert told.stdout == ""
    assert "Traceback" not in told.stderr
    assert told.stderr.startswith("tidemill: ")
    assert told.stderr.count("\n") == 1


def test_check_prints_the_pipeline_and_runs_nothing(tidemill, examples, tmp_path) -> None:
    """Stages with what they add, kinds of columns, lanes and memory; no file is made."""
    told = tidemill("check", examples / "replay.py", "--lanes", 3)
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    for words in (
        "timestamp: text",
        "value: float",
        "+ normalized: float",
        "normalized_std_50: float",
        "lanes",
        "3",
        "for each sensor",
    ):
        assert words in told.stdout, words
    assert list(tmp_path.iterdir()) == []


def test_check_says_that_the_output_is_in_the_way(tidemill, examples, write) -> None:
    """Of a run, that is: a check writes nothing, so it goes on and ends well. A place that cannot be is another matter."""
    write("there.csv", "x\n")
    told = tidemill("check", examples / "replay.py", "--output", "there.csv")
    assert told.returncode == 0
    assert "+ normalized: float" in told.stdout
    assert told.stderr.startswith("tidemill: a run would not begin: ")
    assert "there.csv already exists; add --if-exists append" in told.stderr
    told = tidemill("check", examples / "replay.py", "--output", "nowhere/there.csv")
    assert told.returncode == 4
    assert "nowhere" in told.stderr


PLANT = """
import os
import numpy as np
import tidemill as tm
import neighbour

def row_wise(batch):
    return {"root": np.sqrt(np.abs(batch["value"]))}

def centred(batch):
    return {"centred": batch["value"] - batch["value"].mean()}

fine = tm.Plan(tm.Rolling("value", window=3, stats=["mean"]), tm.Map(row_wise), tm.Map(neighbour.doubled))
bad = tm.Plan(tm.Map(row_wise), tm.Map(centred))
deadly = tm.Plan(tm.Map(lambda batch: os._exit(3), name="deadly"))
strict = tm.Plan(tm.Map(lambda batch: {"x": 1 / 0}, on_error="stop"))
"""


def test_check_tries_every_function_on_a_recording(tidemill, examples, write, tmp_path) -> None:
    """In a lane of its own, whole, in halves and one by one; rows after every stage; nothing is written."""
    write("plant.py", PLANT)
    write("neighbour.py", "def doubled(batch):\n    return {'doubled': batch['value'] * 2}\n")
    files = set(tmp_path.iterdir())
    recording = ("--input", examples / "data" / "plant.csv", "--time", "timestamp")
    told = tidemill("check", "plant.py:fine", *recording)
    assert (told.returncode, told.stderr) == (0, "")
    for words in (
        "the first 940 records, of 8 sensors, 2026-03-01T06:00:00Z to",
        "stage 2   Map(row_wise): 940 rows of 940 records; the same for 940 records whole, in halves, and 940 one by one",
        "their state takes 256 B",
        "value_mean_3  root",
    ):
        assert words in told.stdout, words
    told = tidemill("check", "plant.py:bad", *recording, "--records", 100)
    assert (told.returncode, told.stderr) == (7, "")
    for words in (
        "Map(row_wise): 100 rows of 100 records; the same",
        "Map(centred): 100 rows of 100 records; IT LOOKS AT ITS NEIGHBOURS IN THE BATCH",
        "(sensor 'boiler-1'), in batches of 50 and 50: column 'centred' is ",
        "It uses mean(): use tm.Rolling",
    ):
        assert words in told.stdout, words
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == files


@pytest.mark.parametrize(
    ("name", "words"), [("deadly", "deadly ended the process it ran in"), ("strict", "division by zero")]
)
def test_a_function_that_ends_its_lane_is_named(tidemill, examples, write, name, words) -> None:
    """A crash costs the check, and says whose it was; exit code 1."""
    write("plant.py", PLANT)
    write("neighbour.py", "doubled = len\n")
    told = tidemill("check", f"plant.py:{name}", "--input", examples / "data" / "plant.csv", "--time", "timestamp")
    assert told.returncode == 1
    assert words in told.stderr
    assert told.stderr.count("\n") == 1


def test_check_compares_with_a_notebook(tidemill, examples, write, tmp_path) -> None:
    """The first differing row, column and both values; 7 when there is one."""
    write("plant.py", "import tidemill as tm\nplan = tm.Plan(tm.Rolling('value', window=2, stats=['sum']))\n")
    rows = [{"sensor": sensor, "time": n, "value": n * 1.5} for n in range(6) for sensor in "ab"]
    write("plant.ndjson", "".join(f"{json.dumps(row)}\n" for row in rows))
    sums = [{**row, "value_sum_2": 1.5 * (2 * row["time"] - 1) if row["time"] else 0.0} for row in rows]
    write("notebook.ndjson", "".join(f"{json.dumps(row)}\n" for row in sorted(sums, key=lambda row: row["sensor"])))
    told = tidemill("check", "plant.py", "--input", "plant.ndjson", "--expect", "notebook.ndjson")
    assert told.returncode == 0, told.stdout + told.stderr
    assert "notebook.ndjson: the output is the same" in told.stdout
    write("notebook.ndjson", "".join(f"{json.dumps(row | {'value_sum_2': 4.5})}\n" for row in sums))
    told = tidemill(
        "check", "plant.py", "--input", "plant.ndjson", "--expect", "notebook.ndjson", "--tolerance", "1e-6"
    )
    assert told.returncode == 7
    assert "row 0 of the table (sensor 'a'): column 'value_sum_2' is 0.0 instead of 4.5" in told.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--expect", "t.csv"], 3, "add --input PATH"),
        (["--input", "-", "--expect", "t.csv"], 3, "standard input"),
        (["--input", "plant.csv", "--records", "0"], 3, "--records 0"),
        (["--input", "plant.csv", "--expect", "t.csv"], 4, "t.csv"),
        (["--input", "plant.csv", "--tolerance", "-1", "--expect", "plant.csv"], 3, "--tolerance"),
        (["--input", "empty.ndjson"], 4, "no records"),
        (["--input", "plant.csv", "--key", "station"], 4, "station"),
    ],
)
def test_questions_that_make_no_sense(tidemill, write, words, code, said) -> None:
    """Are refused with one line before anything runs."""
    write("plant.py", "import tidemill as tm\nplan = tm.Plan()\n")
    write("plant.csv", "sensor,time,value\na,1,2.5\n")
    write("empty.ndjson", "")
    told = tidemill("check", "plant.py", *words)
    assert told.returncode == code, told.stdout + told.stderr
    assert said in told.stderr
    assert told.stderr.count("\n") == 1


def test_standard_input_may_be_nothing_at_all(tidemill, write, tmp_path) -> None:
    """As a job of cron or systemd has it: a run without records, no fault."""
    write(
        "plant.py",
        "import tidemill as tm\npipeline = tm.Pipeline(tm.sources.Lines('-'), [], tm.sinks.Lines('out.ndjson'))\n",
    )
    command = [sys.executable, "-m", "tidemill", "run", "plant.py", "--lanes", "0"]
    told = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)  # noqa: PLW1510
    assert (told.returncode, "0 records in" in told.stderr) == (0, True), told.stderr


def test_new_run_and_its_test_from_a_recording(tidemill, tmp_path) -> None:
    """What a newcomer types, as ``new`` says it."""
    rows = "".join(f"S{n % 3},{1_700_000_000 + n},{n * 7 % 11}\n" for n in range(200))
    (tmp_path / "march.csv").write_text("sensor,time,value\n" + rows)
    told = tidemill("new", "plant.py", "--from", "march.csv")
    assert told.returncode == 0, told.stderr
    commands = [line.removeprefix("next").split() for line in told.stdout.splitlines()[-3:]]
    for command in commands:
        program = [sys.executable, "-m", *command] if command[0] == "tidemill" else [sys.executable, *command[1:]]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=100)  # noqa: PLW1510
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert tidemill("new", "plant.py").returncode == tidemill("new", "plant.py", "--from", "march.csv").returncode == 4
