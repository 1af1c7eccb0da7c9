"""When the log says of a source that nothing of it has come through."""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ["FirstRecords", "Nothing"]

_MANY: Final = 100
_REJECTED_NS: Final = 10_000_000_000
_SILENT_NS: Final = 30_000_000_000


class Nothing(Enum):
    """What is to be said."""

    REJECTED = "all that came was rejected"
    SILENT = "nothing came"


class FirstRecords:
    """Of one source, until its first good record: each of `Nothing` is said once.

    That all was rejected, at the hundredth record, or ten seconds after the first; that nothing came, when it has waited for
    half a minute.

    >>> first = FirstRecords()
    >>> first.rejected(now_ns=0), first.look(now_ns=9_000_000_000), first.look(now_ns=10_000_000_000).value
    (None, None, 'all that came was rejected')
    >>> FirstRecords().look(now_ns=99_000_000_000, waits=False)
    """

    def __init__(self) -> None:
        self.rejects = 0
        self.is_over = False
        """A good record has come."""
        self.told: set[Nothing] = set()
        self._rejected_ns: int | None = None
        self._waits_ns: int | None = None

    def rejected(self, now_ns: int) -> Nothing | None:
        """One more; what is to be said now."""
        self.rejects += 1
        if self._rejected_ns is None:
            self._rejected_ns = now_ns
        return self._once(Nothing.REJECTED) if self.rejects == _MANY and not self.is_over else None

    def look(self, now_ns: int, *, waits: bool = False) -> Nothing | None:
        """What is to be said now; ``waits`` when something could come, and its waiting is worth a word."""
        if self.is_over:
            return None
        if self._rejected_ns is not None:
            return self._once(Nothing.REJECTED) if now_ns - self._rejected_ns >= _REJECTED_NS else None
        if waits and self._waits_ns is None:
            self._waits_ns = now_ns
        silent = waits and self._waits_ns is not None and now_ns - self._waits_ns >= _SILENT_NS
        return self._once(Nothing.SILENT) if silent else None

    def end(self) -> Nothing | None:
        """What is to be said when the source has ended."""
        return self._once(Nothing.REJECTED) if self.rejects and not self.is_over else None

    def _once(self, said: Nothing) -> Nothing | None:
        if said in self.told:
            return None
        self.told.add(said)
        return said
