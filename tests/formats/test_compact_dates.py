"""Days written as one number are told to be read as seconds."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.formats.edge import Edge


def doubts(*times: Any, **options: Any) -> list[str]:
    edge = Edge(**options)
    batches = [edge.rows([{"sensor": "S1", "time": time} for time in times])[0] for _ in range(2)]
    return [said for said in map(edge.doubt, batches) if said]


@pytest.mark.parametrize("times", [(20240101, 20240229), ("20240101", "20240229")])
def test_times_that_are_all_days_are_told_once(times: tuple[Any, ...]) -> None:
    """What they are read as, and what to type."""
    assert doubts(*times) == [
        (
            "the times in field 'time', 20240101 the first of them, look like days and are read as seconds since 1970, which makes "
            "the first one 1970-08-23T06:15:01Z. If they are days, say time_format='%Y%m%d'."
        )
    ]


@pytest.mark.parametrize(
    "times", [(20240101, 20240231), (20240101.5,), (1700000000,), ("2024-01-01",), (0, 1), (True,)]
)
def test_other_times_are_not_doubted(times: tuple[Any, ...]) -> None:
    """One that is no day is enough."""
    assert not doubts(*times)


def test_a_time_format_says_what_they_are() -> None:
    """Then nothing is doubted, and they are read as days."""
    assert not doubts("20240101", time_format="%Y%m%d")
