"""A pipeline without a name finds its state again, whoever starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

APP = """
import tidemill as tm

def main():
    pipeline = tm.Pipeline(tm.sources.Replay("in.csv"), tm.Plan(), tm.sinks.Lines("out.ndjson", if_exists="replace"))
    tm.run(pipeline, lanes=0, state=True)
"""
CALL = "import app; app.main()\n"


@pytest.mark.parametrize(
    ("started", "name"),
    [
        (["plant.py"], "plant"),
        (["-m", "plant"], "plant"),
        (["served"], "pipeline"),  # as pip writes commands such as uvicorn
        (["-m", "server"], "pipeline"),
        (["-c", CALL], "pipeline"),
    ],
)
def test_a_script_names_its_pipeline_and_a_command_that_starts_an_application_does_not(
    started: list[str], name: str, tmp_path: Path
) -> None:
    """``uvicorn app:app`` and ``python -m uvicorn app:app`` are the same application."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "in.csv").write_text("sensor,time,value\nS,1,2.5\n")
    for script in ("plant.py", "served", "server/__main__.py"):
        (tmp_path / script).parent.mkdir(exist_ok=True)
        (tmp_path / script).write_text(CALL)
    subprocess.run([sys.executable, *started], cwd=tmp_path, check=True, timeout=120)
    assert [folder.name for folder in (tmp_path / ".tidemill").iterdir()] == [name]
