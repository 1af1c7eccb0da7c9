"""What the documentation shows is what happens: its Python runs, its links lead somewhere."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import tidemill as tm

ROOT = Path(__file__).parents[1]
PAGES = sorted({ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md"), *ROOT.glob("deploy/*.md")})


def python_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def executed(code: str, folder: Path) -> str:
    """What it prints as a script without a ``__main__`` guard, in a folder that has the examples."""
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "shown.py").write_text(code)
    done = subprocess.run([sys.executable, "shown.py"], cwd=folder, capture_output=True, text=True, timeout=100)  # noqa: PLW1510
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_example_runs_as_it_stands(tmp_path: Path) -> None:
    """Copied into a file and started, it leaves the features in the database."""
    executed(python_of(ROOT / "README.md")[0], tmp_path)
    with sqlite3.connect(tmp_path / "features.db") as database:
        query = re.search(r'sqlite3 features\.db "(.*)"', (ROOT / "README.md").read_text())
        assert query
        rows = database.execute(query[1]).fetchall()
    assert rows[0][0] == "pump-2"
    assert len(rows) == 3


def test_the_readmes_example_is_ten_lines() -> None:
    """More than a screen and nobody reads it."""
    code = [line for line in python_of(ROOT / "README.md")[0].splitlines() if line.strip()]
    assert len(code) <= 12


def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Its blocks, joined; its own assertions hold."""
    executed("\n".join(python_of(ROOT / "docs" / "tutorial.md")), tmp_path)


@pytest.mark.parametrize("name", ["laws", "parity", "silence", "state-of-your-own", "time-windows"])
def test_these_pages_run_from_top_to_bottom(tmp_path: Path, name: str) -> None:
    """Their blocks, joined; their own assertions hold."""
    executed("\n".join(python_of(ROOT / "docs" / "howto" / f"{name}.md")), tmp_path)


@pytest.mark.slow
def test_the_notebook_of_the_page_about_parity_is_what_check_finds(tmp_path: Path) -> None:
    """The command as it is shown prints what is shown, over the table that the page's code has written."""
    page = ROOT / "docs" / "howto" / "parity.md"
    code = python_of(page)
    executed("\n".join(code), tmp_path)
    (tmp_path / "plant.py").write_text(code[0].partition("features =")[0])
    shown = [block.removeprefix("\n") for block in page.read_text().split("```")[1::2] if block.startswith("\n")]
    command = [sys.executable, "-m", *shown[0].split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)  # noqa: PLW1510
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(shown[1])


def test_the_page_about_new_shows_what_new_writes(tmp_path: Path) -> None:
    """The command as it is shown says what is shown, and writes the plan that is shown; a recording without times is
    answered as shown."""
    page = (ROOT / "docs" / "howto" / "new.md").read_text()
    shown = [block.removeprefix("\n") for block in page.split("```")[1::2] if block.startswith("\n")]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "other").mkdir()
    (tmp_path / "ecg.csv").write_text("sample,MLII\n0,995\n1,995\n")
    commands = [shown[0].split()[1:], ["new", "other/ecg.py", "--from", "ecg.csv"]]
    done = [
        subprocess.run([sys.executable, "-m", "tidemill", *words], cwd=tmp_path, capture_output=True, text=True)  # noqa: PLW1510
        for words in commands
    ]
    assert (done[0].stdout, done[0].returncode) == (shown[1], 0)
    assert (tmp_path / "plant.py").read_text() == python_of(ROOT / "docs" / "howto" / "new.md")[0]
    assert done[1].stderr.replace(f"{tmp_path}/", "") == shown[3]
    assert done[1].returncode == 4


def test_the_page_about_models_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Its blocks, joined, find the reading that stands out, and print that the rest holds."""
    told = executed("\n".join(python_of(ROOT / "docs" / "howto" / "models.md")), tmp_path)
    assert told.splitlines() == ["[200]", "True", "True", "True"]


def test_the_page_about_secrets_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """It prints what it shows, and nothing that it refers to need be there for that."""
    page = ROOT / "docs" / "howto" / "secrets.md"
    told = executed("\n".join(python_of(page)), tmp_path)
    shown = [block.strip() for block in page.read_text().split("```")[1::2] if block.startswith("\n")]
    assert told.splitlines() == shown


def test_the_page_about_devices_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Its blocks, joined, print what it shows, and that wide records and lanes give the same."""
    page = ROOT / "docs" / "howto" / "devices.md"
    told = executed("\n".join(python_of(page)), tmp_path)
    shown = [block.strip() for block in page.read_text().split("```")[1::2] if block.startswith("\n")]
    assert told.splitlines() == [*shown, "True", "True 24 20"]


def test_the_page_about_postgresql_runs_from_top_to_bottom(
    tmp_path: Path, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks, joined, print what it shows, on a server that the environment names."""
    postgres.query("CREATE DATABASE plant")
    url = urlsplit(postgres.url())
    where = {"PGHOST": url.hostname, "PGPORT": url.port, "PGUSER": url.username, "PGPASSWORD": url.password}
    for name, value in where.items():
        monkeypatch.setenv(name, str(value))
    page = ROOT / "docs" / "howto" / "postgresql.md"
    told = executed("\n".join(python_of(page)), tmp_path)
    shown = [block.strip() for block in page.read_text().split("```")[1::2] if block.startswith("\n")]
    assert told.splitlines() == "\n".join(shown[1:3]).splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Every relative link of every page."""
    links = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_architecture_names_files_that_exist() -> None:
    """The tour of the floors does not lead into walls."""
    named = re.findall(r"`((?:\w+/)*\w+\.py|\w+/)`", (ROOT / "docs" / "architecture.md").read_text())
    assert named
    places = (ROOT / "src" / "tidemill", ROOT)
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


def test_the_delivery_of_every_source_and_sink_is_documented() -> None:
    """A new edge says in the table what happens to a record when something dies."""
    page = (ROOT / "docs" / "delivery.md").read_text()
    interfaces = {"Source", "SourceContext", "SourceStatistics", "Sink", "ProcessSink", "LoopSink", "SinkStatistics"}
    edges = {name for module in (tm.sources, tm.sinks) for name in module.__all__ if name[0].isupper()} - interfaces
    assert {name for name in edges if f"`{name}" not in page} == set()


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(page.name for page in folder.glob("0*.md"))
    assert re.findall(r"\]\((0[^)]+)\)", index) == pages
