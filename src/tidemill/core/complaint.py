"""When the log says that a run is not well, and that it is well again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["Complaint"]

_EVERY_NS: Final = 60_000_000_000
"""Often enough for whoever looks at the log, and at most 1,440 lines a day."""


class Complaint:
    """One line a minute while something is wrong, the first at once, and one when it is over.

    What comes and goes within a minute is told once.

    >>> complaint = Complaint()
    >>> complaint.look(["sink postgres: 14 tries, connection refused"], now_ns=0)
    'not well: sink postgres: 14 tries, connection refused'
    >>> complaint.look(["sink postgres: 15 tries, connection refused"], now_ns=59_000_000_000)
    ''
    >>> complaint.look([], now_ns=70_000_000_000)
    'well again after 70 s'
    """

    def __init__(self) -> None:
        self._since_ns: int | None = None
        self._told_ns: int | None = None
        self._is_told = False

    def look(self, wrong: Sequence[str], now_ns: int) -> str:
        """The line that is to be written now; empty for none."""
        if not wrong:
            since, told = self._since_ns, self._is_told
            self._since_ns, self._is_told = None, False
            return f"well again after {(now_ns - since) / 1e9:,.0f} s" if since is not None and told else ""
        if self._since_ns is None:
            self._since_ns = now_ns
        if self._told_ns is not None and now_ns - self._told_ns < _EVERY_NS:
            return ""
        self._told_ns, self._is_told = now_ns, True
        lasts_s = round((now_ns - self._since_ns) / 1e9)
        return f"not well{f' for {lasts_s:,} s' if lasts_s else ''}: {'; '.join(wrong)}"
