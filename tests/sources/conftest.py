"""What the tests of sources share: a run without an engine, and the recorded data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tidemill.batch import Batch
from tidemill.clock import SystemClock
from tidemill.letters import DeadLetter
from tidemill.sources.base import Source, SourceContext

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@dataclass
class Drained:
    """Everything a source gave."""

    batches: list[Batch] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for batch in self.batches for row in batch.to_rows()]

    @property
    def keys(self) -> list[str]:
        return [key for batch in self.batches for key in batch.keys[batch.key].tolist()]

    @property
    def times(self) -> list[int]:
        return [ns for batch in self.batches for ns in batch.time.tolist()]

    @property
    def count(self) -> int:
        return sum(map(len, self.batches))


async def drain_source(source: Source, *, until: Callable[[Drained], bool] | None = None, clock: Any = None) -> Drained:
    drained = Drained()
    context = SourceContext(clock or SystemClock(), drained.letters.append)
    async for batch in source.stream(context):
        assert len(batch)
        assert batch.arrived_ns
        drained.batches.append(batch)
        if until is not None and until(drained):
            context.stopping.set()
    statistics = source.statistics()
    assert statistics.records == drained.count
    assert statistics.rejected == len(drained.letters)
    return drained


@pytest.fixture
def drain() -> Callable[..., Any]:
    """``await drain(source)`` runs it to its end and checks its counts."""
    return drain_source


@pytest.fixture
def nab() -> Path:
    """The 31 nab recordings; their absence is an error that says where they belong."""
    folder = DATA / "nab" / "data"
    assert folder.is_dir(), (
        f"the recorded data are not there: {folder} (they lie beside the repository, in shared/data)"
    )
    return folder


class ScriptClock:
    """A clock that moves only when somebody sleeps on it."""

    def __init__(self) -> None:
        self.now_ns = 10**9
        self.slept: list[float] = []

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return 1_700_000_000 * 10**9 + self.now_ns

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_ns += max(1, round(seconds * 1e9))
        await asyncio.sleep(0)


@pytest.fixture
def script_clock() -> ScriptClock:
    """A clock for pace: sleeping is all that takes time."""
    return ScriptClock()
