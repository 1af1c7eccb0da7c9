"""Two cells of shared memory that settle, for every call, whether it was started: exactly, without asking the lane.

The lane writes the number of the call it is about to start into ``running`` and then looks at ``announced``; the parent
raises ``announced`` and then looks at ``running``. Each writes before it reads, with a fence in between, so at least
one of them sees the other:

- the parent does not see the call running: then the lane, before starting it, sees the announcement and waits for the
  `Revoke` that follows it. The call was not started and never will be here.
- the parent sees it running: to stop it, it kills the process. The announcement without a message holds the lane at
  the start of the next call meanwhile, so nothing else is hit.

After a death ``running`` names the call to blame; 0 means none.
"""

from __future__ import annotations

import threading
from typing import Any, Final

__all__ = ["CURSOR_BYTES", "Cursor"]

CURSOR_BYTES: Final = 16

_fence = threading.Lock()
"""Never contended: taking it is a full memory barrier, which Python has no other word for."""


class Cursor:
    """The cells, over a buffer that both processes map.

    >>> cursor = Cursor(bytearray(CURSOR_BYTES))
    >>> cursor.start(7)
    0
    >>> cursor.announce()
    7
    """

    def __init__(self, buffer: Any) -> None:
        self._cells = memoryview(buffer).cast("q")

    @property
    def running(self) -> int:
        """The call that has been started and not answered; 0 for none."""
        return self._cells[0]

    @property
    def announced(self) -> int:
        """How many messages `Revoke` the parent has announced so far."""
        return self._cells[1]

    def start(self, call: int) -> int:
        """The lane is about to start ``call``; how many revocations are announced."""
        self._cells[0] = call
        with _fence:
            return self._cells[1]

    def rest(self) -> None:
        """The lane runs nothing."""
        self._cells[0] = 0

    def announce(self) -> int:
        """The parent announces a revocation; the call that is running."""
        self._cells[1] += 1
        with _fence:
            return self._cells[0]

    def close(self) -> None:
        """Let go of the buffer."""
        self._cells.release()
