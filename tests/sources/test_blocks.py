"""Lines of several senders that become batches: how many do in one turn of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tidemill.formats.edge import Edge
from tidemill.formats.json_alike import SMALLEST
from tidemill.formats.json_lines import decode_json_lines
from tidemill.formats.line_formats import line_format
from tidemill.rows import are_joined_by_field
from tidemill.sources import blocks as blocks_module
from tidemill.sources.blocks import Amounts, rows_of_all, turns_of


@dataclass
class Sent:
    """Lines of one sender."""

    lines: bytes
    known: dict[str, str]
    arrived_ns: int = 5
    wall_ns: int = 7


@pytest.mark.parametrize("key", [None, "{peer_host}/{sensor}"])
def test_many_senders_with_few_lines_each_are_read_together(key: str | None, kernels_loaded: None) -> None:
    """The batch is the one that each by itself would give, each row with what is known of its own sender and its arrival."""
    blocks = [
        Sent(b'{"sensor":"S%d","value":%d.5}\n{"sensor":"S%d","value":null}\n' % (n, n, n + 1), {"peer_host": f"h{n}"})
        for n in range(SMALLEST // 40)
    ]
    for number, block in enumerate(blocks):
        block.wall_ns = number
    (turn,) = turns_of(Edge(key=key, arrival=True), line_format("ndjson"), blocks, Amounts(1 << 20, 1 << 20, 1 << 20))
    assert turn is not None
    together, letters = turn.batch, turn.letters
    edge, apart = Edge(key=key, arrival=True), []
    for block in blocks:
        batch, more = edge.rows(
            decode_json_lines(block.lines)[0],
            arrived_ns=5,
            wall_ns=block.wall_ns,
            known=[block.known] * 2,
            parsed=True,
        )
        apart.append(batch)
        letters += more
    assert not letters
    assert together.to_rows() == [row for batch in apart for row in batch.to_rows()]
    assert together.time.tolist() == [ns for batch in apart for ns in batch.time.tolist()]
    assert [together.keys[code] for code in together.key] == [
        batch.keys[code] for batch in apart for code in batch.key.tolist()
    ]
    assert together.orders is None


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


def test_what_is_gathered_is_not_looked_at_again_for_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand senders with a line each would take a thousand times as long as one with a thousand."""
    parts: list[int] = []

    def counted(some: Sequence[Sequence[dict[str, Any]]]) -> bool:
        parts.append(len(some))
        return are_joined_by_field(some)

    monkeypatch.setattr(blocks_module, "are_joined_by_field", counted)
    blocks = [Sent(b"mill,line=L%d speed=4\n" % number, {}) for number in range(100)]
    (turn,) = turns_of(Edge(arrival=True), line_format("influx"), blocks, Amounts(1 << 20, 1 << 20, 1 << 20))
    assert turn is not None
    assert len(turn.batch) + len(turn.letters) == 100
    assert max(parts) <= 2
