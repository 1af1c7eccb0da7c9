"""Exit codes: what each error becomes, and the table that people read."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tidemill.app.exit_codes import ExitCode, at_once, code_of
from tidemill.errors import (
    EngineError,
    InputError,
    MissingExtra,
    OutsideError,
    PlanError,
    StageError,
    TidemillError,
)

TABLE = Path(__file__).parents[2] / "docs" / "exit-codes.md"


def test_the_documented_table_is_the_one_in_the_code() -> None:
    """Number, name and meaning in the docs are those of the code, in its order."""
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (.+) \|$", TABLE.read_text(), re.MULTILINE)
    assert rows == [(str(code.value), code.name, code.meaning) for code in ExitCode]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PlanError("x"), 3),
        (InputError("x"), 4),
        (OutsideError("x"), 5),
        (StageError("x"), 1),
        (MissingExtra("pyarrow", "parquet", "Parquet files"), 6),
        (EngineError("x"), 70),
        (ZeroDivisionError(), 70),
    ],
)
def test_each_error_has_its_code(error: Exception, code: int) -> None:
    """Errors are told apart by whose fault they are; what nobody foresaw is ours."""
    assert code_of(error) == code


def test_every_error_of_the_tree_is_placed() -> None:
    """A new kind of error must say which exit code it is, or inherit one."""
    assert all(
        code_of(kind.__new__(kind)) != ExitCode.BUG
        for kind in TidemillError.__subclasses__()
        if kind is not EngineError
    )


def test_leaving_at_once_is_what_shells_expect() -> None:
    """128 + the signal's number."""
    assert at_once(signal.SIGINT) == 130
    assert at_once(signal.SIGTERM) == 143


def test_an_error_that_cannot_be_told_still_has_its_exit_code(tmp_path: Path) -> None:
    """A log on a full disk, a terminal that is gone: whoever started the run has the code alone."""
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "tidemill", "run", "none.py"], cwd=tmp_path, stderr=full, check=False, timeout=120
        )
    assert ended.returncode == code_of(InputError("x"))
