"""Cells of shared memory that settle, for every call, whether it was started: exactly, without asking the lane.

The calls of a process have turns, 1, 2, 3, in the order of sending, which is the order of starting. The lane writes the
turn that it is about to start into ``started`` and then looks at ``announced``; the parent raises ``announced`` and
then looks at ``started``. Each writes before it reads, with a fence in between, so at least one sees the other:

- the parent sees an earlier turn: then the lane, before it starts the call, sees the announcement and waits for the
  `Revoke` that follows it. The call was not started and never will be here.
- the parent sees the call's own turn: to stop it, it kills the process. The announcement without a message holds the
  lane at the start of the next call meanwhile, so nothing else is hit.
- the parent sees a later turn: the call has ended, its answer is on the way.

After a death ``started`` names the call to blame, if that has not been answered.

A third cell, ``cancelled``, holds the turn that the parent wants no more: a function that runs long can look at it
(`tidemill.cancelled`) and leave by itself, before it is killed.
"""

from __future__ import annotations

from typing import Any, Final

from tidemill.lanes.memory import fence

__all__ = ["CURSOR_BYTES", "Cursor", "cancelled"]

CURSOR_BYTES: Final = 24


class Cursor:
    """The cells, over a buffer that both processes map.

    >>> cursor = Cursor(bytearray(CURSOR_BYTES))
    >>> cursor.start(turn=7)
    0
    >>> cursor.announce()
    7
    """

    def __init__(self, buffer: Any) -> None:
        self._cells = memoryview(buffer).cast("q")

    @property
    def started(self) -> int:
        """The turn that was started last; 0 for none."""
        return self._cells[0]

    def start(self, turn: int) -> int:
        """The lane is about to start this turn; how many revocations are announced."""
        self._cells[0] = turn
        with fence:
            return self._cells[1]

    def announce(self) -> int:
        """The parent announces a revocation; the turn that was started last."""
        self._cells[1] += 1
        with fence:
            return self._cells[0]

    def cancel(self, turn: int) -> None:
        """The parent wants this turn no more."""
        self._cells[2] = turn

    @property
    def is_cancelled(self) -> bool:
        """Whether the turn that was started last is wanted no more."""
        return self._cells[0] > 0 and self._cells[0] == self._cells[2]

    def use(self) -> None:
        """From now on `cancelled` means this process's call."""
        global _used  # noqa: PLW0603 - one for the whole process
        _used = self

    def close(self) -> None:
        """Let go of the buffer."""
        self._cells.release()


_used: Cursor | None = None


def cancelled() -> bool:
    """Whether nobody waits any more for the call that runs here: a cue for a long function in a lane to leave.

    It turns true when the caller is cancelled or its timeout has passed; what the function then returns or raises is
    dropped, and if it goes on, its process is killed after the ``grace`` of `tidemill.Lanes`. It costs a fraction of a
    microsecond. Outside of a lane, and with ``Lanes(0)``, it is always False.

    >>> cancelled()
    False
    """
    return _used is not None and _used.is_cancelled
