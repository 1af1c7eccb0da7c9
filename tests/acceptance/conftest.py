"""The command line as people use it: a process with arguments, streams and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def tidemill(tmp_path: Path) -> Tidemill:
    """Run ``tidemill`` with these words in an empty folder, to its end."""

    def run(*words: object, input: str | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:  # noqa: A002
        command = [sys.executable, "-m", "tidemill", *map(str, words)]
        return subprocess.run(  # noqa: PLW1510 - the exit code is what is tested
            command, cwd=tmp_path, input=input or "", capture_output=True, text=True, timeout=timeout
        )

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file into that folder."""

    def made(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return made


@pytest.fixture
def rows_of() -> Callable[[Path], list[dict[str, Any]]]:
    """Rows of an NDJSON file; every line must be whole."""

    def read(path: Path) -> list[dict[str, Any]]:
        text = path.read_text()
        assert not text or text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]

    return read


@pytest.fixture
def balanced() -> Callable[[dict[str, Any]], bool]:
    """Whether a report accounts for every record."""

    def check(report: dict[str, Any]) -> bool:
        gone = ("filtered", "dead_letters", "late", "deduplicated", "dropped", "absorbed", "in_flight")
        return (
            report["records_in"] == report["rows_from_records"] + sum(report[name] for name in gone)
            and report["rows_out"] == report["rows_from_records"] + report["emitted"]
        )

    return check


@pytest.fixture
def examples() -> Path:
    """The folder of examples, whose data the tests use too."""
    return EXAMPLES
