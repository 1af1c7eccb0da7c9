"""Which timestamps are told to count in another unit than the one they are read in."""

from __future__ import annotations

import pytest

from tidemill.formats.edge import Edge
from tidemill.formats.line_formats import line_format, set_up

NOW_S = 1_700_000_000


def doubts(*blocks: str, form: str = "influx", precision: str | None = None, time: str | None = None) -> list[str]:
    """What is said of the records of lines that come a few at a time."""
    edge = Edge(arrival=True, time=time)
    lines = line_format(form, precision)
    set_up(edge, lines)
    said = []
    for block in blocks:
        made = lines.decode(block.encode())
        batch, _ = edge.rows(made.rows, known=made.known, wall_ns=NOW_S * 10**9, parsed=True)
        said.append(edge.doubt(batch))
    return [told for told in said if told]


@pytest.mark.parametrize(
    ("stamp", "unit", "precision", "read"),
    [
        (NOW_S, "seconds", "s", "1970-01-01T00:00:01Z"),
        (NOW_S * 10**3, "milliseconds", "ms", "1970-01-01T00:28:20Z"),
        (NOW_S * 10**6, "microseconds", "us", "1970-01-20T16:13:20Z"),
    ],
)
def test_timestamps_of_another_unit_are_told_once(stamp: int, unit: str, precision: str, read: str) -> None:
    """With what they are read as, what they would be, and what to type; it is said no more then."""
    block = f"cpu v=1 {stamp}\ncpu v=2 {stamp + 1}\n"
    (said,) = doubts(block, block)
    assert said == (
        f"the timestamps are read as nanoseconds, which makes the first one {read}; as {unit} it would be "
        f'2023-11-14T22:13:20Z. If they are {unit}, say precision="{precision}".'
    )
    assert doubts(block, precision=precision) == []


def test_the_unit_that_was_said_may_be_another_too() -> None:
    """Also of Telegraf's JSON."""
    metric = f'{{"name":"cpu","fields":{{"v":1}},"timestamp":{NOW_S}}}\n'
    (said,) = doubts(metric, form="telegraf-json", precision="ms")
    assert "read as milliseconds" in said
    assert 'precision="s"' in said
    assert doubts(metric, form="telegraf-json") == []


def test_it_is_told_although_the_first_records_have_none() -> None:
    """They are as late as they arrived."""
    (said,) = doubts("cpu v=1\n", f"cpu v=1 {NOW_S}\n")
    assert 'precision="s"' in said


@pytest.mark.parametrize(
    "block",
    [
        f"cpu v=1 {NOW_S * 10**9}\n",
        f"cpu v=1 {NOW_S}\ncpu v=1 {NOW_S * 10**9}\n",
        "cpu v=1 5\n",
        f"cpu v=1 -{NOW_S}\n",
        "cpu v=1 600000000000000000\n",
    ],
)
def test_other_timestamps_are_not_doubted(block: str) -> None:
    """Of now, some of which are, of a test and of a clock that was never set."""
    assert doubts(block) == []


def test_the_unit_of_a_field_that_is_told_to_be_the_time_is_told_by_its_size() -> None:
    """As in every other format."""
    assert doubts(f"cpu t={NOW_S}i {NOW_S}\n", time="t") == []
