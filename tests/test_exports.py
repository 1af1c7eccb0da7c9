"""The public names: which they are, that each one is there, and what they cost."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import tidemill

PUBLIC = [
    "Aggregate",
    "Align",
    "BadResult",
    "Batch",
    "Calibrate",
    "CallError",
    "Dedup",
    "Diff",
    "EngineError",
    "EventTime",
    "Ewm",
    "Filter",
    "InputError",
    "Keyed",
    "Kind",
    "Lag",
    "LaneDied",
    "Lanes",
    "LanesExecutor",
    "LanesFull",
    "Limits",
    "Lookup",
    "Map",
    "MapFrame",
    "MapRows",
    "MapWindows",
    "MissingExtra",
    "Model",
    "OutsideError",
    "Pipeline",
    "Plan",
    "PlanError",
    "Rate",
    "RemoteError",
    "Report",
    "Resample",
    "Rolling",
    "RunEnded",
    "Schema",
    "Select",
    "Silence",
    "StageError",
    "Stalled",
    "State",
    "Statistics",
    "Stuck",
    "TidemillError",
    "TooManyDead",
    "__version__",
    "cancelled",
    "quantile",
    "run",
    "run_async",
    "scan",
    "serve",
    "session",
    "sinks",
    "sliding",
    "sources",
    "testing",
    "tumbling",
]


def test_the_public_names_are_these() -> None:
    """A name is added or removed on purpose: here, and in the changelog."""
    assert tidemill.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(tidemill))


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_resolves(name: str) -> None:
    """Every name of ``__all__`` is really there, and has words of its own to say."""
    value = getattr(tidemill, name)
    assert value is getattr(tidemill, name)
    if name != "__version__":
        assert value.__doc__


def test_type_checkers_and_the_interpreter_see_the_same_homes() -> None:
    """The imports under TYPE_CHECKING name the same modules as the table that loads them."""
    tree = ast.parse(Path(tidemill.__file__).read_text())
    checking = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module.removeprefix("tidemill").removeprefix(".")
        for node in checking.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    modules = dict.fromkeys(tidemill._MODULES, "")
    assert seen == {**tidemill._HOMES, **modules}


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A typing mistake reads as Python's own."""
    with pytest.raises(AttributeError, match="has no attribute 'Piepline'"):
        _ = tidemill.Piepline  # type: ignore[attr-defined]


@pytest.mark.parametrize("statement", ["import tidemill", "import tidemill.errors", "import tidemill.app.cli"])
def test_importing_is_light(statement: str) -> None:
    """Importing tidemill brings no NumPy and nothing heavier; that is what keeps ``--version`` instant."""
    heavy = {"numpy", "numba", "pyarrow", "pandas", "polars", "cyclopts", "rich", "psutil", "cloudpickle", "asyncio"}
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not heavy & set(loaded)
