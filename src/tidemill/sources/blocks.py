"""Lines of several senders, as they came, made one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from tidemill.batch import Batch
from tidemill.formats.edge import Edge, Known
from tidemill.formats.line_formats import LineFormat, known_of
from tidemill.letters import DeadLetter
from tidemill.rows import joined

__all__ = ["READ", "Lines", "batch_of", "bytes_of_a_turn"]

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


def batch_of(edge: Edge, form: LineFormat, blocks: Sequence[Lines]) -> tuple[Batch, list[DeadLetter]]:
    """The records in order, and what is none."""
    of_sender = any(name in blocks[0].known for name in edge.key_fields) or edge.fallback in blocks[0].known
    letters: list[DeadLetter] = []
    rows: Sequence[Any] | None = form.by_field(b"".join(block.lines for block in blocks)) if len(blocks) > 1 else None
    if rows is not None:
        counts = [block.lines.count(b"\n") for block in blocks]
        told: list[Known] = [block.known if of_sender else {} for block in blocks]
    else:
        made = [form.decode(block.lines) for block in blocks]
        rows = joined([each.rows for each in made])
        counts = [len(each.rows) for each in made]
        told = [known_of(each, block.known if of_sender else {}) for each, block in zip(made, blocks, strict=True)]
        for each, block in zip(made, blocks, strict=True):
            letters += [edge.refuse(line.reason_code, line.reason, line.raw, known=block.known) for line in each.bad]
    known: list[Mapping[str, str]] = []
    for one, count in zip(told, counts, strict=True):
        known += [one] * count if isinstance(one, Mapping) else one
    wall_ns = np.repeat(np.array([block.wall_ns for block in blocks], np.int64), counts)
    batch, more = edge.rows(rows, arrived_ns=blocks[0].arrived_ns, wall_ns=wall_ns, known=known, parsed=True)
    return batch, letters + more
