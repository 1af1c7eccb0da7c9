"""A run of the command line that ends itself: its exit code, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LIVE = """
import tidemill as tm

pipeline = tm.Pipeline(tm.sources.TCP(), tm.Plan(), tm.sinks.Lines("rows.ndjson"))
"""
RUN = [sys.executable, "-m", "tidemill", "run", "plant.py", "--lanes", "0", "--metrics", "127.0.0.1:0"]


def test_a_silent_source_ends_a_run_that_was_told_so(tmp_path: Path) -> None:
    """With a code of its own, and one sentence at the end."""
    (tmp_path / "plant.py").write_text(LIVE)
    command = [*RUN, "--silent-after", "0.25"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 8
    last = run.stderr.splitlines()[-1]
    assert last.startswith("tidemill: the run does not progress, and ends itself: source tcp: connected, silent ")
    assert last.endswith(" s (limit 0.25).")


def test_a_recording_of_dead_letters_ends_a_run_that_was_told_so(tmp_path: Path) -> None:
    """Each of them is in the file; the sensor's name gives no orders."""
    (tmp_path / "plant.py").write_text(
        LIVE.replace("tm.sources.TCP()", 'tm.sources.Lines("-", columns={"value": float})')
    )
    lines = "".join(json.dumps({"sensor": "a\x1bb", "time": n, "value": "x"}) + "\n" for n in range(200))
    command = [*RUN, "--max-dead", "100/60s"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdin is not None
        assert run.stderr is not None
        run.stdin.write(lines)
        run.stdin.flush()
        last = run.stderr.read().splitlines()[-1]
    assert run.returncode == 9
    assert last.startswith(
        "tidemill: 200 of 200 records of the last 60 s are dead letters (limit 100), 200 of them wrong_type"
    )
    assert last.endswith('; at least 200 of these are of sensor "a\\u001bb".')
    assert len((tmp_path / "dead_letters.ndjson").read_text().splitlines()) == 200
