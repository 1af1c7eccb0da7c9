"""What was counted of a run's input up to a place in it, at which another attempt may go on.

What came behind that place is worked on, and counted, again: so the next attempt goes on from the counts at its place, as it
does from the state there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tidemill.engine.metrics import Counts
from tidemill.letters import DeadLetter

__all__ = ["Tally"]


@dataclass(frozen=True)
class Tally:
    """At a place with nothing in flight, since the run began; that of its beginning by default."""

    counts: Counts = field(default_factory=Counts)
    counters: Mapping[str, int] = field(default_factory=dict)
    """What stages counted."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Dead letters."""
    samples: tuple[DeadLetter, ...] = ()
    """The first few of them."""
