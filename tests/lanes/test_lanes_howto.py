"""The page about lanes shows what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "lanes.md"


def test_the_pages_examples_run_as_they_stand(tmp_path: Path) -> None:
    """Its blocks, joined in a script without a main guard."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "shown.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "shown.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["0.7223", "stopped after 0.1 s"]
    assert lines[2:] == [
        "0 restarts",
        *(str(x * x) for x in range(10)),
        "[0, 2, 4, 6, 8]",
        "1.0 2.0 5.0",
        "2",
        "small",
        "True",
        "500001 True",
        "1024",
        "[0, 1, 4, 9, 16]",
    ]
