"""When the log says that a run is not well, and that it is well again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["Complaint"]

_EVERY_NS: Final = 60_000_000_000
"""Often enough for whoever looks at the log, and at most 1,440 lines a day."""
_AT_ONCE: Final = 3
"""Times that it begins to be wrong which are told at once, until a minute has passed without any."""


class Complaint:
    """A line when something begins to be wrong, one a minute while it lasts, and one when it is over.

    What comes and goes is told a few times; then a line a minute says how often it came.

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
        """Since when it is wrong; None while it is not."""
        self._told_ns: int | None = None
        self._is_told = False
        self._ended_ns: int | None = None
        """When it was wrong last."""
        self._at_once = 0
        """Beginnings that were told at once, since it was well for a minute."""
        self._times = 0
        """Beginnings since the last line that told of one."""

    def look(self, wrong: Sequence[str], now_ns: int) -> str:
        """The line that is to be written now; empty for none."""
        if not wrong:
            return self._over(now_ns)
        if self._since_ns is None:
            self._begins(now_ns)
        if not self._due(now_ns):
            return ""
        assert self._since_ns is not None
        lasts_s = round((now_ns - self._since_ns) / 1e9)
        for_s = f" for {lasts_s:,} s" if lasts_s else ""
        often = f", {self._times} times since this was told last" if self._times > 1 else ""
        self._told_ns, self._is_told, self._times = now_ns, True, 0
        return f"not well{for_s}{often}: {'; '.join(wrong)}"

    def _begins(self, now_ns: int) -> None:
        if self._ended_ns is not None and now_ns - self._ended_ns >= _EVERY_NS:
            self._at_once = 0
        self._since_ns = now_ns
        self._times += 1

    def _due(self, now_ns: int) -> bool:
        if not self._is_told and self._at_once < _AT_ONCE:
            self._at_once += 1
            return True
        return self._told_ns is not None and now_ns - self._told_ns >= _EVERY_NS

    def _over(self, now_ns: int) -> str:
        since, told = self._since_ns, self._is_told
        if since is None:
            return ""
        self._since_ns, self._is_told, self._ended_ns = None, False, now_ns
        return f"well again after {(now_ns - since) / 1e9:,.0f} s" if told else ""
