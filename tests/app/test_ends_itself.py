"""A run of the command line that ends itself: its exit code, and what it says."""

from __future__ import annotations

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
