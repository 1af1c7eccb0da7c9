"""Records that cannot go on, and why: the words for dead letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

__all__ = [
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
    "TOO_MANY_KEYS",
    "TOO_MANY_OPEN",
    "UNASKED",
    "UNKNOWN_KEY",
    "WRONG_LENGTH",
    "WRONG_TYPE",
    "DeadLetter",
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
