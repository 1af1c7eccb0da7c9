"""The examples as ``tidemill run`` finds them: their plans are the ones that are tested."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import tidemill as tm
from tidemill.app.load import load
from tidemill.testing import ListSink

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def example() -> Callable[[str], ModuleType]:
    """The module of an example, read as far as its own ``tm.run``."""

    @functools.cache
    def read(name: str) -> ModuleType:
        load(str(EXAMPLES / f"{name}.py"))
        return sys.modules[name]

    return read


@pytest.fixture
def rows_of() -> Callable[[tm.sources.Replay, tm.Plan], list[dict]]:
    """The rows of a plan over a recording, from two lanes."""

    def run(source: tm.sources.Replay, plan: tm.Plan) -> list[dict]:
        sink = ListSink()
        report = tm.run(tm.Pipeline(source, plan, sink), lanes=2)
        assert report.dead_letters == 0
        assert report.rows_out == len(sink.rows)
        return sink.rows

    return run
