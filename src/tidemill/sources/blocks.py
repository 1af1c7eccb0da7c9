"""Lines of several senders, as they came, made one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from tidemill.batch import Batch
from tidemill.formats.edge import Edge
from tidemill.formats.line_formats import LineFormat, known_of
from tidemill.letters import DeadLetter

__all__ = ["READ", "Lines", "batch_of", "bytes_of_a_turn"]

READ: Final = 1 << 15
"""Bytes taken from one sender at a time."""
_TURN: Final = {"ndjson": 2 * READ}
"""Bytes that become one batch in one turn of the loop, when as many wait: about a millisecond's work."""
_TURN_OF_OTHERS: Final = READ // 2


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


def batch_of(edge: Edge, form: LineFormat, blocks: Sequence[Lines]) -> tuple[Batch, list[DeadLetter]]:
    """The records in order, and what is none."""
    rows: list[Any] = []
    counts: list[int] = []
    known: list[Mapping[str, str]] = []
    letters: list[DeadLetter] = []
    of_sender = any(name in blocks[0].known for name in edge.key_fields) or edge.fallback in blocks[0].known
    for block in blocks:
        made = form.decode(block.lines)
        rows += made.rows
        counts.append(len(made.rows))
        told = known_of(made, block.known if of_sender else {})
        known += [told] * len(made.rows) if isinstance(told, Mapping) else told
        letters += [edge.refuse(line.reason_code, line.reason, line.raw, known=block.known) for line in made.bad]
    wall_ns = np.repeat(np.array([block.wall_ns for block in blocks], np.int64), counts)
    batch, more = edge.rows(rows, arrived_ns=blocks[0].arrived_ns, wall_ns=wall_ns, known=known, parsed=True)
    return batch, letters + more
