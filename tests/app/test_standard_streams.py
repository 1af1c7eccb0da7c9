"""Commands whose stdin, stdout or stderr is closed, or takes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLAN = """
import tidemill as tm
rows = [{"sensor": "S1", "time": at, "value": float(at)} for at in range(3)]
source = tm.sources.Lines("-") if %r else tm.sources.Records(rows)
pipeline = tm.Pipeline(source, tm.Plan(tm.Rolling("value", window=3, stats=["mean"])), tm.sinks.Lines("out.ndjson"))
"""


def command(folder: Path, words: list[str], how: str, *, reads: bool = False) -> subprocess.CompletedProcess[bytes]:
    """Run by a shell that closes or redirects a stream, as ``how`` says."""
    (folder / "plant.py").write_text(PLAN % reads)
    told = " ".join([sys.executable, "-m", "tidemill", *words, how])
    return subprocess.run(["sh", "-c", told], cwd=folder, capture_output=True, check=False, timeout=120)


RUN = ["run", "plant.py", "--no-state", "--no-metrics"]


@pytest.mark.parametrize(
    "more", [["--lanes", "1"], ["--lanes", "0", "--quiet"], ["--lanes", "0", "--log-format", "json"]]
)
@pytest.mark.parametrize("how", ["2>&-", "2>/dev/full", ">&- 2>&- <&-"])
def test_a_run_whose_log_goes_nowhere_does_its_work(tmp_path: Path, how: str, more: list[str]) -> None:
    """Nobody can be told; the rows are there, and the exit code says so."""
    done = command(tmp_path, [*RUN, *more], how)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert len([json.loads(line) for line in (tmp_path / "out.ndjson").read_text().splitlines()]) == 3


@pytest.mark.parametrize(
    "words", [["check", "plant.py"], [*RUN, "--lanes", "0", "--output", "-", "--quiet"], ["--version"], ["--help"]]
)
@pytest.mark.parametrize("how", [">&-", ">/dev/full"])
@pytest.mark.parametrize("buffered", [True, False])
def test_what_cannot_be_written_is_the_outsides_fault(
    tmp_path: Path, words: list[str], how: str, buffered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stdout that was asked for something and takes nothing: a sentence, once, and the code for that."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "" if buffered else "1")
    done = command(tmp_path, words, how)
    assert done.returncode == 5, done.stderr
    assert done.stderr.count(b"standard output") == 1
    assert done.stderr.count(b"tidemill:") == 1


def test_a_stdin_that_is_closed_is_a_missing_input(tmp_path: Path) -> None:
    """Where the pipeline reads it."""
    done = command(tmp_path, [*RUN, "--lanes", "0", "--quiet"], "<&-", reads=True)
    assert done.returncode == 4
    assert done.stderr.startswith(b"tidemill: standard input is closed, and Lines('-') reads it")


def test_a_json_log_that_goes_nowhere_stops_nobody(tmp_path: Path) -> None:
    """More than a pipe holds: whoever writes to stderr would wait for ever."""
    script = tmp_path / "noisy.py"
    script.write_text(
        "import sys, tidemill as tm\n"
        "def noisy(batch):\n    sys.stderr.write(('x' * 1000 + chr(10)) * 200)\n    sys.stderr.flush()\n"
        "    return {'y': batch['value']}\n"
        "rows = [{'sensor': 'S1', 'time': 0, 'value': 1.0}]\n"
        "pipeline = tm.Pipeline(tm.sources.Records(rows), tm.Plan(tm.Map(noisy)), tm.sinks.Lines('out.ndjson'))\n"
    )
    done = command(tmp_path, ["run", "noisy.py", "--lanes", "0", "--no-state", "--log-format", "json"], "2>/dev/full")
    assert done.returncode != os.EX_SOFTWARE
    assert (tmp_path / "out.ndjson").exists()
