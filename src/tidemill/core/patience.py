"""How long a run bears that it does not progress: first its sources are connected anew, then it is given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ConnectAnew", "GiveUp", "Patience", "Stall"]


@dataclass(frozen=True)
class Stall:
    """Who has kept the run from progressing for longer than is allowed."""

    said: str
    """In one sentence that begins with the culprit."""
    source: str = ""
    """The name of the source that it is, if that can be connected anew."""
    limit_s: float = 0.0
    """How long is allowed."""


@dataclass(frozen=True)
class ConnectAnew:
    """Let these sources connect anew; each is told of once, until it has progressed."""

    sources: tuple[str, ...]
    said: str


@dataclass(frozen=True)
class GiveUp:
    """End the run."""

    said: str


class Patience:
    """A connection may be dead and not know it, so a source that can gets a new one, and as long again to show that this
    has helped. What cannot be helped from here ends the run at once: it has lasted for as long as is allowed already.

    >>> patience, stall = Patience(), Stall("source mqtt: connected, silent 312 s (limit 300)", "mqtt", 300)
    >>> patience.look([stall], now_ns=0)
    ConnectAnew(sources=('mqtt',), said='source mqtt: connected, silent 312 s (limit 300)')
    >>> patience.look([stall], now_ns=299_000_000_000)
    >>> patience.look([stall], now_ns=300_000_000_000).said
    'source mqtt: connected, silent 312 s (limit 300), and connecting anew has not helped'
    """

    def __init__(self) -> None:
        self._anew_ns: dict[str, int] = {}

    def look(self, stalls: Sequence[Stall], now_ns: int) -> ConnectAnew | GiveUp | None:
        """What to do, now that these stall."""
        stalled = {stall.source for stall in stalls}
        self._anew_ns = {source: since for source, since in self._anew_ns.items() if source in stalled}
        for stall in stalls:
            if not stall.source:
                return GiveUp(stall.said)
            since = self._anew_ns.get(stall.source)
            if since is not None and now_ns - since >= stall.limit_s * 1e9:
                return GiveUp(f"{stall.said}, and connecting anew has not helped")
        new = [stall for stall in stalls if stall.source not in self._anew_ns]
        if not new:
            return None
        self._anew_ns |= {stall.source: now_ns for stall in new}
        return ConnectAnew(tuple(stall.source for stall in new), "; ".join(stall.said for stall in new))
