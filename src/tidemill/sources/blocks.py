"""Lines of several senders, as they came, made batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import numpy as np

from tidemill.batch import Batch
from tidemill.formats.decoded import Decoded
from tidemill.formats.edge import Edge
from tidemill.formats.line_formats import LineFormat, known_of
from tidemill.formats.lines import line_ends
from tidemill.formats.roles import Known
from tidemill.letters import DeadLetter, Letters
from tidemill.rows import RowsByField, are_joined_by_field, joined, runs_of_rows

__all__ = ["FEW_ROWS", "Amounts", "Gathered", "Lines", "Turn", "amounts", "groups_of", "rows_of_all", "turns_of"]


_NOTHING: Final[Mapping[str, str]] = {}
_MOST_ROWS: Final = 1 << 14
"""That become one batch where they are columns already: about a millisecond's work of the loop."""
_MOST_DICTS: Final = 1 << 12
"""The same where columns are made of dicts: some milliseconds."""
_MOST_KEYED: Final = 1 << 11
"""The same where the key of each has something of its sender."""
FEW_ROWS: Final = 1_000
"""The same where some are refused perhaps, which takes many times as long."""


class Amounts(NamedTuple):
    """Bytes of lines, by how long a format takes to decode them."""

    step: int
    """Read from one sender at a time, and decoded before the loop goes on: about a millisecond's work."""
    alike: int
    """Decoded before the loop goes on where `LineFormat.by_field` tells what they are."""
    batch: int
    """That become one batch when as many wait: what a batch costs however small it is, many lines share."""


_AMOUNTS: Final = {"ndjson": Amounts(1 << 17, 1 << 18, 1 << 19)}
_AMOUNTS_OF_OTHERS: Final = Amounts(1 << 14, 1 << 14, 1 << 17)


def amounts(format_: str) -> Amounts:
    """How much of a format is taken at a time."""
    return _AMOUNTS.get(format_, _AMOUNTS_OF_OTHERS)


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


Of = TypeVar("Of", bound=Lines)


class Turn(NamedTuple):
    """What is made in one turn of the loop."""

    batch: Batch
    letters: Sequence[DeadLetter]
    ends: bool
    """Whether it is the last of these blocks."""


def turns_of(edge: Edge, form: LineFormat, blocks: Sequence[Lines], amounts: Amounts) -> Iterator[Turn | None]:
    """The records in order, and what is none, in no more batches than it takes for each to be made in one turn of the loop. None
    where as much was decoded as ``amounts`` say, more is to come, and the loop should have its turn."""
    made = Gathered(edge, blocks[0])
    for group, some in enumerate(groups_of(blocks, amounts.alike)):
        if group:
            yield None
        rows = rows_of_all(edge, form, some) if len(some) > 1 else None
        if rows is not None:
            if not made.has_room_for(rows):
                yield from made.taken(ends=False)
            made.add_together(rows, some)
            continue
        for step, few in enumerate(groups_of(some, amounts.step)):
            if step:
                yield None
            for block in few:
                parts = form.parts(block.lines)
                first = next(parts)
                if not made.has_room_for(first.rows):
                    yield from made.taken(ends=False)
                made.add(first, block)
                for part in parts:
                    yield from made.taken(ends=False)
                    made.add(part, block)
    yield from made.taken(ends=True)


def groups_of(blocks: Sequence[Of], most: int) -> Iterator[list[Of]]:
    """The same in groups, of up to ``most`` bytes together, or of one block that has more."""
    some: list[Of] = []
    size = 0
    for block in blocks:
        if some and size + len(block.lines) > most:
            yield some
            some, size = [], 0
        some.append(block)
        size += len(block.lines)
    yield some


def rows_of_all(edge: Edge, form: LineFormat, blocks: Sequence[Lines]) -> RowsByField | None:
    """One for each line of the blocks, where their lines have ends, the format can tell them together, and none of the last records
    were refused."""
    if (
        not form.uses_kernels
        or edge.refuses
        or not all(block.lines.endswith(b"\n") or not block.lines for block in blocks)
    ):
        return None
    return form.by_field(b"".join(block.lines for block in blocks))


