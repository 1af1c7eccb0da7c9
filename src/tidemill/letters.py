"""Records that cannot go on, and why: the words for dead letters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, overload

__all__ = [
    "AT_A_TIME",
    "BAD_TIME",
    "DEADLINE",
    "INFINITE",
    "KILLED",
    "LATE",
    "MALFORMED",
    "MISSING_FIELD",
    "NO_KEY",
    "OVERSIZE",
    "RAISED",
    "REASON_CODES",
    "TOO_MANY_KEYS",
    "TOO_MANY_OPEN",
    "UNASKED",
    "UNKNOWN_KEY",
    "WRONG_LENGTH",
    "WRONG_TYPE",
    "DeadLetter",
    "Letters",
    "Reject",
]

# Stable: they are metric labels and what scripts grep for. Add, never rename.
MALFORMED: Final = "malformed"
OVERSIZE: Final = "oversize"
MISSING_FIELD: Final = "missing_field"
NO_KEY: Final = "no_key"
BAD_TIME: Final = "bad_time"
WRONG_TYPE: Final = "wrong_type"
INFINITE: Final = "infinite"
RAISED: Final = "raised"
WRONG_LENGTH: Final = "wrong_length"
UNKNOWN_KEY: Final = "unknown_key"
DEADLINE: Final = "deadline"
KILLED: Final = "killed_lane"
TOO_MANY_KEYS: Final = "too_many_keys"
LATE: Final = "late"
TOO_MANY_OPEN: Final = "too_many_open"
UNASKED: Final = "unasked"

REASON_CODES: Final = (
    MALFORMED, OVERSIZE, MISSING_FIELD, NO_KEY, BAD_TIME, WRONG_TYPE, INFINITE, RAISED, WRONG_LENGTH, UNKNOWN_KEY, DEADLINE,
    KILLED, TOO_MANY_KEYS, LATE, TOO_MANY_OPEN, UNASKED,
)  # fmt: skip
"""All of them."""

AT_A_TIME: Final = 64
"""Letters that are dealt with in one turn of the loop."""


@dataclass(frozen=True)
class Reject:
    """One record of a batch that cannot go on."""

    row: int
    """Its position in the batch that was looked at."""
    reason_code: str
    reason: str


@dataclass(frozen=True)
class DeadLetter:
    """A record on its way to the dead letters, with enough to repair and replay it."""

    reason_code: str
    """One of the constants of this module."""
    reason: str
    """One sentence for a person."""
    raw: Any
    """The record as it came: the record as a dict, or the text of a line that is none."""
    source: str = ""
    stage: str = ""
    """Empty when the record never became one."""
    key: str | None = None
    time_ns: int | None = None
    """The record's time, where it could be read; a row that a stage has made is no record, and has none."""
    arrival: bool = False
    """A record of this source that says no time has that of its arrival."""
    header: tuple[str, ...] = ()
    """The names of the cells of a ``raw`` that is a line of CSV."""
    position: int | None = None
    """Input index in the run; None when the record never got one."""
    behind: int | None = None
    """Of a row that a stage had made: the input index behind whose record it comes among letters."""


class Letters(Sequence[DeadLetter]):
    """Letters that are made when they are asked for, `AT_A_TIME` together where one goes through them: to see that a record
    cannot go on takes a fiftieth of the time of its letter, and a flood of them must not hold the loop.

    ``make`` gets the first and the end of those that are asked for.

    >>> letters = Letters(3, lambda start, end: [DeadLetter("raised", "why", row) for row in range(start, end)])
    >>> len(letters), letters[2].raw, [letter.raw for letter in letters]
    (3, 2, [0, 1, 2])
    """

    def __init__(self, count: int, make: Callable[[int, int], list[DeadLetter]]) -> None:
        self._count, self._make = count, make

    @classmethod
    def joined(cls, *parts: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        """All of them, one part after the other."""
        some = [part for part in parts if part]
        if len(some) <= 1:
            return some[0] if some else []

        def make(start: int, end: int) -> list[DeadLetter]:
            made: list[DeadLetter] = []
            for part in some:
                made += part[max(start, 0) : max(end, 0)]
                start, end = start - len(part), end - len(part)
            return made

        return cls(sum(map(len, some)), make)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> DeadLetter: ...
    @overload
    def __getitem__(self, index: slice) -> list[DeadLetter]: ...
    def __getitem__(self, index: int | slice) -> DeadLetter | list[DeadLetter]:
        if isinstance(index, slice):
            start, end, step = index.indices(self._count)
            return self._make(start, max(start, end))[::step] if step > 0 else list(self)[index]
        place = range(self._count)[index]
        return self._make(place, place + 1)[0]

    def __iter__(self) -> Iterator[DeadLetter]:
        for start in range(0, self._count, AT_A_TIME):
            yield from self._make(start, min(start + AT_A_TIME, self._count))
