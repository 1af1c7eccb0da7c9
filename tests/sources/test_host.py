"""Host: this machine."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.errors import PlanError
from tidemill.schema import Kind
from tidemill.sources import Host


async def test_the_host_has_sensors(drain: Any) -> None:
    """Load per core and memory are there, with units; rates start with the second sweep."""
    source = Host(interval=0.01)
    source.check()
    assert source.peek()["value"].kind is Kind.FLOAT
    drained = await drain(source, until=lambda drained: len(drained.batches) == 2)
    first = {row["sensor"]: row for row in drained.batches[0].to_rows()}
    assert first["cpu0.load"]["unit"] == "%"
    assert 0 < first["memory.used_percent"]["value"] <= 100
    assert len(drained.batches[1]) >= len(drained.batches[0])
    assert drained.keys[0] == "cpu0.load"
    with pytest.raises(PlanError, match="interval"):
        Host(interval=0)