class Gathered:
    """What becomes one batch, and then the next."""

    def __init__(self, edge: Edge, first: Lines) -> None:
        self._edge = edge
        self._keyed_by_sender = any(name in first.known for name in edge.roles.key_fields)
        self._of_sender = self._keyed_by_sender or edge.roles.fallback in first.known
        self._begin()

    def _begin(self) -> None:
        self._rows: list[Sequence[Any]] = []
        self._by_field = True  # whether none of them becomes dicts
        self._size = 0
        self._counts: list[int] = []
        self._walls: list[int] = []
        self._known: list[Known] = []
        self._letters: list[Sequence[DeadLetter]] = []
        self._arrived_ns = 0

    def add(self, made: Decoded, block: Lines) -> None:
        """What is decoded of one block."""
        self._append(made.rows)
        self._note(block, len(made.rows), known_of(made, self._known_of(block)))
        if made.bad:
            self._letters.append(self._edge.refused(made.bad, known=block.known))

    def has_room_for(self, rows: Sequence[Any]) -> bool:
        """Whether a batch of these, too, takes one turn of the loop no longer than others wait gladly."""
        if self._edge.refuses:
            most = FEW_ROWS
        elif self._keyed_by_sender:
            most = _MOST_KEYED
        else:
            most = _MOST_ROWS if self._stays_by_field(rows) else _MOST_DICTS
        return not self._rows or len(self) + len(rows) <= most

    def _stays_by_field(self, rows: Sequence[Any]) -> bool:
        """With these. One part stands for all before it: there may be thousands, of a line each."""
        return self._by_field and are_joined_by_field([*self._rows[-1:], rows])

    def _append(self, rows: Sequence[Any]) -> None:
        self._by_field = self._stays_by_field(rows)
        self._rows.append(rows)
        self._size += len(rows)

    def add_together(self, rows: RowsByField, blocks: Sequence[Lines]) -> list[int]:
        """The rows of several blocks, one for each of their lines; how many those are."""
        self._append(rows)
        counts = [line_ends(block.lines) for block in blocks]
        for block, count in zip(blocks, counts, strict=True):
            self._note(block, count, self._known_of(block))
        return counts

    def _known_of(self, block: Lines) -> Mapping[str, str]:
        return block.known if self._of_sender else _NOTHING

    def _note(self, block: Lines, rows: int, known: Known) -> None:
        self._arrived_ns = self._arrived_ns or block.arrived_ns
        self._counts.append(rows)
        self._walls.append(block.wall_ns)
        self._known.append(known)

    def __len__(self) -> int:
        """Rows so far."""
        return self._size

    def taken(self, *, ends: bool) -> Iterator[Turn]:
        """The batch, and what is no record; several where rows have little in common. The next begins."""
        rows, letters, arrived_ns = joined(self._rows), self._letters, self._arrived_ns
        walls = np.repeat(np.array(self._walls, np.int64), self._counts)
        known = self._known_of_each()
        self._begin()
        for run in self._runs(rows):
            batch, more = self._edge.rows(
                rows[run],
                arrived_ns=arrived_ns,
                wall_ns=walls[run],
                known=known if isinstance(known, Mapping) else known[run],
                parsed=True,
            )
            yield Turn(batch, Letters.joined(*letters, more), ends and run.stop == len(rows))
            letters = []

    def _runs(self, rows: Sequence[Any]) -> Iterator[slice]:
        """Rows that have much in common; few at a time while some are refused."""
        for run in runs_of_rows(rows):
            start = run.start
            while self._edge.refuses and run.stop - start > FEW_ROWS:
                yield slice(start, start + FEW_ROWS)
                start += FEW_ROWS
            yield slice(start, run.stop)

    def _known_of_each(self) -> Known:
        """One for all where it is the same, as where nothing is known."""
        first = self._known[0] if self._known else _NOTHING
        if isinstance(first, Mapping) and all(known is first for known in self._known):
            return first
        each: list[Mapping[str, str]] = []
        for known, rows in zip(self._known, self._counts, strict=True):
            each += [known] * rows if isinstance(known, Mapping) else known
        return each
