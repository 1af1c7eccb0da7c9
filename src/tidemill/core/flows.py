"""How far a run has come at its edges: what each source gave, what each sink has shown, and what each of them waits for.

Every waiting has a beginning here, so that whoever asks can tell a quiet edge from one that is stuck.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

__all__ = [
    "LaneFlow",
    "SinkCounts",
    "SinkFlow",
    "SinkProgress",
    "SourceFlow",
    "SourceProgress",
    "Trouble",
    "TroubleBook",
]


@dataclass(frozen=True)
class SourceFlow:
    """How a source gives, now."""

    name: str
    live: bool
    """It does not end by itself: silence says something."""
    connected: bool
    records: int
    """Records it has given so far."""
    rejected: int
    """Records it has handed to the dead letters so far."""
    last_record_age_s: float
    """Since the last record, good or rejected; before the first, since the source was begun. While it had to wait with what it
    gave it could give no more, so that such a time is left out once it is over."""
    held_s: float
    """How long it has waited for the engine to take what it gave; 0 while it reads."""
    ended: bool
    tries: int = 0
    """Times it has tried to connect since it was connected last."""
    trouble: str = ""
    """Why it is not connected, where it knows."""
    lost: int = 0
    """What was lost before it could be read, as far as the system tells."""
    turned_away: int = 0
    """Connections that were not taken, because there were too many."""
    last_away: str = ""
    """From where the last of these was, and what there was too much of."""
    away_lately: int = 0
    """Of these, the ones within the last minute; of very many, at least so many."""
    refused: int = 0
    """Requests that were not taken, and answered why."""
    dials: bool = False
    """It opens its connection itself, so it can open another."""


@dataclass(frozen=True)
class SinkFlow:
    """How a sink takes, now."""

    name: str
    rows: int
    """Rows it has written."""
    waiting: int
    """Batches of rows that were handed to it, and that its readers cannot see."""
    waiting_s: float
    """How long the oldest of these has waited."""
    commit_age_s: float
    """Since rows were last committed, or flushed in a run without state; before the first time, since the run began."""
    commits: int
    """Batches that its readers can see by now; 0 before anything was committed, or flushed."""
    trouble: Trouble | None = None
    """Why it takes nothing, while it tries again by itself: its tries since the attempt at the run began."""
    call_s: float = 0.0
    """How long it has not come back from a call; 0 while it is in none, such as one with rows that wait for their commit."""


@dataclass(frozen=True)
class SinkCounts:
    """What a sink has done.

    >>> SinkCounts(3, left_out={"unit": 1}) + SinkCounts(4, left_out={"unit": 2})
    SinkCounts(rows=7, deleted=0, left_out={'unit': 3})
    """

    rows: int = 0
    deleted: int = 0
    """Rows that it has deleted, since they were too old."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Values that it had no place for, by their field."""

    def __add__(self, more: SinkCounts) -> SinkCounts:
        left_out = Counter(self.left_out) + Counter(more.left_out) if more.left_out else self.left_out
        return SinkCounts(self.rows + more.rows, self.deleted + more.deleted, dict(left_out))

    def since(self, before: SinkCounts) -> SinkCounts:
        """What came after what had been done before."""
        left_out = Counter(self.left_out) - Counter(before.left_out) if before.left_out else self.left_out
        return SinkCounts(self.rows - before.rows, self.deleted - before.deleted, dict(left_out))


@dataclass(frozen=True)
class LaneFlow:
    """How a lane works, now."""

    number: int
    in_flight: int
    """Slabs it has not committed."""
    waiting_s: float
    """How long it has had slabs without finishing one."""
    at: str = ""
    """The stage whose function it is in; empty while it is in none."""
    lost_lately: int = 0
    """Processes of it that were lost within the last minute."""


