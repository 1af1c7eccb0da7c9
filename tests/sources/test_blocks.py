"""Lines of several senders that become batches: how many do in one turn of the loop."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tidemill.formats.edge import Edge
from tidemill.formats.line_formats import line_format
from tidemill.sources import blocks as blocks_module
from tidemill.sources.blocks import Amounts, rows_of_all, turns_of


@dataclass
class Sent:
    """Lines of one sender."""

    lines: bytes
    known: dict[str, str]
    arrived_ns: int = 5
    wall_ns: int = 7


def test_what_one_turn_makes_of_many_lines_is_bounded(kernels_loaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of one kind become one batch up to so many rows, those of another the next; none is lost, and their order stays."""
    monkeypatch.setattr(blocks_module, "_MOST_ROWS", 1_000)
    monkeypatch.setattr(blocks_module, "_MOST_DICTS", 200)

    def sent(name: bytes, *numbers: int) -> Sent:
        return Sent(b"".join(b'{"sensor":"S","%b":%d.5}\n' % (name, number) for number in numbers), {})

    blocks = [sent(b"temp", *range(at, at + 100)) for at in range(0, 2_100, 100)]
    blocks += [sent(b"speed", *range(at, at + 100)) for at in range(2_100, 3_000, 100)]
    turns = turns_of(Edge(arrival=True), line_format("ndjson"), blocks, Amounts(10_000, 10_000, 1 << 20))
    batches = [turn.batch for turn in turns if turn is not None]
    assert max(map(len, batches)) <= 1_000
    assert len(batches) <= 5
    assert all(len(set(batch.names) & {"temp", "speed"}) == 1 for batch in batches)
    rows = [row for batch in batches for row in batch.to_rows()]
    assert [row.get("temp", row.get("speed")) for row in rows] == [number + 0.5 for number in range(3_000)]


def test_after_a_refused_record_few_are_made_in_one_turn_until_all_are_sound(kernels_loaded: None) -> None:
    """A letter costs many times what a row costs, and who sends one record that is none mostly sends more."""
    edge, form, amounts = Edge(arrival=True), line_format("ndjson"), Amounts(1 << 20, 1 << 20, 1 << 20)
    sound = [Sent(b'{"sensor":"S","value":1.5}\n' * 500, {}) for _ in range(8)]
    nobody = [Sent(b'{"value":1.5}\n' * 700, {}) for _ in range(8)]
    sizes = []
    for blocks in (sound, nobody, nobody, sound, sound):
        turns = [turn for turn in turns_of(edge, form, blocks, amounts) if turn is not None]
        sizes.append([len(turn.batch) + len(turn.letters) for turn in turns])
    assert sizes == [[4_000], [5_600], [700] * 8, [1_000, 3_000], [4_000]]


def test_lines_that_all_have_other_fields_become_many_small_batches() -> None:
    """The columns of one batch would have as many cells as there are lines, squared."""
    blocks = [Sent(b"".join(b'{"sensor":"S","f%d":1}\n' % number for number in range(3_000)), {}) for _ in range(2)]
    turns = turns_of(Edge(arrival=True), line_format("ndjson"), blocks, Amounts(1 << 20, 1 << 20, 1 << 20))
    made = [turn for turn in turns if turn is not None]
    assert max(len(turn.batch) * len(turn.batch.names) for turn in made) <= 1 << 16
    assert [turn.ends for turn in made] == [False] * (len(made) - 1) + [True]
    rows = [row for turn in made for row in turn.batch.to_rows()]
    assert [name for row in rows for name in row if name not in ("sensor", "time")] == [
        f"f{number}" for number in [*range(3_000)] * 2
    ]


def test_an_empty_block_among_others_costs_nothing(kernels_loaded: None) -> None:
    """The others are read together all the same."""
    lines = Sent(b'{"sensor":"S","value":1.5}\n' * 500, {})
    rows = rows_of_all(Edge(arrival=True), line_format("ndjson"), [lines, Sent(b"", {}), lines])
    assert rows is not None
    assert len(rows) == 1_000
