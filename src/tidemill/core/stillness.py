"""Whether a lane that has calls to begin begins none of them: then these should run elsewhere, and later it is replaced.

Looks are counted, not seconds: a loop that was held, or stopped together with its lanes, has missed some of them.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

__all__ = ["DOUBTED", "HUNG", "Stillness"]

DOUBTED: Final = 1
"""Looks that find a lane as it was, with calls to begin, before these should run elsewhere."""
HUNG: Final = 25
"""The same, before it is replaced: what a function has left behind may take its time to end."""


class Stillness:
    """Of one lane.

    >>> still = Stillness()
    >>> [still.looked("as it was") for _ in range(3)], still.doubted
    ([False, True, True], True)
    >>> still.looked("one call on"), still.doubted
    (False, False)
    """

    def __init__(self) -> None:
        self._sign: Hashable | None = None
        self.looks = 0
        """That have found it as it was at the one before."""

    def looked(self, sign: Hashable | None, *, at_work: bool = False, computes: bool = False) -> bool:
        """A look, one of many, some time apart; whether it counts against the lane. ``sign`` is None when it runs a call or has
        none to begin; else it changes with whatever the lane does. A look counts not while it is ``at_work``, though that may be
        to wait for a processor. One that ``computes``, in whatever thread, begins nothing, but does not hang for it: a thread may
        come to its end.
        """
        if sign is None or sign != self._sign:
            self._sign, self.looks = sign, 0
            return False
        if at_work or (computes and self.looks >= HUNG - 1):
            return False
        self.looks += 1
        return True

    def forget(self) -> None:
        """It has another process, or was told to go on."""
        self._sign, self.looks = None, 0

    @property
    def doubted(self) -> bool:
        """Whether it should get nothing more, for now."""
        return self.looks >= DOUBTED

    @property
    def hangs(self) -> bool:
        """Whether it should be replaced."""
        return self.looks >= HUNG
