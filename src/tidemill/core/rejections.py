"""Whose records became dead letters, and of whom most of what came lately: neither a firmware update nor a function that raises on
one record in three must eat a night in silence."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from tidemill.printable import counted

__all__ = ["MostlyDead", "Rejections"]

_LATELY_NS: Final = 60 * 10**9
_FEWEST: Final = 10
"""Records below which a share says nothing; where fewer come in a minute, the last so many are looked at."""
_OLDEST_NS: Final = 3_600 * 10**9
"""What came before says nothing of now."""


@dataclass(frozen=True)
class MostlyDead:
    """Of one source, or one stage."""

    who: str
    said: str
    """One sentence that begins with the culprit. No name that came from outside is in it."""
    sample: str
    """Why the newest of them is one; it may name what came from outside."""


@dataclass
class _Slice:
    """What came between two looks."""

    at_ns: int = 0
    came: int = 0
    dead: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By culprit and reason code."""


class _Book:
    """What came by one way; ``what`` says of what."""

    def __init__(self, what: str = "records") -> None:
        self._what = what
        self.open = _Slice()
        self.samples: dict[tuple[str, str], str] = {}
        """Of each culprit and reason code, why the newest is one."""
        self._slices: deque[_Slice] = deque()

    def buried(self, who: str, reason_code: str, reason: str) -> None:
        by = who, reason_code
        self.open.dead[by] += 1
        self.samples[by] = reason

    def look(self, now_ns: int) -> list[MostlyDead]:
        if self.open.came or self.open.dead:
            self.open.at_ns = now_ns
            self._slices.append(self.open)
            self.open = _Slice()
        came = sum(one.came for one in self._slices)
        while self._slices and self._is_over(self._slices[0], came, now_ns):
            came -= self._slices.popleft().came
        dead: Counter[tuple[str, str]] = Counter()
        for one in self._slices:
            dead.update(one.dead)
        return [found for who in {who for who, _ in dead} if (found := self._judged(who, came, dead)) is not None]

    def _is_over(self, oldest: _Slice, came: int, now_ns: int) -> bool:
        age_ns = now_ns - oldest.at_ns
        return age_ns >= _OLDEST_NS or (age_ns >= _LATELY_NS and came - oldest.came >= _FEWEST)

    def _judged(self, who: str, came: int, dead: Counter[tuple[str, str]]) -> MostlyDead | None:
        reasons = Counter({reason: times for (whose, reason), times in dead.items() if whose == who})
        died = reasons.total()
        if died < _FEWEST or 2 * died <= came:
            return None
        reason, times = reasons.most_common(1)[0]
        last = max(came, died)  # those that a stage refuses came a moment before
        return MostlyDead(
            who,
            f"{who}: {died:,} of the last {last:,} {self._what} are dead letters, {times:,} of them {reason}",
            self.samples[who, reason],
        )


class Rejections:
    """Counts what came and what died of it, within the last minute. What is refused of a source's records is judged against
    these, what is refused by a stage against all. Rows that stages made are no records: those that a stage refuses are
    judged against those that came to it.

    >>> rejections = Rejections()
    >>> rejections.came(30, "mqtt")
    >>> for _ in range(20): rejections.buried("wrong_type", "'value' of 'pump 7' is text", source="mqtt")
    >>> [found.said for found in rejections.look(now_ns=0)]
    ['source mqtt: 20 of the last 30 records are dead letters, 20 of them wrong_type']
    """

    def __init__(self) -> None:
        self._all = _Book()
        self._sources: dict[str, _Book] = defaultdict(_Book)
        self._made: dict[str, _Book] = defaultdict(lambda: _Book("rows"))
        self.dead: Counter[tuple[str, str]] = Counter()
        """All so far, by culprit and reason code, as of the last look."""
        self._samples: dict[tuple[str, str], str] = {}
        self._told: dict[tuple[str, str], tuple[int, int]] = {}
        """Of these, how many there were when they were told of last, and when that was."""

    def came(self, records: int, source: str) -> None:
        """So many came in; some of them may be dead letters."""
        self._all.open.came += records
        self._sources[source].open.came += records

    def buried(self, reason_code: str, reason: str, *, source: str = "", stage: str = "") -> None:
        """One of these became a dead letter."""
        who = f"stage {stage}" if stage else f"source {source}" if source else "lanes"
        book = self._all if stage or not source else self._sources[source]
        book.buried(who, reason_code, reason)

    def made(self, rows: int, stage: str) -> None:
        """So many rows that stages had made came to this one; some of them may be dead letters."""
        self._made[stage].open.came += rows

    def buried_row(self, reason_code: str, reason: str, stage: str) -> None:
        """One of these became a dead letter."""
        self._made[stage].buried(f"stage {stage}", reason_code, reason)

    def look(self, now_ns: int) -> list[MostlyDead]:
        """Those of whom more than half are dead letters; called about once a second."""
        books = [*self._sources.values(), self._all, *self._made.values()]
        for book in books:
            self.dead.update(book.open.dead)
            self._samples.update((by, book.samples[by]) for by in book.open.dead)
        return [found for book in books for found in book.look(now_ns)]

    def news(self, now_ns: int, *, besides: Collection[str] = ()) -> Iterator[tuple[str, str]]:
        """What the log is to say now, and why the newest of these is a dead letter: of each culprit and reason code at once, then
        once a minute while there are more. Of those ``besides`` it says so otherwise."""
        for (who, reason_code), dead in self.dead.items():
            before, told_ns = self._told.get((who, reason_code), (0, now_ns - _LATELY_NS))
            if dead == before or now_ns - told_ns < _LATELY_NS:
                continue
            self._told[who, reason_code] = dead, now_ns
            if who in besides:
                continue
            within = f" within {(now_ns - told_ns) / 1e9:,.0f} s" if before else ""
            said = f"{who}: {counted(dead - before, 'dead letter')}{within}, {reason_code}"
            yield said, self._samples[who, reason_code]
