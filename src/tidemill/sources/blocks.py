"""Lines of several senders, as they came, made batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from tidemill.batch import Batch
from tidemill.formats.decoded import Decoded
from tidemill.formats.edge import Edge, Known
from tidemill.formats.line_formats import LineFormat, known_of
from tidemill.letters import DeadLetter
from tidemill.rows import joined

__all__ = ["READ", "Lines", "Turn", "bytes_of_a_turn", "turns_of"]

READ: Final = 1 << 17
"""Bytes taken from one sender at a time."""
_TURN: Final = {"ndjson": READ}
"""Bytes that become one batch in one turn of the loop, when as many wait: about a millisecond's work."""
_TURN_OF_OTHERS: Final = 1 << 15


def bytes_of_a_turn(format_: str) -> int:
    """How much is decoded before the loop goes on, by how long the decoder takes."""
    return _TURN.get(format_, _TURN_OF_OTHERS)


class Lines(Protocol):
    """Whole lines of one sender, with what is known of it, and when they came."""

    @property
    def lines(self) -> bytes: ...
    @property
    def known(self) -> Mapping[str, str]: ...
    @property
    def arrived_ns(self) -> int: ...
    @property
    def wall_ns(self) -> int: ...


class Turn(NamedTuple):
    """What is made in one turn of the loop."""

    batch: Batch
    letters: list[DeadLetter]
    ends: bool
    """Whether it is the last of these blocks."""


def turns_of(edge: Edge, form: LineFormat, blocks: Sequence[Lines]) -> Iterator[Turn]:
    """The records in order, and what is none: all in one turn, but where a format takes a line apart since it is long."""
    of_sender = any(name in blocks[0].known for name in (*edge.key_fields, edge.fallback))
    rows = form.by_field(b"".join(block.lines for block in blocks)) if len(blocks) > 1 else None
    if rows is not None:
        shares = [_Share(block, block.lines.count(b"\n"), block.known if of_sender else {}) for block in blocks]
        yield Turn(*_batch_of(edge, rows, shares), ends=True)
        return
    gathered: list[tuple[Lines, Decoded]] = []
    for block in blocks:
        parts = form.parts(block.lines)
        gathered.append((block, next(parts)))
        for part in parts:
            yield Turn(*_gathered(edge, gathered, of_sender=of_sender), ends=False)
            gathered = [(block, part)]
    yield Turn(*_gathered(edge, gathered, of_sender=of_sender), ends=True)


class _Share(NamedTuple):
    """Of one batch, the rows of one block."""

    block: Lines
    rows: int
    known: Known


def _gathered(edge: Edge, parts: Sequence[tuple[Lines, Decoded]], *, of_sender: bool) -> tuple[Batch, list[DeadLetter]]:
    shares = [_Share(block, len(made.rows), known_of(made, block.known if of_sender else {})) for block, made in parts]
    letters = [
        edge.refuse(line.reason_code, line.reason, line.raw, known=block.known)
        for block, made in parts
        for line in made.bad
    ]
    batch, more = _batch_of(edge, joined([made.rows for _, made in parts]), shares)
    return batch, letters + more


def _batch_of(edge: Edge, rows: Sequence[Any], shares: Sequence[_Share]) -> tuple[Batch, list[DeadLetter]]:
    known: list[Mapping[str, str]] = []
    for share in shares:
        known += [share.known] * share.rows if isinstance(share.known, Mapping) else share.known
    walls = np.array([share.block.wall_ns for share in shares], np.int64)
    wall_ns = np.repeat(walls, [share.rows for share in shares])
    arrived_ns = shares[0].block.arrived_ns
    return edge.rows(rows, arrived_ns=arrived_ns, wall_ns=wall_ns, known=known, parsed=True)