class SourceProgress:
    """What a source gives, from when it was begun.

    >>> progress = SourceProgress(0)
    >>> progress.gave(7, 5_000_000_000)
    >>> progress.last_record_age_s(8_000_000_000), progress.held_s(8_000_000_000)
    (3.0, 3.0)
    >>> progress.taken(9_000_000_000)
    >>> progress.last_record_age_s(10_000_000_000), progress.held_s(10_000_000_000)
    (1.0, 0.0)
    """

    def __init__(self, now_ns: int) -> None:
        self._last_ns = now_ns
        self._held_since_ns: int | None = None
        self.ended = False

    def gave(self, records: int, now_ns: int) -> None:
        """A batch came, and waits to be taken."""
        if records:
            self._last_ns = now_ns
        self._held_since_ns = now_ns

    def rejected(self, now_ns: int) -> None:
        """A record came that was none."""
        self._last_ns = now_ns

    def taken(self, now_ns: int) -> None:
        """The batch has been taken: only now can more come."""
        if self._held_since_ns is not None:
            self._last_ns = min(self._last_ns + now_ns - self._held_since_ns, now_ns)
        self._held_since_ns = None

    def last_record_age_s(self, now_ns: int) -> float:
        return max(now_ns - self._last_ns, 0) / 1e9

    def held_s(self, now_ns: int) -> float:
        return 0.0 if self._held_since_ns is None else max(now_ns - self._held_since_ns, 0) / 1e9


class SinkProgress:
    """What a sink was handed, and what of it its readers can see; both in one order. What it has written is told by itself.

    >>> progress = SinkProgress(0)
    >>> progress.given(1_000_000_000); progress.given(2_000_000_000); progress.shown(3_000_000_000)
    >>> progress.waiting, progress.waiting_s(5_000_000_000), progress.commit_age_s(5_000_000_000)
    (1, 3.0, 2.0)
    """

    def __init__(self, now_ns: int) -> None:
        self._given_ns: deque[int] = deque()
        self._committed_ns = now_ns
        self.commits = 0
        """Batches that were shown so far."""
        self._asked = 0
        """Things that it was asked to do, and is not through with."""
        self._went_on_ns = now_ns
        self._earlier = self._kept = SinkCounts()
        self._kept_to = 0
        self._told: SinkCounts | None = None
        self.troubles = TroubleBook()
        """Its tries since this attempt began."""

    def given(self, now_ns: int) -> None:
        """A batch was handed to it."""
        self._given_ns.append(now_ns)

    def asked(self, now_ns: int) -> None:
        """It is to write a batch, or to commit."""
        if not self._asked:
            self._went_on_ns = now_ns
        self._asked += 1

    def came_back(self, now_ns: int, *, done: bool) -> None:
        """From a call; ``done`` if that was all there was to do of what it was asked."""
        self._asked = max(self._asked - done, 0)
        self._went_on_ns = now_ns

    def call_s(self, now_ns: int) -> float:
        """How long it has not come back, of what it was asked to do.

        >>> progress = SinkProgress(0)
        >>> progress.asked(1_000_000_000); progress.call_s(4_000_000_000)
        3.0
        >>> progress.came_back(4_000_000_000, done=True); progress.call_s(9_000_000_000)
        0.0
        """
        return max(now_ns - self._went_on_ns, 0) / 1e9 if self._asked else 0.0

    def shown(self, now_ns: int) -> None:
        """The oldest batch that waited can be seen."""
        if self._given_ns:
            self._given_ns.popleft()
        self._committed_ns = now_ns
        self.commits += 1
        self.troubles.over()

    def again(self, counts: SinkCounts) -> SinkProgress:
        """That of the next attempt: what was handed over and not shown comes once more, and this one hears of no more.
        ``counts`` is what it has told of itself since its attempt began."""
        made = SinkProgress(self._committed_ns)
        made.commits = self.commits
        made._earlier = made._kept = self._kept
        made._kept_to = self._kept_to
        made._told = self.total(counts) if self._told is None else self._told
        return made

    def kept(self, counts: SinkCounts, position: int) -> None:
        """So much of what it has done since its attempt began will not come again: it is for the inputs up to there."""
        self._kept = self._earlier + counts
        self._kept_to = position

    def resumed(self, position: int) -> None:
        """It was opened, and its output reaches up to there. When that is further than it could tell, it has committed and then
        ended: it does one after the other, so that what it has told of itself is what it had done by then.

        >>> before = SinkProgress(0)
        >>> before.kept(SinkCounts(3), 10)
        >>> after = before.again(SinkCounts(5))
        >>> after.resumed(20)
        >>> after.total(SinkCounts(1)).rows
        6
        """
        if self._told is not None and position > self._kept_to:
            self._earlier = self._kept = self._told
        self._kept_to = max(self._kept_to, position)
        self._told = None

    def total(self, counts: SinkCounts) -> SinkCounts:
        """What it has done in the whole run, when it is so much since its attempt began."""
        return self._earlier + counts

    @property
    def waiting(self) -> int:
        return len(self._given_ns)

    def waiting_s(self, now_ns: int) -> float:
        return max(now_ns - self._given_ns[0], 0) / 1e9 if self._given_ns else 0.0

    def commit_age_s(self, now_ns: int) -> float:
        return max(now_ns - self._committed_ns, 0) / 1e9


