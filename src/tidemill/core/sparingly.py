"""Lines of the log that would come by the hundred: ten a minute, and how many were passed over."""

from __future__ import annotations

from typing import Final

from tidemill.core.lately import Lately

__all__ = ["Sparingly"]

_MOST: Final = 10
"""A minute: enough to see which process it is and why, of a record that kills one after the other."""


class Sparingly:
    """Asked at each line whether it is to be written.

    >>> lines = Sparingly()
    >>> [lines.behind(now_ns=0) for _ in range(11)][-2:]
    [' (more of these within a minute are counted, not told)', None]
    >>> lines.behind(now_ns=61_000_000_000)
    ' (1 more since the last that was told)'
    """

    def __init__(self) -> None:
        self._lately = Lately()
        self._told = 0
        self._passed_over = 0

    def behind(self, now_ns: int) -> str | None:
        """What stands behind the line; None for one that is not to be written."""
        lately = self._lately.read(now_ns)
        if lately >= _MOST:
            self._passed_over += 1
            return None
        self._told += 1
        self._lately.look(self._told, now_ns)
        passed_over, self._passed_over = self._passed_over, 0
        if passed_over:
            return f" ({passed_over:,} more since the last that was told)"
        return " (more of these within a minute are counted, not told)" if lately + 1 == _MOST else ""
