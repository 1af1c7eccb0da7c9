"""How a process of the lanes ended, and what those are told who called what it had."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.core.calls import Calls
from tidemill.errors import LaneDied
from tidemill.lanes.channel import Exit

__all__ = ["Death"]


@dataclass(frozen=True)
class Death:
    """How a process ended, and the call it was in; 0 for none.

    >>> Death(Exit(9, None), 7, "", hung=False).error(7, "model").signal
    9
    """

    how: Exit
    running: int
    words: str
    """What the process wrote last."""
    hung: bool
    """Whether it was killed because it began none of its calls."""

    def error(self, call: int, name: str) -> LaneDied:
        """What the caller of ``name`` is told, whose call it was in, or which it was the last of several not to begin."""
        if call == self.running:
            text = (
                f"{name}: the lane's process ended while it ran this call ({self.how}). Other calls are not affected."
            )
        elif self.hung:
            text = (
                f"{name}: {Calls.MAX_FRUITLESS} processes in a row began none of their calls, and were killed; see whether "
                "the initializer or a module leaves a thread behind that never gives Python's lock back."
            )
        else:
            text = (
                f"{name}: {Calls.MAX_FRUITLESS} processes in a row ended ({self.how}) before they could run anything; see "
                "their messages on stderr, and whether something kills them, such as a limit on memory."
            )
        return LaneDied(text, self.how.signal, self.how.code, self.words)
