"""Lines of several senders, as they came, made batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from tidemill.batch import Batch
from tidemill.formats.decoded import Decoded
from tidemill.formats.edge import Edge
from tidemill.formats.line_formats import LineFormat, known_of
from tidemill.letters import DeadLetter

__all__ = ["READ", "Lines", "Turn", "bytes_of_a_turn", "turns_of"]

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


class Turn(NamedTuple):
    """What is made in one turn of the loop."""

    batch: Batch
    letters: list[DeadLetter]
    ends: bool
    """Whether it is the last of these blocks."""


def turns_of(edge: Edge, form: LineFormat, blocks: Sequence[Lines]) -> Iterator[Turn]:
    """The records in order, and what is none: all in one turn, but where a format takes a line apart since it is long."""
    made = _Rows(edge, blocks)
    for block in blocks:
        parts = form.parts(block.lines)
        part = next(parts)
        for more in parts:
            made.add(part, block)
            yield Turn(*made.taken(), ends=False)
            part = more
        made.add(part, block)
    yield Turn(*made.taken(), ends=True)


class _Rows:
    """Gathers what becomes one batch."""

    def __init__(self, edge: Edge, blocks: Sequence[Lines]) -> None:
        self._edge = edge
        self._arrived_ns = blocks[0].arrived_ns
        of_sender = (*edge.key_fields, edge.fallback)
        self._of_sender = any(name in blocks[0].known for name in of_sender)
        self._begin()

    def _begin(self) -> None:
        self._rows: list[Any] = []
        self._walls: list[int] = []
        self._counts: list[int] = []
        self._known: list[Mapping[str, str]] = []
        self._letters: list[DeadLetter] = []

    def add(self, made: Decoded, block: Lines) -> None:
        self._rows += made.rows
        self._walls.append(block.wall_ns)
        self._counts.append(len(made.rows))
        told = known_of(made, block.known if self._of_sender else {})
        self._known += [told] * len(made.rows) if isinstance(told, Mapping) else told
        refuse = self._edge.refuse
        self._letters += [refuse(line.reason_code, line.reason, line.raw, known=block.known) for line in made.bad]

    def taken(self) -> tuple[Batch, list[DeadLetter]]:
        """And begin the next."""
        wall_ns = np.repeat(np.array(self._walls, np.int64), self._counts)
        batch, more = self._edge.rows(
            self._rows, arrived_ns=self._arrived_ns, wall_ns=wall_ns, known=self._known, parsed=True
        )
        letters = self._letters + more
        self._begin()
        return batch, letters
