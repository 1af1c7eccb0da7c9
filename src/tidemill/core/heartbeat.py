"""What a service manager is told of a run, and when: in the words of ``sd_notify(3)``."""

from __future__ import annotations

from typing import Final

from tidemill.printable import in_one_line

__all__ = ["Heartbeat"]

_STATUS_EVERY_NS: Final = 10_000_000_000
"""A status is for people; one that changes with each look need not be told each time."""
_LONGEST: Final = 400
"""Characters of a status."""


class Heartbeat:
    """Says once when the run is ready and once when it stops, between them that it is alive, only while it progresses.

    ``watchdog_s`` is how long the manager waits for a sign of life, None for no such wait; one is given twice as often.

    >>> heart = Heartbeat(watchdog_s=20.0)
    >>> heart.look(0, progresses=True, ready=True, status="lanes are 31 % busy")
    'READY=1\\nWATCHDOG=1\\nSTATUS=lanes are 31 % busy'
    >>> heart.look(9_000_000_000, progresses=True)
    ''
    >>> heart.look(10_000_000_000, progresses=True)
    'WATCHDOG=1'
    >>> heart.look(90_000_000_000, progresses=False, status="sink postgres: 14 tries")
    'STATUS=sink postgres: 14 tries'
    >>> heart.look(91_000_000_000, progresses=False, stopping=True)
    'STOPPING=1'
    """

    def __init__(self, watchdog_s: float | None) -> None:
        self._every_ns = None if watchdog_s is None else round(watchdog_s * 1e9) // 2
        self._alive_ns: int | None = None
        self._ready = self._stopping = False
        self._progressed = True
        self._status = ""
        self._status_ns: int | None = None

    def look(
        self, now_ns: int, *, progresses: bool, ready: bool = False, stopping: bool = False, status: str = ""
    ) -> str:
        """What to say now, how the run is; empty for nothing."""
        said = []
        if ready and not self._ready and not stopping:
            self._ready = True
            said.append("READY=1")
        if stopping and not self._stopping:
            self._stopping = True
            said.append("STOPPING=1")
        news = bool(said) or progresses != self._progressed
        self._progressed = progresses
        if progresses and self._is_due(now_ns):
            self._alive_ns = now_ns
            said.append("WATCHDOG=1")
        line = in_one_line(status, longest=_LONGEST)  # what follows a line break would be an order to the manager
        if line and line != self._status and (news or self._is_old(now_ns)):
            self._status, self._status_ns = line, now_ns
            said.append(f"STATUS={line}")
        return "\n".join(said)

    def _is_due(self, now_ns: int) -> bool:
        return self._every_ns is not None and (self._alive_ns is None or now_ns - self._alive_ns >= self._every_ns)

    def _is_old(self, now_ns: int) -> bool:
        return self._status_ns is None or now_ns - self._status_ns >= _STATUS_EVERY_NS
