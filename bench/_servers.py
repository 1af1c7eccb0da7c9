"""The servers of the tests, for benchmarks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

__all__ = ["server_module"]


def server_module(name: str) -> Any:
    """``tests/NAME.py``, which needs nothing else of the tests."""
    path = Path(__file__).parents[1] / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
