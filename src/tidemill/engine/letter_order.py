"""Dead letters in input order, whatever slabs and turns of the loop they came from.

A source's letter and an intake's are known before the records ahead of them have been through the lanes. In a run that
keeps state they wait for these, so that a checkpoint at a position has all letters up to it, and none behind.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from tidemill.letters import DeadLetter

__all__ = ["LetterOrder"]


@dataclass(order=True)
class _Held:
    index: int
    order: int
    letter: DeadLetter = field(compare=False)


class LetterOrder:
    """Holds letters until they are released, and hands them on by the input index of their records.

    >>> told = []
    >>> order = LetterOrder(lambda letter: told.append(letter.position))
    >>> for index in (7, 3, 9):
    ...     order.add(DeadLetter("raised", "why", {}, position=index))
    >>> order.release(8)
    >>> told
    [3, 7]
    """

    def __init__(self, hand_on: Callable[[DeadLetter], None]) -> None:
        self._hand_on = hand_on
        self._held: list[_Held] = []
        self._order = count()
        self._released = 0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, letter: DeadLetter) -> None:
        """One of a record, which has an index; one without comes behind what was released last."""
        index = self._released if letter.position is None else letter.position
        heapq.heappush(self._held, _Held(index, next(self._order), letter))

    def release(self, position: int | None) -> None:
        """Hand on those of the inputs up to this position; None for all."""
        while self._held and (position is None or self._held[0].index < position):
            self._hand_on(heapq.heappop(self._held).letter)
        if position is not None:
            self._released = max(self._released, position)
