"""Asking the command line things: versions, help, and words it does not know."""

from __future__ import annotations

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


def test_check_shows_the_plan_even_when_the_output_is_in_the_way(tidemill, examples, write) -> None:
    """And then says so, with the exit code of a run."""
    write("there.csv", "x\n")
    told = tidemill("check", examples / "replay.py", "--output", "there.csv")
    assert told.returncode == 4
    assert "+ normalized: float" in told.stdout
    assert "there.csv" in told.stderr
