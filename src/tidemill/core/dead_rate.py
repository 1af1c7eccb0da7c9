"""How many of the last records became dead letters, and whether that is more than a run is to bear."""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from tidemill.durations import duration_ns
from tidemill.errors import PlanError
from tidemill.printable import quoted

__all__ = ["DeadRate", "MaxDead", "TooMany"]

_FEWEST: Final = 10
"""Dead letters below which a share says nothing: the one record of a quiet minute must not end a run."""
_SENDERS: Final = 64
"""Sensors that are counted in a slice of the time. Whoever sends makes up their names, so there may be any number of them."""
_SLICES: Final = 60
"""Of the time that is looked at."""


@dataclass(frozen=True)
class MaxDead:
    """``50%/60s``: more than half of the records of the last minute; ``100/60s``: more than a hundred of them.

    >>> MaxDead.of("50%/60s"), MaxDead.of("100/1min").most
    (MaxDead(most=50.0, is_share=True, span_ns=60000000000), 100.0)
    """

    most: float
    is_share: bool
    """Whether ``most`` is a percentage."""
    span_ns: int

    @classmethod
    def of(cls, text: str) -> MaxDead:
        """Raises `PlanError` for what is no such bound."""
        found = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(%?)\s*/\s*(\S+)\s*", text, re.ASCII)
        if found is None or (not found[2] and "." in found[1]) or (found[2] and float(found[1]) >= 100):
            raise PlanError(
                f"max_dead={text!r} must be a share below 100 % or a number of records, and a time, such as "
                "'50%/60s' or '100/60s'."
            )
        return cls(float(found[1]), bool(found[2]), duration_ns(found[3], name="max_dead"))

    def __str__(self) -> str:
        return f"limit {self.most:g} %" if self.is_share else f"limit {self.most:g}"


@dataclass(frozen=True)
class TooMany:
    """More than may be."""

    said: str
    """How many, and why most of them. No name that came from outside is in it."""
    lead: str
    """Of which sensor most are; of which source, where there was none to be told."""


@dataclass
class _Slice:
    begun_ns: int
    records: int = 0
    dead: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    senders: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By reason, kind of sender and name: at least so many. Who has more than one in 65 is there (Misra and Gries, Science of
    Computer Programming 2, 1982)."""

    def add(self, sender: tuple[str, str, str]) -> None:
        """A letter of this sender; in the mean the work of a count or two."""
        if sender in self.senders or len(self.senders) < _SENDERS:
            self.senders[sender] += 1
        else:
            self.senders = Counter({one: times - 1 for one, times in self.senders.items() if times > 1})


class DeadRate:
    """Counts the records of the last so many seconds. A share is judged once they have been seen whole, so that the first
    record of a run says nothing of it; a number at once.

    >>> rate = DeadRate(MaxDead.of("2/60s"), now_ns=0)
    >>> for _ in range(3): rate.buried("missing_field", sensor="pump 7", source="mqtt")
    >>> rate.look(5, now_ns=1_000_000_000)
    TooMany(said='3 of 5 records of the last 60 s are dead letters (limit 2), 3 of them missing_field', \
lead="at least 3 of these are of sensor 'pump 7'")
    """

    def __init__(self, bound: MaxDead, now_ns: int) -> None:
        self._bound = bound
        self._slices = deque([_Slice(now_ns)])
        self._records = 0
        self._first_ns: int | None = None

    def buried(self, reason_code: str, *, sensor: str | None, source: str) -> None:
        """A record has become a dead letter."""
        now = self._slices[-1]
        now.dead += 1
        now.reasons[reason_code] += 1
        now.add((reason_code, "source", source) if sensor is None else (reason_code, "sensor", sensor))

    def look(self, records: int, now_ns: int) -> TooMany | None:
        """Whether there are too many, now that so many records have come in. Another attempt counts on from its checkpoint: those
        that come again are none that came."""
        now = self._slices[-1]
        now.records += max(records - self._records, 0)
        self._records = max(records, self._records)
        if self._first_ns is None and (now.records or now.dead):
            self._first_ns = now_ns
        found = self._judged(now_ns)
        if now_ns - now.begun_ns >= self._bound.span_ns // _SLICES:
            self._slices.append(_Slice(now_ns))
        while len(self._slices) > 1 and self._slices[1].begun_ns <= now_ns - self._bound.span_ns:
            self._slices.popleft()
        return found

    def _judged(self, now_ns: int) -> TooMany | None:
        bound = self._bound
        dead = sum(one.dead for one in self._slices)
        records = max(sum(one.records for one in self._slices), dead)  # records come in before they are refused
        if not bound.is_share:
            return self._told(dead, records) if dead > bound.most else None
        whole = self._first_ns is not None and now_ns - self._first_ns >= bound.span_ns
        if whole and dead >= _FEWEST and dead * 100 > bound.most * records:
            return self._told(dead, records)
        return None

    def _told(self, dead: int, records: int) -> TooMany:
        reasons: Counter[str] = Counter()
        senders: Counter[tuple[str, str, str]] = Counter()
        for one in self._slices:
            reasons.update(one.reasons)
            senders.update(one.senders)
        reason, times = reasons.most_common(1)[0]
        theirs = Counter({sender[1:]: count for sender, count in senders.items() if sender[0] == reason})
        lead = "none of many sensors leads"
        if theirs:
            (kind, name), most = theirs.most_common(1)[0]
            lead = f"at least {most:,} of these are of {kind} {quoted(name)}"
        last = f"the last {self._bound.span_ns / 1e9:g} s"
        return TooMany(
            f"{dead:,} of {records:,} records of {last} are dead letters ({self._bound}), {times:,} of them {reason}",
            lead,
        )
