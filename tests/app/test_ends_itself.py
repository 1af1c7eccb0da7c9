"""A run of the command line that ends itself: its exit code, and what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tidemill.app.cli import answer
from tidemill.engine import oversight

SILENT = """
import tidemill as tm

pipeline = tm.Pipeline(tm.sources.TCP(), tm.Plan(), tm.sinks.Lines("rows.ndjson"))
"""
BAD = """
import asyncio
from itertools import count

import tidemill as tm


async def bad():
    for number in count():
        yield {"sensor": "a\\x1bb", "time": number, "value": "x"}
        await asyncio.sleep(0)


pipeline = tm.Pipeline(tm.sources.Records(bad(), columns={"value": float}), tm.Plan(), tm.sinks.Lines("rows.ndjson"))
"""


@pytest.fixture(autouse=True)
def _here_and_often(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a folder of its own; looks need not be waited for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(oversight, "LOOK_S", 0.01)


def last_said(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line, which is said once."""
    said = capsys.readouterr().err
    last = said.splitlines()[-1]
    assert said.count(last.removeprefix("tidemill: ")) == 1
    return last


def test_a_silent_source_ends_a_run_that_was_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    """With a code of its own, and one sentence at the end."""
    Path("plant.py").write_text(SILENT)
    assert answer(["run", "plant.py", "--lanes", "0", "--metrics", "127.0.0.1:0", "--silent-after", "0.1"]) == 8
    told = r"tidemill: the run does not progress, and ends itself: source tcp: connected, silent \d+(\.\d+)? s \(limit 0\.1\)\."
    assert re.fullmatch(told, last_said(capsys))


def test_too_many_dead_letters_end_a_run_that_was_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of them is in the file; the sensor's name gives no orders."""
    Path("plant.py").write_text(BAD)
    assert answer(["run", "plant.py", "--lanes", "0", "--max-dead", "100/60s"]) == 9
    told = (
        r"tidemill: (\d+) of \1 records of the last 60 s are dead letters \(limit 100\), \1 of them wrong_type, "
        r"and the run ends itself; at least \1 of these are of sensor 'a\\x1bb'\."
    )
    assert (found := re.fullmatch(told, last_said(capsys)))
    assert len(Path("dead_letters.ndjson").read_text().splitlines()) >= int(found[1])


@pytest.mark.parametrize("bound", ["half", "100%/60s"])
def test_what_is_no_bound_is_refused(bound: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As a mistake in the pipeline, before it runs."""
    Path("plant.py").write_text(SILENT)
    assert answer(["run", "plant.py", "--max-dead", bound]) == 3
    assert f"max_dead={bound!r} must be a share below 100 % or a number of records, and a time" in last_said(capsys)
