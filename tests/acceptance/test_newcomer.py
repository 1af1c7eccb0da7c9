"""A newcomer in a clean copy types what the README says, word for word, in its order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
COMMANDS = [line for line in SHELL if line.startswith(("make ", "tidemill ", "sqlite3 "))]
NEW = re.search(r"`(tidemill new [^`]*)`", README)
"""Said in a sentence."""
OURS = ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
"""What a `make` that runs these tests leaves in the environment."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone would bring, with an environment that is made already; and a recording of the newcomer's own."""
    folder = tmp_path_factory.mktemp("clone") / "tidemill"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if not part.name.startswith("."):
            (folder / ".venv" / part.name).symlink_to(part)
    for made in (".all", ".dev"):
        (folder / ".venv" / made).touch()
    shutil.copy(folder / "examples" / "data" / "plant.csv", folder / "march.csv")
    return folder


def typed(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a shell, as it stands; what runs until Ctrl-C gets one after some seconds."""
    if command.split()[1] == "demo":
        command = f"timeout --signal INT 6 {command}"
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    environment |= {"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "PYTHONPATH": f"{folder}/src"}
    return subprocess.run(  # noqa: PLW1510 - what it ended with is asked below
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=100
    )


def test_every_command_of_the_readme_works_as_it_stands(copy: Path) -> None:
    """In the order of the page, with the ten lines where they stand; no command ends badly, and the query finds the pump."""
    assert NEW is not None
    assert len(COMMANDS) >= 8
    (ten,) = re.findall(r"^```python\n(import numpy.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (copy / "ten.py").write_text(ten)
    first, query, *others = COMMANDS
    said = {}
    for command in (first, NEW[1], "python test_plant.py", "python ten.py", query, *others):
        done = typed(command, copy)
        allowed = (0, 124) if command.split()[1] == "demo" else (0,)  # 124: of `timeout`, which pressed Ctrl-C
        assert done.returncode in allowed, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, command
        said[command] = done.stdout
    assert said[query].startswith("pump-2|")
    assert (copy / "features.parquet").stat().st_size > 0