@dataclass(frozen=True)
class Trouble:
    """What keeps a run from going on, and how often that was tried."""

    culprit: str
    """Such as ``sink postgres``; empty where it cannot be said."""
    tries: int
    said: str
    lasts_s: float = 0.0
    """Since the first of these tries failed."""

    def __add__(self, more: Trouble) -> Trouble:
        """With the tries that followed.

        >>> Trouble("sink hub", 3, "no route", 9.0) + Trouble("sink hub", 2, "connection refused", 1.0)
        Trouble(culprit='sink hub', tries=5, said='connection refused', lasts_s=9.0)
        """
        return Trouble(self.culprit, self.tries + more.tries, more.said, max(self.lasts_s, more.lasts_s))


class TroubleBook:
    """The attempts that failed since the run last got something done.

    A failure is over when the run has shown rows since, or has begun again and finds nothing to do or to save. It is counted on
    until then: a sink that lets itself be opened and fails at each commit has had its tries, too.

    >>> book = TroubleBook()
    >>> for second in (1, 4):
    ...     book.failed("sink rows", "connection refused", second * 1_000_000_000)
    >>> book.read(10_000_000_000)
    Trouble(culprit='sink rows', tries=2, said='connection refused', lasts_s=9.0)
    >>> book.over(); book.read(10_000_000_000)
    """

    def __init__(self) -> None:
        self._last: Trouble | None = None
        self._since_ns = 0
        self.failures = 0
        """In a row, whatever each of them has tried."""

    def failed(self, culprit: str, said: str, now_ns: int, tried: Trouble | None = None) -> None:
        """An attempt has ended so, which had ``tried`` for a while, the last time included."""
        tries, tried_s = (1, 0.0) if tried is None else (tried.tries, tried.lasts_s)
        if self._last is None:
            self._since_ns = now_ns - round(tried_s * 1e9)
        self._last = Trouble(culprit, tries + (0 if self._last is None else self._last.tries), said)
        self.failures += 1

    def over(self) -> None:
        """Something was done since, or there is nothing to do."""
        self._last = None
        self.failures = 0

    @property
    def open(self) -> bool:
        """Whether there is any."""
        return self._last is not None

    @property
    def culprit(self) -> str:
        """Of the last failure; empty without any."""
        return "" if self._last is None else self._last.culprit

    def read(self, now_ns: int) -> Trouble | None:
        """What there is, now."""
        return None if self._last is None else replace(self._last, lasts_s=max(now_ns - self._since_ns, 0) / 1e9)
